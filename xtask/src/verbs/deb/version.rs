//! The version of the packages: it rises along a line of history, and a release has a higher one than what led to it.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::ground::{git::git, step::output};

const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// A version, and what it was built from.
pub struct Version {
    pub number: String,
    pub source: String,
    /// As in an e-mail.
    pub date: String,
}

/// Of a source without history, and of a commit with the release's tag as it is, it is the release's.
///
/// Others begin with how many commits led there, as clocks of those who make them may be wrong. (A shallow clone knows of fewer.)
pub fn of(root: &Path) -> Result<Version> {
    // Of what is around a source that was unpacked somewhere it is not the history.
    if !root.join(".git").exists() {
        let date = output(Command::new("date").arg("-R"))?;
        return Ok(Version {
            number: RELEASE.to_owned(),
            source: "a source without history".to_owned(),
            date: date.trim().to_owned(),
        });
    }
    let git = |arguments: &[&str]| -> Result<String> {
        let text = output(git(root).args(arguments).env("TZ", "UTC"))
            .context("the version of the packages is that of the commit")?;
        Ok(text.trim().to_owned())
    };
    let log = |format: &str| {
        let format = format!("--format={format}");
        git(&["log", "-1", "--date=format-local:%Y%m%d.%H%M%S", &format])
    };
    let (hash, time, date) = (log("%h")?, log("%cd")?, log("%cD")?);
    let count = git(&["rev-list", "--count", "HEAD"])?;
    let tag = format!("v{RELEASE}");
    let tagged = !git(&["tag", "--points-at", "HEAD", "--list", &tag])?.is_empty();
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(Version {
        number: match tagged && !changed {
            true => RELEASE.to_owned(),
            false => format!("{RELEASE}~git{count}.{time}.{hash}"),
        },
        source: match changed {
            true => format!("commit {hash}, with changes"),
            false => format!("commit {hash}"),
        },
        date,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn git(root: &Path, time: &str, arguments: &[&str]) {
        let mut git = super::git(root);
        git.args(["-c", "user.name=n", "-c", "user.email=n@example.org"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_COMMITTER_DATE", time);
        output(&mut git).unwrap();
    }

    fn commit(root: &Path, time: &str) -> String {
        git(
            root,
            time,
            &["commit", "--quiet", "--allow-empty", "--message", time],
        );
        of(root).unwrap().number
    }

    fn is_less(less: &str, more: &str) -> bool {
        let mut dpkg = Command::new("dpkg");
        dpkg.args(["--compare-versions", less, "lt", more]);
        dpkg.status().unwrap().success()
    }

    #[test]
    fn an_upgrade_upgrades() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        git(root, "", &["init", "--quiet"]);
        let mut versions = vec!["0".to_owned()];
        // More than nine, and in UTC the second is on the day before; the clock of who made the fourth is a year late.
        for time in [
            "2026-11-27T23:30:00+0000",
            "2026-11-28T01:00:00+0200",
            "2026-11-28T10:00:00+0000",
            "2025-11-28T10:00:01+0000",
            "2027-01-02T00:00:00+0300",
            "2027-01-01T22:00:00+0000",
            "2027-01-01T22:00:00+0000",
            "2027-01-01T22:00:00+0000",
            "2027-01-01T22:00:00+0000",
            "2027-01-01T22:00:00+0000",
        ] {
            versions.push(commit(root, time));
        }
        for (at, start) in [(1, "~git1.20261127.233000."), (2, "~git2.20261127.230000.")] {
            let start = format!("{RELEASE}{start}");
            assert!(versions[at].starts_with(&start), "{}", versions[at]);
        }
        for pair in versions.windows(2) {
            assert!(is_less(&pair[0], &pair[1]), "{pair:?}");
        }
        let last = versions.last().unwrap();
        assert!(is_less(last, RELEASE), "{last}");
        git(root, "", &["tag", &format!("v{RELEASE}")]);
        assert_eq!(of(root).unwrap().number, RELEASE);
        assert!(is_less(
            RELEASE,
            &format!("{RELEASE}.1~git1.20260101.000000.a")
        ));
    }

    #[test]
    fn what_has_no_history_of_its_own_is_a_release() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(dir.path()).unwrap().number, RELEASE);
        git(dir.path(), "", &["init", "--quiet"]);
        commit(dir.path(), "2026-11-27T23:30:00+0000");
        let unpacked = dir.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        assert_eq!(of(&unpacked).unwrap().source, "a source without history");
    }

    #[test]
    fn a_history_that_cannot_be_read_is_no_release() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".git"), "gitdir: nowhere\n").unwrap();
        let error = format!("{:#}", of(dir.path()).err().unwrap());
        assert!(error.contains("nowhere"), "{error}");
    }

    #[test]
    fn changes_are_told_and_are_no_release() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        git(root, "", &["init", "--quiet"]);
        fs::write(root.join("file"), "a").unwrap();
        git(root, "", &["add", "file"]);
        git(root, "", &["commit", "--quiet", "--message", "file"]);
        git(root, "", &["tag", &format!("v{RELEASE}")]);
        let version = of(root).unwrap();
        assert!(!version.source.contains("changes"));
        assert_eq!(version.number, RELEASE);
        fs::write(root.join("file"), "b").unwrap();
        let version = of(root).unwrap();
        assert!(version.source.ends_with(", with changes"));
        assert_ne!(version.number, RELEASE);
    }

    /// As a hook of git would start them.
    #[test]
    fn the_repository_of_a_hook_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let developers = dir.path();
        git(developers, "", &["init", "--quiet"]);
        let before = commit(developers, "2026-11-27T23:30:00+0000");
        let test = "verbs::deb::version::tests::changes_are_told_and_are_no_release";
        let mut hook = Command::new(std::env::current_exe().unwrap());
        hook.args(["--exact", test])
            .env("GIT_DIR", developers.join(".git"))
            .env("GIT_WORK_TREE", developers)
            .env("GIT_INDEX_FILE", developers.join(".git/index"));
        let said = output(&mut hook).unwrap();
        assert!(said.contains("1 passed"), "{said}");
        assert_eq!(of(developers).unwrap().number, before);
        let tags = output(super::git(developers).arg("tag")).unwrap();
        assert_eq!(tags, "");
    }
}
