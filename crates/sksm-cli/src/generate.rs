//! Completions and man pages, made from the command line's own description.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

#[derive(clap::Args)]
pub struct Args {
    /// Where to
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut command = crate::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "sksm", dir)?;
    }
    command.build();
    page(dir, "sksm", &command)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        if verb.get_name() != "help" {
            page(dir, &format!("sksm-{}", verb.get_name()), verb)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn page(dir: &Path, name: &str, command: &Command) -> Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut text)?;
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
