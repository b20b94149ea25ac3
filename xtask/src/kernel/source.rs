//! A kernel's source in the cache, and what it was like before anything here touched it.
//!
//! Beside the tree, `pristine/` and `absent/` remember each file that was ever touched as it was.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::ground::{cache, files, lock::Lock, project::Project};

/// How the names of trees end that never take the patches.
pub const UNPATCHED: &str = "-unpatched";

/// A tree in the cache, and beside it everything made from it.
pub struct Source {
    /// Holds the tree, the objects and the stamps.
    pub dir: PathBuf,
    /// The tree itself.
    pub tree: PathBuf,
}

fn trees(project: &Project) -> PathBuf {
    project.cache.join("linux")
}

impl Source {
    /// It need not be there yet.
    pub fn named(project: &Project, key: &str, patched: bool) -> Self {
        let name = match patched {
            true => key.to_owned(),
            false => format!("{key}{UNPATCHED}"),
        };
        Self::at(&trees(project).join(name))
    }

    /// The one whose tree and all that is made from it are in there.
    pub fn at(dir: &Path) -> Self {
        Self {
            tree: dir.join("tree"),
            dir: dir.to_owned(),
        }
    }

    /// All that are in the cache.
    pub fn all(project: &Project) -> Result<Vec<Self>> {
        let trees = trees(project);
        if !trees.is_dir() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(trees)?;
        entries.map(|entry| Ok(Self::at(&entry?.path()))).collect()
    }

    /// Nobody changes the tree while this lives. Needs the cache's lock to be taken.
    pub fn keep(&self) -> Result<Lock> {
        Lock::share(&self.lock())
    }

    /// Waits until nobody builds from the tree, which is to be changed. Needs the cache's lock.
    pub fn change(&self) -> Result<Lock> {
        Lock::acquire(&self.lock())
    }

    /// The same, if nobody builds from it just now.
    pub fn try_change(&self) -> Result<Option<Lock>> {
        Lock::try_acquire(&self.lock())
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// A touched file as it was; absent if there was none.
    pub fn pristine(&self, path: &Path) -> PathBuf {
        self.dir.join("pristine").join(path)
    }

    /// Every file that was ever touched.
    pub fn managed(&self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        for kind in ["pristine", "absent"] {
            let dir = self.dir.join(kind);
            if dir.is_dir() {
                paths.extend(files::below(&dir)?.into_keys());
            }
        }
        Ok(paths)
    }

    /// Takes over what the user's own tree says about managed files; true if anything changed.
    pub fn refresh(&self, from: &Path, managed: &BTreeSet<PathBuf>) -> Result<bool> {
        let mut changed = false;
        for path in managed {
            let (pristine, absent) = self.memory(path);
            match fs::read(from.join(path)) {
                Ok(content) => {
                    changed |= cache::update(&pristine, &content)?;
                    cache::remove(&absent)?;
                }
                Err(_) if pristine.exists() => {
                    changed = true;
                    cache::write(&absent, "")?;
                    cache::remove(&pristine)?;
                }
                Err(_) => {}
            }
        }
        if changed {
            // Or the patches would not be applied to what is new.
            cache::remove(&self.dir.join("applied"))?;
        }
        Ok(changed)
    }

    /// Keeps the file as it is before it is first touched.
    pub fn remember(&self, path: &Path) -> Result<()> {
        let (pristine, absent) = self.memory(path);
        if pristine.exists() || absent.exists() {
            return Ok(());
        }
        match fs::read(self.tree.join(path)) {
            Ok(content) => cache::write(&pristine, content),
            Err(_) => cache::write(&absent, ""),
        }
    }

    /// Where it is remembered: the first of these if it was there, the second if not.
    fn memory(&self, path: &Path) -> (PathBuf, PathBuf) {
        (self.pristine(path), self.dir.join("absent").join(path))
    }
}
