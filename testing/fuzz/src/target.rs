//! What LibAFL takes for the program under test: the kernel, by way of processes that do what an input says.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use libafl::Error;
use libafl::executors::{Executor, ExitKind, HasObservers};
use libafl::inputs::{BytesInput, HasTargetBytes};
use libafl::observers::ObserversTuple;
use libafl::state::HasExecutions;
use libafl_bolts::AsSlice;
use libafl_bolts::tuples::RefIndexable;
use sksm_guest::exercise::runner::Runner;
use sksm_guest::machine::sysfs::Counters;
use sksm_records::fuzz::{Line, RUNS, encode};
use sksm_records::splats::complains;

const LOG: &str = "/dev/kmsg";
/// Inputs that are told of beside one after which something was wrong: what is wrong may be of one before it.
const REMEMBERED: usize = 8;

pub struct Target<OT> {
    pub runner: Runner,
    observers: OT,
    log: File,
    complaints: File,
    last: VecDeque<String>,
    inputs: u64,
    failure: Option<String>,
    plant: bool,
}

impl<OT> Target<OT> {
    pub fn new(runner: Runner, observers: OT, plant: bool) -> Result<Self> {
        let log = OpenOptions::new().write(true).open(LOG).context(LOG)?;
        let mut complaints = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(LOG)
            .context(LOG)?;
        // What comes from now on.
        complaints.seek(SeekFrom::End(0)).context(LOG)?;
        Ok(Self {
            runner,
            observers,
            log,
            complaints,
            last: VecDeque::new(),
            inputs: 0,
            failure: None,
            plant,
        })
    }

    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What went wrong, and after which inputs.
    pub fn failure(&self) -> Option<Line> {
        Some(Line::Failure {
            inputs: self.last.iter().cloned().collect(),
            reason: self.failure.clone()?,
        })
    }

    /// Addresses of the blocks that ever ran.
    pub fn reached(&self) -> Vec<u64> {
        self.runner
            .coverage()
            .map_or(Vec::new(), |one| one.reached())
    }

    fn run(&mut self, input: &[u8]) -> Result<()> {
        let text = encode(input);
        // The kernel may take everything with it but its log.
        self.log
            .write_all(format!("<6>{RUNS}{text}\n").as_bytes())?;
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(text);
        self.inputs += 1;
        let before = Counters::now()?.pages_merged;
        self.runner.run(input)?;
        if self.plant {
            anyhow::ensure!(Counters::now()?.pages_merged == before, "planted");
        }
        match self.complaint()? {
            None => Ok(()),
            Some(line) => anyhow::bail!("the kernel complains: {line}"),
        }
    }

    /// The first complaint in the kernel's log since it was looked at last.
    fn complaint(&mut self) -> Result<Option<String>> {
        let mut found = None;
        // Each read gives one record.
        let mut record = [0; 8192];
        loop {
            let count = match self.complaints.read(&mut record) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                // Records were lost, as there were too many.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
                Err(error) => return Err(error).context(LOG),
            };
            let text = String::from_utf8_lossy(&record[..count]);
            let line = text.lines().next().unwrap_or_default();
            let message = line.split_once(';').map_or(line, |(_, message)| message);
            if found.is_none() && complains(message) {
                found = Some(message.to_owned());
            }
        }
    }
}

impl<OT> HasObservers for Target<OT> {
    type Observers = OT;

    fn observers(&self) -> RefIndexable<&Self::Observers, Self::Observers> {
        RefIndexable::from(&self.observers)
    }

    fn observers_mut(&mut self) -> RefIndexable<&mut Self::Observers, Self::Observers> {
        RefIndexable::from(&mut self.observers)
    }
}

impl<EM, OT, S, Z> Executor<EM, BytesInput, S, Z> for Target<OT>
where
    OT: ObserversTuple<BytesInput, S>,
    S: HasExecutions,
{
    fn run_target(
        &mut self,
        _fuzzer: &mut Z,
        state: &mut S,
        _manager: &mut EM,
        input: &BytesInput,
    ) -> Result<ExitKind, Error> {
        if self.failed() {
            // What came of the first failure is not the next input's.
            return Ok(ExitKind::Ok);
        }
        *state.executions_mut() += 1;
        match self.run(input.target_bytes().as_slice()) {
            Ok(()) => Ok(ExitKind::Ok),
            Err(error) => {
                self.failure = Some(format!("{error:#}"));
                Ok(ExitKind::Crash)
            }
        }
    }
}
