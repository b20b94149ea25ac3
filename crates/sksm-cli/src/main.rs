//! `sksm`: what merging would save, did save, and can do on this machine.

mod doctor;
mod domain;
mod estimate;
mod exit;
mod generate;
mod merge;
mod metrics;
mod output;
#[cfg(test)]
#[path = "../tests/pty/mod.rs"]
mod pty;
mod run;
mod stat;
mod target;
mod top;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Merge equal memory pages of processes at once, and see what that brings
#[derive(Parser)]
#[command(name = "sksm", version, after_help = exit::HELP)]
struct Cli {
    /// Print JSON; docs/json.md, /usr/share/doc/sksm/json.md once installed, lists its fields and their units
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What this machine offers, what is in the way, and what to do next
    Doctor,
    /// Run a program that merges its own memory before it starts
    Run(run::Args),
    /// Merge memory of running processes
    Merge(merge::Args),
    /// Counters of the system, or of processes
    Stat(stat::Args),
    /// What merging saves, live: over time, by process and merge domain, KSM beside it
    ///
    /// With --json, one look.
    Top(top::Args),
    /// What merging would save, on any kernel; nothing is merged
    ///
    /// Takes 4 to 5 MiB of memory for each GiB that it looks at, 6 with --settle, and about as much again for what processes have
    /// in common since a fork.
    Estimate(estimate::Args),
    /// Write completions and man pages
    #[command(hide = true)]
    Generate(generate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.json && matches!(cli.verb, Verb::Run(_) | Verb::Generate(_)) {
        let reason = "--json is for verbs that print something of their own";
        Cli::command()
            .error(ErrorKind::ArgumentConflict, reason)
            .exit();
    }
    let result = match cli.verb {
        Verb::Doctor => doctor::run(cli.json),
        Verb::Run(args) => run::run(args),
        Verb::Merge(args) => merge::run(args, cli.json),
        Verb::Stat(args) => stat::run(args, cli.json),
        Verb::Top(args) => top::run(args, cli.json),
        Verb::Estimate(args) => estimate::run(args, cli.json),
        Verb::Generate(args) => generate::run(args),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        exit::of(&error)
    })
}
