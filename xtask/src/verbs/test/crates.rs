//! What is used to check crates and not everybody has: cargo's other commands, an old compiler, a release to compare with.

use std::{
    env,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::ground::{
    git::git,
    interrupt,
    project::{self, Project},
    step, unpacked,
};

/// Says how a command of cargo's is installed, if it is not.
pub fn lacks(command: &str) -> Option<String> {
    let version = project::cargo()
        .args([command, "--version"])
        .stdin(Stdio::null())
        .output();
    match version {
        Ok(output) if output.status.success() => None,
        _ => Some(format!(
            "cargo-{command} is not installed; `cargo install cargo-{command} --locked` does it"
        )),
    }
}

/// Why there are no advisories to look for, which are fetched from elsewhere than crates are.
pub fn no_advisories() -> Option<String> {
    let fetched = project::cargo()
        .args(["deny", "fetch", "db"])
        .stdin(Stdio::null())
        .output();
    match fetched {
        Ok(output) if output.status.success() => None,
        _ => Some("the database of advisories cannot be fetched".into()),
    }
}

/// The cargo of the oldest Rust that the workspace promises to build with, or how to get it.
pub fn oldest_rust(project: &Project) -> Result<Result<Command, String>> {
    let oldest = promised(project)?;
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ours = step::output(Command::new(rustc).arg("--version"))?;
    let mut command = if is(&oldest, ours.split_whitespace().nth(1).unwrap_or_default()) {
        project::cargo()
    } else if let Some(toolchain) = of_rustup(&oldest) {
        let mut command = Command::new("rustup");
        command.args(["run", &toolchain, "cargo"]);
        // Cargo has set them, to its own toolchain's.
        command.env_remove("RUSTC").env_remove("RUSTDOC");
        command
    } else {
        let why = match of_debian(project, &oldest) {
            Ok(Some(mut command)) => {
                command.current_dir(&project.root);
                return Ok(Ok(command));
            }
            Ok(None) => "is not installed".to_owned(),
            Err(error) => {
                interrupt::check()?;
                format!("is not installed, nor can it be fetched from Debian ({error:#})")
            }
        };
        return Ok(Err(format!(
            "Rust {oldest} {why}; `rustup toolchain install {oldest} --profile minimal` does it"
        )));
    };
    command.current_dir(&project.root);
    Ok(Ok(command))
}

/// The name of rustup's toolchain, if it has one of that version.
fn of_rustup(oldest: &str) -> Option<String> {
    let list = Command::new("rustup").args(["toolchain", "list"]).output();
    let list = String::from_utf8(list.ok()?.stdout).ok()?;
    let mut toolchains = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let toolchain = toolchains.find(|toolchain| is(oldest, toolchain))?;
    Some(toolchain.to_owned())
}

/// This cargo with the compiler that Debian has beside its newest, if it has that version.
fn of_debian(project: &Project, oldest: &str) -> Result<Option<Command>> {
    const COMPILER: &str = "rustc-web";
    let place = project.cache.join(format!("rust-{oldest}"));
    if !place.is_dir() {
        let madison = Command::new("apt-cache")
            .args(["madison", COMPILER])
            .output();
        let madison = madison.map_or(Vec::new(), |output| output.stdout);
        let madison = String::from_utf8_lossy(&madison);
        let versions = madison.lines().filter_map(|line| line.split('|').nth(1));
        let Some(version) = versions.map(str::trim).find(|version| is(oldest, version)) else {
            return Ok(None);
        };
        let library = format!("libstd-rust-web-{oldest}");
        let packages = [COMPILER, "libstd-rust-web-dev", &library];
        let packages = packages.map(|package| format!("{package}={version}"));
        unpacked::unpack(project, &format!("Rust {oldest}"), &packages, &place)?;
    }
    let libraries = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
    let mut command = project::cargo();
    command
        .env("RUSTC", place.join("usr/bin/rustc"))
        .env("LD_LIBRARY_PATH", place.join(libraries));
    Ok(Some(command))
}

/// The workspace's `rust-version`.
fn promised(project: &Project) -> Result<String> {
    let metadata = step::output(
        project::cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(&project.root),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array();
    packages
        .and_then(|packages| packages.iter().find(|package| package["name"] == "sksm"))
        .and_then(|package| package["rust_version"].as_str())
        .map(str::to_owned)
        .context("the package sksm has no rust-version")
}

/// Whether a version or a toolchain's name is one of `oldest`, as in `1.85`.
fn is(oldest: &str, version: &str) -> bool {
    version
        .strip_prefix(oldest)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The last release, or why there is none.
pub fn released(project: &Project) -> Result<Result<String, String>> {
    let output = git(&project.root)
        .args(["describe", "--tags", "--abbrev=0", "--match", "v*"])
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        return Ok(Err("there is no release to compare with".into()));
    }
    let tag = String::from_utf8_lossy(&output.stdout);
    Ok(Ok(tag.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_that_version_is_the_oldest() {
        for version in [
            "1.85",
            "1.85.0",
            "1.85-x86_64-unknown-linux-gnu",
            "1.85.1-nightly",
        ] {
            assert!(is("1.85", version), "{version}");
        }
        for version in ["1.8", "1.850.0", "1.86.0", "stable", ""] {
            assert!(!is("1.85", version), "{version}");
        }
    }

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        assert_eq!(lacks("clippy"), None);
        let reason = lacks("no-such-command").unwrap();
        assert!(reason.contains("`cargo install cargo-no-such-command --locked`"));
    }

    #[test]
    fn a_directory_without_releases_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        assert!(released(&project).unwrap().is_err());
    }
}
