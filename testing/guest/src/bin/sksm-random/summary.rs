//! What a run came to, and whether that is enough.

use std::time::Duration;

use anyhow::{Result, ensure};
use sksm_guest::exercise::operation::{self, Mix, Operation};
use sksm_guest::exercise::shared::Shared;
use sksm_guest::exercise::system::System;

use crate::disturb::{Count, LeftOut};
use crate::effects::Effects;

/// A run of that length comes by everything.
const LONG: Duration = Duration::from_secs(60);
/// Counts in a line of the table.
const COLUMNS: usize = 4;

pub struct Summary {
    operations: Vec<(String, u64)>,
    disturbances: Vec<(String, u64)>,
    effects: Vec<(String, u64)>,
    spliced_merged: u64,
    /// How often pages of changing files were compared.
    changing: u64,
    left_out: Vec<(String, String)>,
}

impl Summary {
    pub fn of(
        shared: &Shared,
        system: &System,
        disturbances: &[Count],
        undisturbed: &LeftOut,
        effects: Effects,
    ) -> Self {
        let drawn = operation::ALL
            .into_iter()
            .filter_map(|(operation, weights)| {
                (weights[system.mix as usize] > 0).then_some(operation)
            });
        let count = |operation: Operation| (format!("{operation:?}"), shared.done(operation));
        let mut operations: Vec<_> = drawn
            .filter(|operation| !system.lacks(*operation))
            .map(count)
            .collect();
        if system.mix == Mix::Stress && !system.lacks(Operation::MergeFaulty) {
            operations.push(("  refused".into(), shared.refused()));
        }
        let disturbances = disturbances
            .iter()
            .map(|one| (one.name.to_owned(), one.done()));
        let mut left_out: Vec<(String, String)> = undisturbed
            .iter()
            .map(|(name, reason)| ((*name).to_owned(), reason.clone()))
            .collect();
        for (operation, reason) in system.left_out() {
            left_out.push((format!("{operation:?}"), reason.clone()));
        }
        Self {
            operations,
            disturbances: disturbances.collect(),
            effects: effects.counts().collect(),
            spliced_merged: shared.spliced_merged(),
            changing: shared.changing(),
            left_out,
        }
    }

    pub fn print(&self) {
        println!("operations that had an effect:");
        print_table(&self.operations);
        println!("disturbances:");
        print_table(&self.disturbances);
        println!("what became of pages:");
        print_table(&self.effects);
        println!(
            "{} merged pages came back out of pipes as they had gone in",
            self.spliced_merged
        );
        println!(
            "{} times a page was as it had been written, whatever became of its file",
            self.changing
        );
        for (name, reason) in &self.left_out {
            println!("left out: {name}: {reason}");
        }
    }

    /// A test that does not do what it is for is none.
    pub fn expect_everything(&self, time: Duration) -> Result<()> {
        let never = self.never(time);
        ensure!(never.is_empty(), "never done: {}", never.join(", "));
        Ok(())
    }

    /// What a run that was to take that long should have done by now, and has not.
    pub fn never(&self, time: Duration) -> Vec<&str> {
        let counts = self.operations.iter().chain(&self.disturbances);
        (counts.chain(&self.effects))
            .filter(|(_, count)| time >= LONG && *count == 0)
            .map(|(name, _)| name.trim())
            .collect()
    }
}

fn print_table(counts: &[(String, u64)]) {
    for line in counts.chunks(COLUMNS) {
        let cells = line
            .iter()
            .map(|(name, count)| format!("  {name:<14} {count:>8}"));
        println!("{}", cells.collect::<String>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_done_fails_a_long_run() {
        let count = |name: &str, count| (name.to_owned(), count);
        let mut summary = Summary {
            operations: vec![count("Fill", 3), count("Move", 0)],
            disturbances: vec![count("look", 1)],
            effects: vec![count("pswpout", 1)],
            spliced_merged: 0,
            changing: 1,
            left_out: Vec::new(),
        };
        assert!(summary.expect_everything(LONG / 2).is_ok());
        let error = summary.expect_everything(LONG).unwrap_err();
        assert_eq!(error.to_string(), "never done: Move");
        summary.operations.pop();
        assert!(summary.expect_everything(LONG).is_ok());
        summary.effects[0].1 = 0;
        let error = summary.expect_everything(LONG).unwrap_err();
        assert_eq!(error.to_string(), "never done: pswpout");
    }
}
