//! A program that measures in a freshly booted kernel and prints its report as JSON, and the files that are made of that.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    guest::{Boot, Cmd, End, Outcome, Output},
    terminal::progress::Step,
    verbs::shared::ksmd_watch::KsmdWatch,
};

/// What came of it.
pub struct Measured<R> {
    pub report: R,
    /// What ksmd took meanwhile, where the guest lets its host find out.
    pub ksmd: KsmdWatch,
    /// Figures are worth showing even if the kernel complained.
    pub outcome: Outcome,
}

/// Boots, runs the program, and reads its report; it must end with one of these statuses.
pub fn run<R: DeserializeOwned>(
    boot: Boot,
    doing: impl Into<String>,
    command: &[OsString],
    statuses: &[i32],
) -> Result<Measured<R>> {
    let step = Step::begin(doing);
    let ksmd = RefCell::default();
    let ran = watch(boot, &step, command, Output::Capture, &ksmd)?;
    step.done();
    let outcome = ran.judge(statuses)?;
    let report = serde_json::from_slice(&outcome.stdout).context(UNREADABLE)?;
    Ok(Measured {
        report,
        ksmd: ksmd.into_inner(),
        outcome,
    })
}

/// The same for a program that prints its report so far in a line, each time that there is more of it.
pub fn follow<R: DeserializeOwned>(
    boot: Boot,
    doing: impl Into<String>,
    command: &[OsString],
    statuses: &[i32],
    mut on_report: impl FnMut(&Step, &KsmdWatch, R),
) -> Result<Outcome> {
    let step = Step::begin(doing);
    let ksmd = RefCell::default();
    let mut unreadable = None;
    let on_line = |line: &str| match serde_json::from_str(line) {
        Ok(report) => on_report(&step, &ksmd.borrow(), report),
        Err(error) => unreadable = Some(error),
    };
    let stdout = Output::Lines(Box::new(on_line));
    let ran = watch(boot, &step, command, stdout, &ksmd)?;
    step.done();
    let outcome = ran.judge(statuses)?;
    match unreadable {
        None => Ok(outcome),
        Some(error) => Err(error).context(UNREADABLE),
    }
}

const UNREADABLE: &str = "cannot read what the guest printed";

/// A program that has ended, and what it complained of.
struct Ran {
    outcome: Outcome,
    errors: Vec<String>,
}

fn watch(
    boot: Boot,
    step: &Step,
    command: &[OsString],
    stdout: Output,
    ksmd: &RefCell<KsmdWatch>,
) -> Result<Ran> {
    let mut errors = Vec::new();
    let on_line = |line: &str| {
        step.detail(line);
        // An error and what follows it.
        if !errors.is_empty() || line.starts_with("error:") {
            errors.push(line.to_owned());
        }
        ksmd.borrow_mut().hear(line);
    };
    let outcome = boot.run(
        Cmd::new(command)
            .stdout(stdout)
            .stderr(Output::Lines(Box::new(on_line))),
    )?;
    Ok(Ran { outcome, errors })
}

impl Ran {
    /// Fails unless it ended with one of these statuses.
    fn judge(self, statuses: &[i32]) -> Result<Outcome> {
        if !matches!(self.outcome.end, End::Exited(status) if statuses.contains(&status)) {
            for line in self.errors {
                eprintln!("{line}");
            }
            bail!("{}", self.outcome.describe());
        }
        Ok(self.outcome)
    }
}

/// The directory that the files go to.
pub struct Out(PathBuf);

impl Out {
    /// To be called before minutes of work whose result could not be written.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub fn json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write(
            &self.0.join(name),
            &(serde_json::to_string_pretty(value)? + "\n"),
        )
    }

    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        write(&self.0.join(name), text)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
