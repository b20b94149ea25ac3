//! Programs that run beside a test.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::frames;

/// A program that waits for its input to end.
pub struct Worker {
    pub child: std::process::Child,
    output: BufReader<ChildStdout>,
    /// Its first line of output.
    pub first: String,
}

impl Worker {
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut worker = Worker {
            child,
            output,
            first: String::new(),
        };
        worker.first = worker.line()?;
        Ok(worker)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it has ended early");
        Ok(line.trim().to_owned())
    }

    /// Lets it go on, and waits for what it says next.
    pub fn ask(&mut self) -> Result<String> {
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(b"\n")?;
        self.line()
    }

    pub fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Programs that run until they are dropped, each after it has said that it is ready.
pub struct Crew(Vec<Worker>);

impl Crew {
    pub fn start(commands: impl IntoIterator<Item = Command>) -> Result<Self> {
        let workers = commands.into_iter().map(Worker::start);
        let crew = Self(workers.collect::<Result<_>>()?);
        for worker in &crew.0 {
            ensure!(worker.first == "ready", "said {:?}", worker.first);
        }
        Ok(crew)
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|worker| worker.child.id())
    }

    /// The physical pages of anonymous memory of the kinds that `sksm merge` takes.
    pub fn frames(&self) -> Result<BTreeSet<u64>> {
        frames::of(self.pids())
    }
}
