//! The verb `test`: host checks, then every test program in every kernel.

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use crate::{
    build, guest_tests, host_tests, interrupt,
    kernel::{self, Arch},
    progress::Step,
    project::Project,
    report::{Tally, Verdict},
    selftests, skips,
};

#[derive(clap::Args)]
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
            (false, Arch::Um | Arch::X86_64 | Arch::Unpatched) => 20,
            (false, Arch::Debug | Arch::Kcsan) => 60,
        })
    }

    /// For the stress in this kernel, if it runs there.
    pub fn stress_seconds(&self, arch: Arch) -> Option<u64> {
        let usual = match (self.quick, arch) {
            (true, Arch::Um) | (_, Arch::Unpatched) => None,
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
}

pub fn run(project: &Project, args: &Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let mut run = Run {
        project,
        args,
        tally: Tally::default(),
    };
    if host_tests::NAMES.iter().any(|name| args.wants(name)) {
        let tree = kernel::source(project, linux_src)?.tree;
        host_tests::run(&mut run, &tree, linux_src)?;
    }
    let arches: &[Arch] = if args.quick {
        &[Arch::Um, Arch::X86_64]
    } else {
        &[Arch::Um, Arch::X86_64, Arch::Debug]
    };
    if arches
        .iter()
        .any(|&arch| guest_tests::may_match(args.pattern(), arch))
    {
        let programs = build::guest_programs(project)?;
        for &arch in arches {
            let plan = guest_tests::plan(args, arch, &programs)?;
            let selftests =
                arch == Arch::X86_64 && !args.quick && selftests::may_match(args.pattern());
            if plan.is_empty() && !selftests {
                continue;
            }
            match kernel::build(project, arch, linux_src) {
                Ok(kernel) => {
                    guest_tests::run(&mut run, &kernel, &plan)?;
                    if selftests {
                        selftests::test(&mut run, &kernel, linux_src)?;
                    }
                }
                Err(error) => {
                    interrupt::check()?;
                    let step = Step::begin(format!("testing in the {arch} kernel"));
                    let verdict = Verdict::Failed(format!("{error:#}"));
                    run.record(&step, &format!("{arch}/build"), verdict, None);
                }
            }
        }
    }
    if run.tally.is_empty() {
        eprintln!("no test's name contains `{}`", args.pattern());
    }
    println!("{}", run.tally.closing());
    Ok(if run.tally.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
