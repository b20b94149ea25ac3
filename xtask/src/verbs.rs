//! The verbs: each is a file of its own, and has a folder if it has parts. What several of them share is in `shared`.

mod bench;
mod clean;
mod deb;
mod demo;
mod fuzz;
mod kernel;
mod patches;
mod profile;
mod run;
mod selftests;
mod setup;
mod shared;
mod stress;
mod test;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Subcommand;

use crate::{
    ground::{interrupt, project::Project},
    guest::agent,
    kernel::{Base, Origin},
};

#[derive(Subcommand)]
pub enum Verb {
    /// Install what is missing
    Setup(setup::Args),
    /// Build a kernel; the last line of stdout is the image's path
    Kernel(kernel::Args),
    /// Run the experiment: the table, demo.json and demo.svg
    Demo(demo::Args),
    /// Measure SKSM beside KSM and ordinary memory: the tables, bench.json and bench.svg
    Bench(bench::Args),
    /// Count the kernel's instructions in calls that publish and merge, function by function
    Profile(profile::Args),
    /// Boot a kernel on this machine's root file system and run a command in it
    Run(run::Args),
    /// Run all tests; the last line counts them
    Test(test::Args),
    /// Run the kernel's own tests of memory management, and compare with a kernel without the engine
    Selftests(selftests::Args),
    /// Do everything that can be done to merged memory at once, and compare every byte
    Stress(stress::Args),
    /// Make up what processes do to merged memory, learning from what of the engine that reaches, and compare every byte
    Fuzz(fuzz::Args),
    /// Build Debian packages: the command and the libraries, or a kernel with SKSM
    Deb(deb::Args),
    /// Write the whole change as one series for `git am`, checked
    Patches(patches::Args),
    /// Remove what is cached: downloaded packages, trees and objects
    Clean,
    /// Serve the tool from inside a guest
    #[command(hide = true)]
    GuestAgent {
        channel: PathBuf,
        /// What else runs there is not the commands', and stays
        #[arg(long)]
        guest: bool,
    },
}

pub fn run(verb: Verb, base: Option<Base>, linux_src: Option<PathBuf>) -> Result<ExitCode> {
    if let Verb::GuestAgent { channel, guest } = verb {
        agent::serve(&channel, guest)?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::install()?;
    let project = &Project::find()?;
    if let Verb::Clean = verb {
        return clean::run(project);
    }
    let asked = base.is_some() || linux_src.is_some();
    let origin = &Origin::of(base, linux_src)?;
    match verb {
        Verb::Setup(args) => setup::run(project, &args, origin),
        Verb::Kernel(args) => kernel::run(project, &args, origin),
        Verb::Demo(args) => demo::run(project, args, origin),
        Verb::Bench(args) => bench::run(project, args, origin),
        Verb::Profile(args) => profile::run(project, args, origin),
        Verb::Run(args) => run::run(project, args, origin),
        Verb::Test(args) => test::run(project, &args, asked.then_some(origin)),
        Verb::Selftests(args) => selftests::run(project, args, origin),
        Verb::Stress(args) => stress::run(project, &args, origin),
        Verb::Fuzz(args) => fuzz::run(project, &args, origin),
        Verb::Deb(args) => deb::run(project, &args, origin),
        Verb::Patches(args) => patches::run(project, &args, origin),
        Verb::Clean | Verb::GuestAgent { .. } => unreachable!("handled above"),
    }
}
