//! The kernel's own tests of memory management, as far as they do not take too long: what the verb `selftests` runs.

use anyhow::Result;

use super::{
    passes::{Ingredients, Pass},
    results::Run,
    room::{Room, Share},
    tested::Tested,
};
use crate::{
    kernel::Kernel,
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

/// What all of them are called together; the name of one goes on with its program's.
const SELFTESTS: &str = "selftests";

pub fn all(tested: &Tested) -> String {
    format!("{}/{SELFTESTS}", tested.name())
}

/// What is to run, built.
pub struct Chosen {
    programs: Vec<&'static Program>,
    built: Built,
    table: Table,
    made_of: String,
    name: String,
}

/// Builds those that are asked for, if there are any that may have changed.
pub fn prepare(run: &Run, kernel: &Kernel, tested: &Tested) -> Result<Option<Chosen>> {
    let all = all(tested);
    let origin = &tested.origin;
    let wanted = |name: &str| matches(run.args.pattern(), tested, name);
    let skip = |name: &str, why: &str| {
        let verdict = Verdict::Skipped(why.into());
        run.record(&Step::begin(name), &format!("{all}/{name}"), verdict, None);
    };
    let mut programs = Vec::new();
    for program in Program::all(origin.base) {
        if !wanted(&program.name()) {
            continue;
        }
        if program.long && !run.args.all {
            let why = "takes too long for every test run; `cargo xtask selftests` has it";
            skip(&program.name(), why);
        } else {
            programs.push(program);
        }
    }
    for &(name, why) in LEFT_OUT {
        if wanted(name) {
            skip(name, why);
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
    if run.passed_before(&all, &made_of) {
        return Ok(None);
    }
    Ok(Some(Chosen {
        programs,
        built,
        table,
        made_of,
        name: all,
    }))
}

/// Runs them, and compares them with the recorded unpatched kernel.
pub fn run(run: &Run, room: &Room, kernel: &Kernel, chosen: &Chosen) -> Result<()> {
    let Chosen {
        programs,
        built,
        table,
        made_of,
        name: all,
    } = chosen;
    let project = run.project;
    let _place = room.enter(Share::of(&column::boot(project, kernel)))?;
    run.passes.begin(all, made_of)?;
    let same_version = same_version(table, built);
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    let result = column::run(
        project,
        kernel,
        &built.dir,
        programs,
        |step, program, outcome| {
            let there = expected(table, program);
            let verdict = judge(&outcome, there.as_ref(), same_version);
            let name = format!("{all}/{}", program.name());
            *match run.record(step, &name, verdict, Some(&outcome.log)) {
                Verdict::Passed(_) => &mut passed,
                Verdict::Skipped(_) => &mut skipped,
                Verdict::Failed(_) => &mut failed,
            } += 1;
            Ok(())
        },
    );
    if failed > 0 || result.is_err() {
        run.passes.forget(all)?;
    } else if run.args.only.is_none() {
        run.passes
            .keep(all, &Pass::today(made_of, passed, skipped))?;
    }
    match result {
        Ok(()) => Ok(()),
        Err(error) => run.fail(all, error),
    }
}

/// Whether any of them has a name with `pattern` in it.
pub fn may_match(pattern: &str, tested: &Tested) -> bool {
    let names = Program::all(tested.origin.base).map(Program::name);
    let left_out = LEFT_OUT.iter().map(|&(name, _)| name.to_owned());
    names
        .chain(left_out)
        .any(|name| matches(pattern, tested, &name))
}

fn matches(pattern: &str, tested: &Tested, program: &str) -> bool {
    tested.matches(pattern, &format!("{SELFTESTS}/{program}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Arch, Base, Origin};

    #[test]
    fn patterns_reach_them() {
        let tested = |base| Tested {
            arch: Arch::X86_64,
            origin: Origin { base, tree: None },
        };
        for pattern in [
            "",
            "x86_64",
            "x86_64/selftests",
            "x86_64/selftests/cow",
            "selftests/ksm_tests",
            "hmm-tests",
        ] {
            for base in Base::ALL {
                assert!(may_match(pattern, &tested(base)), "{pattern}");
            }
        }
        assert!(may_match(
            "x86_64-7.3/selftests/cow",
            &tested(Base::Linux7_3)
        ));
        for pattern in ["um/", "debug/selftests", "sksm-abi", "x86_64-7.3"] {
            assert!(!may_match(pattern, &tested(Base::Linux6_12)), "{pattern}");
        }
    }
}
