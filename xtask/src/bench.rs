//! The verb `bench`: SKSM measured beside KSM and ordinary memory in one boot, as tables, as JSON and as a picture.

mod chart;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use sksm_guest::bench::Report;

use crate::{
    build,
    guest::Boot,
    kernel::{self, Arch},
    measurement::{self, Measured, Out},
    project::Project,
};

/// A million published pages, and 1 GiB twice, must fit in.
const MEMORY: &str = "6G";
const MEMORY_QUICK: &str = "1G";

#[derive(clap::Args)]
pub struct Args {
    /// The kernel to boot
    #[arg(long, default_value = "um")]
    arch: Arch,
    /// Fewer repeats and smaller sizes: a minute, and rougher figures
    #[arg(long)]
    quick: bool,
    /// Measure only these families, by their names in bench.json
    #[arg(long, value_name = "FAMILY", value_delimiter = ',')]
    only: Vec<String>,
    /// Where bench.json and bench.svg go; target/sksm/bench/ARCH if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(project: &Project, args: Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let out = Out::create(args.out.unwrap_or_else(|| {
        let arch = args.arch.to_string();
        project.target.join("sksm/bench").join(arch)
    }))?;
    let kernel = kernel::build(project, args.arch, linux_src)?;
    let programs = build::guest_programs(project)?;

    let mut command = vec![programs.join("sksm-bench").into_os_string()];
    if args.quick {
        command.push("--quick".into());
    }
    if !args.only.is_empty() {
        command.extend(["--only".into(), args.only.join(",").into()]);
    }
    let boot = Boot::new(project, &kernel)
        .mem(if args.quick { MEMORY_QUICK } else { MEMORY })
        .timeout(Duration::from_secs(3600));
    let Measured {
        mut report,
        ksmd,
        outcome,
    } = measurement::run::<Report>(boot, "measuring", &command, &[0])?;
    if let Some(beside) = &mut report.beside_ksm {
        ksmd.fill_in(beside.ksm.iter_mut());
    }
    print!("{}", table::render(&report));
    out.json("bench.json", &report)?;
    out.text("bench.svg", &chart::draw(&report))?;
    outcome.check_splats()?;
    Ok(ExitCode::SUCCESS)
}

/// What the figures are from, in words.
fn setting(report: &Report) -> String {
    let machine = if report.processor == "UML" {
        "User-Mode Linux, where faults and page-table changes are the host's work"
    } else if report.processor.contains("TCG") {
        "emulated by QEMU, where instructions do not cost what they cost on hardware"
    } else {
        &report.processor
    };
    format!(
        "Linux {} with {} CPU{} and {} MiB; {machine}",
        report.kernel,
        report.cpus,
        if report.cpus == 1 { "" } else { "s" },
        crate::format::thousands(report.memory_mib as i64),
    )
}
