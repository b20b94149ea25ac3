//! Every promise of MADV_MERGE, each as a named test. What memory would hold without merging is what it must hold.

use std::process::ExitCode;

use clap::Parser;
use sksm_guest::report::{self, Options};

mod advice;
mod batches;
mod bystanders;
mod charge;
mod children;
mod content;
mod coredump;
mod crowd;
mod damon;
mod debugger;
mod domain;
mod expect;
mod faults;
mod file;
mod fork;
mod huge;
mod idle;
mod ksm;
mod kvm;
mod life;
mod locked;
mod moving;
mod numa;
mod offline;
mod pins;
mod pkeys;
mod poison;
mod pressure;
mod reclaim;
mod remote;
mod rmap;
mod seen;
mod sharing;
mod softdirty;
mod swapping;
mod trace;
mod uffd;
mod uprobe;
mod vma;
mod writers;

/// Checks every promise of MADV_MERGE, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tests = [
        advice::TESTS,
        faults::TESTS,
        content::TESTS,
        sharing::TESTS,
        crowd::TESTS,
        batches::TESTS,
        vma::TESTS,
        file::TESTS,
        life::TESTS,
        locked::TESTS,
        debugger::TESTS,
        coredump::TESTS,
        fork::TESTS,
        writers::TESTS,
        bystanders::TESTS,
        pins::TESTS,
        remote::TESTS,
        domain::TESTS,
        charge::TESTS,
        seen::TESTS,
        trace::TESTS,
        uprobe::TESTS,
        ksm::TESTS,
        uffd::TESTS,
        softdirty::TESTS,
        pkeys::TESTS,
        huge::TESTS,
        idle::TESTS,
        damon::TESTS,
        swapping::TESTS,
        pressure::TESTS,
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
