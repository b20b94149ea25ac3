//! Processes that do at random what can be done to memory, merge, and know what every byte must be.

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use sksm_guest::exercise::choices::Choices;
use sksm_guest::exercise::operation::Mix;
use sksm_guest::exercise::shared::Shared;
use sksm_guest::exercise::system::{HUGE_PAGES, System};
use sksm_guest::exercise::worker;
use sksm_guest::harness::report;
use sksm_guest::harness::scanner::Scanner;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::lock_stat;
use sksm_guest::machine::swap::{Swap, SwapFile};
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::process::Child;
use sksm_guest::memory::rights::{ALL, become_user_with};

mod disturb;
mod effects;
mod summary;

use disturb::{Disturber, Scene, Target};
use effects::Effects;
use summary::Summary;

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
    /// Everything at once: pins, failing allocations, swap pressure, hot KSM, migration, changing settings
    #[arg(long)]
    stress: bool,
    /// Change a byte behind the shadow's back, which must be found
    #[arg(long, hide = true)]
    plant: bool,
}

/// For the last verification and the exit of all processes.
const WINDING_UP: Duration = Duration::from_secs(400);
/// How much longer a run may take that has not come by everything, as on a busy machine.
const LONGER: Duration = Duration::from_secs(600);
/// Between two lines that tell how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// So many of the locks that were waited for longest are told of.
const LONGEST: usize = 8;

fn main() -> ExitCode {
    let options = Options::parse();
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let from_clock = clock.map_or(1, |time| time.as_micros() as u64 % 1_000_000_007);
    let seed = options.seed.unwrap_or(from_clock);
    eprintln!("--seed {seed} repeats this run's sequences");
    let time = Duration::from_secs(options.seconds);
    let name = if options.stress {
        "everything"
    } else {
        "random/shadow"
    };
    let ok = report::run_one(name, time + LONGER + WINDING_UP, || {
        run(&options, seed, time)
    });
    ExitCode::from(u8::from(!ok))
}

