//! Inputs after which something was wrong, and how to run them again.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sksm_records::{fuzz::RUNS, splats::complains};

use crate::ground::cache;

/// Inputs that are kept beside one after which something was wrong: what is wrong may be of one before it.
const KEPT: usize = 8;

pub struct Failure {
    /// As they ran.
    pub inputs: Vec<String>,
    pub reason: String,
}

impl Failure {
    /// The inputs that ran until the kernel complained, or fell silent, as its log says.
    pub fn in_log(log: &str) -> Option<Self> {
        let mut inputs = Vec::new();
        let mut reason = "the kernel said nothing more";
        for line in log.lines() {
            if let Some((_, input)) = line.split_once(RUNS) {
                inputs.push(input.trim().to_owned());
            } else if complains(line) {
                reason = line.trim();
                break;
            }
        }
        let first = inputs.len().saturating_sub(KEPT);
        let inputs = inputs.split_off(first);
        (!inputs.is_empty()).then(|| Self {
            inputs,
            reason: reason.to_owned(),
        })
    }

    /// Writes the inputs down, in a file that no other failure has.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let file = (1..)
            .map(|number| dir.join(format!("failure-{number}")))
            .find(|file| !file.exists());
        let file = file.expect("there are enough numbers");
        let reason: String = (self.reason.lines())
            .map(|line| format!("# {line}\n"))
            .collect();
        cache::write(&file, format!("{reason}{}\n", self.inputs.join("\n")))?;
        Ok(file)
    }

    pub fn describe(&self, file: &Path) -> String {
        format!(
            "after the last of {} inputs in {}: {}\n`cargo xtask fuzz --replay {}` runs them again",
            self.inputs.len(),
            file.display(),
            self.reason,
            file.display(),
        )
    }
}

#[cfg(test)]
mod tests {
    use sksm_records::fuzz::inputs;

    use super::*;

    #[test]
    fn what_ran_before_a_complaint_is_found() {
        let mut log = String::from("[    1.0] BUG: no, this is before any input\n");
        assert!(Failure::in_log(&log).is_none());
        log.clear();
        for number in 0..20 {
            log += &format!("[    2.{number}] {RUNS}{number:02x}\n");
        }
        let silent = Failure::in_log(&log).unwrap();
        assert_eq!(silent.inputs.len(), KEPT);
        assert_eq!(silent.reason, "the kernel said nothing more");
        log += "[    3.0] BUG: KASAN: slab-use-after-free in x\n";
        log += &format!("[    4.0] {RUNS}ff\n");
        let failure = Failure::in_log(&log).unwrap();
        assert_eq!(failure.inputs.last().unwrap(), "13");
        assert!(failure.reason.contains("KASAN"));
    }

    #[test]
    fn a_failure_can_be_read_back_and_replaces_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure {
            inputs: vec!["00ff".into(), "01".into()],
            reason: "two\nlines".into(),
        };
        let first = failure.write(dir.path()).unwrap();
        let second = failure.write(dir.path()).unwrap();
        assert_ne!(first, second);
        let text = std::fs::read_to_string(first).unwrap();
        assert_eq!(inputs(&text), Ok(vec![vec![0, 255], vec![1]]));
    }
}
