//! The scanner that is watched.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use procfs::process::Process;
use sksm_guest::harness::program::beside;
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::machine::{cpu, ksmd};
use sksm_records::scan::Scanner;

/// Who scans, from its start until this is dropped.
pub struct Running {
    scanner: Scanner,
    child: Option<Child>,
    /// What ksmd had taken before.
    ksmd_seconds: Option<f64>,
}

impl Running {
    pub fn start(scanner: Scanner) -> Result<Self> {
        let ksmd_seconds = cpu::of_ksmd()?;
        let ksmd = |pages: i64, millis: i64| -> Result<Option<Child>> {
            KSM.write("pages_to_scan", pages)?;
            KSM.write("sleep_millisecs", millis)?;
            KSM.write("use_zero_pages", 1)?;
            KSM.write("run", 1)?;
            Ok(None)
        };
        let sksm = |words: &[&str]| -> Result<Option<Child>> {
            let child = Command::new(beside("sksm")?)
                .arg("scan")
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?;
            Ok(Some(child))
        };
        let child = match scanner {
            Scanner::Nobody => None,
            Scanner::KsmdDefault => ksmd(100, 20)?,
            Scanner::KsmdAdvisor => {
                // It begins anew, too.
                for mode in ["none", "scan-time"] {
                    fs::write("/sys/kernel/mm/ksm/advisor_mode", mode)
                        .context("this kernel's ksmd has no advisor")?;
                }
                KSM.write("use_zero_pages", 1)?;
                KSM.write("run", 1)?;
                None
            }
            Scanner::KsmdFast => ksmd(4000, 20)?,
            Scanner::KsmdUnthrottled => ksmd(10_000, 0)?,
            Scanner::Sksm => sksm(&[])?,
            Scanner::SksmSoon => sksm(&["--stable", "10s"])?,
        };
        Ok(Running {
            scanner,
            child,
            ksmd_seconds,
        })
    }

    pub fn scanner(&self) -> Scanner {
        self.scanner
    }

    /// What the scanner, or ksmd in its place, has taken of the CPU since it was started, kernel and all; none where the kernel cannot tell.
    pub fn cpu_seconds(&self) -> Result<Option<f64>> {
        let Some(before) = self.ksmd_seconds else {
            return Ok(None);
        };
        Ok(match &self.child {
            None => cpu::of_ksmd()?.map(|now| now - before),
            Some(child) => {
                let taken = Process::new(child.id() as i32)?.stat()?;
                let ticks = taken.utime + taken.stime;
                Some(ticks as f64 / procfs::ticks_per_second() as f64)
            }
        })
    }

    /// How often it has had time to look at all, by now: ksmd counts its scans, and `sksm scan` waits for a stable time.
    pub fn rounds(&self, seconds: f64) -> Result<f64> {
        Ok(match self.scanner {
            Scanner::Sksm => seconds / 60.0,
            // Its budget may keep it waiting for longer than it looks.
            Scanner::SksmSoon => seconds / 30.0,
            Scanner::Nobody => seconds / 10.0,
            Scanner::KsmdDefault
            | Scanner::KsmdAdvisor
            | Scanner::KsmdFast
            | Scanner::KsmdUnthrottled => KSM.number("full_scans")? as f64,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SAFETY: takes numbers only; our own child, not waited for yet.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            child.wait().ok();
        }
    }
}

/// Takes apart all that is merged.
pub fn forget() -> Result<()> {
    ksmd::forget()?;
    SKSM.write("unmerge", 1)
}
