//! The verb `setup`: installs what the tool needs, or says what is missing.

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use crate::ground::{
    packages::{self, Plan},
    project::Project,
    qemu,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only list it, with the apt-get line
    #[arg(long)]
    check: bool,
}

pub fn run(project: &Project, args: &Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    if !args.check {
        packages::ensure(project, linux_src.is_some())?;
    } else if !check(project)? {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists what is missing; true if that is nothing.
fn check(project: &Project) -> Result<bool> {
    let missing = packages::missing(project, false)?;
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
    if plan.own_qemu {
        println!(
            "{} cannot be installed beside what is there; `cargo xtask setup` unpacks it into the cache",
            qemu::PACKAGE
        );
    }
    if let Err(error) = libraries {
        println!("{error:#}");
    }
    if !plan.names.is_empty() {
        let what = if plan.own_qemu {
            "what else is missing"
        } else {
            "them"
        };
        println!("install {what} with:\n  {plan}");
    }
    Ok(false)
}
