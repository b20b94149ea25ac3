//! Where things are: the repository, its target directory, the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow};

use crate::{lock::Lock, step};

pub struct Project {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Kernel source, objects and bindgen, shared by every clone of this user.
    pub cache: PathBuf,
}

impl Project {
    pub fn find() -> Result<Self> {
        // Cargo sets the variable for `cargo run`; the built-in path serves a direct start.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.ends_with("xtask"))
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = manifest
            .parent()
            .and_then(|dir| dir.canonicalize().ok())
            .with_context(|| format!("the repository is no longer at {}", manifest.display()))?;
        let target = target_dir(&root)?;
        let cache =
            match env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
                Some(dir) => PathBuf::from(dir),
                None => {
                    let home = env::var_os("HOME")
                        .ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set"))?;
                    PathBuf::from(home).join(".cache")
                }
            }
            .join("sksm");
        Ok(Self {
            root,
            target,
            cache,
        })
    }

    /// The repository's kernel part.
    pub fn kernel(&self) -> PathBuf {
        self.root.join("kernel")
    }

    /// Logs of builds and boots of this clone.
    pub fn logs(&self) -> Result<PathBuf> {
        let dir = self.target.join("sksm/logs");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits for other invocations that fetch or build in the same cache.
    pub fn lock_cache(&self) -> Result<Lock> {
        fs::create_dir_all(&self.cache)
            .with_context(|| format!("cannot create {}", self.cache.display()))?;
        Lock::acquire(&self.cache.join("lock"))
    }
}

/// Asks cargo, which knows configuration files and the environment.
fn target_dir(root: &Path) -> Result<PathBuf> {
    let output = step::output(
        cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(root),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&output)?;
    let dir = metadata["target_directory"]
        .as_str()
        .ok_or_else(|| anyhow!("cargo metadata names no target directory"))?;
    Ok(PathBuf::from(dir))
}

/// The cargo that started this tool.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
