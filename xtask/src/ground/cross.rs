//! arm64's own: what programs for it are built with, and the shell that it boots with. Debian's packages of that architecture,
//! unpacked in the cache: the system is told of no other architecture, and nothing is installed.
//!
//! Programs are linked statically, as there is no root file system that they could take libraries from. Rust's library is that
//! of the packaged compiler that also builds the kernels, as it must be of the very same version; rustup's targets would be
//! another download, of every user. The C library is Debian's too: a static glibc, so that what runs there is what runs here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    apt::{self, Apt},
    cache, packages,
    project::{self, Project},
    step,
};
use crate::terminal::progress::Step;

/// As Rust calls it, and as Debian does.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";
const ARCHITECTURE: &str = "arm64";

/// The compiler of Debian's, whatever rustup has put on the path.
const RUSTC: &str = "/usr/bin/rustc";
/// Rust's library, as Debian 12 calls the one that is new enough, and as Debian 13 does.
const LIBRARIES: [&str; 2] = ["libstd-rust-web-dev", "libstd-rust-dev"];
const LINKER: &str = "clang-19";

/// The unpacked packages.
pub struct Cross {
    root: PathBuf,
}

impl Cross {
    /// Downloads and unpacks what is not there yet.
    pub fn prepare(project: &Project) -> Result<Self> {
        let packages = wanted()?;
        let name = |of: &str| format!("{ARCHITECTURE}-{of}");
        let root = project
            .cache
            .join(name(&cache::fingerprint(&packages)[..8]));
        if root.is_dir() {
            return Ok(Self { root });
        }
        let step = Step::begin(format!("fetching libraries for {ARCHITECTURE}"));
        let scratch = project.scratch()?;
        let place = scratch.path().join("apt");
        let apt = Apt::new(project, &place, Some(ARCHITECTURE), &apt::sources()?, &step)?;
        let downloaded = apt.download(&packages).with_context(|| {
            format!(
                "cannot have {} for {ARCHITECTURE}; `apt-get upgrade` brings this machine's to the archive's versions",
                packages.join(", ")
            )
        })?;
        let files = scratch.path().join("files");
        let log = project.log("unpacked")?;
        for package in fs::read_dir(downloaded)? {
            let mut extract = Command::new("dpkg-deb");
            extract.arg("--extract").arg(package?.path()).arg(&files);
            step::run(&mut extract, &log, &step, |_| {})?;
        }
        // Whole or absent; another invocation may have been faster.
        match fs::rename(&files, &root) {
            Err(error) if !root.is_dir() => {
                return Err(error).with_context(|| format!("cannot make {}", root.display()));
            }
            _ => {}
        }
        // Of another compiler; who works with them now would have to begin anew.
        for entry in fs::read_dir(&project.cache)? {
            let other = entry?.path();
            let named = other.file_name().unwrap_or_default().to_string_lossy();
            if other != root && named.starts_with(&name("")) {
                cache::remove(&other)?;
            }
        }
        step.done();
        Ok(Self { root })
    }

    /// The static busybox.
    pub fn busybox(&self) -> PathBuf {
        let places = ["bin/busybox", "usr/bin/busybox"].map(|path| self.root.join(path));
        let found = places.iter().find(|path| path.is_file()).cloned();
        found.unwrap_or_else(|| places[0].clone())
    }

    /// A cargo that builds for it, into a directory of its own.
    pub fn build(&self, project: &Project) -> Command {
        let flags = [
            "--sysroot".to_owned(),
            self.root.join("usr").display().to_string(),
            format!("-Clinker={LINKER}"),
            "-Clink-arg=--target=aarch64-linux-gnu".to_owned(),
            format!("-Clink-arg=--sysroot={}", self.root.display()),
            "-Clink-arg=-fuse-ld=lld".to_owned(),
            "-Ctarget-feature=+crt-static".to_owned(),
        ];
        let mut cargo = project::cargo();
        cargo
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(project.target.join(ARCHITECTURE))
            .env("RUSTC", RUSTC)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .current_dir(&project.root);
        cargo
    }

    /// Where that leaves programs.
    pub fn programs(project: &Project) -> PathBuf {
        let target = project.target.join(ARCHITECTURE);
        target.join(TARGET).join("release")
    }
}

/// What apt is to download.
fn wanted() -> Result<Vec<String>> {
    let library = LIBRARIES
        .iter()
        .find_map(|name| Some(format!("{name}={}", packages::version(name)?)));
    let Some(library) = library.filter(|_| Path::new(RUSTC).exists()) else {
        bail!("{RUSTC} is not Debian's; run `cargo xtask setup`");
    };
    // Both architectures of a release have the same one.
    let gcc = step::output(Command::new("gcc").arg("-dumpversion"))
        .context("gcc does not work; run `cargo xtask setup`")?;
    let major = gcc.trim().split('.').next().unwrap_or_default().to_owned();
    Ok(vec![
        library,
        "libc6-dev".into(),
        format!("libgcc-{major}-dev"),
        "busybox-static".into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_programs_are_beside_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().join("target"),
            cache: dir.path().into(),
        };
        let programs = Cross::programs(&project);
        assert!(programs.starts_with(project.target.join(ARCHITECTURE)));
        let cross = Cross {
            root: dir.path().join("arm64-0"),
        };
        let build = cross.build(&project);
        let flags = build
            .get_envs()
            .find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS");
        let flags = flags.and_then(|(_, flags)| flags).unwrap();
        assert!(
            flags
                .to_string_lossy()
                .contains("\x1f-Ctarget-feature=+crt-static")
        );
    }
}
