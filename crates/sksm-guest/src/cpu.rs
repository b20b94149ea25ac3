//! How much CPU time ksmd takes.

use anyhow::{Context, Result};
use procfs::process::{Process, all_processes};
use procfs::ticks_per_second;

/// ksmd's CPU time by the kernel's account; none on User-Mode Linux, which accounts by whole ticks: ksmd is done within one.
pub fn of_ksmd() -> Result<Option<f64>> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    if cpu.contains("User Mode Linux") {
        return Ok(None);
    }
    let is_ksmd = |process: &Process| process.stat().is_ok_and(|stat| stat.comm == "ksmd");
    let ksmd = all_processes()?
        .filter_map(Result::ok)
        .find(is_ksmd)
        .context("there is no ksmd")?;
    let stat = ksmd.stat().context("cannot read the stat of ksmd")?;
    Ok(Some(
        (stat.utime + stat.stime) as f64 / ticks_per_second() as f64,
    ))
}
