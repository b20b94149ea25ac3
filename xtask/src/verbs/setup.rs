//! The verb `setup`: installs what the tool needs, or says what is missing.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    ground::{
        packages::{self, Plan},
        project::Project,
    },
    kernel::{Download, Origin, Package, fetch},
};

#[derive(clap::Args)]
pub struct Args {
    /// Only list it, with the apt-get line
    #[arg(long)]
    check: bool,
}

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    if !args.check {
        packages::ensure(project, origin.needs_no_package())?;
        if let Some(download) = missing_source(project, origin)? {
            let _lock = project.lock_cache()?;
            download.get(project)?;
        }
    } else if !check(project, origin)? {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The package of the source that has to be downloaded, if nobody has done it yet.
fn missing_source(project: &Project, origin: &Origin) -> Result<Option<Download>> {
    let Package::Downloaded(download) = origin.base.source() else {
        return Ok(None);
    };
    let have = origin.tree.is_some()
        || download.is_there(project)
        || fetch::is_unpacked(&fetch::debian(project, origin.base, true)?);
    Ok((!have).then_some(download))
}

/// Lists what is missing; true if that is nothing.
fn check(project: &Project, origin: &Origin) -> Result<bool> {
    let missing = packages::missing(project, origin.needs_no_package())?;
    let source = missing_source(project, origin)?;
    if let Some(download) = &source {
        println!(
            "{} is missing; `cargo xtask setup{}` downloads it into the cache",
            download.file(),
            origin.base.option()
        );
    }
    if missing.is_empty() && source.is_some() {
        return Ok(false);
    }
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(true);
    }
    println!("missing packages:");
    for package in &missing {
        println!("  {package}");
    }
    let mut plan = Plan::of_this_machine(&missing);
    let libraries = plan.add_libraries();
    for emulator in &plan.own_qemu {
        println!(
            "{} cannot be installed beside what is there; `cargo xtask setup` unpacks it into the cache",
            emulator.package
        );
    }
    if let Err(error) = libraries {
        println!("{error:#}");
    }
    if !plan.names.is_empty() {
        let what = match plan.own_qemu.is_empty() {
            false => "what else is missing",
            true => "them",
        };
        println!("install {what} with:\n  {plan}");
    }
    Ok(false)
}
