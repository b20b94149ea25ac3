//! Directories as a whole: the files in them and what they hold.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// By path, each with its content.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below a directory, by its path from there.
pub fn below(dir: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let here = dir.join(&below);
        let entries =
            fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else {
                let content = fs::read(entry.path())
                    .with_context(|| format!("cannot read {}", entry.path().display()))?;
                files.insert(path, content);
            }
        }
    }
    Ok(files)
}
