//! Runs inputs that a fuzzer has found again, and compares every byte. This takes no kernel that tells what ran.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use sksm_guest::exercise::corpus;
use sksm_guest::exercise::runner::Runner;
use sksm_guest::harness::report;
use sksm_guest::machine::sysfs::Counters;
use sksm_records::fuzz;

/// Runs inputs of sksm-fuzz again
#[derive(Parser)]
struct Options {
    /// Those of this file, one in a line [default: those that are kept in the repository]
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// How often, as not everything that goes wrong goes wrong each time
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// Tell what processes do, one operation in a line of stderr
    #[arg(long)]
    tell: bool,
}

/// For all of them.
const LONGEST: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let options = Options::parse();
    let ok = report::run_one("corpus", LONGEST, || replay(&options));
    ExitCode::from(u8::from(!ok))
}

fn replay(options: &Options) -> Result<String> {
    let inputs = match &options.inputs {
        None => corpus::inputs()?,
        Some(path) => {
            let text = fs::read_to_string(path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            fuzz::inputs(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?
        }
    };
    let start = Counters::now()?;
    let mut runner = Runner::new()?;
    if options.tell {
        runner.tell();
    }
    for (operation, reason) in runner.left_out() {
        eprintln!("left out: {operation:?}: {reason}");
    }
    for _ in 0..options.times {
        for input in &inputs {
            let text = fuzz::encode(input);
            runner.run(input).with_context(|| format!("input {text}"))?;
        }
    }
    let merged = start.change()?.pages_merged;
    // What was asked for by name need not merge anything.
    ensure!(options.inputs.is_some() || merged > 0, "nothing was merged");
    Ok(format!(
        "{} inputs, {} operations, {merged} pages merged, {} pages compared, 0 differences",
        inputs.len() as u64 * options.times,
        runner.operations(),
        runner.compared(),
    ))
}
