//! Packages of this machine's Debian that cannot be installed beside what is there: unpacked in the cache, where nobody else
//! sees them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    ground::{project::Project, step},
    terminal::progress::Step,
};

/// Downloads packages, named as for apt, and unpacks them together in `place`. Needs apt's lists.
pub fn unpack(project: &Project, what: &str, packages: &[String], place: &Path) -> Result<()> {
    let step = Step::begin(format!("unpacking {what}"));
    let scratch = project.scratch()?;
    let log = project.log("unpacked")?;
    let mut download = Command::new("apt-get");
    download.arg("download").args(packages);
    step::run(download.current_dir(scratch.path()), &log, &step, |line| {
        step.detail(line)
    })?;
    let files = scratch.path().join("files");
    // All of them first, as what is unpacked lies beside them.
    let packages = fs::read_dir(scratch.path())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    for package in packages {
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(&package).arg(&files);
        step::run(&mut extract, &log, &step, |_| {})?;
    }
    // Whole or absent; another invocation may have been faster.
    match fs::rename(&files, place) {
        Err(error) if !place.is_dir() => {
            return Err(error).with_context(|| format!("cannot put {what} in place"));
        }
        _ => {}
    }
    step.done();
    Ok(())
}
