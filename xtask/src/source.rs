//! The kernel's source: Debian's package or a tree of the user's, copied into the cache.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{cache, interrupt, interrupt::Group, progress::Step, project::Project, step};

/// The kernel that the patches are for.
const SERIES: &str = "6.12";
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
const PACKAGE: &str = "linux-source-6.12";

/// A tree in the cache, and beside it everything made from it.
pub struct Source {
    /// Holds the tree, the objects and the stamps.
    pub dir: PathBuf,
    /// The tree itself.
    pub tree: PathBuf,
}

/// The tree in the cache, fetched if need be: one that takes the patches, or another one that never does. Needs the
/// cache's lock.
pub fn fetch(project: &Project, user_tree: Option<&Path>, patched: bool) -> Result<Source> {
    match user_tree {
        Some(tree) => copy(project, tree, patched),
        None => unpack(project, patched),
    }
}

fn source(project: &Project, key: &str, patched: bool) -> Source {
    let name = match patched {
        true => key.to_owned(),
        false => format!("{key}-unpatched"),
    };
    let dir = project.cache.join("linux").join(name);
    Source {
        tree: dir.join("tree"),
        dir,
    }
}

/// Debian's tree, whether or not it is in the cache yet.
pub fn debian(project: &Project, patched: bool) -> Result<Source> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", PACKAGE])
        .output()
        .context("cannot run dpkg-query; --linux-src DIR takes an unpacked tree instead")?;
    if !output.status.success() || !Path::new(TARBALL).is_file() {
        bail!("{PACKAGE} is not installed; run `cargo xtask setup`, or give --linux-src DIR");
    }
    Ok(source(
        project,
        &format!("debian-{}", String::from_utf8_lossy(&output.stdout)),
        patched,
    ))
}

fn unpack(project: &Project, patched: bool) -> Result<Source> {
    let source = debian(project, patched)?;
    let stamp = source.dir.join("unpacked");
    if stamp.is_file() {
        return Ok(source);
    }
    // Whatever is there was interrupted.
    let step = Step::begin("unpacking the kernel's source");
    if source.dir.exists() {
        step.detail("removing what an interrupted run left");
        cache::remove(&source.dir)?;
    }
    fs::create_dir_all(&source.tree)?;
    let log = project.log("unpack")?;
    let mut tar = Group::spawn(
        Command::new("tar")
            .args(["--extract", "--xz", "--strip-components=1", "--directory"])
            .arg(&source.tree)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?),
        Signal::TERM,
    )?;
    let mut input = tar.child.stdin.take().context("tar has no input")?;
    let mut archive = File::open(TARBALL).with_context(|| format!("cannot open {TARBALL}"))?;
    let size = archive.metadata()?.len();
    let mut chunk = vec![0; 1 << 18];
    let mut done = 0;
    loop {
        interrupt::check()?;
        let count = archive.read(&mut chunk)?;
        // A write fails when tar has given up, and tar says why.
        if count == 0 || input.write_all(&chunk[..count]).is_err() {
            break;
        }
        done += count as u64;
        step.percent(done * 100 / size.max(1));
    }
    drop(input);
    let status = tar.child.wait()?;
    interrupt::check()?;
    if !status.success() {
        bail!("unpacking {TARBALL} failed\n{}", step::tail(&log)?);
    }
    check_series(&source.tree)?;
    cache::write(&stamp, "")?;
    step.done();
    Ok(source)
}

