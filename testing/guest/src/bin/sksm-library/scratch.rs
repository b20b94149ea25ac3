//! A place for files of a test.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A directory that is removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Result<Self> {
        let name = format!("sksm-library-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Builds a C program here.
    pub fn compile(&self, name: &str, source: &str, arguments: &[&str]) -> Result<PathBuf> {
        let (file, program) = (self.file(&format!("{name}.c")), self.file(name));
        std::fs::write(&file, source)?;
        let output = Command::new("cc")
            .arg(&file)
            .arg("-o")
            .arg(&program)
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .context("cc")?;
        ensure!(output.status.success(), "cc: {output:?}");
        Ok(program)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // In memory, and gone with the guest at the latest.
        std::fs::remove_dir_all(&self.0).ok();
    }
}
