//! A Debian root with systemd and apt, of the suite that this machine has: what is built here runs there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    ground::{cache, packages, project::Project, step},
    terminal::progress::Step,
};

/// uidmap is for those who are not root.
const TOOLS: [&str; 3] = ["libarchive-tools", "mmdebstrap", "uidmap"];
/// Beside what is essential: dpkg and perl are, and apt comes with the variant.
const INCLUDED: &str = "systemd,systemd-sysv,dbus,init-system-helpers";

/// The root as an archive that the kernel takes, made at the first time from Debian's archive.
pub fn archive(project: &Project) -> Result<PathBuf> {
    packages::ensure_packages(project, &TOOLS)?;
    let suite = suite(Path::new(packages::RELEASE))?;
    // What is built with a newer libc need not run with an older one.
    let libc = step::output(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${Version}",
        "libc6",
    ]))?;
    let key = cache::fingerprint((INCLUDED, libc));
    let archive = project
        .cache
        .join(format!("debian-root-{suite}-{key}.cpio"));
    let _lock = project.lock_cache()?;
    if archive.is_file() {
        return Ok(archive);
    }
    let step = Step::begin(format!("fetching a root of Debian {suite}"));
    let scratch = project.scratch()?;
    let (tar, made) = (
        scratch.path().join("root.tar"),
        scratch.path().join("root.cpio"),
    );
    let mut fetch = Command::new("mmdebstrap");
    fetch
        .args(["--variant=minbase", "--include", INCLUDED, &suite])
        .arg(&tar);
    let log = project.log("debian-root")?;
    step::run(&mut fetch, &log, &step, |line| step.detail(line))?;
    let mut convert = Command::new("bsdtar");
    convert.args(["--create", "--format", "newc", "--file"]);
    let mut from = std::ffi::OsString::from("@");
    from.push(&tar);
    step::run(convert.arg(&made).arg(from), &log, &step, |line| {
        step.detail(line)
    })?;
    cache::copy(&made, &archive)?;
    step.done();
    Ok(archive)
}

fn suite(release: &Path) -> Result<String> {
    let text = fs::read_to_string(release)
        .with_context(|| format!("cannot read {}", release.display()))?;
    let field = |name| packages::release_field(&text, name);
    match (field("ID"), field("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite.to_owned()),
        _ => bail!("the packages are tried in a Debian of this machine's release, and it has none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_systems_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            fs::write(file.path(), text).unwrap();
            suite(file.path())
        };
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(read(debian).unwrap(), "bookworm");
        assert!(read("ID=ubuntu\nVERSION_CODENAME=noble\n").is_err());
        assert!(read("ID=debian\n").is_err());
    }
}
