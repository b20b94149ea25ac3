//! Where things are: the repository, its target directory, the user's cache.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempDir;

use crate::ground::{lock::Lock, step};

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
        let root = root()?;
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

    /// Fails where no kernel can be built; to be called before anything is installed for it.
    pub fn check_cache(&self) -> Result<()> {
        if !plain(&self.cache) {
            bail!(
                "kernels cannot be built in {}: make takes no path with a space, a colon or the like; \
                 set XDG_CACHE_HOME to a directory with a plain name",
                self.cache.display()
            );
        }
        Ok(())
    }

    /// Fails where what is built cannot be preloaded, and the kernel's own tests cannot be built.
    pub fn check_target(&self) -> Result<()> {
        if !plain(&self.target) {
            bail!(
                "what runs in the guest cannot lie in {}: LD_PRELOAD and make take no path with a space, a colon or \
                 the like; set CARGO_TARGET_DIR to a directory with a plain name",
                self.target.display()
            );
        }
        Ok(())
    }

    /// A directory for a while in which programs may be run and whose path is plain, unlike TMPDIR's.
    pub fn scratch(&self) -> Result<TempDir> {
        fs::create_dir_all(&self.cache)
            .and_then(|()| {
                tempfile::Builder::new()
                    .prefix("scratch-")
                    .tempdir_in(&self.cache)
            })
            .with_context(|| format!("cannot create a directory in {}", self.cache.display()))
    }

    /// Logs of builds and boots of this clone.
    pub fn logs(&self) -> Result<PathBuf> {
        let dir = self.target.join("sksm/logs");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// A log of that name, which no other invocation writes as long as this one runs.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        static OURS: Mutex<BTreeMap<PathBuf, (PathBuf, File)>> = Mutex::new(BTreeMap::new());
        let dir = self.logs()?;
        let mut ours = OURS.lock().expect("nobody panics with it");
        let key = dir.join(name);
        if let Some((path, _)) = ours.get(&key) {
            return Ok(path.clone());
        }
        let (path, file) = free_log(&dir, name)?;
        ours.insert(key, (path.clone(), file));
        Ok(path)
    }

    /// Waits for other invocations that fetch or build in the same cache.
    pub fn lock_cache(&self) -> Result<Lock> {
        fs::create_dir_all(&self.cache)
            .with_context(|| format!("cannot create {}", self.cache.display()))?;
        Lock::acquire(&self.cache.join("lock"))
    }
}

/// Whether make and shells take the path as it is.
pub fn plain(path: &Path) -> bool {
    let special = |c: char| c.is_whitespace() || ":#$%&|;<>()[]*?'\"`\\".contains(c);
    path.to_str().is_some_and(|path| !path.contains(special))
}

/// The first of NAME.log, NAME-2.log and so on that nobody has; it is had while the file is open.
fn free_log(dir: &Path, name: &str) -> Result<(PathBuf, File)> {
    for number in 1.. {
        let path = dir.join(match number {
            1 => format!("{name}.log"),
            _ => format!("{name}-{number}.log"),
        });
        let open = File::options().append(true).create(true).open(&path);
        let file = open.with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((path, file)),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    unreachable!("there are enough numbers")
}

/// The launcher sets cargo's variable; a direct start is one in the repository. No path is built in, so that the tool is the same
/// in every clone.
fn root() -> Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    if let Some(manifest) = manifest.filter(|dir| dir.ends_with("xtask")) {
        let root = manifest.parent().and_then(|dir| dir.canonicalize().ok());
        return root
            .with_context(|| format!("the repository is no longer at {}", manifest.display()));
    }
    let cwd = env::current_dir().context("the current directory is gone")?;
    let root = repository(&cwd);
    root.with_context(|| format!("{} is in no clone of the repository", cwd.display()))
}

fn repository(within: &Path) -> Option<PathBuf> {
    let root = within
        .ancestors()
        .find(|dir| dir.join("xtask/Cargo.toml").is_file())?;
    root.canonicalize().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_one_invocations_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (first, held) = free_log(dir.path(), "test").unwrap();
        assert_eq!(first, dir.path().join("test.log"));
        let (second, _also_held) = free_log(dir.path(), "test").unwrap();
        assert_eq!(second, dir.path().join("test-2.log"));
        drop(held);
        assert_eq!(free_log(dir.path(), "test").unwrap().0, first);
    }

    #[test]
    fn plain_paths() {
        for path in ["/home/jane/.cache/sksm", "/a/debian-6.12.117-1~deb12u1+x_y"] {
            assert!(plain(Path::new(path)), "{path}");
        }
        for path in ["/home/jane doe", "/a:b", "/a\tb", "/$HOME", "/it's", "/a#b"] {
            assert!(!plain(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn one_invocation_writes_a_log_again() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        let log = project.log("test").unwrap();
        assert_eq!(project.log("test").unwrap(), log);
        assert_ne!(project.log("other").unwrap(), log);
    }

    #[test]
    fn a_direct_start_finds_the_repository_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("crates/sksm/src");
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(repository(&deep), None);
        fs::create_dir(dir.path().join("xtask")).unwrap();
        fs::write(dir.path().join("xtask/Cargo.toml"), "").unwrap();
        assert_eq!(repository(&deep), Some(dir.path().canonicalize().unwrap()));
    }
}
