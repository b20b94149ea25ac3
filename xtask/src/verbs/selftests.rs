//! The verb `selftests`: the kernel's own tests of memory management, with the engine and without.

pub mod build;
pub mod column;
pub mod judge;
mod outcome;
pub mod programs;
pub mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    ground::project::Project,
    kernel::{self, Arch, Origin},
    terminal,
    verbs::shared::report::{Tally, Verdict},
};
use judge::{expected, judge, same_version};
use programs::{LEFT_OUT, Program};
use table::{Column, Entry, Table};

#[derive(clap::Args)]
pub struct Args {
    /// Run the unpatched kernel too, and write what it gives into docs/selftests.json and docs/selftests.md, with another base selftests-BASE
    #[arg(long)]
    record: bool,
    /// How often to run the unpatched kernel, the worst of which counts
    #[arg(long, value_name = "N", default_value_t = 2, requires = "record", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only programs whose name contains this
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Leave out what takes minutes, as `cargo xtask test` does
    #[arg(long)]
    short: bool,
    /// Where selftests.json and selftests.md of this run go; target/sksm/selftests if not given, with another base a directory in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(project: &Project, args: Args, origin: &Origin) -> Result<ExitCode> {
    let pattern = args.only.unwrap_or_default();
    let docs = project.root.join("docs");
    let out = args
        .out
        .unwrap_or_else(|| origin.base.within(project.target.join("sksm/selftests")));
    let chosen: Vec<&Program> = Program::all(origin.base)
        .filter(|program| program.name().contains(&pattern) && !(args.short && program.long))
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = Program::all(origin.base).map(Program::name).collect();
        bail!(
            "no program's name contains `{pattern}`; there are\n  {}",
            names.join("\n  ")
        );
    }
    // Before minutes of work that would be for nothing.
    let mut table = match Table::load(project, origin.base) {
        Ok(table) => table,
        Err(_) if args.record && !Table::path(project, origin.base).exists() => Table::default(),
        Err(error) => return Err(error),
    };
    let built = build::build(project, origin)?;
    let patched = kernel::build(project, Arch::X86_64, origin)?;
    if args.record {
        let kernel = kernel::build(project, Arch::Unpatched, origin)?;
        table.kernel = built.version.clone();
        for column in [&mut table.unpatched, &mut table.patched] {
            column
                .retain(|name, _| Program::all(origin.base).any(|program| program.name() == *name));
        }
        for program in &chosen {
            table.unpatched.remove(&program.name());
        }
        for run in 1..=args.runs {
            println!("unpatched, run {run} of {}", args.runs);
            column::run(
                project,
                &kernel,
                &built.dir,
                &chosen,
                |step, program, outcome| {
                    step.print(&format!(
                        "{}: {} ({} s)",
                        program.name(),
                        outcome.entry.summary(),
                        outcome.seconds
                    ));
                    for splat in &outcome.splats {
                        step.print(&format!("     {splat}"));
                    }
                    if outcome.hung {
                        step.print("     so it is not recorded; is the machine very busy?");
                        table.unpatched.remove(&program.name());
                        return Ok(());
                    }
                    let entry = match table.unpatched.remove(&program.name()) {
                        Some(before) => before.worst(&outcome.entry),
                        None => outcome.entry,
                    };
                    table.unpatched.insert(program.name(), entry);
                    table.save(&docs)
                },
            )?;
        }
        println!("patched");
    }
    let same_version = same_version(&table, &built);
    let mut tally = Tally::default();
    column::run(
        project,
        &patched,
        &built.dir,
        &chosen,
        |step, program, outcome| {
            let name = program.name();
            let there = expected(&table, program);
            let verdict = judge(&outcome, there.as_ref(), same_version);
            step.print(&tally.add(&name, verdict, Some(&outcome.log)));
            table.patched.insert(name, outcome.entry);
            table.save(if args.record { &docs } else { &out })
        },
    )?;
    for &(name, why) in LEFT_OUT.iter().filter(|(name, _)| name.contains(&pattern)) {
        println!("{}", tally.add(name, Verdict::Skipped(why.into()), None));
    }
    table.save(&out)?;
    println!("\n{}", columns(&chosen, &table.unpatched, &table.patched));
    println!("{}", tally.closing());
    Ok(if tally.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Both, side by side.
fn columns(programs: &[&Program], unpatched: &Column, patched: &Column) -> String {
    let mut text = terminal::table::Table::of_words(["", "unpatched", "patched"]);
    for name in programs.iter().map(|program| program.name()) {
        let cell = |column: &Column| column.get(&name).map_or("not run".into(), Entry::summary);
        text.row([name.clone(), cell(unpatched), cell(patched)]);
    }
    text.render()
}
