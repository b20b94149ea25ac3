//! What has passed, and of which bytes. Kernel tests in which nothing can have changed since are not run again.
//!
//! The cache has a directory for each program in each kernel, and in it a file for each of the last passes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::{
    ground::{cache, files, project::Project},
    guest,
};

/// Passes that are kept of each, for those who go back and forth between branches.
const KEPT: usize = 8;

/// Debian's list of what is installed: the emulator, the guest's shell and compiler.
const PACKAGES: &str = "/var/lib/dpkg/status";

/// One that was complete.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Pass {
    /// Everything that it depends on, by content.
    made_of: String,
    /// As in 2025-12-31.
    pub day: String,
    pub passed: usize,
    pub skipped: usize,
}

impl Pass {
    pub fn today(made_of: &str, passed: usize, skipped: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            made_of: made_of.into(),
            day: day(now.unwrap_or_default().as_secs()),
            passed,
            skipped,
        }
    }
}

pub struct Passes {
    dir: PathBuf,
}

impl Passes {
    pub fn new(project: &Project) -> Self {
        Self {
            dir: project.cache.join("passed"),
        }
    }

    /// When this passed with the same bytes, if it has.
    pub fn find(&self, name: &str, made_of: &str) -> Option<Pass> {
        let text = fs::read(self.file(name, made_of)).ok()?;
        let pass: Pass = serde_json::from_slice(&text).ok()?;
        (pass.made_of == made_of).then_some(pass)
    }

    pub fn keep(&self, name: &str, pass: &Pass) -> Result<()> {
        let text = serde_json::to_string_pretty(pass)? + "\n";
        cache::write(&self.file(name, &pass.made_of), text)?;
        self.prune(name)
    }

    /// What begins now has not passed until it has ended.
    pub fn begin(&self, name: &str, made_of: &str) -> Result<()> {
        cache::remove(&self.file(name, made_of))
    }

    /// Of what has failed no pass is believed, not even of other bytes: the mistake may have been there all along.
    pub fn forget(&self, name: &str) -> Result<()> {
        cache::remove(&self.dir.join(name))
    }

    fn file(&self, name: &str, made_of: &str) -> PathBuf {
        let file = format!("{}.json", cache::fingerprint(made_of));
        self.dir.join(name).join(file)
    }

    fn prune(&self, name: &str) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir.join(name))? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        for (_, old) in files.iter().rev().skip(KEPT) {
            cache::remove(old)?;
        }
        Ok(())
    }
}

/// What tests depend on, a line each.
#[derive(Clone)]
pub struct Ingredients(String);

impl Ingredients {
    /// Those of everything that runs in this kernel.
    pub fn of_kernel(image: &Path) -> Result<Self> {
        let mut all = Self(String::new());
        all.text("host", &guest::host()?);
        all.file("kernel", image)?;
        // Not by its name: a newer one may have been built in the meantime.
        all.file("tool", Path::new("/proc/self/exe"))?;
        all.file("packages", Path::new(PACKAGES))?;
        Ok(all)
    }

    pub fn text(&mut self, what: &str, text: &str) {
        self.0 += &format!("{what} {}\n", text.escape_default());
    }

    /// By its content; one that is not there is an ingredient, too.
    pub fn file(&mut self, what: &str, path: &Path) -> Result<()> {
        let hash = match fs::read(path) {
            Ok(content) => format!("{:032x}", XxHash3_128::oneshot(&content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "absent".into(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        self.text(what, &hash);
        Ok(())
    }

    /// By the names and the contents of all files in it.
    pub fn directory(&mut self, what: &str, path: &Path) -> Result<()> {
        for (file, content) in files::below(path)? {
            let hash = XxHash3_128::oneshot(&content);
            self.text(what, &format!("{} {hash:032x}", file.display()));
        }
        Ok(())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The day, in UTC, so many seconds after the beginning of 1970.
fn day(seconds: u64) -> String {
    let leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut days = seconds / (24 * 60 * 60);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NAME: &str = "um/sksm-abi";

    fn passes() -> (tempfile::TempDir, Passes) {
        let dir = tempfile::tempdir().unwrap();
        let passes = Passes {
            dir: dir.path().join("passed"),
        };
        (dir, passes)
    }

    #[test]
    fn the_same_bytes_have_passed_others_have_not() {
        let (_dir, passes) = passes();
        assert_eq!(passes.find(NAME, "a"), None);
        let pass = Pass::today("a", 342, 3);
        passes.keep(NAME, &pass).unwrap();
        assert_eq!(passes.find(NAME, "a"), Some(pass.clone()));
        assert_eq!(passes.find(NAME, "b"), None);
        assert_eq!(passes.find("debug/sksm-abi", "a"), None);
        // Two that share a name by chance.
        fs::rename(passes.file(NAME, "a"), passes.file(NAME, "b")).unwrap();
        assert_eq!(passes.find(NAME, "b"), None);
    }

    #[test]
    fn what_was_interrupted_has_not_passed() {
        let (_dir, passes) = passes();
        for made_of in ["a", "b"] {
            let pass = Pass::today(made_of, 1, 0);
            passes.keep(NAME, &pass).unwrap();
        }
        passes.begin(NAME, "a").unwrap();
        assert_eq!(passes.find(NAME, "a"), None);
        assert!(passes.find(NAME, "b").is_some());
    }

    #[test]
    fn what_has_failed_has_not_passed() {
        let (_dir, passes) = passes();
        let other = "um/sksm-random";
        for name in [NAME, other] {
            passes.keep(name, &Pass::today("a", 1, 0)).unwrap();
        }
        passes.forget(NAME).unwrap();
        passes.forget(NAME).unwrap();
        assert_eq!(passes.find(NAME, "a"), None);
        assert!(passes.find(other, "a").is_some());
    }

    #[test]
    fn the_last_ones_are_kept() {
        let (_dir, passes) = passes();
        for made_of in 0..=KEPT {
            let made_of = made_of.to_string();
            passes.keep(NAME, &Pass::today(&made_of, 1, 0)).unwrap();
            // More than the clock of a file system is coarse.
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(passes.find(NAME, "0"), None);
        assert!(passes.find(NAME, "1").is_some());
    }

    #[test]
    fn ingredients_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let of = || {
            let mut all = Ingredients(String::new());
            all.file("program", &file).unwrap();
            all
        };
        let in_directory = || {
            let mut all = Ingredients(String::new());
            all.directory("python", dir.path()).unwrap();
            all.0
        };
        let (absent, empty) = (of(), in_directory());
        fs::write(&file, "1").unwrap();
        let one = of();
        assert_eq!(of().as_str(), one.as_str());
        fs::write(&file, "2").unwrap();
        assert_ne!(of().as_str(), one.as_str());
        assert_ne!(absent.as_str(), one.as_str());
        let two = in_directory();
        assert_ne!(empty, two);
        fs::rename(&file, dir.path().join("renamed")).unwrap();
        assert_ne!(two, in_directory());
        let of = |what: &str, text: &str| {
            let mut all = one.clone();
            all.text(what, text);
            all.0
        };
        assert_ne!(of("a", "b\nc d"), of("a", "b") + "c d\n");
    }

    #[test]
    fn days() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_735_689_599, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
        ] {
            assert_eq!(day(seconds), expected);
        }
    }
}
