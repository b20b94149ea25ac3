//! Completions and man pages, made from the command line's own description.

mod page;
mod sections;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

#[derive(clap::Args)]
pub struct Args {
    /// Where to
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// `command` is `sksm` with all its verbs.
pub fn run(args: Args, mut command: Command) -> Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // `sksm help` is no page's name.
    let mut pages = command.clone().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "sksm", dir)?;
    }
    pages.build();
    page::write(dir, "sksm", &pages)?;
    for verb in pages.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page::write(dir, verb.get_name(), verb)?;
    }
    Ok(ExitCode::SUCCESS)
}
