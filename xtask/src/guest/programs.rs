//! Builds what runs inside the guest.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::ground::{
    cache,
    cross::Cross,
    files,
    project::{self, Project},
    step,
};

/// The package for Python and its tests, beside the guest's programs.
pub const PYTHON: &str = "python";

/// Builds the guest's programs, and what is packaged, which is tested there; returns their directory.
pub fn guest_programs(project: &Project) -> Result<PathBuf> {
    project.check_target()?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm-guest"])
            .args(["--package", "sksm-merge-all"])
            .current_dir(&project.root),
    )
    .context("the guest's programs do not build")?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm", "--examples"])
            .current_dir(&project.root),
    )
    .context("the library's example does not build")?;
    example(project, "vm-memory")?;
    example(project, "vmm")?;
    if builds_static_keys()? {
        example(project, "static-keys")?;
    }
    let dir = project.target.join("release");
    let packaged = packaged_programs(project)?;
    // Where the command looks for it, instead of what a build of the whole workspace leaves there.
    let object = fs::read(packaged.preload)?;
    cache::update(&dir.join("libsksm_preload.so"), &object)?;
    let object = fs::read(preload_for_demo(project)?)?;
    cache::update(&dir.join("libsksm_preload_demo.so"), &object)?;
    python(project, &dir.join(PYTHON))?;
    Ok(dir)
}

/// Lays the package out as it is in the repository, and nothing else.
fn python(project: &Project, dir: &Path) -> Result<()> {
    let compiled = |path: &Path| path.extension().is_some_and(|ext| ext == "pyc");
    let mut wanted = BTreeSet::new();
    for part in ["src", "tests", "examples"] {
        for (path, content) in files::below(&project.root.join("python").join(part))? {
            if compiled(&path) {
                continue;
            }
            let path = dir.join(part).join(path);
            cache::update(&path, &content)?;
            wanted.insert(path);
        }
    }
    for path in files::below(dir)?.into_keys().map(|path| dir.join(path)) {
        if !wanted.contains(&path) {
            cache::remove(&path)?;
        }
    }
    Ok(())
}

/// What runs on arm64: all that needs nothing of this machine's.
const ON_ARM64: [&str; 6] = [
    "sksm-selftest",
    "sksm-abi",
    "sksm-random",
    "sksm-replay",
    "sksm-off",
    // The stress is scanned.
    "sksm",
];

/// Builds that.
pub fn arm64_programs(project: &Project) -> Result<PathBuf> {
    project.check_target()?;
    arm64(project, &Cross::prepare(project)?, &ON_ARM64)
        .context("the guest's programs do not build for arm64")
}

/// This tool as arm64's agent.
pub fn agent(project: &Project, cross: &Cross) -> Result<PathBuf> {
    let programs =
        arm64(project, cross, &["xtask"]).context("this tool does not build for arm64")?;
    Ok(programs.join("xtask"))
}

fn arm64(project: &Project, cross: &Cross, programs: &[&str]) -> Result<PathBuf> {
    let mut cargo = cross.build(project);
    cargo
        // All of them, so that crates have the same features whichever are built.
        .args(["--package", "sksm-guest", "--package", "sksm-cli"])
        .args(["--package", "xtask"])
        // Static programs load nothing, so the command carries nothing to preload.
        .env("SKSM_PRELOAD_OBJECT", "/dev/null");
    for program in programs {
        cargo.args(["--bin", program]);
    }
    release(&mut cargo)?;
    Ok(Cross::programs(project))
}

/// Builds the one program of the experiment, for those who wait for nothing else.
pub fn demo(project: &Project) -> Result<PathBuf> {
    project.check_target()?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm-guest"])
            .args(["--bin", "sksm-demo"])
            // So that it takes the crates, with their features, that this tool was built with a moment ago.
            .args(["--package", "xtask"])
            .current_dir(&project.root),
    )
    .context("the experiment's program does not build")?;
    Ok(project.target.join("release/sksm-demo"))
}

/// Builds the fuzzer, whose libraries nothing else needs.
pub fn fuzzer(project: &Project) -> Result<PathBuf> {
    project.check_target()?;
    release(
        project::cargo()
            .args(["build", "--release", "--package", "sksm-fuzz"])
            .current_dir(&project.root),
    )
    .context("the fuzzer does not build")?;
    Ok(project.target.join("release/sksm-fuzz"))
}

/// The preload object is loaded into every process of the user's choice, so it is built small: see its crate.
pub fn preload(project: &Project) -> Result<PathBuf> {
    preload_with(project, &project.target, &[])
}

/// The same with the demo's patching, which no installed object holds.
pub fn preload_for_demo(project: &Project) -> Result<PathBuf> {
    // It has the other's name, and cargo would take one for the other in the same directory.
    let target = project.target.join("demo");
    preload_with(project, &target, &["--features", "experiment"])
}

fn preload_with(project: &Project, target: &Path, features: &[&str]) -> Result<PathBuf> {
    release(
        project::cargo()
            .args(["build", "--package", "sksm-preload", "--profile", "preload"])
            .args(["--no-default-features", "--target-dir"])
            .arg(target)
            .args(features)
            .current_dir(&project.root),
    )
    .context("the preload object does not build")?;
    Ok(target.join("preload/libsksm_preload.so"))
}

/// What the Debian packages are made of.
pub struct Packaged {
    pub command: PathBuf,
    pub library: PathBuf,
    /// The library to be linked statically.
    pub archive: PathBuf,
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
        archive: dir.join("libsksm.a"),
        preload: preload(project)?,
    })
}

/// An example that is a project of its own.
fn example(project: &Project, name: &str) -> Result<()> {
    release(
        project::cargo()
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&project.target)
            .current_dir(project.root.join("examples").join(name)),
    )
    .with_context(|| format!("the example {name} does not build"))
}

/// Whether this compiler is new enough for the example static-keys: 1.87, for `asm goto`. Its test says so where it was not built.
pub fn builds_static_keys() -> Result<bool> {
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
