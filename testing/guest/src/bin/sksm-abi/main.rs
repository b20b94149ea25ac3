//! Every promise of MADV_MERGE, each as a named test. What memory would hold without merging is what it must hold.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sksm_guest::harness::report::{self, Options};

mod advice;
mod asleep;
mod batches;
mod bystanders;
mod charge;
mod children;
mod content;
mod copies;
mod coredump;
mod counted;
mod crowd;
mod damon;
mod debugger;
mod device;
mod domain;
mod endless;
mod expect;
mod faults;
mod file;
mod fork;
mod huge;
mod identity;
mod idle;
mod ksm;
mod kvm;
mod life;
mod locked;
mod marks;
mod moving;
mod mte;
mod numa;
mod offline;
mod order;
mod outlives;
mod passed;
mod pins;
mod pkeys;
mod poison;
mod prepared;
mod pressure;
mod program;
mod reclaim;
mod remote;
mod rmap;
mod seen;
mod sharing;
mod softdirty;
mod swapping;
mod trace;
mod uffd;
mod unmerge;
mod uprobe;
mod vma;
mod writers;

/// Checks every promise of MADV_MERGE, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Do a part of a test, as a program of its own
    #[arg(long, hide = true, value_name = "PART")]
    part: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(part) = arguments.part {
        return match run(&part) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{part}: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let tests = [
        advice::TESTS,
        faults::TESTS,
        content::TESTS,
        sharing::TESTS,
        crowd::TESTS,
        copies::TESTS,
        prepared::TESTS,
        batches::TESTS,
        order::TESTS,
        vma::TESTS,
        file::TESTS,
        outlives::TESTS,
        life::TESTS,
        locked::TESTS,
        debugger::TESTS,
        coredump::TESTS,
        fork::TESTS,
        writers::TESTS,
        bystanders::TESTS,
        pins::TESTS,
        remote::TESTS,
        unmerge::TESTS,
        domain::TESTS,
        marks::TESTS,
        identity::TESTS,
        passed::TESTS,
        charge::TESTS,
        seen::TESTS,
        counted::TESTS,
        trace::TESTS,
        uprobe::TESTS,
        ksm::TESTS,
        uffd::TESTS,
        softdirty::TESTS,
        pkeys::TESTS,
        mte::TESTS,
        huge::TESTS,
        idle::TESTS,
        damon::TESTS,
        swapping::TESTS,
        asleep::TESTS,
        pressure::TESTS,
        endless::TESTS,
        device::TESTS,
        moving::TESTS,
        numa::TESTS,
        offline::TESTS,
        kvm::TESTS,
        // Last: these take pages away from the system for good.
        rmap::TESTS,
        children::TESTS,
        poison::TESTS,
    ];
    report::run(&tests.concat(), &arguments.options)
}

/// What this program does when a test executes it anew for a part of its own.
fn run(part: &str) -> Result<()> {
    match part {
        "domain" => domain::hold(),
        "any-length" => order::merge_any_length(),
        _ => bail!("there is no such part"),
    }
}
