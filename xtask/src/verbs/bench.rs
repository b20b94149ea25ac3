//! The verb `bench`: SKSM measured beside KSM and ordinary memory in one boot, as tables, as JSON and as a picture.

mod chart;
mod published;
mod scan;
mod table;
mod unused;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use sksm_records::bench::{Failure, Report, names::family};

use crate::{
    ground::{interrupt, project::Project},
    guest::{Boot, programs},
    kernel::{self, Arch, Origin},
    verbs::shared::measurement::{self, Measured, Out},
};
use published::Published;

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
    /// Count instructions instead of time: under emulation, on one CPU, the same however busy this machine is, and no picture
    #[arg(long)]
    instructions: bool,
    /// Measure only these families; or scan: what ksmd and `sksm scan` save of virtual machines, which takes up to two hours, or with --arch x86_64 of memory in huge pages
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = families())]
    only: Vec<String>,
    /// With --only scan: so many machines
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(usize))]
    guests: usize,
    /// With x86_64, leave out what is measured in a kernel without the engine too, which is built for that
    #[arg(long)]
    patched_only: bool,
    /// Where bench.json and bench.svg go; target/sksm/bench/ARCH if not given, with another base target/sksm/bench/BASE/ARCH
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn families() -> PossibleValuesParser {
    PossibleValuesParser::new(family::ALL.iter().chain([&scan::NAME]))
}

/// What is measured on different bases is kept apart.
fn results(project: &Project, origin: &Origin) -> PathBuf {
    origin.base.within(project.target.join("sksm/bench"))
}

pub fn run(project: &Project, args: Args, origin: &Origin) -> Result<ExitCode> {
    if args.only.iter().any(|only| only == scan::NAME) {
        if args.only.len() > 1 {
            bail!("scan is measured by itself: leave the others out");
        }
        return scan::run(project, &args, origin);
    }
    if args.instructions && args.arch == Arch::Um {
        bail!("User-Mode Linux cannot count instructions: add --arch x86_64");
    }
    let out = Out::create(args.out.unwrap_or_else(|| {
        let arch = args.arch.to_string();
        results(project, origin).join(arch)
    }))?;
    let kernel = kernel::build(project, args.arch.of_this_machine()?, origin)?;
    let asked = |family: &&str| args.only.is_empty() || args.only.iter().any(|only| only == family);
    let compare = !args.patched_only && unused::FAMILIES.iter().any(asked);
    let mut unused_left_out = None;
    let mut without = None;
    if compare && args.arch == Arch::X86_64 {
        without = Some(kernel::build(project, Arch::Without, origin)?);
    } else if compare {
        unused_left_out =
            Some("it takes counts of instructions in two kernels, so add --arch x86_64".to_owned());
    }
    let programs = programs::guest_programs(project)?;

    let program = programs.join("sksm-bench");
    let mut command = vec![program.clone().into_os_string()];
    if args.quick {
        command.push("--quick".into());
    }
    let start = Instant::now();
    if !args.only.is_empty() {
        command.extend(["--only".into(), args.only.join(",").into()]);
    }
    let mut boot = Boot::new(project, &kernel)
        .mem(if args.quick { MEMORY_QUICK } else { MEMORY })
        // As on most machines: one NUMA node.
        .parameters("")
        .timeout(Duration::from_secs(3600));
    if args.instructions {
        command.push("--instructions".into());
        boot = boot.counting_instructions();
    }
    // 2: some of it failed.
    let Measured {
        mut report,
        ksmd,
        outcome,
    } = measurement::run::<Report>(boot, "measuring", &command, &[0, 2])?;
    if let Some(beside) = &mut report.beside_ksm {
        ksmd.fill_in(beside.ksm.iter_mut());
    }
    let mut unused = None;
    if let Some(without) = &without {
        match unused::measure(project, without, &kernel, &program) {
            Ok(measured) => unused = Some(measured),
            Err(error) => {
                interrupt::check()?;
                report.failed.push(Failure {
                    family: table::UNUSED.to_owned(),
                    error: format!("{error:#}"),
                });
            }
        }
    }
    let published = Published {
        report,
        unused,
        unused_left_out,
        seconds: start.elapsed().as_secs_f64(),
    };
    print!("{}", table::render(&published));
    out.json("bench.json", &published)?;
    // Its axes are of time.
    if !args.instructions {
        out.text("bench.svg", &chart::draw(&published))?;
    }
    outcome.check_splats()?;
    let failed = &published.report.failed;
    if !failed.is_empty() {
        let names: Vec<_> = failed
            .iter()
            .map(|failure| failure.family.as_str())
            .collect();
        bail!("not all could be measured, see above: {}", names.join(", "));
    }
    Ok(ExitCode::SUCCESS)
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
    fn families_that_do_not_exist_are_refused_at_once() {
        let args = Cli::try_parse_from(["bench", "--only", "pages,calls"]).unwrap();
        assert_eq!(args.args.only, [family::PAGES, family::CALLS]);
        let refused = Cli::try_parse_from(["bench", "--only", "pages,pagez"]);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("pagez") && text.contains("growth"), "{text}");
    }
}
