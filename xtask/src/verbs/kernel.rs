//! The verb `kernel`: builds a kernel, and says where its image is.

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use crate::{
    ground::project::Project,
    kernel::{self, Arch},
};

#[derive(clap::Args)]
pub struct Args {
    arch: Arch,
}

pub fn run(project: &Project, args: &Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let kernel = kernel::build(project, args.arch, linux_src)?;
    println!("{}", kernel.image.display());
    Ok(ExitCode::SUCCESS)
}
