//! `cargo xtask`: builds the kernels, boots them, and tests in them.
//!
//! There are five wings, and each uses only those that come after it: `verbs`, `guest`, `kernel`, `ground`, `terminal`. A verb
//! is a file in `verbs`, named after it. It has `kernel` build an image, and `guest::programs` what is to run in it.
//! `guest::Boot` starts the image and answers with a `guest::Guest` once the agent inside has greeted. That one runs commands,
//! passes on what they write, and says how each ended and what the kernel complained of. Out of this the verb makes its
//! report: tests go through `verbs::shared::report`, measurements through `verbs::shared::measurement`. `ground` knows files,
//! processes, signals and packages; `terminal` is what one sees.

// First, as its macros are for all the others.
#[macro_use]
mod terminal;

mod ground;
mod guest;
mod kernel;
mod verbs;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use ground::interrupt;
use kernel::Base;
use terminal::say;
use verbs::Verb;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Builds, boots and tests kernels with SKSM"
)]
struct Cli {
    /// Which Linux to build on [default: 6.12, or what --linux-src is]
    #[arg(long, global = true)]
    base: Option<Base>,
    /// An unpacked tree of Linux 6.12.y, or of 7.y from 7.3 on, to use instead of Debian's package; it is only read
    #[arg(long, global = true, env = "SKSM_LINUX_SRC", value_name = "DIR")]
    linux_src: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match verbs::run(cli.verb, cli.base, cli.linux_src) {
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
