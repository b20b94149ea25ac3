//! How much CPU time ksmd takes.

use anyhow::{Context, Result};
use procfs::process::{Process, all_processes};

/// ksmd's CPU time in seconds by the scheduler's account, which is behind by a tick at most; none on User-Mode Linux, whose
/// scheduler counts whole ticks: ksmd is done within one.
pub fn of_ksmd() -> Result<Option<f64>> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    if cpu.contains("User Mode Linux") {
        return Ok(None);
    }
    let taken = ksmd()?
        .schedstat()
        .context("cannot read the schedstat of ksmd")?;
    Ok(Some(taken.sum_exec_runtime as f64 / 1e9))
}

/// KSM's thread.
pub fn ksmd() -> Result<Process> {
    let is_ksmd = |process: &Process| process.stat().is_ok_and(|stat| stat.comm == "ksmd");
    all_processes()?
        .filter_map(Result::ok)
        .find(is_ksmd)
        .context("there is no ksmd")
}
