//! The verb `profile`: where the instructions of a call go, function by function.

mod calls;
mod symbols;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use sksm_records::profile::{CASES, DONE, READY};

use crate::{
    ground::{cache, project::Project},
    guest::{Boot, Cmd, End, Output, Trace, programs},
    kernel::{self, Arch, Origin},
    terminal::{progress::Step, table::Table},
    verbs::shared::measurement::Out,
};
use calls::Calls;
use symbols::Symbols;

#[derive(clap::Args)]
pub struct Args {
    /// Show so many functions, the most costly
    #[arg(long, value_name = "N", default_value_t = 40)]
    top: usize,
    /// Where profile.txt goes; target/sksm/profile if not given, with another base a directory in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Each instruction is written down, which takes a hundred times as long.
const PATIENCE: Duration = Duration::from_secs(1800);

pub fn run(project: &Project, args: Args, origin: &Origin) -> Result<ExitCode> {
    let dir = origin.base.within(project.target.join("sksm/profile"));
    let out = Out::create(args.out.unwrap_or_else(|| dir.clone()))?;
    let kernel = kernel::build(project, Arch::X86_64, origin)?;
    let program = programs::guest_programs(project)?.join("sksm-profile");
    let scratch = tempfile::tempdir()?;
    let trace = Trace::new(scratch.path());
    fs::create_dir_all(&dir)?;
    let go = dir.join("go");
    cache::remove(&go)?;

    let boot = Boot::new(project, &kernel)
        .mem("1G")
        // One NUMA node, as on most machines.
        .parameters("")
        .timeout(PATIENCE)
        .tracing(trace.clone());
    let step = Step::begin("counting instructions");
    let mut symbols = Symbols::default();
    let mut failed = None;
    let on_line = |line: &str| {
        let done = match line {
            READY => trace.begin().and_then(|()| cache::write(&go, "")),
            DONE => trace.end(),
            _ => {
                symbols.add(line);
                Ok(())
            }
        };
        failed = failed.take().or(done.err());
    };
    let outcome = boot.run(
        Cmd::new([program.as_os_str(), go.as_os_str()])
            .stdout(Output::Lines(Box::new(on_line)))
            .stderr(Output::Lines(Box::new(|line| step.print(line)))),
    );
    cache::remove(&go)?;
    let outcome = outcome?;
    if let Some(error) = failed {
        return Err(error);
    }
    if outcome.end != End::Exited(0) {
        bail!("{}", outcome.describe());
    }
    let calls = Calls::read(trace.addresses()?, &symbols.sorted()?)?;
    step.done();
    let text = render(&calls, args.top);
    println!("{text}");
    out.text("profile.txt", &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Functions by cases, in instructions for each page.
fn render(calls: &Calls, top: usize) -> String {
    let mut header = [""; CASES.len() + 1];
    for (cell, case) in header[1..].iter_mut().zip(&CASES) {
        *cell = case.name;
    }
    let mut table = Table::of_words(header);
    let mut row = |name: &str, counts: [f64; CASES.len()]| {
        let mut cells = [const { String::new() }; CASES.len() + 1];
        cells[0] = name.to_owned();
        for (cell, count) in cells[1..].iter_mut().zip(counts) {
            *cell = format!("{count:.0}");
        }
        table.row(cells);
    };
    let functions = calls.functions();
    let sum = |functions: &[(String, [f64; CASES.len()])]| {
        functions
            .iter()
            .fold([0.0; CASES.len()], |mut sum, (_, counts)| {
                for (sum, count) in sum.iter_mut().zip(counts) {
                    *sum += count;
                }
                sum
            })
    };
    row("all", sum(&functions));
    let (shown, rest) = functions.split_at(top.min(functions.len()));
    for (name, counts) in shown {
        row(name, *counts);
    }
    row(&format!("{} others", rest.len()), sum(rest));
    format!(
        "Instructions for each page, kernel and all, in calls that\n\n{}",
        table.render()
    )
}
