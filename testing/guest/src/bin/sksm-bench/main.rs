//! The benchmark: what MADV_MERGE costs, beside KSM and beside ordinary memory, all in one boot.
//!
//! Runs as root in a kernel of its own. Prints one JSON document on stdout (see `sksm_records::bench`) and progress on stderr.
//! Each scenario also checks that it did what it says. A family in which one did not is named in the report, beside all that was
//! measured, and the exit status is 2; it is 1 if there is no report.

mod bystander;
mod calls;
mod concurrency;
mod faults;
mod flushes;
mod growth;
mod inside;
mod ksm;
mod measure;
mod metadata;
mod pages;
mod processes;
mod reclaim;
mod sharers;
mod threads;

use std::process::ExitCode;

use anyhow::{Error, Result, ensure};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use sksm_guest::harness::json;
use sksm_guest::machine::settings::Settings;
use sksm_guest::machine::system;
use sksm_records::bench::names::family;
use sksm_records::bench::{Failure, Report};

use measure::Bench;

/// Name, title, whether it needs MADV_MERGE, and what measures it.
type Entry = (
    &'static str,
    &'static str,
    bool,
    fn(&mut Bench) -> Result<()>,
);

const FAMILIES: [Entry; 12] = [
    (
        family::PAGES,
        "One page, in calls over whole page tables",
        true,
        pages::run,
    ),
    (
        family::CALLS,
        "Calls of different lengths",
        true,
        calls::run,
    ),
    (
        family::THREADS,
        "While other threads of the process run",
        true,
        threads::run,
    ),
    (
        family::BYSTANDER,
        "Another thread, while the process merges much",
        true,
        bystander::run,
    ),
    (
        family::GROWTH,
        "With so many pages published already",
        true,
        growth::run,
    ),
    (
        family::SHARERS,
        "With so many processes sharing each page",
        true,
        sharers::run,
    ),
    (
        family::CONCURRENCY,
        "Several tasks at once",
        true,
        concurrency::run,
    ),
    (
        family::FAULTS,
        "Page faults and unmapping",
        false,
        faults::run,
    ),
    (
        family::PROCESSES,
        "Fork, exec and exit",
        false,
        processes::run,
    ),
    (family::RECLAIM, "Reclaim to swap space", true, reclaim::run),
    (family::METADATA, "Kernel memory", true, metadata::run),
    (
        family::KSM,
        "The same pages, merged by SKSM and by KSM",
        true,
        ksm::run,
    ),
];

/// Measure MADV_MERGE beside KSM and ordinary memory
#[derive(Parser)]
struct Args {
    /// Fewer repeats and smaller sizes: a minute, and rougher figures
    #[arg(long)]
    quick: bool,
    /// The least that gives every row, whatever the figures are worth: for tests
    #[arg(long, hide = true)]
    smoke: bool,
    /// The clock counts instructions: the host says so
    #[arg(long)]
    instructions: bool,
    /// Run only these families
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = PossibleValuesParser::new(family::ALL))]
    only: Vec<String>,
}

fn main() -> ExitCode {
    match json::print(run(&Args::parse())) {
        Some(report) if report.failed.is_empty() => ExitCode::SUCCESS,
        Some(_) => ExitCode::from(2),
        None => ExitCode::FAILURE,
    }
}

fn run(args: &Args) -> Result<Report> {
    system::give_freed_memory_back();
    let settings = Settings::save()?;
    let mut report = Report {
        kernel: system::kernel()?,
        processor: system::processor()?,
        cpus: std::thread::available_parallelism()?.get(),
        memory_mib: system::memory_mib()?,
        quick: args.quick || args.smoke,
        instructions: args.instructions,
        families: Vec::new(),
        failed: Vec::new(),
        beside_ksm: None,
    };
    for (name, title, needs_merge, measure) in FAMILIES {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        ensure!(
            !needs_merge || measure::merges(),
            "this kernel has no MADV_MERGE: boot one built with CONFIG_SKSM, or take --only faults,processes"
        );
        let mut bench = Bench::new(name, title);
        bench.quick = report.quick;
        bench.instructions = args.instructions;
        bench.once = args.smoke;
        let measured = measure(&mut bench);
        let (family, beside_ksm) = bench.finish();
        report.families.push(family);
        report.beside_ksm = report.beside_ksm.or(beside_ksm);
        if let Err(error) = measured {
            report.failed.push(failure(name, &error));
        }
        // The next family would measure something else.
        if let Err(error) = settings.restore() {
            report.failed.push(failure(name, &error));
            break;
        }
    }
    Ok(report)
}

fn failure(family: &str, error: &Error) -> Failure {
    eprintln!("error: family {family}: {error:#}");
    Failure {
        family: family.to_owned(),
        error: format!("{error:#}"),
    }
}