fn run(options: &Options, seed: u64, time: Duration) -> Result<String> {
    let start = Counters::now()?;
    // Every kernel that this is for has it, and without it reclaim does nothing to the pages that are compared.
    let needed = |error: anyhow::Error| anyhow!("it takes swap space: {error:#}");
    let _swap = Swap::on().map_err(needed)?;
    let swap_file = match options.stress {
        true => Some(SwapFile::on().map_err(needed)?),
        false => None,
    };
    let effects = Effects::now()?;
    if fs::exists(HUGE_PAGES)? {
        fs::write(format!("{HUGE_PAGES}/enabled"), "madvise")?;
        if options.stress {
            fs::write(
                format!("{HUGE_PAGES}/khugepaged/scan_sleep_millisecs"),
                "200",
            )?;
        }
    }
    disturb::set_up_ksm(options.stress)?;
    let mix = match options.stress {
        true => Mix::Stress,
        false => Mix::Ordinary,
    };
    let system = System::new(mix)?;
    let groups = &system.groups;
    let locks = options.stress && lock_stat::begin()?;
    let begun = Instant::now();
    // Ended before that where all has been done: whoever is to see that may have to wait for a processor himself.
    let shared = Shared::new(begun + time + LONGER)?;
    let spawn = |number: u64| {
        // Seeds of neighbouring runs share no process.
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(number);
        Child::spawn(|_| {
            if options.stress {
                join_domains(number, groups)?;
            }
            let planted = options.plant && number == 0;
            worker::run(Choices::seeded(seed), &shared, &system, planted)
        })
    };
    let workers = (0..options.processes)
        .map(spawn)
        .collect::<Result<Vec<_>>>()?;
    let targets = workers
        .iter()
        .map(|worker| {
            Ok(Target {
                pid: worker.pid(),
                pidfd: worker.pidfd()?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut scanner = match options.stress {
        true => Some(disturb::scanner()?),
        false => None,
    };
    let (mut disturbers, undisturbed) = match &mut scanner {
        Some(scanner) => disturb::all(Scene {
            targets: &targets,
            groups,
            swap_file: swap_file.as_ref(),
            nodes: &system.nodes,
            changing: &system.changing,
            scanner,
        })?,
        None => (disturb::ordinary(&system.changing)?, Vec::new()),
    };
    let counts: Vec<_> = disturbers.iter().map(Disturber::count).collect();
    let summary = || {
        let effects = effects.since()?;
        anyhow::Ok(Summary::of(
            &shared,
            &system,
            &counts,
            &undisturbed,
            effects,
        ))
    };
    // All that a run fails without.
    let seen = |summary: &Summary| {
        let scanned = !options.stress || disturb::sampled()? > 0;
        let merged = start.change()?.pages_merged > 0;
        anyhow::Ok(summary.never(time).is_empty() && scanned && merged)
    };
    let mut told = Instant::now();
    disturb::run(&mut disturbers, seed, &shared, || {
        let passed = begun.elapsed();
        if passed >= time && summary().and_then(|summary| seen(&summary)).unwrap_or(true) {
            shared.stop();
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(&shared, &start, time.saturating_sub(passed));
        }
    });
    drop(disturbers);
    eprintln!("the last comparison");
    let ends: Vec<Result<()>> = workers.into_iter().map(Child::join).collect();
    let effects_text = effects.since()?.to_string();
    let summary = summary()?;
    if options.stress {
        summary.print();
    }
    if let Some(difference) = shared.difference() {
        bail!("seed {seed}: {difference}");
    }
    if locks {
        tell_locks(lock_stat::end()?);
    }
    ends.into_iter().collect::<Result<()>>()?;
    if let Some(scanner) = scanner {
        tell_scanner(scanner).with_context(|| format!("seed {seed}"))?;
    }
    let merged = start.change()?.pages_merged;
    ensure!(merged > 0, "seed {seed}: nothing was merged");
    summary
        .expect_everything(time)
        .with_context(|| format!("seed {seed}"))?;
    Ok(format!(
        "seed {seed}, {} operations, {} merge calls, {merged} pages merged, {} forks, {effects_text}, {} pages compared, 0 \
         differences",
        shared.operations(),
        shared.merges(),
        shared.forks(),
        shared.compared(),
    ))
}

/// Spreads processes over merge domains: control groups, and users with all of root's rights.
fn join_domains(number: u64, groups: &[Cgroup]) -> Result<()> {
    if !groups.is_empty() {
        groups[number as usize % groups.len()].enter()?;
    }
    if number / 2 % 2 == 1 {
        become_user_with(1001, ALL)?;
    }
    Ok(())
}

/// Those of the engine's shards, and the ones that were waited for longest.
fn tell_locks(mut locks: Vec<lock_stat::Class>) {
    locks.sort_by(|one, other| other.waited.total_cmp(&one.waited));
    println!("locks: taken, waited for, milliseconds of that");
    for (at, lock) in locks.iter().enumerate() {
        if at < LONGEST || lock.name.contains("sksm") {
            println!(
                "  {:<40} {:>12} {:>9} {:>12.1}",
                lock.name,
                lock.acquisitions,
                lock.contentions,
                lock.waited / 1000.0
            );
        }
    }
}

fn tell_scanner(scanner: Scanner) -> Result<()> {
    let (report, _) = scanner.end()?;
    // What it has merged in those that go on running, this process among them.
    SKSM.write("unmerge", 1)?;
    let total = |name: &str| report["total"][name].as_u64().unwrap_or(0);
    println!(
        "the scanner sampled {} pages, and merged {}, of which {} came apart soon",
        total("sampled_pages"),
        total("merged_pages"),
        total("came_apart_pages")
    );
    ensure!(
        total("sampled_pages") > 0,
        "the scanner looked at nothing: {report}"
    );
    Ok(())
}

fn tell(shared: &Shared, start: &Counters, left: Duration) {
    let merged = start.change().map_or(0, |change| change.pages_merged);
    eprintln!(
        "{} s left, {} operations, {merged} pages merged",
        left.as_secs(),
        shared.operations()
    );
}
