//! The verb `kernel`: builds a kernel, and says where its image is.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    ground::project::Project,
    kernel::{self, Arch, Origin},
};

#[derive(clap::Args)]
pub struct Args {
    arch: Arch,
}

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    let kernel = kernel::build(project, args.arch, origin)?;
    println!("{}", kernel.image.display());
    Ok(ExitCode::SUCCESS)
}
