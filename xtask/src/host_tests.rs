//! Checks that need no kernel: formatting, lints, unit tests, the kernel's coding style.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    build, deb, interrupt, kernel, patches,
    progress::Step,
    project,
    report::{self, Verdict},
    setup, step,
    test::{Args, Run},
    tree,
};

const NAMES: &[&str] = &[
    "host/fmt",
    "host/clippy",
    "host/clippy-example",
    "host/test",
    "host/kernel-rustfmt",
    "host/kernel-checkpatch",
    "host/patches",
    "host/deb",
    DEB_KERNEL,
];

/// It compiles the kernel's Rust once more.
const DEB_KERNEL: &str = "host/deb-kernel";

/// Whether there is anything to do.
pub fn any(args: &Args) -> bool {
    names(args).next().is_some()
}

fn names(args: &Args) -> impl Iterator<Item = &'static str> {
    let names = NAMES.iter().copied();
    names.filter(|&name| args.wants(name) && !(args.quick() && name == DEB_KERNEL))
}

pub fn run(run: &mut Run, linux_src: Option<&Path>) -> Result<()> {
    // The tools that most of them are.
    setup::ensure(run.project, linux_src.is_some())?;
    for name in names(run.args) {
        match name {
            "host/test" => unit_tests(run)?,
            "host/clippy-example" if !build::builds_example()? => {
                let step = Step::begin(name);
                let verdict = Verdict::Skipped("the example static-keys needs Rust 1.87".into());
                run.record(&step, name, verdict, None);
            }
            _ => {
                let step = Step::begin(name);
                let result = check(run, name, &step, linux_src);
                record(run, &step, name, result)?;
            }
        }
    }
    Ok(())
}

fn check(run: &Run, name: &str, step: &Step, linux_src: Option<&Path>) -> Result<()> {
    let kernel = run.project.kernel();
    let tree = || -> Result<PathBuf> { Ok(kernel::source(run.project, linux_src)?.tree) };
    let mut command = match name {
        "host/fmt" => cargo(run, &["fmt", "--all", "--check"]),
        "host/clippy" => cargo(
            run,
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        "host/clippy-example" => {
            let mut command = cargo(run, &["clippy", "--locked", "--target-dir"]);
            command
                .arg(&run.project.target)
                .args(["--", "-D", "warnings"])
                .current_dir(run.project.root.join("examples/static-keys"));
            command
        }
        "host/kernel-rustfmt" => {
            let mut command = Command::new("rustfmt");
            command
                .args(["--check", "--color", "never", "--config-path"])
                .arg(tree()?.join(".rustfmt.toml"))
                .args(files(&kernel.join("mm/sksm"), &["rs"])?);
            command
        }
        "host/kernel-checkpatch" => {
            let mut command = checkpatch(&tree()?);
            command
                .arg("--file")
                .args(files(&kernel.join("mm/sksm"), &["c", "h"])?);
            command
        }
        "host/patches" => return patches(run, name, step, linux_src),
        "host/deb" => {
            let out = tempfile::tempdir()?;
            let packages = deb::programs(run.project, out.path())?;
            return deb::installed::check(run.project, &packages);
        }
        DEB_KERNEL => return deb::kernel::check(run.project, linux_src).map(|_report| ()),
        _ => bail!("nobody knows how to run it"),
    };
    let log = log(run, name)?;
    step::run(&mut command, &log, step, |line| step.detail(line))
}

fn record(run: &mut Run, step: &Step, name: &str, result: Result<()>) -> Result<()> {
    let verdict = match result {
        Ok(()) => Verdict::Passed(String::new()),
        Err(error) => {
            interrupt::check()?;
            Verdict::Failed(format!("{error:#}"))
        }
    };
    run.record(step, name, verdict, None);
    Ok(())
}

/// The series that `cargo xtask patches` writes: it makes what is built, and checkpatch finds nothing in it.
fn patches(run: &Run, name: &str, step: &Step, linux_src: Option<&Path>) -> Result<()> {
    let out = tempfile::tempdir()?;
    let series = patches::make(run.project, linux_src, patches::PLACEHOLDER, out.path())?;
    let mut command = checkpatch(&series.tree);
    command.args(&series.patches);
    let log = log(run, name)?;
    step::run(&mut command, &log, step, |line| step.detail(line))
}

fn log(run: &Run, name: &str) -> Result<PathBuf> {
    let name = name.replace('/', "-");
    run.project.log(&format!("test-{name}"))
}

fn cargo(run: &Run, args: &[&str]) -> Command {
    let mut command = project::cargo();
    command.args(args).current_dir(&run.project.root);
    command
}

/// Runs in the tree, whose typedefs and spelling list it wants.
pub fn checkpatch(tree: &Path) -> Command {
    let mut command = Command::new(tree.join("scripts/checkpatch.pl"));
    command
        .args([
            "--strict",
            "--quiet",
            "--show-types",
            "--terse",
            "--no-summary",
        ])
        .current_dir(tree);
    command
}

/// Files below a directory, by extension, in order.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    Ok(tree::files_below(dir)?
        .into_keys()
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| extensions.iter().any(|&wanted| ext == wanted))
        })
        .map(|path| dir.join(path))
        .collect())
}

/// The workspace's own tests, each counted.
fn unit_tests(run: &mut Run) -> Result<()> {
    let name = "host/test";
    let step = Step::begin(name);
    let log = log(run, name)?;
    let counts = RefCell::new(Counts::default());
    let mut command = cargo(run, &["test", "--workspace", "--no-fail-fast"]);
    let result = run.project.check_target().and_then(|()| {
        step::run(&mut command, &log, &step, |line| {
            step.detail(line);
            counts.borrow_mut().see(line);
        })
    });
    let counts = counts.into_inner();
    run.tally.add_passed(counts.passed);
    for (test, reason) in &counts.skipped {
        let verdict = Verdict::Skipped(reason.clone());
        run.record(&step, &format!("{name}/{test}"), verdict, None);
    }
    for test in &counts.failed {
        let verdict = Verdict::Failed("see the log".into());
        run.record(&step, &format!("{name}/{test}"), verdict, Some(&log));
    }
    match result {
        Err(error) if counts.failed.is_empty() => run.fail(name, error)?,
        _ => step.print(&format!("ok   {name}: {} tests", counts.passed)),
    }
    Ok(())
}

/// What the output of `cargo test` says.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: usize,
    failed: Vec<String>,
    /// With the reason.
    skipped: Vec<(String, String)>,
}

impl Counts {
    fn see(&mut self, line: &str) {
        // A part of a test that says itself that it cannot run here.
        if let Some((name, Verdict::Skipped(reason))) = report::parse(line) {
            self.skipped.push((name, reason));
        }
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        match result {
            "ok" => self.passed += 1,
            "FAILED" => self.failed.push(name.to_owned()),
            _ if result.starts_with("ignored") => {
                self.skipped.push((name.to_owned(), "ignored".into()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_tests_are_counted() {
        let mut counts = Counts::default();
        for line in "\
running 4 tests
test a::b ... ok
test a::c ... FAILED
test src/lib.rs - d (line 3) ... ok
test e ... ignored, needs a kernel
SKIP f: not here
test should - should panic ... ok
test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s"
            .lines()
        {
            counts.see(line);
        }
        assert_eq!(counts.passed, 3);
        assert_eq!(counts.failed, ["a::c"]);
        let skipped = [("e", "ignored"), ("f", "not here")];
        let skipped = skipped.map(|(name, reason)| (name.to_owned(), reason.to_owned()));
        assert_eq!(counts.skipped, skipped);
    }
}
