//! `sksm scan` beside a test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::patience::deadline;
use super::program::beside;

/// The scanner, until it is dropped.
pub struct Scanner {
    child: Child,
    errors: BufReader<ChildStderr>,
    /// What it told so far.
    told: String,
}

impl Scanner {
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(beside("sksm")?)
            .args(["scan", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let errors = child.stderr.take().context("no stderr")?;
        Ok(Self {
            child,
            errors: BufReader::new(errors),
            told: String::new(),
        })
    }

    /// Waits until it says so.
    pub fn until_told(&mut self, what: &str) -> Result<()> {
        loop {
            let start = self.told.len();
            let count = self.errors.read_line(&mut self.told)?;
            ensure!(count > 0, "it never said {what:?}: {}", self.told);
            if self.told[start..].contains(what) {
                return Ok(());
            }
        }
    }

    /// Waits until it has done what is to be seen.
    pub fn until(&mut self, mut seen: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = deadline();
        while !seen()? {
            ensure!(Instant::now() < deadline, "the scanner does nothing");
            self.runs()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.errors.read_to_string(&mut self.told)?;
            bail!("the scanner ended by itself: {status}, {}", self.told);
        }
        Ok(())
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: takes numbers only; our own child, not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// The process that scans: a child of the command.
    pub fn worker(&self) -> Result<i32> {
        let of_command = |process: &procfs::process::Process| {
            let stat = process.stat();
            stat.is_ok_and(|stat| stat.ppid as u32 == self.child.id())
        };
        let mut all = procfs::process::all_processes()?.filter_map(Result::ok);
        Ok(all.find(of_command).context("nobody scans")?.pid)
    }

    /// Ends it, as systemd would, and tells what it says it did; and what it told on standard error.
    pub fn end(mut self) -> Result<(Value, String)> {
        self.runs()?;
        self.signal(libc::SIGTERM);
        let mut report = String::new();
        let output = self.child.stdout.as_mut();
        output.context("no stdout")?.read_to_string(&mut report)?;
        self.errors.read_to_string(&mut self.told)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}: {}", self.told);
        Ok((
            serde_json::from_str(&report)?,
            std::mem::take(&mut self.told),
        ))
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
