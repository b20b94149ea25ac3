//! Runs inputs one after the other, each by a family of processes that begins with one and ends before the next.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::choices::Choices;
use super::operation::{self, Mix, Operation};
use super::shared::Shared;
use super::system::{HUGE_PAGES, System};
use super::worker;
use crate::harness::patience::PATIENCE;
use crate::harness::stacks;
use crate::machine::kcov::Coverage;
use crate::machine::swap::Swap;
use crate::memory::process::{Child, Ended, adopt_orphans, kill_group, own_group, reap_all};

/// After so long the processes of an input do nothing more than compare.
const LONGEST: Duration = Duration::from_secs(60);

/// What the machine offers to inputs, and what all that ran have done.
pub struct Runner {
    system: System,
    shared: Shared,
    _swap: Swap,
}

impl Runner {
    pub fn new() -> Result<Self> {
        adopt_orphans()?;
        let swap = Swap::on().context("it takes swap space")?;
        if fs::exists(HUGE_PAGES)? {
            fs::write(format!("{HUGE_PAGES}/enabled"), "madvise")?;
        }
        Ok(Self {
            system: System::new(Mix::Fuzz)?,
            shared: Shared::new(Instant::now())?,
            _swap: swap,
        })
    }

    /// Counts from now on what of the kernel's code runs. False if the kernel does not tell.
    pub fn listen(&mut self) -> Result<bool> {
        self.system.coverage = Coverage::open()?;
        Ok(self.system.coverage.is_some())
    }

    /// Lets each process tell on stderr what it is about to do.
    pub fn tell(&mut self) {
        self.system.telling = true;
    }

    pub fn coverage(&self) -> Option<&Coverage> {
        self.system.coverage.as_ref()
    }

    /// What is wrong after the input is the error.
    pub fn run(&mut self, input: &[u8]) -> Result<()> {
        self.system.reset().context("settings")?;
        self.shared.renew(Instant::now() + LONGEST);
        if let Some(coverage) = &self.system.coverage {
            coverage.clear();
        }
        let (shared, system) = (&self.shared, &self.system);
        let child = Child::spawn(|_| {
            own_group(0);
            worker::run(Choices::of_input(input.to_vec()), shared, system, false)
        })?;
        let group = child.pid();
        own_group(group);
        if !child.pidfd()?.ends_within(PATIENCE)? {
            bail!(
                "its first process does not come to an end:\n{}",
                stacks::of_group(group)
            );
        }
        let ended = child.ended()?;
        // A process that failed memory killed leaves children behind.
        kill_group(group);
        reap_all(PATIENCE)?;
        if let Some(difference) = self.shared.difference() {
            bail!("{difference}");
        }
        let failed_memory = ended == Ended::Signal(libc::SIGBUS) && self.shared.poisoned();
        ensure!(
            ended == Ended::Exit(0) || failed_memory,
            "its first process: {ended}"
        );
        Ok(())
    }

    /// How often each operation had an effect.
    pub fn done(&self) -> Vec<(Operation, u64)> {
        (operation::ALL.iter())
            .filter(|(operation, _)| !self.system.lacks(*operation))
            .map(|(operation, _)| (*operation, self.shared.done(*operation)))
            .collect()
    }

    pub fn operations(&self) -> u64 {
        self.shared.operations()
    }

    pub fn compared(&self) -> u64 {
        self.shared.compared()
    }

    /// Operations that this kernel has not, and why.
    pub fn left_out(&self) -> &[(Operation, String)] {
        self.system.left_out()
    }
}
