//! This program, executed anew for one part of a test: an executed program's memory is new, and belongs to where it was executed.

use std::io::{BufRead, BufReader};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// It tells one number, waits for the end of its input, and says by its status whether all was well.
pub struct Program(process::Child);

impl Program {
    pub fn start(part: &str) -> Result<Self> {
        let program = Command::new("/proc/self/exe")
            .args(["--part", part])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Ok(Self(program.context("cannot execute this program anew")?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What it tells, once.
    pub fn number(&mut self) -> Result<usize> {
        let output = self.0.stdout.take().context("asked twice")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        (line.trim().parse()).with_context(|| format!("it said {line:?}"))
    }

    pub fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "the program executed anew: {status}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().ok();
    }
}
