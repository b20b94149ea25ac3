//! QEMU: the system's, or Debian's packages of it unpacked in the cache where they cannot be installed beside what is there
//! (qemu-utils from another release, say). QEMU finds its files by where its program lies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::ground::{project::Project, step, unpacked};

/// One of QEMU's programs.
#[derive(Debug, PartialEq)]
pub struct Emulator {
    /// The package that brings it.
    pub package: &'static str,
    program: &'static str,
    /// What is unpacked together, as these packages want each other; everything else is installed as usual.
    together: &'static [&'static str],
    /// Where it is then, in the cache.
    place: &'static str,
}

pub static X86_64: Emulator = Emulator {
    package: "qemu-system-x86",
    program: "qemu-system-x86_64",
    together: &[
        "qemu-system-x86",
        "qemu-system-common",
        "qemu-system-data",
        "seabios",
        "ipxe-qemu",
    ],
    place: "qemu",
};

pub static ARM64: Emulator = Emulator {
    package: "qemu-system-arm",
    program: "qemu-system-aarch64",
    together: &["qemu-system-arm", "qemu-system-common", "qemu-system-data"],
    place: "qemu-arm",
};

pub const ALL: [&Emulator; 2] = [&X86_64, &ARM64];

/// The emulator that a package brings.
pub fn of_package(package: &str) -> Option<&'static Emulator> {
    ALL.into_iter().find(|emulator| emulator.package == package)
}

impl Emulator {
    fn root(&self, cache: &Path) -> PathBuf {
        cache.join(self.place)
    }

    /// Whether it was unpacked.
    pub fn is_unpacked(&self, project: &Project) -> bool {
        self.unpacked(project).is_some()
    }

    fn unpacked(&self, project: &Project) -> Option<PathBuf> {
        let program = self.root(&project.cache).join("usr/bin").join(self.program);
        program.is_file().then_some(program)
    }

    /// Runs it.
    pub fn command(&self, project: &Project) -> Command {
        let Some(program) = self.unpacked(project) else {
            return Command::new(self.program);
        };
        let root = self.root(&project.cache);
        let share = root.join("usr/share");
        let roms = root.join("usr/lib/ipxe/qemu");
        let mut command = Command::new(program);
        for dir in [share.join("qemu"), share.join("seabios"), roms] {
            command.arg("-L").arg(dir);
        }
        command
    }

    /// What apt would install for it if it might remove what is in the way: the libraries, which are in nobody's way.
    pub fn libraries(&self) -> Result<Vec<String>> {
        let simulation = step::output(
            Command::new("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .arg(self.package)
                .env("LC_ALL", "C"),
        )
        .with_context(|| format!("{} cannot be installed", self.package))?;
        Ok(self.libraries_of(&simulation))
    }

    fn libraries_of(&self, simulation: &str) -> Vec<String> {
        let lines = simulation.lines();
        lines
            .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
            .filter(|name| !self.together.contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Downloads the packages and unpacks them. Needs apt's lists.
    pub fn unpack(&self, project: &Project) -> Result<()> {
        let packages: Vec<_> = self.together.iter().map(|&name| name.to_owned()).collect();
        unpacked::unpack(project, "QEMU", &packages, &self.root(&project.cache))
    }
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
        assert_eq!(X86_64.libraries_of(simulation), ["libfdt1", "libcap2"]);
    }
}
