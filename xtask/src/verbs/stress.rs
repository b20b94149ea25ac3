//! The verb `stress`: everything that can be done to merged memory at once, for as long as wanted.

mod programs;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    ground::project::Project,
    guest::{
        Boot, Cmd, End, MOST_CPUS, Output,
        programs::{arm64_programs, guest_programs},
    },
    kernel::{self, Arch, Origin},
    terminal::progress::Step,
};

#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Repeat the sequences of an earlier run [default: chosen from the clock and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// The kernel to boot
    #[arg(long, default_value = "debug")]
    arch: Arch,
    /// Its CPUs, up to 8; UML has one [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_CPUS))]
    smp: Option<u32>,
    /// How many processes, besides the children that they fork
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=200))]
    processes: u64,
    /// Let stress-ng and trinity do it, with all that they map merged again and again
    #[arg(long, conflicts_with_all = ["seed", "processes", "smp"])]
    programs: bool,
}

/// For what has not been done by then (10 minutes), the last comparison and the exit of all processes (7), and the report.
const WINDING_UP: Duration = Duration::from_secs(1200);

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    project.check_target()?;
    if args.programs {
        let good = programs::run(project, args.arch, args.minutes, origin)?;
        return Ok(match good {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        });
    }
    let kernel = kernel::build(project, args.arch, origin)?;
    let programs = match args.arch.foreign() {
        true => arm64_programs(project)?,
        false => guest_programs(project)?,
    };
    let program = programs.join("sksm-random");
    let time = Duration::from_secs(60 * args.minutes);
    let mut command = vec![program.to_string_lossy().into_owned(), "--stress".into()];
    let mut option = |name: &str, value: u64| command.extend([name.to_owned(), value.to_string()]);
    option("--seconds", time.as_secs());
    option("--processes", args.processes);
    if let Some(seed) = args.seed {
        option("--seed", seed);
    }
    let started = Instant::now();
    let mut guest = Boot::new(project, &kernel).timeout(time + WINDING_UP);
    if let Some(cpus) = args.smp {
        guest = guest.smp(cpus);
    }
    let step = Step::begin(format!("stress in the {} kernel", args.arch));
    let outcome = guest.run(
        Cmd::new(&command)
            .stdout(Output::Lines(Box::new(|line| step.print(line))))
            .stderr(Output::Lines(Box::new(|line| {
                // What the program tells now and then; the rest is for whoever looks into a failure.
                match line.contains(" s left, ") {
                    true => step.detail(line),
                    false => step.print(line),
                }
            }))),
    )?;
    let good = outcome.end == End::Exited(0) && outcome.splats.is_empty();
    if !good {
        println!("{}", outcome.describe());
    }
    println!(
        "stress {}: {} min {:02} s, {} splats{}",
        if good { "passed" } else { "FAILED" },
        started.elapsed().as_secs() / 60,
        started.elapsed().as_secs() % 60,
        outcome.splats.len(),
        match outcome.end {
            End::Exited(0) => ", 0 differences, all counters back",
            _ => "",
        },
    );
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
