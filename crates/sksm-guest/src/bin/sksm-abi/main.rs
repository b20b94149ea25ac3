//! Every promise of MADV_MERGE, each as a named test. What memory would hold without merging is what it must hold.

use std::process::ExitCode;

use clap::Parser;
use sksm_guest::report::{self, Options};

mod advice;
mod children;
mod content;
mod domain;
mod expect;
mod faults;
mod file;
mod fork;
mod huge;
mod ksm;
mod kvm;
mod life;
mod moving;
mod numa;
mod offline;
mod pins;
mod poison;
mod pressure;
mod remote;
mod rmap;
mod seen;
mod sharing;
mod swapping;
mod uffd;
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
        vma::TESTS,
        file::TESTS,
        life::TESTS,
        fork::TESTS,
        writers::TESTS,
        pins::TESTS,
        remote::TESTS,
        domain::TESTS,
        seen::TESTS,
        ksm::TESTS,
        uffd::TESTS,
        huge::TESTS,
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
