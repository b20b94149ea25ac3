//! git, in the repository that is meant.

use std::{path::Path, process::Command};

/// What a hook's git tells those that it starts of its own repository, and they would take for theirs.
const OF_ANOTHER: [&str; 7] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
];

/// git in this directory, whatever repository the tool was started from.
pub fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir);
    for name in OF_ANOTHER {
        git.env_remove(name);
    }
    git
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::files;

    #[test]
    fn nobody_asks_git_of_another_repository() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let asks = format!("Command::new({:?})", "git");
        for (path, text) in files::below(&sources).unwrap() {
            let own = path == Path::new("ground/git.rs");
            let text = String::from_utf8(text).unwrap();
            assert!(own || !text.contains(&asks), "{}", path.display());
        }
    }
}
