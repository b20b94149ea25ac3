//! A man page: what clap knows of a command, and the sections that it has no place for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::sections::{self, Term};

/// Writes the page of a verb, or of the command itself.
pub fn write(dir: &Path, verb: &str, command: &Command) -> Result<()> {
    let name = match verb {
        "sksm" => "sksm".to_owned(),
        verb => format!("sksm-{verb}"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone())
        .title(&name)
        .source(format!("sksm {version}"))
        .manual("SKSM");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    section("EXIT STATUS", &sections::status(verb)).to_writer(&mut text)?;
    section("ENVIRONMENT", &sections::environment(verb)).to_writer(&mut text)?;
    section("FILES", &sections::files(verb)).to_writer(&mut text)?;
    let signals = sections::signals(verb);
    if !signals.is_empty() {
        section("SIGNALS", signals).to_writer(&mut text)?;
    }
    see_also(verb).to_writer(&mut text)?;
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn section(title: &str, terms: &[Term]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, meaning) in terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
    roff
}

fn see_also(verb: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let pages = sections::see_also(verb);
    for (number, (page, chapter)) in pages.iter().enumerate() {
        let comma = if number + 1 < pages.len() { "," } else { "" };
        roff.text([bold(*page), roman(format!("({chapter}){comma}"))]);
    }
    roff
}
