//! How a command in a guest ended, and what its kernel complained of.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// With this status, as a shell shows it.
    Exited(i32),
    TimedOut,
    /// The kernel panicked.
    Panicked,
    /// The kernel went away without a word.
    Died,
}

pub struct Outcome {
    pub end: End,
    /// What was captured.
    pub stdout: Vec<u8>,
    /// The kernel's complaints.
    pub splats: Vec<String>,
    /// The console log.
    pub console: PathBuf,
}

impl Outcome {
    /// Fails if the kernel complained.
    pub fn check_splats(&self) -> Result<()> {
        if !self.splats.is_empty() {
            bail!("{}", self.describe());
        }
        Ok(())
    }

    /// What happened, in words.
    pub fn describe(&self) -> String {
        let mut text = match self.end {
            End::Exited(status) => format!("the command in the guest ended with status {status}"),
            End::TimedOut => "the command in the guest took too long".into(),
            End::Panicked => "the guest's kernel panicked".into(),
            End::Died => "the guest's kernel went away before the command had ended".into(),
        };
        if !self.splats.is_empty() {
            text += "\nthe kernel complained:";
            for splat in &self.splats {
                text += &format!("\n  {splat}");
            }
        }
        text + &format!("\nconsole log: {}", self.console.display())
    }
}
