//! What the kernel's manual would say of the advice: patches of the man-pages project, in `packaging/man-pages`.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail, ensure};

use crate::ground::{files, git::git, project::Project, step};

/// The release that they are for: Debian 12's.
const RELEASE: &str = "6.03-";
const PAGES: [&str; 2] = ["madvise.2", "process_madvise.2"];

/// Why they cannot be tried here.
pub fn cannot_apply() -> Option<String> {
    let version = step::output(Command::new("dpkg-query").args([
        "--showformat=${Version}",
        "--show",
        "manpages-dev",
    ]));
    if !version.is_ok_and(|version| version.starts_with(RELEASE)) {
        return Some(
            "the pages of man-pages 6.03, Debian 12's manpages-dev, are not installed".into(),
        );
    }
    let groff = Command::new("groff").arg("--version").output();
    groff
        .is_err()
        .then(|| "groff is not installed: apt install groff-base".into())
}

/// They apply, and the pages have no fault that groff knows of.
pub fn apply(project: &Project) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pages = dir.path().join("man2");
    fs::create_dir(&pages)?;
    for page in PAGES {
        let installed = format!("/usr/share/man/man2/{page}.gz");
        let page = fs::File::create(pages.join(page))?;
        let status = (Command::new("gzip").args(["-dc", &installed]))
            .stdout(page)
            .status()?;
        ensure!(status.success(), "cannot unpack {installed}");
    }
    let patches = project.root.join("packaging/man-pages");
    for patch in files::below(&patches)?.keys() {
        step::output(git(dir.path()).arg("apply").arg(patches.join(patch)))?;
    }
    PAGES.iter().try_for_each(|page| render(&pages.join(page)))
}

fn render(page: &Path) -> Result<()> {
    let output = (Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]))
        .arg(page)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !said.is_empty() {
        bail!("{}: {said}", page.display());
    }
    Ok(())
}
