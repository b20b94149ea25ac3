//! The verb `demo`: the experiment in a freshly booted kernel, as a table, as JSON and as a picture.

mod chart;
mod table;

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sksm_guest::demo::Report;

use crate::{
    build, format,
    guest::{Boot, Cmd, End, Output},
    kernel::{self, Arch},
    ksmd_watch::KsmdWatch,
    progress::Step,
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
    let out = args.out.unwrap_or_else(|| project.target.join("sksm/demo"));
    // Before minutes of work whose result could not be written.
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let kernel = kernel::build(project, args.arch, linux_src)?;
    let programs = build::guest_programs(project)?;
    let preload = build::preload(project)?;

    let step = Step::begin(format!(
        "running {} processes",
        format::thousands(args.processes)
    ));
    let errors = RefCell::new(Vec::new());
    let watch = (args.arch == Arch::Um).then(|| RefCell::new(KsmdWatch::default()));
    let failed = Cell::new(false);
    let on_line = |line: &str| {
        step.detail(line);
        // An error and what follows it.
        failed.set(failed.get() || line.starts_with("error:"));
        if failed.get() {
            errors.borrow_mut().push(line.to_owned());
        }
        if let Some(watch) = &watch {
            watch.borrow_mut().hear(line);
        }
    };
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
    let outcome = Boot::new(project, &kernel)
        .mem(&memory(args.processes))
        // As on most machines.
        .parameters("")
        .timeout(Duration::from_secs(
            900 + u64::from(args.processes) + 2 * args.ksm_timeout,
        ))
        .run(
            Cmd::new(&command)
                .stdout(Output::Capture)
                .stderr(Output::Lines(Box::new(on_line))),
        )?;
    step.done();

    // 2: it ran, and its expectations do not hold.
    if !matches!(outcome.end, End::Exited(0 | 2)) {
        for line in errors.take() {
            eprintln!("{line}");
        }
        bail!("{}", outcome.describe());
    }
    let mut report: Report =
        serde_json::from_slice(&outcome.stdout).context("cannot read what the guest printed")?;
    if let Some(watch) = watch {
        let runs = report
            .phases
            .iter_mut()
            .filter_map(|phase| phase.ksm.as_mut());
        watch.into_inner().fill_in(runs);
    }
    let published = Published {
        arch: args.arch.to_string(),
        report,
    };
    print!("{}", table::render(&published.report));
    write(
        &out.join("demo.json"),
        &(serde_json::to_string_pretty(&published)? + "\n"),
    )?;
    write(&out.join("demo.svg"), &chart::draw(&published.report))?;

    if !outcome.splats.is_empty() {
        bail!("{}", outcome.describe());
    }
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
