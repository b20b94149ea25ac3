//! QEMU: the system's, or Debian's packages of it unpacked in the cache where they cannot be installed beside what is there
//! (qemu-utils from another release, say). QEMU finds its files by where its program lies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::ground::{project::Project, step, unpacked};

/// The package that brings the emulator.
pub const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";

/// What is unpacked together, as these packages want each other; everything else is installed as usual.
const TOGETHER: [&str; 5] = [
    PACKAGE,
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
    "ipxe-qemu",
];

fn root(cache: &Path) -> PathBuf {
    cache.join("qemu")
}

/// Whether one was unpacked.
pub fn is_unpacked(project: &Project) -> bool {
    program(project).is_some()
}

fn program(project: &Project) -> Option<PathBuf> {
    let program = root(&project.cache).join("usr/bin").join(PROGRAM);
    program.is_file().then_some(program)
}

/// The emulator.
pub fn command(project: &Project) -> Command {
    let Some(program) = program(project) else {
        return Command::new(PROGRAM);
    };
    let share = root(&project.cache).join("usr/share");
    let roms = root(&project.cache).join("usr/lib/ipxe/qemu");
    let mut command = Command::new(program);
    for dir in [share.join("qemu"), share.join("seabios"), roms] {
        command.arg("-L").arg(dir);
    }
    command
}

/// What apt would install for QEMU if it might remove what is in the way: the libraries, which are in nobody's way.
pub fn libraries() -> Result<Vec<String>> {
    let simulation = step::output(
        Command::new("apt-get")
            .args(["install", "--simulate", "--no-install-recommends", PACKAGE])
            .env("LC_ALL", "C"),
    )
    .with_context(|| format!("{PACKAGE} cannot be installed"))?;
    Ok(libraries_of(&simulation))
}

fn libraries_of(simulation: &str) -> Vec<String> {
    let lines = simulation.lines();
    lines
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .filter(|name| !TOGETHER.contains(name))
        .map(str::to_owned)
        .collect()
}

/// Downloads the packages and unpacks them. Needs apt's lists.
pub fn unpack(project: &Project) -> Result<()> {
    let packages = TOGETHER.map(str::to_owned);
    unpacked::unpack(project, "QEMU", &packages, &root(&project.cache))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_is_not_qemu() {
        let simulation = "Reading package lists...\n\
            Remv qemu-utils [1:10.0]\n\
            Inst libfdt1 (1.6.1-4 Debian:12 [amd64])\n\
            Inst qemu-system-common (1:7.2 Debian:12 [amd64])\n\
            Inst libcap2 [1:2.66-4] (1:2.66-4+deb12u1 Debian:12 [amd64])\n\
            Conf libfdt1 (1.6.1-4 Debian:12 [amd64])\n";
        assert_eq!(libraries_of(simulation), ["libfdt1", "libcap2"]);
    }
}
