//! `cargo xtask`: builds the kernels, boots them, and tests in them.

// First, as its macros are for all the others.
#[macro_use]
mod say;

mod agent;
mod bench;
mod build;
mod cache;
mod config;
mod console;
mod deb;
mod demo;
mod format;
mod guest;
mod guest_tests;
mod host_tests;
mod initramfs;
mod interrupt;
mod kernel;
mod ksmd_watch;
mod lock;
mod measurement;
mod objects;
mod patches;
mod progress;
mod project;
mod protocol;
mod qemu;
mod report;
mod run;
mod selftests;
mod setup;
mod skips;
mod source;
mod step;
mod stress;
mod svg;
mod table;
mod terminal;
mod test;
mod toolchain;
mod tree;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use kernel::Arch;
use project::Project;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Builds, boots and tests kernels with SKSM"
)]
struct Cli {
    /// An unpacked Linux 6.12.y tree to use instead of Debian's package; it is only read
    #[arg(long, global = true, env = "SKSM_LINUX_SRC", value_name = "DIR")]
    linux_src: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing
    Setup {
        /// Only list it, with the apt-get line
        #[arg(long)]
        check: bool,
    },
    /// Build a kernel; the last line of stdout is the image's path
    Kernel { arch: Arch },
    /// Run the experiment: the table, demo.json and demo.svg
    Demo(demo::Args),
    /// Measure SKSM beside KSM and ordinary memory: the tables, bench.json and bench.svg
    Bench(bench::Args),
    /// Boot a kernel on this machine's root file system and run a command in it
    Run(run::Args),
    /// Run all tests; the last line counts them
    Test(test::Args),
    /// Run the kernel's own tests of memory management, and compare with a kernel without the engine
    Selftests(selftests::Args),
    /// Do everything that can be done to merged memory at once, and compare every byte
    Stress(stress::Args),
    /// Build Debian packages: the command and the libraries, or a kernel with SKSM
    Deb(deb::Args),
    /// Write the whole change as one series for `git am`, checked
    Patches(patches::Args),
    /// Remove the cached trees and objects
    Clean,
    /// Serve the tool from inside a guest
    #[command(hide = true)]
    GuestAgent { channel: PathBuf },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(_) if say::lost() => {
            eprintln!("error: not all of the output could be written");
            ExitCode::FAILURE
        }
        Ok(code) => code,
        Err(error) => {
            if let Some(signal) = interrupt::signal() {
                eprintln!("interrupted");
                return ExitCode::from(u8::try_from(128 + signal).unwrap_or(255));
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Verb::GuestAgent { channel } = cli.verb {
        agent::serve(&channel)?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::install()?;
    let linux_src = cli.linux_src.as_deref();
    match cli.verb {
        Verb::Setup { check: true } => {
            return Ok(if setup::check(&Project::find()?)? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Verb::Setup { check: false } => setup::ensure(&Project::find()?, linux_src.is_some())?,
        Verb::Kernel { arch } => {
            let kernel = kernel::build(&Project::find()?, arch, linux_src)?;
            println!("{}", kernel.image.display());
        }
        Verb::Demo(args) => return demo::run(&Project::find()?, args, linux_src),
        Verb::Bench(args) => return bench::run(&Project::find()?, args, linux_src),
        Verb::Run(args) => return run::run(&Project::find()?, args, linux_src),
        Verb::Test(args) => return test::run(&Project::find()?, &args, linux_src),
        Verb::Selftests(args) => return selftests::run(&Project::find()?, args, linux_src),
        Verb::Stress(args) => return stress::run(&Project::find()?, &args, linux_src),
        Verb::Patches(args) => return patches::run(&Project::find()?, &args, linux_src),
        Verb::Deb(args) => return deb::run(&Project::find()?, &args, linux_src),
        Verb::Clean => cache::clean(&Project::find()?)?,
        Verb::GuestAgent { .. } => unreachable!("handled above"),
    }
    Ok(ExitCode::SUCCESS)
}
