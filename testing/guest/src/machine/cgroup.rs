//! Control groups with the memory controller.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::skip::skip;

const ROOT: &str = "/sys/fs/cgroup";

/// A control group, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Skips the test where there is no memory controller.
    pub fn new(name: &str) -> Result<Self> {
        Self::named(&format!("sksm-{}-{name}", std::process::id()))
    }

    /// The same, where its name matters.
    pub fn named(name: &str) -> Result<Self> {
        let enabled = fs::read_to_string(format!("{ROOT}/cgroup.subtree_control"));
        if !enabled.is_ok_and(|list| list.contains("memory")) {
            return skip("no memory controller in /sys/fs/cgroup/cgroup.subtree_control");
        }
        let path = Path::new(ROOT).join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// A group within this one, with a memory controller of its own. Processes may then be in groups without inner ones only.
    pub fn inner(&self, name: &str) -> Result<Self> {
        self.write("cgroup.subtree_control", "+memory")
            .context("cannot pass the memory controller on")?;
        self.part(name)
    }

    /// A group within this one that shares its memory controller, unless inner ones have their own.
    pub fn part(&self, name: &str) -> Result<Self> {
        let path = self.0.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.0.join(file), value)
    }

    pub fn number(&self, file: &str) -> Result<usize> {
        let text = self.read(file)?;
        (text.trim().parse()).with_context(|| {
            let path = self.0.join(file);
            format!("{} holds {text:?}, no number", path.display())
        })
    }

    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Moves this process in.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
            .context("cannot enter the control group")
    }

    /// Takes up to this much memory from its processes, rather to swap than from files, and tells whether all of it was found.
    pub fn reclaim(&self, bytes: usize) -> Result<bool> {
        // Reclaim goes by the group's statistics, which the kernel brings up to date every two seconds, or for a reader.
        fs::read(self.0.join("memory.stat")).context("memory.stat")?;
        match self.write("memory.reclaim", &format!("{bytes} swappiness=200")) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(error) => Err(error).context("memory.reclaim"),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes of the test itself may still be inside: they go back to the root first.
        let inside = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            // One may have exited meanwhile.
            fs::write(format!("{ROOT}/cgroup.procs"), pid).ok();
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