fn copy(project: &Project, from: &Path, patched: bool) -> Result<Source> {
    let from = from
        .canonicalize()
        .with_context(|| format!("--linux-src: no directory {}", from.display()))?;
    let version = check_series(&from)?;
    let path = from.to_string_lossy();
    let source = source(
        project,
        &format!("{version}-{}", cache::fingerprint(path.as_bytes())),
        patched,
    );
    fs::create_dir_all(&source.dir)?;
    // The user may have edited the tree since, so it is compared every time. What the patches
    // touch is compared too, with the copies that are kept without them.
    let step = Step::begin(format!("copying {path}"));
    let stamp = source.dir.join("unpacked");
    let log = project.log("copy")?;
    let managed = crate::tree::managed(&source)?;
    let excludes = source.dir.join("excludes");
    let list: String = managed
        .iter()
        .map(|path| format!("/{}\n", path.display()))
        .collect();
    cache::write(&excludes, list)?;
    let mut from_slash = from.clone().into_os_string();
    from_slash.push("/");
    let mut changed = false;
    step::run(
        Command::new("rsync")
            .args([
                "--archive",
                "--omit-dir-times",
                "--delete",
                "--itemize-changes",
            ])
            .args([
                "--exclude=/.git",
                "--exclude=/.config",
                "--exclude=/include/config",
            ])
            .args([
                "--exclude=/include/generated",
                "--exclude=/arch/*/include/generated",
            ])
            .args([
                "--exclude=*.o",
                "--exclude=*.a",
                "--exclude=*.cmd",
                "--exclude=*.ko",
            ])
            .arg(format!("--exclude-from={}", excludes.display()))
            .arg(&from_slash)
            .arg(&source.tree),
        &log,
        &step,
        |line| {
            changed |= copied(line);
            step.detail(line);
        },
    )?;
    if crate::tree::refresh(&source, &from, &managed)? || changed || !stamp.is_file() {
        // Objects are stale now; the time tells them so.
        cache::write(&stamp, format!("{:?}", std::time::SystemTime::now()))?;
    }
    step.done();
    Ok(source)
}

/// Whether a line of rsync tells of a file, link or removal.
fn copied(line: &str) -> bool {
    [">f", "cL", "*deleting"]
        .iter()
        .any(|kind| line.starts_with(kind))
}

/// The tree's version, if it is of the series that the patches are for.
pub fn check_series(tree: &Path) -> Result<String> {
    let makefile = fs::read_to_string(tree.join("Makefile"))
        .with_context(|| format!("{} holds no kernel source", tree.display()))?;
    let Some(version) = version(&makefile) else {
        bail!("{} holds no kernel source", tree.display());
    };
    if version != SERIES && !version.starts_with(&format!("{SERIES}.")) {
        bail!(
            "{} is Linux {version}; the patches are for {SERIES}.y, so give a tree of that series",
            tree.display()
        );
    }
    Ok(version)
}

/// The version in a kernel's Makefile, as in `6.12.3`.
fn version(makefile: &str) -> Option<String> {
    let field = |name: &str| {
        makefile.lines().take(10).find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    Some(format!(
        "{}.{}.{}",
        field("VERSION")?,
        field("PATCHLEVEL")?,
        field("SUBLEVEL")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn makefile(minor: &str) -> String {
        format!(
            "# SPDX\nVERSION = 6\nPATCHLEVEL = {minor}\nSUBLEVEL = 74\nEXTRAVERSION =\nNAME = x\n"
        )
    }

    #[test]
    fn rsyncs_lines_are_understood() {
        assert!(copied(">f.st...... mm/rmap.c"));
        assert!(copied("*deleting   mm/gone.c"));
        assert!(copied("cL+++++++++ scripts/dtc/include-prefixes/arm -> x"));
        assert!(!copied(".d..t...... mm/"));
        assert!(!copied("cannot delete non-empty directory: mm/sksm"));
    }

    #[test]
    fn the_series_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_series(dir.path()).is_err());
        fs::write(dir.path().join("Makefile"), "all:\n").unwrap();
        assert!(check_series(dir.path()).is_err());
        fs::write(dir.path().join("Makefile"), makefile("12")).unwrap();
        assert_eq!(check_series(dir.path()).unwrap(), "6.12.74");
        fs::write(dir.path().join("Makefile"), makefile("1")).unwrap();
        let error = check_series(dir.path()).unwrap_err().to_string();
        assert!(error.contains("Linux 6.1.74"), "{error}");
    }
}
