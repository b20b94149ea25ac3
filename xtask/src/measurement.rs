//! A program that measures in a freshly booted kernel and prints its report as JSON, and the files that are made of that.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    guest::{Boot, Cmd, End, Outcome, Output},
    ksmd_watch::KsmdWatch,
    progress::Step,
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
    let mut errors = Vec::new();
    let mut ksmd = KsmdWatch::default();
    let on_line = |line: &str| {
        step.detail(line);
        // An error and what follows it.
        if !errors.is_empty() || line.starts_with("error:") {
            errors.push(line.to_owned());
        }
        ksmd.hear(line);
    };
    let outcome = boot.run(
        Cmd::new(command)
            .stdout(Output::Capture)
            .stderr(Output::Lines(Box::new(on_line))),
    )?;
    step.done();
    if !matches!(outcome.end, End::Exited(status) if statuses.contains(&status)) {
        for line in errors {
            eprintln!("{line}");
        }
        bail!("{}", outcome.describe());
    }
    let report =
        serde_json::from_slice(&outcome.stdout).context("cannot read what the guest printed")?;
    Ok(Measured {
        report,
        ksmd,
        outcome,
    })
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
