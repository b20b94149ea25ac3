//! `sksm`: what merging would save, did save, and can do on this machine.

mod census;
mod cpu_clock;
mod descriptors;
mod doctor;
mod domain;
mod estimate;
mod exit;
mod failure;
mod footprint;
mod generate;
mod hung;
mod ksm;
mod merge;
mod metrics;
mod output;
#[cfg(test)]
#[path = "../tests/pty/mod.rs"]
mod pty;
mod reason;
mod rights;
mod run;
mod scan;
mod stat;
mod store;
mod support;
mod system;
mod target;
mod top;
mod unit;
mod unmerge;
mod what;
mod work;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Merge equal memory pages of processes at once, and see what that brings
#[derive(Parser)]
#[command(name = "sksm", version, after_help = exit::HELP, max_term_width = 100)]
struct Cli {
    /// Print JSON; its fields are in docs/json.md
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What this machine offers, what is in the way, and what to do next
    Doctor(doctor::Args),
    /// Run a program that merges its own memory before it starts
    Run(run::Args),
    /// Merge memory of running processes
    ///
    /// Looks first which pages have a twin, as `sksm estimate` does, and takes up to 20 MiB of memory for each GiB for that.
    #[command(override_usage = "sksm merge [OPTIONS] PROCESSES")]
    Merge(merge::Args),
    /// Give pages of running processes their own copies again
    ///
    /// What SKSM and KSM have merged, and what they made the zero page. It takes the memory that merging had saved. KSM scans the
    /// mappings that were gone through no more. Whoever merges them again shares them again: to keep them apart, see `sksm doctor`
    /// about merge domains.
    ///
    /// With --all the kernel does it to the whole machine at once, where this command may write /sys/kernel/mm/sksm/unmerge.
    #[command(override_usage = "sksm unmerge [OPTIONS] PROCESSES")]
    Unmerge(work::Whom),
    /// Merge what stays the same, for as long as this runs: in place of ksmd
    ///
    /// Looks at a few bytes of each page now and then, and merges pages that have not changed for a while and have a twin. By itself it
    /// looks at what KSM would scan, and leaves all else alone. SIGTERM ends it, and what is merged stays merged.
    #[command(override_usage = "sksm scan [OPTIONS] [PROCESSES]")]
    Scan(scan::Args),
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
    #[command(override_usage = "sksm estimate [OPTIONS] PROCESSES")]
    Estimate(estimate::Args),
    /// What the store holds: code and data of one user's processes, once in memory on any kernel
    ///
    /// `sksm run --store` and programs that use it put it there: see docs/store.md.
    Store(store::Args),
    /// Write completions and man pages
    #[command(hide = true)]
    Generate(generate::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse().and_then(checked) {
        Ok(cli) => cli,
        Err(error) => {
            // Help is no error.
            if error.use_stderr() && asks_for_json() {
                failure::print_usage(&error);
            }
            error.exit();
        }
    };
    let json = cli.json;
    let result = match cli.verb {
        Verb::Doctor(args) => doctor::run(args, json),
        Verb::Run(args) => run::run(args),
        Verb::Merge(args) => merge::run(args, json),
        Verb::Unmerge(args) => unmerge::run(args, json),
        Verb::Scan(args) => scan::run(args, json, parse_scan),
        Verb::Stat(args) => stat::run(args, json),
        Verb::Top(args) => top::run(args, json),
        Verb::Estimate(args) => estimate::run(args, json),
        Verb::Store(args) => store::run(args, json),
        Verb::Generate(args) => generate::run(args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        if json {
            failure::print(&error);
        }
        output::error(&error);
        exit::of(&error)
    })
}

/// A whole command line of `scan`, as its configuration file is part of one.
fn parse_scan(words: Vec<std::ffi::OsString>) -> Result<scan::Args, clap::Error> {
    match Cli::try_parse_from(words)?.verb {
        Verb::Scan(args) => Ok(args),
        _ => Err(Cli::command().error(ErrorKind::InvalidSubcommand, "that is another verb")),
    }
}

fn checked(cli: Cli) -> Result<Cli, clap::Error> {
    if cli.json && matches!(cli.verb, Verb::Run(_) | Verb::Generate(_)) {
        let reason = "--json is for verbs that print something of their own";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, reason));
    }
    if let Verb::Run(args) = &cli.verb {
        if let Some(mistake) = args.mistake(std::env::args_os()) {
            return Err(Cli::command().error(ErrorKind::UnknownArgument, mistake));
        }
    }
    Ok(cli)
}

/// Of a command line that is not understood. What comes after `--` is another program's.
fn asks_for_json() -> bool {
    let mut own = std::env::args_os().take_while(|word| word != "--");
    own.any(|word| word == "--json")
}
