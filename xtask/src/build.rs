//! Builds what runs inside the guest.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    cache,
    project::{self, Project},
    step,
};

/// Builds the guest's programs, and what is packaged, which is tested there; returns their directory.
pub fn guest_programs(project: &Project) -> Result<PathBuf> {
    project.check_target()?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm-guest"])
            .current_dir(&project.root),
    )
    .context("the guest's programs do not build")?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm", "--examples"])
            .current_dir(&project.root),
    )
    .context("the library's example does not build")?;
    example(project)?;
    let dir = project.target.join("release");
    let packaged = packaged_programs(project)?;
    // Where the command looks for it, instead of what a build of the whole workspace leaves there.
    let object = fs::read(packaged.preload)?;
    cache::update(&dir.join("libsksm_preload.so"), &object)?;
    Ok(dir)
}

/// The preload object is loaded into every process of the user's choice, so it is built small: see its crate.
pub fn preload(project: &Project) -> Result<PathBuf> {
    release(
        project::cargo()
            .args(["build", "--package", "sksm-preload", "--profile", "preload"])
            .arg("--no-default-features")
            .current_dir(&project.root),
    )
    .context("the preload object does not build")?;
    Ok(project.target.join("preload/libsksm_preload.so"))
}

/// What the Debian packages are made of.
pub struct Packaged {
    pub command: PathBuf,
    pub library: PathBuf,
    pub preload: PathBuf,
}

/// Builds it.
pub fn packaged_programs(project: &Project) -> Result<Packaged> {
    release(
        project::cargo()
            .args([
                "build",
                "--release",
                "--package",
                "sksm-cli",
                "--package",
                "sksm-capi",
            ])
            .current_dir(&project.root),
    )
    .context("the command and the library do not build")?;
    let dir = project.target.join("release");
    Ok(Packaged {
        command: dir.join("sksm"),
        library: dir.join("libsksm.so"),
        preload: preload(project)?,
    })
}

/// The example that needs a newer compiler than the rest; its test says so where it was not built.
fn example(project: &Project) -> Result<()> {
    if !builds_example()? {
        return Ok(());
    }
    release(
        project::cargo()
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&project.target)
            .current_dir(project.root.join("examples/static-keys")),
    )
    .context("the example static-keys does not build")
}

/// Whether this compiler is new enough for the example static-keys: 1.87, for `asm goto`.
pub fn builds_example() -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = step::output(Command::new(rustc).arg("--version"))?;
    text.split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok())
        .map(|minor: u32| minor >= 87)
        .with_context(|| format!("rustc's version is not understood: {text}"))
}

/// Runs a build, showing what it says except that it has finished.
fn release(command: &mut Command) -> Result<()> {
    let mut cargo = command
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
        bail!("cargo failed: {status}");
    }
    Ok(())
}
