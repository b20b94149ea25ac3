//! Fetches the kernel's source: Debian's package or a tree of the user's, copied into the cache.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{
    base::Base,
    origin::Origin,
    source::{Source, UNPATCHED},
};
use crate::{
    ground::{
        cache,
        interrupt::{self, Group},
        project::Project,
        step,
    },
    terminal::progress::Step,
};

/// How the name of Debian's in the cache begins.
const DEBIAN: &str = "debian-";

/// The tree in the cache, fetched if need be: one that takes the patches, or another one that never does. Needs the
/// cache's lock.
pub fn source(project: &Project, origin: &Origin, patched: bool) -> Result<Source> {
    match &origin.tree {
        Some(tree) => copy(project, tree, patched),
        None => unpack(project, origin.base, patched),
    }
}

/// Debian's tree, whether or not it is in the cache yet.
pub fn debian(project: &Project, base: Base, patched: bool) -> Result<Source> {
    let version = base.source().version()?;
    Ok(Source::named(
        project,
        &format!("{DEBIAN}{version}"),
        patched,
    ))
}

/// Whether nothing of Debian's has to be fetched any more.
pub fn is_unpacked(source: &Source) -> bool {
    source.dir.join("unpacked").is_file()
}

fn unpack(project: &Project, base: Base, patched: bool) -> Result<Source> {
    let source = debian(project, base, patched)?;
    if !is_unpacked(&source) {
        unpack_into(project, base, &source)?;
    }
    for old in superseded(&source.dir)? {
        // Whoever builds from it still has it until then.
        let Some(_alone) = Source::at(&old).try_change()? else {
            continue;
        };
        let step = Step::begin(format!("removing {}", old.display()));
        // The stamp first, for who goes back to it after an interruption.
        let removed = cache::remove(&old.join("unpacked")).and_then(|()| cache::remove(&old));
        match removed {
            Ok(()) => step.done(),
            // It is in nobody's way.
            Err(error) => eprintln!("note: {error:#}"),
        }
    }
    Ok(source)
}

/// The trees of Debian's older versions of the same base beside this one, each with all that was made from it. One that
/// somebody gives as --linux-src, which shows in the name of its copy, is not among them.
fn superseded(current: &Path) -> Result<Vec<PathBuf>> {
    let version = |name: &str| {
        let name = name.strip_suffix(UNPATCHED).unwrap_or(name);
        name.strip_prefix(DEBIAN).map(str::to_owned)
    };
    let name = current.file_name().context("the tree has no name")?;
    let newest = version(&name.to_string_lossy()).context("the tree is not Debian's")?;
    let parent = current.parent().context("the tree has no place")?;
    let mut names = Vec::new();
    for entry in fs::read_dir(parent)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let mut old = Vec::new();
    for name in &names {
        let dir = parent.join(name);
        let copy = copy_key("", &dir.join("tree").to_string_lossy());
        let copied = |other: &String| other.trim_end_matches(UNPATCHED).ends_with(&copy);
        let Some(version) = version(name).filter(|_| !names.iter().any(copied)) else {
            continue;
        };
        if Base::of_version(&version) != Base::of_version(&newest) {
            continue;
        }
        let mut compare = Command::new("dpkg");
        compare.args(["--compare-versions", &version, "lt", &newest]);
        if compare.status().context("cannot run dpkg")?.success() {
            old.push(dir);
        }
    }
    Ok(old)
}

fn unpack_into(project: &Project, base: Base, source: &Source) -> Result<()> {
    let package = base.source();
    let tarball = package.content(project, &format!("usr/src/{}.tar.xz", package.name()))?;
    let tarball = &tarball.path;
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
    let mut archive =
        File::open(tarball).with_context(|| format!("cannot open {}", tarball.display()))?;
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
        bail!(
            "unpacking {} failed\n{}",
            tarball.display(),
            step::tail(&log)?
        );
    }
    Base::of_tree(&source.tree)?;
    cache::write(&source.dir.join("unpacked"), "")?;
    step.done();
    Ok(())
}

/// Names the copy of a user's tree.
fn copy_key(version: &str, path: &str) -> String {
    format!("{version}-{}", cache::fingerprint(path.as_bytes()))
}

fn copy(project: &Project, from: &Path, patched: bool) -> Result<Source> {
    let from = from
        .canonicalize()
        .with_context(|| format!("--linux-src: no directory {}", from.display()))?;
    let (_, version) = Base::of_tree(&from)?;
    let path = from.to_string_lossy();
    let source = Source::named(project, &copy_key(&version, &path), patched);
    fs::create_dir_all(&source.dir)?;
    let _alone = source.change()?;
    // The user may have edited the tree since, so it is compared every time. What the patches
    // touch is compared too, with the copies that are kept without them.
    let step = Step::begin(format!("copying {path}"));
    let stamp = source.dir.join("unpacked");
    let log = project.log("copy")?;
    let managed = source.managed()?;
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
    if source.refresh(&from, &managed)? || changed || !stamp.is_file() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_versions_of_debians_are_superseded() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let given = path("debian-6.12.48-1").join("tree");
        let copy = copy_key("6.12.48", &given.to_string_lossy());
        for name in [
            "debian-6.12.73-1~deb12u1",
            "debian-6.12.73-1~deb12u1-unpatched",
            "debian-6.12.9-1",
            "debian-6.12.117-1",
            "debian-6.12.117-1-unpatched",
            "debian-6.12.200-1",
            "debian-6.12.48-1",
            "debian-7.3.1-1~bpo13+1",
            "debian-7.3.4-1~bpo13+1",
            &copy,
            "6.12.1-0123456789abcdef",
        ] {
            fs::create_dir(path(name)).unwrap();
        }
        let mut expected = [
            path("debian-6.12.73-1~deb12u1"),
            path("debian-6.12.73-1~deb12u1-unpatched"),
            path("debian-6.12.9-1"),
        ];
        expected.sort();
        for current in ["debian-6.12.117-1", "debian-6.12.117-1-unpatched"] {
            let mut old = superseded(&path(current)).unwrap();
            old.sort();
            assert_eq!(old, expected);
        }
        // The other way round it is no different.
        assert_eq!(
            superseded(&path("debian-7.3.4-1~bpo13+1")).unwrap(),
            [path("debian-7.3.1-1~bpo13+1")]
        );
        // Of the unpatched kernel alone.
        fs::rename(path(&copy), path(&format!("{copy}-unpatched"))).unwrap();
        assert_eq!(superseded(&path("debian-6.12.117-1")).unwrap().len(), 3);
    }

    #[test]
    fn rsyncs_lines_are_understood() {
        assert!(copied(">f.st...... mm/rmap.c"));
        assert!(copied("*deleting   mm/gone.c"));
        assert!(copied("cL+++++++++ scripts/dtc/include-prefixes/arm -> x"));
        assert!(!copied(".d..t...... mm/"));
        assert!(!copied("cannot delete non-empty directory: mm/sksm"));
    }
}
