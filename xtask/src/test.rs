//! The verb `test`: host checks, then every test program in every kernel.

use std::{path::Path, process::ExitCode};

use anyhow::{Error, Result};

use crate::{
    build, guest_tests, host_tests, interrupt,
    kernel::{self, Arch},
    progress::Step,
    project::Project,
    report::{Tally, Verdict},
    selftests, skips,
};

#[derive(Clone, clap::Args)]
pub struct Args {
    /// No debug kernel, and less of what takes long
    #[arg(long)]
    quick: bool,
    /// Only tests whose name, as in um/sksm-abi/NAME or host/fmt, contains this
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// How long sksm-random runs in each kernel, and the stress (default: 20, in the debug kernel 60 and 120)
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Repeat the sequences of an earlier run of sksm-random
    #[arg(long)]
    seed: Option<u64>,
}

impl Args {
    /// For sksm-random in this kernel.
    pub fn random_seconds(&self, arch: Arch) -> u64 {
        self.seconds.unwrap_or(match (self.quick, arch) {
            (true, _) => 5,
            (false, Arch::Um | Arch::X86_64 | Arch::Without | Arch::Unpatched) => 20,
            (false, Arch::Debug | Arch::Kcsan) => 60,
        })
    }

    /// For the stress in this kernel, if it runs there.
    pub fn stress_seconds(&self, arch: Arch) -> Option<u64> {
        let usual = match (self.quick, arch) {
            (true, Arch::Um) | (_, Arch::Without | Arch::Unpatched) => None,
            (_, Arch::Um | Arch::X86_64) => Some(20),
            (_, Arch::Debug | Arch::Kcsan) => Some(120),
        };
        self.seconds.filter(|_| usual.is_some()).or(usual)
    }

    pub fn quick(&self) -> bool {
        self.quick
    }

    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    pub fn pattern(&self) -> &str {
        self.only.as_deref().unwrap_or_default()
    }

    pub fn wants(&self, name: &str) -> bool {
        name.contains(self.pattern())
    }

    fn arches(&self) -> &'static [Arch] {
        if self.quick {
            &[Arch::Um, Arch::X86_64]
        } else {
            &[Arch::Um, Arch::X86_64, Arch::Debug]
        }
    }

    /// Whether a kernel is needed, as far as one can tell before names are known.
    fn may_match_guest(&self) -> bool {
        let mut arches = self.arches().iter();
        arches.any(|&arch| guest_tests::may_match(self.pattern(), arch))
    }

    fn wants_selftests(&self) -> bool {
        !self.quick && selftests::may_match(self.pattern())
    }
}

/// Results as they come in.
pub struct Run<'a> {
    pub project: &'a Project,
    pub args: &'a Args,
    pub tally: Tally,
}

impl Run<'_> {
    /// Counts and shows a result.
    pub fn record(&mut self, step: &Step, name: &str, verdict: Verdict, log: Option<&Path>) {
        let verdict = match verdict {
            Verdict::Skipped(reason) if !skips::expected(name) => Verdict::Failed(format!(
                "was skipped, which xtask/src/skips.rs does not expect: {reason}"
            )),
            verdict => verdict,
        };
        let line = self.tally.add(name, verdict, log);
        step.print(&line);
    }

    /// Counts what kept tests from running as one that failed, unless somebody has interrupted it.
    pub fn fail(&mut self, name: &str, error: Error) -> Result<()> {
        interrupt::check()?;
        let step = Step::begin(name);
        self.record(&step, name, Verdict::Failed(format!("{error:#}")), None);
        Ok(())
    }
}

pub fn run(project: &Project, args: &Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let mut run = Run {
        project,
        args,
        tally: Tally::default(),
    };
    if host_tests::any(args) {
        host_tests::run(&mut run, linux_src)?;
    }
    if args.may_match_guest() {
        match build::guest_programs(project) {
            Ok(programs) => {
                for &arch in args.arches() {
                    if let Err(error) = test_kernel(&mut run, arch, &programs, linux_src) {
                        run.fail(&format!("{arch}/run"), error)?;
                    }
                }
            }
            Err(error) => run.fail("host/guest-programs", error)?,
        }
    }
    if run.tally.is_empty() {
        eprintln!("{}", nothing(project, args));
    }
    println!("{}", run.tally.closing());
    Ok(if run.tally.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything that is to run in one kernel.
fn test_kernel(run: &mut Run, arch: Arch, programs: &Path, linux_src: Option<&Path>) -> Result<()> {
    let plan = guest_tests::plan(run.args, arch, programs)?;
    let selftests = arch == Arch::X86_64 && run.args.wants_selftests();
    if plan.is_empty() && !selftests {
        return Ok(());
    }
    let kernel = match kernel::build(run.project, arch, linux_src) {
        Ok(kernel) => kernel,
        Err(error) => return run.fail(&format!("{arch}/build"), error),
    };
    guest_tests::run(run, &kernel, &plan)?;
    if selftests {
        selftests::test(run, &kernel, linux_src)?;
    }
    Ok(())
}

/// Why no test has run.
fn nothing(project: &Project, args: &Args) -> String {
    let pattern = args.pattern();
    let all = Args {
        quick: false,
        ..args.clone()
    };
    if args.quick && exists(project, &all).unwrap_or(false) {
        format!("--quick leaves out every test whose name contains `{pattern}`")
    } else {
        format!("no test's name contains `{pattern}`")
    }
}

fn exists(project: &Project, args: &Args) -> Result<bool> {
    if host_tests::any(args) || args.wants_selftests() {
        return Ok(true);
    }
    if !args.may_match_guest() {
        return Ok(false);
    }
    let programs = build::guest_programs(project)?;
    for &arch in args.arches() {
        if !guest_tests::plan(args, arch, &programs)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(quick: bool, only: &str) -> Args {
        Args {
            quick,
            only: Some(only.into()),
            seconds: None,
            seed: None,
        }
    }

    #[test]
    fn what_quick_leaves_out_is_told_from_what_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        for only in ["host/deb-kernel", "selftests/cow"] {
            let said = nothing(&project, &args(true, only));
            assert!(said.starts_with("--quick leaves out"), "{said}");
        }
        let said = nothing(&project, &args(true, "host/nonsense"));
        assert!(said.starts_with("no test's name"), "{said}");
        assert!(host_tests::any(&args(false, "host/deb-kernel")));
        assert!(!host_tests::any(&args(true, "host/deb-kernel")));
        assert!(host_tests::any(&args(true, "host/deb")));
    }

    #[test]
    fn what_fails_before_any_test_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        let args = args(false, "um/");
        let mut run = Run {
            project: &project,
            args: &args,
            tally: Tally::default(),
        };
        let error = anyhow::anyhow!("the patch is wrong").context("0001 does not apply");
        run.fail("um/build", error).unwrap();
        let closing = run.tally.closing();
        assert!(
            closing.contains("0001 does not apply: the patch is wrong"),
            "{closing}"
        );
        assert!(closing.ends_with("0 passed, 1 failed"), "{closing}");
    }
}
