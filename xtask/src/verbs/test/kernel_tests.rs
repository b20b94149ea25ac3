//! The kernel's own tests of memory management, as far as they do not take too long: what the verb `selftests` runs.

use anyhow::Result;

use super::{
    passes::{Ingredients, Pass},
    results::Run,
    room::{Room, Share},
};
use crate::{
    kernel::{Base, Kernel, Origin},
    terminal::progress::Step,
    verbs::{
        selftests::{
            build::{self, Built},
            column,
            judge::{expected, judge, same_version},
            programs::{LEFT_OUT, Program},
            table::Table,
        },
        shared::report::Verdict,
    },
};

/// All of them, and what their names begin with.
pub const ALL: &str = "x86_64/selftests";
const PREFIX: &str = "x86_64/selftests/";

/// What is to run, built.
pub struct Chosen {
    programs: Vec<&'static Program>,
    built: Built,
    table: Table,
    made_of: String,
}

/// Builds those that are asked for, if there are any that may have changed.
pub fn prepare(run: &Run, kernel: &Kernel, origin: &Origin) -> Result<Option<Chosen>> {
    let wanted = |name: &str| run.args.wants(&format!("{PREFIX}{name}"));
    let mut programs = Vec::new();
    for program in Program::all(origin.base) {
        if !wanted(&program.name()) {
            continue;
        }
        if program.long {
            let why = "takes too long for every test run; `cargo xtask selftests` has it";
            skip(run, &program.name(), why);
        } else {
            programs.push(program);
        }
    }
    for &(name, why) in LEFT_OUT {
        if wanted(name) {
            skip(run, name, why);
        }
    }
    if programs.is_empty() {
        return Ok(None);
    }
    let table = Table::load(run.project, origin.base)?;
    let built = build::build(run.project, origin)?;
    let mut made_of = Ingredients::of_kernel(&kernel.image)?;
    made_of.file("table", &Table::path(run.project, origin.base))?;
    made_of.text("tree", &built.version);
    for program in &programs {
        made_of.file(&program.name(), &built.dir.join(program.file()))?;
    }
    let made_of = made_of.as_str().to_owned();
    if run.passed_before(ALL, &made_of) {
        return Ok(None);
    }
    Ok(Some(Chosen {
        programs,
        built,
        table,
        made_of,
    }))
}

/// Runs them, and compares them with the recorded unpatched kernel.
pub fn run(run: &Run, room: &Room, kernel: &Kernel, chosen: &Chosen) -> Result<()> {
    let Chosen {
        programs,
        built,
        table,
        made_of,
    } = chosen;
    let project = run.project;
    let _place = room.enter(Share::of(&column::boot(project, kernel)))?;
    run.passes.begin(ALL, made_of)?;
    let same_version = same_version(table, built);
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    let result = column::run(
        project,
        kernel,
        &built.dir,
        programs,
        |step, program, outcome| {
            let name = program.name();
            let there = expected(table, program);
            let verdict = judge(&outcome, there.as_ref(), same_version);
            let name = format!("{PREFIX}{name}");
            *match run.record(step, &name, verdict, Some(&outcome.log)) {
                Verdict::Passed(_) => &mut passed,
                Verdict::Skipped(_) => &mut skipped,
                Verdict::Failed(_) => &mut failed,
            } += 1;
            Ok(())
        },
    );
    if failed > 0 || result.is_err() {
        run.passes.forget(ALL)?;
    } else if run.args.only.is_none() {
        run.passes
            .keep(ALL, &Pass::today(made_of, passed, skipped))?;
    }
    match result {
        Ok(()) => Ok(()),
        Err(error) => run.fail(ALL, error),
    }
}

/// Whether any of them has a name with `pattern` in it.
pub fn may_match(pattern: &str) -> bool {
    let names = (Base::ALL.into_iter())
        .flat_map(Program::all)
        .map(Program::name);
    let left_out = LEFT_OUT.iter().map(|&(name, _)| name.to_owned());
    names
        .chain(left_out)
        .any(|name| format!("{PREFIX}{name}").contains(pattern))
}

fn skip(run: &Run, name: &str, why: &str) {
    let step = Step::begin(name);
    run.record(
        &step,
        &format!("{PREFIX}{name}"),
        Verdict::Skipped(why.into()),
        None,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

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
