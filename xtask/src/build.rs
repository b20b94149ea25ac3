//! Builds what runs inside the guest.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::project::{self, Project};

/// Builds the guest's programs and the preload object; returns their directory.
pub fn guest_programs(project: &Project) -> Result<PathBuf> {
    let status = project::cargo()
        .args([
            "build",
            "--release",
            "--package",
            "sksm-guest",
            "--package",
            "sksm-capi",
        ])
        .current_dir(&project.root)
        // Cargo's progress belongs with ours; stdout is for results.
        .stdout(std::process::Stdio::from(rustix::io::dup(
            std::io::stderr(),
        )?))
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the guest's programs do not build");
    }
    Ok(project.target.join("release"))
}
