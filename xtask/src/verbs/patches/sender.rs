//! Who sends the series, or builds packages.

use anyhow::{Context, Result, bail};

use crate::ground::{git::git, project::Project};

/// The author of the hooks, until somebody sends them, and who makes what only tests see.
pub const PLACEHOLDER: &str = "SKSM maintainers <sksm@localhost.localdomain>";

/// The name and address that the patches are sent and signed off with, or packages are from, as `option` gives them.
pub fn sender(project: &Project, option: &str, given: Option<&str>) -> Result<String> {
    if let Some(given) = given {
        let mail = given
            .strip_suffix('>')
            .and_then(|rest| rest.split_once(" <"))
            .is_some_and(|(name, mail)| {
                !name.trim().is_empty() && mail.contains('@') && !mail.contains([' ', '<'])
            });
        if !mail || given.contains('\n') {
            bail!(
                "{option} wants a name and an address, as in \"Jane Doe <jane@example.org>\"; this is \"{given}\""
            );
        }
        return Ok(given.to_owned());
    }
    let config = |key: &str| -> Result<String> {
        let output = git(&project.root)
            .args(["config", key])
            .output()
            .context("cannot run git")?;
        let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if value.is_empty() {
            bail!(
                "git does not know your {key}; give {option} \"Name <mail>\", or set it with `git config {key}`"
            );
        }
        Ok(value)
    };
    Ok(format!(
        "{} <{}>",
        config("user.name")?,
        config("user.email")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_has_a_name_and_an_address() {
        let given = "Jane Doe <jane@example.org>";
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        assert_eq!(sender(&project, "--signoff", Some(given)).unwrap(), given);
        for wrong in [
            "Jane Doe",
            "jane@example.org",
            "<jane@example.org>",
            "Jane <jane>",
            "Jane <a@b> x",
        ] {
            let error = sender(&project, "--signoff", Some(wrong))
                .unwrap_err()
                .to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
