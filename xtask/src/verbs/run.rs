//! The verb `run`: one command in a freshly booted kernel.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use procfs::{Current, Meminfo};

use crate::{
    ground::project::Project,
    guest::{Boot, Cmd, End, MOST_CPUS, Stdin, memory},
    kernel::{self, Arch, Origin},
};

#[derive(clap::Args)]
pub struct Args {
    /// The kernel to boot
    #[arg(long, default_value = "um")]
    arch: Arch,
    /// The guest's memory, as in 512M or 4G
    #[arg(long, value_parser = size)]
    mem: Option<String>,
    /// Its CPUs, up to 8; UML has one
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_CPUS))]
    smp: Option<u32>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

fn size(text: &str) -> Result<String, String> {
    // What cannot be read limits nothing.
    let most = Meminfo::current().map_or(u64::MAX, |info| info.mem_total + info.swap_total);
    match memory::bytes(text) {
        Some(bytes) if bytes > most => Err(format!(
            "this machine has {} of memory and swap",
            memory::gib(most)
        )),
        Some(bytes) if bytes >= 64 << 20 => Ok(text.to_owned()),
        Some(_) => Err("a kernel needs 64M at the least".into()),
        None => Err("give a size as in 512M or 4G".into()),
    }
}

pub fn run(project: &Project, args: Args, origin: &Origin) -> Result<ExitCode> {
    let kernel = kernel::build(project, args.arch, origin)?;
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_machine_that_cannot_be_is_refused() {
        let parse = |option: &str| match Cli::try_parse_from(["run", option, "--", "true"]) {
            Ok(cli) => Ok((cli.args.smp, cli.args.mem)),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(parse("--smp=2").unwrap().0, Some(2));
        assert_eq!(parse("--mem=64M").unwrap().1.as_deref(), Some("64M"));
        for (option, said) in [
            ("--smp=0", "1..=8"),
            ("--smp=300", "1..=8"),
            ("--mem=1M", "64M at the least"),
            ("--mem=1000000G", "this machine has"),
            ("--mem=99999999999G", "give a size"),
            ("--mem=lots", "give a size"),
        ] {
            let error = parse(option).unwrap_err();
            assert!(error.contains(said), "{option}: {error}");
        }
    }

    #[test]
    fn the_kernels_have_as_many_cpus_as_one_can_ask_for() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap();
        let config = std::fs::read_to_string(root.join("kernel/configs/qemu.config")).unwrap();
        assert!(config.contains(&format!("CONFIG_NR_CPUS={MOST_CPUS}\n")));
    }
}
