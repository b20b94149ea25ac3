//! Builds what runs inside the guest.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::project::{self, Project};

/// Builds the guest's programs and the preload object; returns their directory.
pub fn guest_programs(project: &Project) -> Result<PathBuf> {
    let mut cargo = project::cargo()
        .args(["build", "--release"])
        .args(["--package", "sksm-guest", "--package", "sksm-capi"])
        .current_dir(&project.root)
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    if let Some(stderr) = cargo.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            // Said by every build, also by one that has nothing to do.
            if !line.trim_start().starts_with("Finished") {
                eprintln!("{line}");
            }
        }
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("the guest's programs do not build");
    }
    Ok(project.target.join("release"))
}
