//! The verb `deb`: Debian packages of the command and the libraries, and of a kernel with the engine.

mod documents;
pub mod installed;
pub mod kernel;
mod licences;
mod programs;
mod root;
mod trial;
pub mod units;
mod version;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};

use crate::{
    ground::project::Project,
    kernel::{Arch, Origin},
    verbs::patches,
};

use kernel::Flavour;
pub use programs::build as programs;

#[derive(clap::Args)]
pub struct Args {
    /// Where to (default: sksm/deb in cargo's target directory)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Who the packages are from, as in "Name <mail>" (default: git's user.name and user.email)
    #[arg(long, value_name = "NAME")]
    maintainer: Option<String>,
    /// A kernel instead: Debian's own configuration with RUST and SKSM; hours, and some 30 GB in the cache
    #[arg(long)]
    kernel: bool,
    /// Which of Debian's kernels
    #[arg(long, value_enum, default_value_t, requires = "kernel")]
    flavour: Flavour,
    /// Of the kernel, only see that the configuration holds and that the engine compiles under it: a minute or two
    #[arg(long, requires = "kernel")]
    check: bool,
    /// Install the packages in a Debian that systemd has booted on the kernel with SKSM, use, upgrade and remove them
    #[arg(long = "try", conflicts_with = "kernel")]
    trial: bool,
    /// The kernel for --try
    #[arg(long, value_enum, default_value_t = Arch::Um, requires = "trial")]
    arch: Arch,
}

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    if args.check {
        print!("{}", kernel::check(project, origin, args.flavour)?);
        return Ok(ExitCode::SUCCESS);
    }
    if *origin != Origin::default() && !args.kernel && !args.trial {
        bail!("--base and --linux-src are of use with --kernel and --try only");
    }
    let maintainer = patches::sender(project, "--maintainer", args.maintainer.as_deref())?;
    let out = match &args.out {
        Some(dir) => dir.clone(),
        None if args.kernel => origin.base.within(project.target.join("sksm/deb")),
        None => project.target.join("sksm/deb"),
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let packages = match args.kernel {
        true => kernel::build(project, origin, args.flavour, &maintainer, &out)?,
        false => programs(project, &maintainer, &out)?,
    };
    if args.trial {
        trial::run(project, args.arch, &packages, origin)?;
    }
    for package in packages {
        println!("{}", package.display());
    }
    Ok(ExitCode::SUCCESS)
}
