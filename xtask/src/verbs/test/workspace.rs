//! Cargo for the workspace under test, and where a check's output goes.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::results::Run;
use crate::ground::project;

pub fn cargo(run: &Run, args: &[&str]) -> Command {
    let mut command = project::cargo();
    command.args(args).current_dir(&run.project.root);
    command
}

pub fn log(run: &Run, name: &str) -> Result<PathBuf> {
    let name = name.replace('/', "-");
    run.project.log(&format!("test-{name}"))
}
