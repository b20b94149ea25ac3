//! The verb `selftests`: the kernel's own tests of memory management, with the engine and without.

mod build;
mod column;
mod outcome;
mod programs;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};

use crate::{
    kernel::{self, Arch, Kernel},
    progress::Step,
    project::Project,
    report::{Tally, Verdict},
    test::Run,
};
use column::Outcome;
use programs::{LEFT_OUT, PROGRAMS, Program};
use table::{Column, Entry, Table};

/// What `cargo xtask test` calls them, but for the program's name.
const PREFIX: &str = "x86_64/selftests/";

#[derive(clap::Args)]
pub struct Args {
    /// Run the unpatched kernel too, and write what it gives into docs/selftests.json and docs/selftests.md
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
    /// Where selftests.json and selftests.md of this run go; target/sksm/selftests if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(project: &Project, args: Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let pattern = args.only.unwrap_or_default();
    let docs = project.root.join("docs");
    let out = args
        .out
        .unwrap_or_else(|| project.target.join("sksm/selftests"));
    let chosen: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| program.name().contains(&pattern) && !(args.short && program.long))
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = PROGRAMS.iter().map(Program::name).collect();
        bail!(
            "no program's name contains `{pattern}`; there are\n  {}",
            names.join("\n  ")
        );
    }
    // Before minutes of work that would be for nothing.
    let mut table = match Table::load(project) {
        Ok(table) => table,
        Err(_) if args.record && !Table::path(project).exists() => Table::default(),
        Err(error) => return Err(error),
    };
    let built = build::build(project, linux_src)?;
    let patched = kernel::build(project, Arch::X86_64, linux_src)?;
    if args.record {
        let kernel = kernel::build(project, Arch::Unpatched, linux_src)?;
        table.kernel = built.version.clone();
        for column in [&mut table.unpatched, &mut table.patched] {
            column.retain(|name, _| PROGRAMS.iter().any(|program| program.name() == *name));
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
            let verdict = judge(&outcome, table.unpatched.get(&name), same_version);
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

/// Their part of the verb `test`.
pub fn test(run: &mut Run, kernel: &Kernel, linux_src: Option<&Path>) -> Result<()> {
    let wanted = |run: &Run, name: &str| run.args.wants(&format!("{PREFIX}{name}"));
    let mut chosen = Vec::new();
    for program in PROGRAMS {
        if !wanted(run, &program.name()) {
            continue;
        }
        if program.long {
            let why = "takes too long for every test run; `cargo xtask selftests` has it";
            skip(run, &program.name(), why);
        } else {
            chosen.push(program);
        }
    }
    for &(name, why) in LEFT_OUT {
        if wanted(run, name) {
            skip(run, name, why);
        }
    }
    if chosen.is_empty() {
        return Ok(());
    }
    let project = run.project;
    let result = Table::load(project).and_then(|table| {
        let built = build::build(project, linux_src)?;
        let same_version = same_version(&table, &built);
        column::run(
            project,
            kernel,
            &built.dir,
            &chosen,
            |step, program, outcome| {
                let name = program.name();
                let verdict = judge(&outcome, table.unpatched.get(&name), same_version);
                run.record(
                    step,
                    &format!("{PREFIX}{name}"),
                    verdict,
                    Some(&outcome.log),
                );
                Ok(())
            },
        )
    });
    match result {
        Ok(()) => Ok(()),
        Err(error) => run.fail(PREFIX.trim_end_matches('/'), error),
    }
}

/// Whether any of them has a name with `pattern` in it.
pub fn may_match(pattern: &str) -> bool {
    let names = PROGRAMS.iter().map(Program::name);
    let left_out = LEFT_OUT.iter().map(|&(name, _)| name.to_owned());
    names
        .chain(left_out)
        .any(|name| format!("{PREFIX}{name}").contains(pattern))
}

fn skip(run: &mut Run, name: &str, why: &str) {
    let step = Step::begin(name);
    run.record(
        &step,
        &format!("{PREFIX}{name}"),
        Verdict::Skipped(why.into()),
        None,
    );
}

/// Whether the programs are those of the table; says so if not.
fn same_version(table: &Table, built: &build::Built) -> bool {
    let same = table.kernel == built.version;
    if !same {
        eprintln!(
            "note: this is Linux {}, the recorded table is of {}: tests that only one of them has do not count; \
             `cargo xtask selftests --record` makes a new table",
            built.version, table.kernel
        );
    }
    same
}

/// Compares with the unpatched kernel.
fn judge(outcome: &Outcome, there: Option<&Entry>, same_version: bool) -> Verdict {
    let mut problems = match there {
        Some(there) if same_version => outcome.entry.worse_than(there),
        Some(there) => outcome.entry.worse_than_other_version(there),
        None => {
            vec!["is not in the recorded table; `cargo xtask selftests --record` adds it".into()]
        }
    };
    problems.extend(
        outcome
            .splats
            .iter()
            .map(|splat| format!("the kernel complained: {splat}")),
    );
    let note = format!("({} s): {}", outcome.seconds, outcome.entry.summary());
    if !problems.is_empty() {
        Verdict::Failed(format!("{note}\n{}", problems.join("\n")))
    } else if outcome.entry.count(outcome::Status::Pass) == 0 {
        Verdict::Skipped(format!("{note}, as unpatched"))
    } else {
        Verdict::Passed(note)
    }
}

/// Both, side by side.
fn columns(programs: &[&Program], unpatched: &Column, patched: &Column) -> String {
    let mut text = crate::table::Table::of_words(["", "unpatched", "patched"]);
    for name in programs.iter().map(|program| program.name()) {
        let cell = |column: &Column| column.get(&name).map_or("not run".into(), Entry::summary);
        text.row([name.clone(), cell(unpatched), cell(patched)]);
    }
    text.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outcome::Status;

    fn outcome(end: Status, splats: &[&str]) -> Outcome {
        Outcome {
            entry: Entry::new(end, String::new(), Vec::new()),
            splats: splats.iter().map(|&splat| splat.into()).collect(),
            hung: false,
            seconds: 3,
            log: PathBuf::new(),
        }
    }

    #[test]
    fn worse_than_recorded_fails_and_so_does_a_splat() {
        let good = Entry::new(Status::Pass, String::new(), Vec::new());
        let judged = |end, splats: &[&str], there| judge(&outcome(end, splats), there, true);
        assert!(matches!(
            judged(Status::Pass, &[], Some(&good)),
            Verdict::Passed(_)
        ));
        assert!(matches!(
            judged(Status::Fail, &[], Some(&good)),
            Verdict::Failed(_)
        ));
        assert!(matches!(
            judged(Status::Skip, &[], Some(&good)),
            Verdict::Failed(_)
        ));
        assert!(matches!(
            judged(Status::Pass, &["BUG: x"], Some(&good)),
            Verdict::Failed(_)
        ));
        assert!(matches!(
            judged(Status::Pass, &[], None),
            Verdict::Failed(_)
        ));
        let skipped = Entry::new(Status::Skip, String::new(), Vec::new());
        assert!(matches!(
            judged(Status::Skip, &[], Some(&skipped)),
            Verdict::Skipped(_)
        ));
    }

    #[test]
    fn patterns_reach_them() {
        for pattern in [
            "",
            "x86_64",
            "x86_64/selftests",
            "x86_64/selftests/cow",
            "selftests/ksm_tests",
            "hmm-tests",
        ] {
            assert!(may_match(pattern), "{pattern}");
        }
        for pattern in ["um/", "debug/selftests", "sksm-abi"] {
            assert!(!may_match(pattern), "{pattern}");
        }
    }
}
