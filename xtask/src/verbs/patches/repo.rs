//! A repository of git with no more in it than the series touches.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::{
    maintainers::{MAINTAINERS, with_entry},
    parts::Part,
};
use crate::ground::{
    cache,
    files::{self, Files},
    git::git,
    step,
};

/// No more words for git.
pub const NO: [&str; 0] = [];

#[derive(Debug)]
pub struct Repo {
    pub scratch: tempfile::TempDir,
    pub tree: PathBuf,
    sender: String,
}

impl Repo {
    pub fn of(pristine: &Files, sender: &str) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let tree = scratch.path().join("tree");
        for (path, content) in pristine {
            cache::write(&tree.join(path), content)?;
        }
        let repo = Self {
            scratch,
            tree,
            sender: sender.to_owned(),
        };
        repo.git(["init", "--quiet", "--initial-branch=series"], NO)?;
        repo.git(["add", "--all"], NO)?;
        repo.git(["commit", "--quiet", "--message=base"], NO)?;
        repo.git(["tag", "base"], NO)?;
        Ok(repo)
    }

    /// Takes the part's files out of the overlay and commits them.
    pub fn commit(
        &self,
        part: &Part,
        overlay: &mut Files,
        pristine: &Files,
        maintained: &mut BTreeSet<String>,
    ) -> Result<()> {
        for &pattern in part.files {
            let taken: Vec<PathBuf> = overlay
                .keys()
                .filter(|path| match pattern.ends_with('/') {
                    true => path.starts_with(pattern),
                    false => path.as_path() == Path::new(pattern),
                })
                .cloned()
                .collect();
            if taken.is_empty() {
                bail!(
                    "there is no kernel/{pattern}, which PARTS in xtask/src/verbs/patches/parts.rs names"
                );
            }
            for path in taken {
                let content = overlay.remove(&path).unwrap_or_default();
                cache::write(&self.tree.join(path), content)?;
            }
            maintained.retain(|other| !other.starts_with(pattern) || !pattern.ends_with('/'));
            if !maintained
                .iter()
                .any(|other| other.ends_with('/') && pattern.starts_with(other.as_str()))
            {
                maintained.insert(pattern.to_owned());
            }
        }
        let name = Path::new(MAINTAINERS);
        let list = String::from_utf8_lossy(&pristine[name]);
        let list = with_entry(&list, &self.sender, maintained)?;
        cache::write(&self.tree.join(name), list)?;
        self.git(["add", "--all"], NO)?;
        let message = format!("{}\nSigned-off-by: {}\n", part.message, self.sender);
        self.git(["commit", "--quiet", "--message"], [&message])
    }

    pub fn git<const N: usize>(
        &self,
        words: [&str; N],
        rest: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> Result<()> {
        let (name, mail) = self.sender.split_once(" <").unwrap_or_default();
        let mail = mail.trim_end_matches('>');
        let mut command = git(&self.tree);
        command
            .args(words)
            .args(rest)
            // What the user has configured is not meant for this repository.
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), name);
            command.env(format!("GIT_{role}_EMAIL"), mail);
        }
        step::output(&mut command)?;
        Ok(())
    }

    /// What the files are like as of a commit, and git's name for that.
    pub fn at(&self, commit: &str) -> Result<(String, Files)> {
        self.git(["checkout", "--quiet", "--detach"], [commit])?;
        let mut command = git(&self.tree);
        let id = step::output(command.args(["rev-parse", "HEAD^{tree}"]))?;
        let mut content = files::below(&self.tree)?;
        content.retain(|path, _| !path.starts_with(".git"));
        Ok((id.trim().to_owned(), content))
    }
}
