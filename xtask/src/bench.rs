//! The verb `bench`: SKSM measured beside KSM and ordinary memory in one boot, as tables, as JSON and as a picture.

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
use sksm_guest::bench::Report;

use crate::{
    build,
    guest::{Boot, Cmd, End, Output},
    kernel::{self, Arch},
    ksmd_watch::KsmdWatch,
    progress::Step,
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
    let out = args.out.unwrap_or_else(|| {
        let arch = args.arch.to_string();
        project.target.join("sksm/bench").join(arch)
    });
    // Before minutes of work whose result could not be written.
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let kernel = kernel::build(project, args.arch, linux_src)?;
    let programs = build::guest_programs(project)?;

    let mut command = vec![programs.join("sksm-bench").into_os_string()];
    if args.quick {
        command.push("--quick".into());
    }
    if !args.only.is_empty() {
        command.extend(["--only".into(), args.only.join(",").into()]);
    }
    let step = Step::begin("measuring");
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
    let outcome = Boot::new(project, &kernel)
        .mem(if args.quick { MEMORY_QUICK } else { MEMORY })
        .timeout(Duration::from_secs(3600))
        .run(
            Cmd::new(&command)
                .stdout(Output::Capture)
                .stderr(Output::Lines(Box::new(on_line))),
        )?;
    step.done();
    if outcome.end != End::Exited(0) {
        for line in errors.take() {
            eprintln!("{line}");
        }
        bail!("{}", outcome.describe());
    }
    let mut report: Report =
        serde_json::from_slice(&outcome.stdout).context("cannot read what the guest printed")?;
    if let (Some(watch), Some(beside)) = (watch, &mut report.beside_ksm) {
        watch.into_inner().fill_in(beside.ksm.iter_mut());
    }
    print!("{}", table::render(&report));
    write(
        &out.join("bench.json"),
        &(serde_json::to_string_pretty(&report)? + "\n"),
    )?;
    write(&out.join("bench.svg"), &chart::draw(&report))?;
    if !outcome.splats.is_empty() {
        bail!("{}", outcome.describe());
    }
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
