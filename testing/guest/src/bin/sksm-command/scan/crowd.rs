//! More processes than files may be open.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::harness::program::beside;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Gate, exit_now, fork, kill_group, reap_all};
use sksm_guest::skip::skip;

use crate::command::{number, run};

/// Ten thousand do as well; they take minutes.
const PROCESSES: usize = 2500;
const PAGES: usize = 4;
/// Memory of the command, in bytes; and what the scanner keeps of a process however little it has.
const MOST: f64 = 64e6;
const EACH: usize = 2048;

/// Processes that hold a few pages of their own, the same in each.
struct Crowd {
    leader: i32,
    gate: Gate,
}

impl Crowd {
    fn gather() -> Result<Self> {
        fs::write("/proc/sys/kernel/threads-max", (4 * PROCESSES).to_string())?;
        let map = Map::anon(PAGES)?;
        map.no_huge();
        let mut crowd = Crowd {
            leader: 0,
            gate: Gate::closed()?,
        };
        for number in 0..PROCESSES {
            let child = fork().with_context(|| format!("process {number}"))?;
            if child == 0 {
                map.fill_all(|page| 1 + page as u64);
                crowd.gate.wait().ok();
                exit_now(0);
            }
            if crowd.leader == 0 {
                crowd.leader = child;
            }
            // SAFETY: takes numbers only; our own child.
            let joined = unsafe { libc::setpgid(child, crowd.leader) };
            ensure!(joined == 0, "{}", std::io::Error::last_os_error());
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if self.leader > 0 {
            kill_group(self.leader);
            reap_all(Duration::from_secs(600)).ok();
        }
    }
}

/// As many open files as a process has by default, of which it cannot get more.
fn with_default_files(arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "ulimit -n 1024 && exec \"$@\"", "sh"])
        .arg(beside("sksm")?)
        .args(arguments)
        .args(["--all", "--what", "heap", "--json"]);
    let started = Instant::now();
    let output = run(&mut command)?;
    eprintln!("{} after {:?}", arguments[0], started.elapsed());
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

pub fn thousands() -> Result<()> {
    if !fs::read_to_string("/proc/cpuinfo")?.contains("User Mode Linux") {
        return skip("so many processes take too long under emulation");
    }
    let started = Instant::now();
    let _crowd = Crowd::gather()?;
    eprintln!("there after {:?}", started.elapsed());
    let estimate = with_default_files(&["estimate"])?;
    let of = |report: &Value, name: &str| number(&report[name]).context(name.to_owned());
    let own_peak = of(&estimate, "own_peak_bytes")?;
    let groups = estimate["groups"].as_array().context("no groups")?;
    let mut seen = 0.0;
    for group in groups {
        seen += of(group, "processes")?;
    }
    ensure!(seen >= PROCESSES as f64, "{seen} processes: {groups:?}");
    eprintln!("estimate: {own_peak} bytes at most");
    ensure!(own_peak < MOST, "{own_peak} bytes for an estimate");

    let scan = with_default_files(&["scan", "--once", "--stable", "1s", "--cpu", "100%"])?;
    let (seen, left_out) = (of(&scan, "processes_count")?, of(&scan, "left_out_count")?);
    eprintln!(
        "scan: {}, {left_out} left out, {} bytes at most, {} about pages",
        scan["total"], scan["own_peak_bytes"], scan["table_bytes"]
    );
    ensure!(
        seen >= PROCESSES as f64,
        "{seen} processes: {}",
        scan["left_out"]
    );
    ensure!(left_out == 0.0, "{}", scan["left_out"]);
    ensure!(
        of(&scan, "own_peak_bytes")? < MOST,
        "{}",
        scan["own_peak_bytes"]
    );
    // 8 MiB for each GiB, and something for each process.
    let bytes = of(&scan["total"], "bytes")?;
    let kept = of(&scan, "table_bytes")?;
    ensure!(
        kept < bytes / 128.0 + (EACH * PROCESSES) as f64,
        "{kept} bytes about {bytes}"
    );
    let merged = of(&scan["total"], "merged_pages")?;
    ensure!(
        merged >= (PROCESSES * PAGES) as f64 * 0.99,
        "{merged} pages merged: {}",
        scan["total"]
    );
    Ok(())
}
