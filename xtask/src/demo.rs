//! The verb `demo`: the experiment in a freshly booted kernel, as a table, as JSON and as a picture.

mod chart;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sksm_guest::demo::Report;

use crate::{
    build, format,
    guest::Boot,
    kernel::{self, Arch},
    measurement::{self, Measured, Out},
    project::Project,
};

#[derive(clap::Args)]
pub struct Args {
    /// How many processes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=30000))]
    processes: u32,
    /// The kernel to boot
    #[arg(long, default_value = "um")]
    arch: Arch,
    /// Where demo.json and demo.svg go; target/sksm/demo if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long to wait for KSM, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    ksm_timeout: u64,
}

/// What goes into demo.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Published {
    arch: String,
    #[serde(flatten)]
    report: Report,
}

pub fn run(project: &Project, args: Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let out = Out::create(args.out.unwrap_or_else(|| project.target.join("sksm/demo")))?;
    project.check_target()?;
    let kernel = kernel::build(project, args.arch, linux_src)?;
    let programs = build::guest_programs(project)?;
    let preload = build::preload(project)?;

    let processes = args.processes.to_string();
    let ksm_timeout = args.ksm_timeout.to_string();
    let command = [
        programs.join("sksm-demo").into_os_string(),
        "--processes".into(),
        processes.into(),
        "--ksm-timeout".into(),
        ksm_timeout.into(),
        "--preload".into(),
        preload.into_os_string(),
    ];
    let boot = Boot::new(project, &kernel)
        .mem(&memory(args.processes))
        // As on most machines.
        .parameters("")
        .timeout(Duration::from_secs(
            900 + u64::from(args.processes) + 2 * args.ksm_timeout,
        ));
    let doing = format!("running {} processes", format::thousands(args.processes));
    // 2: it ran, and its expectations do not hold.
    let Measured {
        mut report,
        ksmd,
        outcome,
    } = measurement::run::<Report>(boot, doing, &command, &[0, 2])?;
    let phases = report.phases.iter_mut();
    let runs = phases.filter_map(|phase| phase.ksm.as_mut());
    ksmd.fill_in(runs);
    let published = Published {
        arch: args.arch.to_string(),
        report,
    };
    print!("{}", table::render(&published.report));
    out.json("demo.json", &published)?;
    out.text("demo.svg", &chart::draw(&published.report))?;
    outcome.check_splats()?;

    if !published
        .report
        .expected
        .is_some_and(|expected| expected.pass)
    {
        bail!("the kernel ran, but did not merge as expected: see above");
    }
    Ok(ExitCode::SUCCESS)
}

/// The guest's memory: libc's text is some 1.4 MiB, and each process needs some more.
fn memory(processes: u32) -> String {
    format!("{}M", 512 + 2 * processes)
}
