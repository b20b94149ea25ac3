//! The kernel's checker of style, as strict as it can be.

use std::{path::Path, process::Command};

/// Runs in the tree, whose typedefs and spelling list it wants.
pub fn command(tree: &Path) -> Command {
    let mut command = Command::new(tree.join("scripts/checkpatch.pl"));
    command
        .args([
            "--strict",
            "--quiet",
            "--show-types",
            "--terse",
            "--no-summary",
            // The tree comes without the history that has the commits of `Fixes:` tags.
            "--ignore=UNKNOWN_COMMIT_ID",
        ])
        .current_dir(tree);
    command
}
