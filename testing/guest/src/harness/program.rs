//! Programs that are built with this one.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// A file built with this program.
pub fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "{} was not built", path.display());
    Ok(path)
}
