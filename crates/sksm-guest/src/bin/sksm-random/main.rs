//! Processes that do at random what can be done to memory, merge, and know what every byte must be.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use sksm_guest::process::Child;
use sksm_guest::report;
use sksm_guest::swap::Swap;
use sksm_guest::sysfs::{Counters, KSM};

mod arena;
mod pressure;
mod shadow;
mod shared;
mod worker;

use shared::Shared;

/// Does at random what can be done to memory, and compares it with what it must hold
///
/// Each process draws its operations from its own part of the seed, so the same seed repeats every process's sequence.
/// Needs root, for swap space and to leave KSM running.
#[derive(Parser)]
struct Options {
    /// Repeat the sequence of an earlier run [default: chosen from the clock and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// How long
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How many processes, besides the children that they fork
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=200))]
    processes: u64,
}

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// For the last verification and the exit of all processes.
const WINDING_UP: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let options = Options::parse();
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let from_clock = clock.map_or(1, |time| time.as_micros() as u64 % 1_000_000_007);
    let seed = options.seed.unwrap_or(from_clock);
    eprintln!("--seed {seed} repeats this run's sequences");
    let time = Duration::from_secs(options.seconds);
    let ok = report::run_one("random/shadow", time + WINDING_UP, || {
        run(seed, time, options.processes)
    });
    ExitCode::from(u8::from(!ok))
}

fn run(seed: u64, time: Duration, processes: u64) -> Result<String> {
    let start = Counters::now()?;
    let _swap = match Swap::on() {
        Ok(swap) => Some(swap),
        Err(error) => {
            eprintln!("without swap: {error:#}");
            None
        }
    };
    KSM.write("sleep_millisecs", 20)?;
    KSM.write("pages_to_scan", 500)?;
    KSM.write("run", 1)?;
    if fs::exists(HUGE_PAGES)? {
        fs::write(HUGE_PAGES, "madvise")?;
    }
    let shared = Shared::new(Instant::now() + time)?;
    let file = shadow::file()?;
    let spawn = |number| {
        // Seeds of neighbouring runs share no process.
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
        Child::spawn(|_| worker::run(seed, &shared, &file))
    };
    let workers = (0..processes).map(spawn).collect::<Result<Vec<_>>>()?;
    pressure::keep_up(&shared)?;
    let ends: Vec<Result<()>> = workers.into_iter().map(Child::join).collect();
    if let Some(difference) = shared.difference() {
        bail!("seed {seed}: {difference}");
    }
    ends.into_iter().collect::<Result<()>>()?;
    let merged = start.change()?.pages_merged;
    if merged == 0 {
        bail!("seed {seed}: nothing was merged");
    }
    Ok(format!(
        "seed {seed}, {} operations, {} merge calls, {merged} pages merged, {} forks, {} pages compared, 0 differences",
        shared.operations(),
        shared.merges(),
        shared.forks(),
        shared.compared(),
    ))
}
