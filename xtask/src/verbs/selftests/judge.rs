//! Compares a program's results with those of the unpatched kernel.

use super::{
    build::Built,
    column::Outcome,
    outcome::Status,
    programs::Program,
    table::{Entry, Table},
};
use crate::verbs::shared::report::Verdict;

/// Whether the programs are those of the table; says so if not.
pub fn same_version(table: &Table, built: &Built) -> bool {
    let same = table.kernel == built.version;
    if !same {
        eprintln!(
            "note: this is Linux {}, the recorded table is of {}: tests that only one of them has do not count; \
             `cargo xtask selftests{} --record` makes a new table",
            built.version,
            table.kernel,
            table.base().option()
        );
    }
    same
}

/// What a program's results are compared with. Those of the series' own tests, for which an unpatched kernel has nothing, have to pass.
pub fn expected(table: &Table, program: &Program) -> Option<Entry> {
    match program.own {
        true => Some(Entry::new(Status::Pass, String::new(), Vec::new())),
        false => table.unpatched.get(&program.name()).cloned(),
    }
}

/// Passes what is as good as `there`, in the unpatched kernel, and made the patched one complain of nothing.
pub fn judge(outcome: &Outcome, there: Option<&Entry>, same_version: bool) -> Verdict {
    let mut problems = match there {
        Some(there) if same_version => outcome.entry.worse_than(there),
        Some(there) => outcome.entry.worse_than_other_version(there),
        None => {
            vec!["is not in the recorded table; `cargo xtask selftests --record`, with this base, adds it".into()]
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
    } else if outcome.entry.count(Status::Pass) == 0 {
        Verdict::Skipped(format!("{note}, as unpatched"))
    } else {
        Verdict::Passed(note)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::kernel::Base;

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
    fn an_own_test_has_to_pass_whatever_is_recorded() {
        let own = Program::all(Base::default())
            .find(|program| program.own)
            .unwrap();
        let there = expected(&Table::default(), own);
        for (end, good) in [
            (Status::Pass, true),
            (Status::Skip, false),
            (Status::Fail, false),
        ] {
            let verdict = judge(&outcome(end, &[]), there.as_ref(), true);
            assert_eq!(matches!(verdict, Verdict::Passed(_)), good, "{end:?}");
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
}
