//! The verb `run`: one command in a freshly booted kernel.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Result;

use crate::{
    guest::{Boot, Cmd, End, Stdin},
    kernel::{self, Arch},
    project::Project,
};

#[derive(clap::Args)]
pub struct Args {
    /// The kernel to boot
    #[arg(long, default_value = "um")]
    arch: Arch,
    /// The guest's memory, as in 512M or 4G
    #[arg(long, value_parser = size)]
    mem: Option<String>,
    /// Its CPUs; UML has one
    #[arg(long)]
    smp: Option<u32>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

fn size(text: &str) -> Result<String, String> {
    match crate::guest::bytes(text) {
        Some(bytes) if bytes >= 64 << 20 => Ok(text.to_owned()),
        Some(_) => Err("a kernel needs 64M at the least".into()),
        None => Err("give a size as in 512M or 4G".into()),
    }
}

pub fn run(project: &Project, args: Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let kernel = kernel::build(project, args.arch, linux_src)?;
    let mut boot = Boot::new(project, &kernel);
    if let Some(mem) = &args.mem {
        boot = boot.mem(mem);
    }
    if let Some(cpus) = args.smp {
        boot = boot.smp(cpus);
    }
    if let Some(seconds) = args.timeout {
        boot = boot.timeout(Duration::from_secs(seconds));
    }
    let outcome = boot.run(Cmd::new(&args.command).stdin(Stdin::Inherit))?;
    match outcome.end {
        // The command's own business.
        End::Exited(status) if outcome.splats.is_empty() => {
            Ok(ExitCode::from(u8::try_from(status).unwrap_or(255)))
        }
        _ => {
            eprintln!("error: {}", outcome.describe());
            Ok(match outcome.end {
                End::Exited(status) if status != 0 => {
                    ExitCode::from(u8::try_from(status).unwrap_or(255))
                }
                // As timeout(1) has it.
                End::TimedOut => ExitCode::from(124),
                _ => ExitCode::FAILURE,
            })
        }
    }
}
