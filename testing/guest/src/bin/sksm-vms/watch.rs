//! Looks at what is saved, a line of JSON for each.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::machine::system::vmstat;
use sksm_guest::page::PAGE;
use sksm_records::scan::{Moment, Part, Scanner};

use crate::running::Running;

/// So many rounds without more than a hundredth, and there is no more to come.
const ROUNDS_WITHOUT_PROGRESS: f64 = 2.0;

/// Prints what there is to be seen.
pub struct Watch {
    program: Instant,
    part: Instant,
}

impl Watch {
    pub fn new() -> Self {
        let now = Instant::now();
        Watch {
            program: now,
            part: now,
        }
    }

    pub fn begin(&mut self, doing: &str) {
        eprintln!("{doing}");
        self.part = Instant::now();
    }

    /// How long the part has lasted.
    pub fn elapsed(&self) -> Duration {
        self.part.elapsed()
    }

    pub fn look(&self, part: Part, running: Option<&Running>) -> Result<Moment> {
        // KSM's count of zero pages is of both.
        let shared = SKSM.number("pages_sharing")? + KSM.number("pages_sharing")?;
        let pages = shared + KSM.number("ksm_zero_pages")?;
        let cpu_seconds = running.map(Running::cpu_seconds).transpose()?;
        let moment = Moment {
            part,
            seconds: self.part.elapsed().as_secs_f64(),
            clock: self.program.elapsed().as_secs_f64(),
            saved_bytes: pages * PAGE as i64,
            copied_pages: vmstat("cow_ksm")?,
            // A kernel without huge pages counts none.
            huge_pages: vmstat("nr_anon_transparent_hugepages").unwrap_or(0),
            cpu_seconds: cpu_seconds.flatten(),
        };
        println!("{}", serde_json::to_string(&moment)?);
        Ok(moment)
    }

    pub fn look_for(&self, part: Part, length: Duration, every: Duration) -> Result<()> {
        while self.elapsed() < length {
            self.look(part, None)?;
            sleep(every);
        }
        self.look(part, None).map(drop)
    }

    /// Until no more of note is saved.
    pub fn look_until_settled(
        &self,
        running: &Running,
        most: Duration,
        every: Duration,
    ) -> Result<()> {
        let mut seen: Vec<(f64, i64)> = Vec::new();
        loop {
            let moment = self.look(Part::Stopped, Some(running))?;
            let rounds = running.rounds(moment.seconds)?;
            seen.push((rounds, moment.saved_bytes));
            let before = seen
                .iter()
                .rev()
                .find(|(round, _)| *round <= rounds - ROUNDS_WITHOUT_PROGRESS);
            let grown = before.map(|(_, saved)| moment.saved_bytes - saved);
            let begun = moment.saved_bytes > 0 || running.scanner() == Scanner::Nobody;
            let settled = grown.is_some_and(|grown| grown <= moment.saved_bytes / 100);
            if begun && settled || self.elapsed() >= most {
                return Ok(());
            }
            sleep(every);
        }
    }
}
