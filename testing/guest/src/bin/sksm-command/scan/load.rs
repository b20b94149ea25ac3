//! Eight forked workers that serve requests all the time: the scanner beside ksmd, which has them by prctl.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::program::beside;
use sksm_guest::machine::cpu;
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::skip::skip;

use super::Scanner;
use crate::command::number;
use crate::guide::{PYTHON, Workers};

const WORKERS: &str = "8";
/// Of each worker in a round, in which it reads so many entries of 100,000.
const REQUESTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(200);
/// So many rounds without a hundredth more, and there is no more to come.
const ROUNDS: usize = 30;

/// By which KSM has all of their memory.
fn workers() -> Result<Workers> {
    let sksm = beside("sksm")?;
    let words = [
        sksm.to_str().context("a path")?,
        "run",
        "--ksm",
        "--quiet",
        "--",
        "python3",
        "workers.py",
        "--fork",
        WORKERS,
        "table",
    ];
    Workers::start(1, &words, ("workers.py", PYTHON))
}

/// Pages that both have saved, with those of zeros.
fn saved() -> Result<i64> {
    let zeros = KSM.number("ksm_zero_pages")?;
    Ok(SKSM.number("pages_sharing")? + KSM.number("pages_sharing")? + zeros)
}

/// The mean of what is saved once there is no more to come, while they serve; and what whoever merges has taken by then.
fn under_load(workers: &mut Workers) -> Result<f64> {
    let deadline = deadline();
    let before = saved()?;
    let mut seen: Vec<i64> = Vec::new();
    let mut best = (0, 0);
    while seen.len() < best.1 + ROUNDS {
        ensure!(Instant::now() < deadline, "it never settles: {seen:?}");
        workers.serve(REQUESTS)?;
        std::thread::sleep(PAUSE);
        let now = saved()? - before;
        if now > best.0 + best.0 / 100 {
            best = (now, seen.len());
        }
        seen.push(now);
    }
    let last = &seen[seen.len() - ROUNDS / 2..];
    Ok(last.iter().sum::<i64>() as f64 / last.len() as f64)
}

pub fn forked_workers() -> Result<()> {
    if !Path::new("/proc/thread-self/children").exists() {
        return skip("this kernel does not tell a process's children (CONFIG_PROC_CHILDREN)");
    }
    let mut of_ksm = workers()?;
    let private = of_ksm.frames()?;
    let cpu_before = cpu::of_ksmd()?;
    KSM.write("run", 1)?;
    let ksmd = under_load(&mut of_ksm);
    KSM.write("run", 0)?;
    let (ksmd, cpu_after) = (ksmd?, cpu::of_ksmd()?);
    drop(of_ksm);
    KSM.write("run", 2)?;
    let mut of_scanner = workers()?;
    let scanner = Scanner::start(&["--stable", "5s"])?;
    let scanned = under_load(&mut of_scanner)?;
    let (report, _) = scanner.end()?;
    let taken = number(&report["total"]["cpu_seconds"])?;
    let by_ksmd = cpu_before
        .zip(cpu_after)
        .map(|(before, after)| after - before);
    eprintln!(
        "{private} pages private; ksmd saves {ksmd:.0} for {by_ksmd:.2?} s, the scanner {scanned:.0} for {taken:.2} s"
    );
    // Less than ksmd, as it leaves alone what is written before it was the same for a while.
    ensure!(
        scanned > 0.3 * ksmd,
        "ksmd saves {ksmd:.0} pages, the scanner {scanned:.0}: {report}"
    );
    Ok(())
}
