//! The workspace's own tests: each counted where cargo-nextest runs them, as its report says; else all of them as one.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::{
    crates,
    junit::{self, Case},
    results::Run,
    workspace::{cargo, log},
};
use crate::{
    ground::{cache, interrupt, lock::Lock, step},
    terminal::progress::Step,
    verbs::shared::report::Verdict,
};

/// Where `.config/nextest.toml` has it: in the project's directory, wherever cargo's target is.
const REPORT: &str = "target/nextest/xtask/junit.xml";

pub fn run(run: &Run, name: &str) -> Result<()> {
    let step = Step::begin(name);
    let log = log(run, name)?;
    let result = run.project.check_target().and_then(|()| {
        if crates::lacks("nextest").is_none() {
            with_nextest(run, name, &step, &log)
        } else {
            with_cargo(run, name, &step, &log)
        }
    });
    match result {
        Ok(()) => Ok(()),
        Err(error) => run.fail(name, error),
    }
}

fn with_nextest(run: &Run, name: &str, step: &Step, log: &Path) -> Result<()> {
    let report = run.project.root.join(REPORT);
    if let Some(dir) = report.parent() {
        fs::create_dir_all(dir)?;
    }
    // All runs in this clone have the one report.
    let _alone = Lock::acquire(&report.with_extension("lock"))?;
    // Or that of another run would be read where this one does not come to an end.
    cache::remove(&report)?;
    let mut command = cargo(run, &["nextest", "run", "--workspace", "--no-fail-fast"]);
    command.args(["--profile", "xtask"]);
    let result = step::run(&mut command, log, step, |line| step.detail(line));
    interrupt::check()?;
    let cases = match fs::read_to_string(&report) {
        Ok(xml) => junit::parse(&xml).with_context(|| format!("{} is no report", report.display())),
        // It has not come to it, and says why.
        Err(_) if result.is_err() => return result,
        Err(error) => Err(error).with_context(|| format!("cannot read {}", report.display())),
    }?;
    let failures = count(run, name, step, log, &cases);
    if result.is_err() && failures == 0 {
        return result;
    }
    if result.is_ok() && cases.is_empty() {
        bail!("cargo-nextest has run no test");
    }
    step.print(&format!(
        "ok   {name} ({:.2} s): {} tests",
        step.seconds(),
        cases.len() - failures
    ));
    Ok(())
}

/// Counts the tests, and names those of interest; returns how many failed.
fn count(run: &Run, name: &str, step: &Step, log: &Path, cases: &[Case]) -> usize {
    let mut failures = 0;
    for case in cases {
        let test = format!("{name}/{}", case.name);
        for (part, reason) in &case.skipped {
            let verdict = Verdict::Skipped(reason.clone());
            run.record(step, &format!("{name}/{part}"), verdict, None);
        }
        match &case.failed {
            Some(reason) => {
                failures += 1;
                run.record(step, &test, Verdict::Failed(reason.clone()), Some(log));
            }
            None => {
                let mut tally = run.tally();
                tally.add_passed(&test);
                tally.add_time(&test, case.seconds);
            }
        }
    }
    failures
}

/// Only cargo's status tells how it went.
fn with_cargo(run: &Run, name: &str, step: &Step, log: &Path) -> Result<()> {
    let mut command = cargo(run, &["test", "--workspace", "--no-fail-fast"]);
    command.args(["--lib", "--bins", "--tests", "--examples"]);
    step::run(&mut command, log, step, |line| step.detail(line))?;
    let note = format!(
        "({:.2} s): counted as one; with cargo-nextest each is (`cargo install cargo-nextest --locked`)",
        step.seconds()
    );
    run.record(step, name, Verdict::Passed(note), None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ground::project::Project, verbs::test::Args};

    #[test]
    fn the_report_is_where_the_configuration_has_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let config = fs::read_to_string(root.join(".config/nextest.toml")).unwrap();
        let value = |key: &str| {
            let mut lines = config.lines().filter_map(|line| line.split_once(" = "));
            let (_, value) = lines.find(|(name, _)| *name == key).unwrap();
            value.trim_matches('"')
        };
        assert_eq!(REPORT, format!("{}/xtask/{}", value("dir"), value("path")));
    }

    #[test]
    fn every_test_counts() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        let args = Args::default();
        let run = Run::new(&project, &args);
        let case = |name: &str, failed: Option<&str>| Case {
            name: name.into(),
            seconds: 2.0,
            failed: failed.map(str::to_owned),
            skipped: vec![(format!("part-of-{name}"), "not here".into())],
        };
        let cases = [case("good", None), case("bad", Some("left < right"))];
        let step = Step::begin("host/test");
        let failures = count(&run, "host/test", &step, Path::new("/log"), &cases);
        assert_eq!(failures, 1);
        let closing = run.tally().closing();
        assert!(
            closing.contains("FAIL host/test/bad\n     left < right\n     log: /log\n"),
            "{closing}"
        );
        assert!(
            closing.ends_with("1 passed, 1 failed, 2 skipped"),
            "{closing}"
        );
        assert!(run.tally().longest().contains("2.0 s host/test/good"));
    }
}
