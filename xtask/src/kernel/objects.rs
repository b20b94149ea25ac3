//! Directories in which `make` leaves objects, and what is to be done when it was killed there.
//!
//! `make` removes what it was about to write when it is asked to stop. When it is killed instead, or the machine stops,
//! some file may be half written and look finished to the next `make`.

use std::{
    fs::{self, DirEntry, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    ground::{cache, interrupt, lock::Lock},
    terminal::progress::Step,
};

/// Is there while somebody builds; what is older was made by builds that ended.
const BUSY: &str = ".sksm-busy";

/// Does `work` in a directory of objects, alone.
pub fn with<T>(objects: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _alone = Lock::acquire(&lock(objects)?)?;
    recover(objects)?;
    let _busy = Busy::begin(objects)?;
    work()
}

/// Beside the objects, of which any may have to be removed.
fn lock(objects: &Path) -> Result<PathBuf> {
    let parent = objects.parent().context("the objects have no place")?;
    fs::create_dir_all(parent)?;
    Ok(objects.with_extension("lock"))
}

/// Removes what other compilers have made: from `ARCH-COMPILERS`, every other `ARCH-…` beside it. To be called once the
/// new objects are complete.
pub fn prune(dir: &Path) -> Result<()> {
    fn arch(dir: &Path) -> Option<&str> {
        let (arch, compilers) = dir.file_name()?.to_str()?.rsplit_once('-')?;
        let hash = compilers.len() == 8 && compilers.chars().all(|c| c.is_ascii_hexdigit());
        hash.then_some(arch)
    }
    let parent = dir.parent().context("the objects have no place")?;
    let own = arch(dir).context("the objects are of no compilers")?;
    // A name that no compilers have, or who goes back to them after an interruption would find half of the objects.
    let gone = parent.join(format!("{own}-00000000"));
    cache::remove(&gone)?;
    let entries = fs::read_dir(parent)?.collect::<Result<Vec<_>, _>>()?;
    for other in entries.iter().map(DirEntry::path) {
        if other != dir && arch(&other) == Some(own) {
            // Somebody may be at work with those still.
            let within = other.join("objects");
            let parts = [Some(&other), Some(&within).filter(|dir| dir.is_dir())];
            let alone = parts.into_iter().flatten();
            let alone = alone.map(|dir| Lock::try_acquire(&lock(dir)?));
            let alone: Vec<_> = alone.collect::<Result<_>>()?;
            if alone.iter().any(Option::is_none) {
                continue;
            }
            let step = Step::begin(format!("removing {}", other.display()));
            fs::rename(&other, &gone)?;
            cache::remove(&gone)?;
            step.done();
        }
    }
    Ok(())
}

/// Keeps the marker while it lives, and leaves it there if something was killed meanwhile.
struct Busy {
    marker: PathBuf,
    killed: usize,
}

impl Busy {
    fn begin(objects: &Path) -> Result<Self> {
        let marker = objects.join(BUSY);
        cache::write(&marker, "")?;
        Ok(Self {
            marker,
            killed: interrupt::killed(),
        })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if interrupt::killed() == self.killed {
            // One that stays costs the next build some objects, no more.
            let _ = cache::remove(&self.marker);
        }
    }
}

/// Removes what cannot be trusted after a build that was killed.
fn recover(objects: &Path) -> Result<()> {
    let marker = objects.join(BUSY);
    let Ok(metadata) = fs::metadata(&marker) else {
        return Ok(());
    };
    let step = Step::begin("removing what a build that was killed has made");
    let mut doubtful = since(objects, &metadata)?;
    // The times in there tell which objects a changed setting has made stale, and old objects do not ask for a file that
    // is gone. A marker from the future says that the clock was set back.
    let settings = objects.join("include/config");
    let future = metadata.modified()? > SystemTime::now();
    if future || doubtful.iter().any(|path| path.starts_with(&settings)) {
        doubtful = fs::read_dir(objects)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
    }
    // Or it would vouch for a `.config` that may be gone now.
    doubtful.push(objects.join(".sksm-config"));
    for path in doubtful.iter().filter(|&path| *path != marker) {
        interrupt::check()?;
        cache::remove(path)?;
    }
    // Last, or an interruption here would leave the rest as good.
    cache::remove(&marker)?;
    step.done();
    Ok(())
}

/// The files that were written, renamed or touched since the marker was. That time cannot be set, unlike the one of the
/// content.
fn since(objects: &Path, marker: &Metadata) -> Result<Vec<PathBuf>> {
    let changed = |metadata: &Metadata| (metadata.ctime(), metadata.ctime_nsec());
    let mut files = Vec::new();
    let mut pending = vec![objects.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && changed(&metadata) >= changed(marker) {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        process::Command,
        time::Duration,
    };

    use anyhow::bail;
    use rustix::process::Signal;

    use super::*;
    use crate::ground::{files, interrupt::Group};

    struct Setting(tempfile::TempDir);

    impl Setting {
        /// With what an earlier build has left.
        fn new() -> Self {
            let setting = Self(tempfile::tempdir().unwrap());
            for file in [".config", ".sksm-config", "include/config/MM", "mm/old.o"] {
                setting.make(file);
            }
            // More than the clock of a file system is coarse.
            std::thread::sleep(Duration::from_millis(50));
            setting
        }

        fn make(&self, file: &str) {
            cache::write(&self.0.path().join(file), "x").unwrap();
        }

        fn build(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
            with(self.0.path(), work)
        }

        /// A build that is killed once it has made these.
        fn killed_build(&self, files: &[&str]) {
            let result = self.build(|| {
                for file in files {
                    self.make(file);
                }
                drop(Group::spawn(
                    Command::new("sleep").arg("1000"),
                    Signal::KILL,
                ));
                bail!("killed")
            });
            assert!(result.is_err());
        }

        fn files(&self) -> Vec<String> {
            let files = files::below(self.0.path()).unwrap();
            files
                .keys()
                .map(|path| path.display().to_string())
                .collect()
        }
    }

    #[test]
    fn what_ended_by_itself_is_kept() {
        let setting = Setting::new();
        let before = setting.files();
        setting.build(|| Ok(())).unwrap();
        setting.build(|| bail!("does not compile")).unwrap_err();
        catch_unwind(AssertUnwindSafe(|| setting.build(|| panic!("a mistake")))).unwrap_err();
        setting
            .build(|| {
                assert!(setting.files().contains(&BUSY.to_owned()));
                Ok(())
            })
            .unwrap();
        assert_eq!(setting.files(), before);
    }

    #[test]
    fn a_killed_build_costs_what_it_has_made() {
        let setting = Setting::new();
        setting.killed_build(&["mm/new.o", "mm/.new.o.cmd"]);
        // As a program does that copies a file with its time.
        let mut touch = Command::new("touch");
        touch.args(["--date", "2001-01-01", "mm/new.o"]);
        assert!(
            touch
                .current_dir(setting.0.path())
                .status()
                .unwrap()
                .success()
        );
        setting
            .build(|| {
                assert_eq!(
                    setting.files(),
                    [".config", BUSY, "include/config/MM", "mm/old.o"]
                );
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_killed_build_that_changed_settings_costs_all() {
        let setting = Setting::new();
        setting.killed_build(&["include/config/SLUB"]);
        setting.build(|| Ok(())).unwrap();
        assert!(setting.files().is_empty());
    }

    #[test]
    fn objects_of_other_compilers_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "debian-01234567",
            "patched",
            "tree",
            "um-00000000",
            "um-01234567",
            "um-02468ace",
            "um-89abcdef",
            "um-headers0",
            "x86_64-01234567",
        ];
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let busy = dir.path().join("um-02468ace");
        let _builder = Lock::acquire(&lock(&busy).unwrap()).unwrap();
        prune(&dir.path().join("um-89abcdef")).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| !name.ends_with(".lock"));
        left.sort();
        assert_eq!(
            left,
            [
                "debian-01234567",
                "patched",
                "tree",
                "um-02468ace",
                "um-89abcdef",
                "um-headers0",
                "x86_64-01234567"
            ]
        );
    }

    #[test]
    fn a_clock_that_was_set_back_tells_nothing() {
        let setting = Setting::new();
        setting.killed_build(&[]);
        let marker = fs::File::open(setting.0.path().join(BUSY)).unwrap();
        let future = SystemTime::now() + Duration::from_secs(3600);
        marker.set_modified(future).unwrap();
        setting.build(|| Ok(())).unwrap();
        assert!(setting.files().is_empty());
    }
}
