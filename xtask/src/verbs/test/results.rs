//! The results as they come in, from all guests.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard},
};

use anyhow::{Error, Result};

use super::{
    args::Args,
    passes::{Pass, Passes},
    skips,
};
use crate::{
    ground::{interrupt, project::Project},
    terminal::progress::Step,
    verbs::shared::report::{Tally, Verdict},
};

/// A run of the verb, and how it goes.
pub struct Run<'a> {
    pub project: &'a Project,
    pub args: &'a Args,
    pub passes: Passes,
    tally: Mutex<Tally>,
}

impl<'a> Run<'a> {
    pub fn new(project: &'a Project, args: &'a Args) -> Self {
        Self {
            project,
            args,
            passes: Passes::new(project),
            tally: Mutex::default(),
        }
    }

    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("nobody panics with it")
    }

    /// Counts and shows a result; returns it as it counts.
    pub fn record(&self, step: &Step, name: &str, verdict: Verdict, log: Option<&Path>) -> Verdict {
        let verdict = match verdict {
            Verdict::Skipped(reason) if !skips::expected(name) => Verdict::Failed(format!(
                "was skipped, which xtask/src/verbs/test/skips.rs does not expect: {reason}"
            )),
            verdict => verdict,
        };
        let line = self.tally().add(name, verdict.clone(), log);
        step.print(&line);
        verdict
    }

    /// Counts what kept tests from running as one that failed, unless somebody has interrupted it.
    pub fn fail(&self, name: &str, error: Error) -> Result<()> {
        interrupt::check()?;
        let step = Step::begin(name);
        self.record(&step, name, Verdict::Failed(format!("{error:#}")), None);
        Ok(())
    }

    /// When this passed with the same bytes, if it need not run again for that reason; says so and counts it.
    pub fn passed_before(&self, name: &str, made_of: &str) -> bool {
        let Some(pass) = self.find(name, made_of) else {
            return false;
        };
        self.tally().add_not_again(name, pass.passed);
        Step::begin(name).print(&format!(
            "SAME {name}: same kernel, programs and tool as on {}: {} passed then",
            pass.day, pass.passed
        ));
        true
    }

    fn find(&self, name: &str, made_of: &str) -> Option<Pass> {
        match self.args.repeats() {
            true => None,
            false => self.passes.find(name, made_of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(dir: &Path) -> Project {
        Project {
            root: dir.into(),
            target: dir.into(),
            cache: dir.into(),
        }
    }

    #[test]
    fn what_fails_before_any_test_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path());
        let args = Args {
            only: Some("um/".into()),
            ..Args::default()
        };
        let run = Run::new(&project, &args);
        let error = anyhow::anyhow!("the patch is wrong").context("0001 does not apply");
        run.fail("um/build", error).unwrap();
        let closing = run.tally().closing();
        assert!(
            closing.contains("0001 does not apply: the patch is wrong"),
            "{closing}"
        );
        assert!(closing.ends_with("0 passed, 1 failed"), "{closing}");
    }

    #[test]
    fn what_is_asked_for_by_name_or_again_runs_again() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path());
        let name = "um/sksm-abi";
        let again = |args: &Args| {
            let run = Run::new(&project, args);
            run.passes.keep(name, &Pass::today("bytes", 7, 1)).unwrap();
            !run.passed_before(name, "bytes")
        };
        let usual = Args::default();
        assert!(!again(&usual));
        assert!(again(&Args {
            again: true,
            ..usual.clone()
        }));
        assert!(again(&Args {
            only: Some("um/".into()),
            ..usual.clone()
        }));
        assert!(again(&Args {
            seed: Some(1),
            ..usual.clone()
        }));
        let run = Run::new(&project, &usual);
        assert!(!run.passed_before(name, "other bytes"));
        assert!(run.tally().is_empty());
        assert!(run.passed_before(name, "bytes"));
        assert!(run.tally().closing().starts_with("7 not run again"));
    }
}
