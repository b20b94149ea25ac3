//! Checks that boot no kernel: formatting, lints, the workspace's own tests, the kernel's coding style.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{
    args::Args,
    crates, litmus, man_pages, published,
    results::Run,
    tested::Tested,
    unit_tests,
    workspace::{cargo, log},
};
use crate::{
    ground::{files, interrupt, packages, step},
    guest::programs,
    kernel::{self, Origin, Pages, checkpatch},
    terminal::progress::Step,
    verbs::{deb, patches, shared::report::Verdict},
};

const NAMES: &[&str] = &[
    "host/fmt",
    "host/clippy",
    "host/clippy-static-keys",
    "host/clippy-vm-memory",
    "host/clippy-vmm",
    "host/test",
    "host/doctest",
    "host/doc",
    "host/python",
    "host/mypy",
    "host/msrv",
    "host/deny",
    "host/advisories",
    "host/semver",
    "host/install",
    "host/packages",
    "host/kernel-rustfmt",
    "host/kernel-checkpatch",
    "host/patches",
    "host/litmus",
    "host/units",
    "host/prometheus",
    "host/deb",
    "host/lintian",
    "host/man-pages",
    DEB_KERNEL,
    PAGES_16K,
    PAGES_64K,
];

/// It compiles the kernel's Rust once more.
const DEB_KERNEL: &str = "host/deb-kernel";

/// These do so too, for arm64 with other pages.
const PAGES_16K: &str = "host/arm64-16k";
const PAGES_64K: &str = "host/arm64-64k";

/// What takes minutes.
fn is_late(check: &Check) -> bool {
    [DEB_KERNEL, PAGES_16K, PAGES_64K].contains(&check.of)
}

/// These need the kernel's source, each base's.
const KERNELS: &[&str] = &[
    "host/kernel-rustfmt",
    "host/kernel-checkpatch",
    "host/patches",
    "host/litmus",
    DEB_KERNEL,
    PAGES_16K,
    PAGES_64K,
];

/// A check to run.
pub struct Check {
    /// One of `NAMES`.
    of: &'static str,
    /// Whose source it needs, if it needs any.
    origin: Option<Origin>,
}

impl Check {
    /// As in `host/fmt`, or `host/patches-7.3` for another base than the first.
    fn name(&self) -> String {
        let base = self.origin.as_ref().map(|origin| origin.base);
        base.unwrap_or_default().named(self.of)
    }
}

/// Those that are asked for; what is about a base's source runs for each base that is tested.
pub fn checks(args: &Args, kernels: &[Tested]) -> Vec<Check> {
    if args.arch.is_some() {
        return Vec::new();
    }
    let mut origins = Vec::new();
    for tested in kernels {
        if !origins.contains(&tested.origin) {
            origins.push(tested.origin.clone());
        }
    }
    let mut checks = Vec::new();
    for &of in NAMES {
        if !KERNELS.contains(&of) {
            checks.push(Check { of, origin: None });
            continue;
        }
        // That one takes minutes, and bases differ little in what it would find.
        let most = match of == DEB_KERNEL {
            true if args.quick => 0,
            true if !args.all => 1,
            // The hours in which all is tried have room for it.
            false if [PAGES_16K, PAGES_64K].contains(&of) && !args.all => 0,
            _ => origins.len(),
        };
        let origins = origins.iter().take(most).cloned().map(Some);
        checks.extend(origins.map(|origin| Check { of, origin }));
    }
    checks.retain(|check| args.wants(&check.name()));
    checks
}

/// All but what can wait until the kernels are built.
pub fn run(run: &Run, checks: &[Check]) -> Result<()> {
    run_these(run, checks.iter().filter(|check| !is_late(check)))
}

/// What nobody waits for.
pub fn run_late(run: &Run, checks: &[Check]) -> Result<()> {
    run_these(run, checks.iter().filter(|check| is_late(check)))
}

fn run_these<'a>(run: &Run, checks: impl Iterator<Item = &'a Check>) -> Result<()> {
    let checks: Vec<_> = checks.collect();
    if checks.is_empty() {
        return Ok(());
    }
    // The tools that most of them are, and the source if any of them needs Debian's.
    let mut origins = checks.iter().filter_map(|check| check.origin.as_ref());
    packages::ensure(run.project, origins.all(Origin::needs_no_package))?;
    for check in checks {
        if check.of == "host/test" {
            unit_tests::run(run, check.of)?;
            continue;
        }
        let name = check.name();
        let step = Step::begin(&name);
        match cannot_run(run, check)? {
            Some(reason) => {
                run.record(&step, &name, Verdict::Skipped(reason), None);
            }
            None => {
                let result = run_check(run, check, &name, &step);
                record(run, &step, &name, result)?;
            }
        }
    }
    Ok(())
}

/// What is missing.
fn cannot_run(run: &Run, check: &Check) -> Result<Option<String>> {
    Ok(match check.of {
        "host/clippy-static-keys" if !programs::builds_static_keys()? => {
            Some("the example static-keys needs Rust 1.87".into())
        }
        "host/mypy" => {
            let there = Command::new("mypy").arg("--version").output().is_ok();
            (!there).then(|| "mypy is not installed: apt install mypy".into())
        }
        "host/prometheus" => {
            let there = Command::new("promtool").arg("--version").output().is_ok();
            (!there).then(|| "promtool is not installed: apt install prometheus".into())
        }
        "host/lintian" => {
            let there = Command::new("lintian").arg("--version").output().is_ok();
            (!there).then(|| "lintian is not installed: apt install lintian".into())
        }
        "host/man-pages" => man_pages::cannot_apply(),
        "host/litmus" => {
            let base = check.origin.as_ref().map(|origin| origin.base);
            litmus::cannot_ask(base.unwrap_or_default())
        }
        "host/msrv" => crates::oldest_rust(run.project)?.err(),
        "host/deny" => crates::lacks("deny"),
        "host/advisories" => crates::lacks("deny").or_else(crates::no_advisories),
        "host/units" => deb::units::cannot_check(),
        "host/packages" => published::cannot_package()?,
        "host/semver" => crates::lacks("semver-checks").or(crates::released(run.project)?.err()),
        _ => None,
    })
}

fn run_check(run: &Run, check: &Check, name: &str, step: &Step) -> Result<()> {
    let origin = &check.origin.clone().unwrap_or_default();
    let kernel = run.project.kernel();
    let tree = || -> Result<PathBuf> { Ok(kernel::patched_source(run.project, origin)?.tree) };
    // What the engine has for this base alone.
    let own = |extensions: &[&str]| {
        let dir = kernel.join(origin.base.overlay());
        match dir.is_dir() {
            true => files(&dir, extensions),
            false => Ok(Vec::new()),
        }
    };
    let mut command = match check.of {
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
        "host/clippy-static-keys" | "host/clippy-vm-memory" | "host/clippy-vmm" => {
            let example = name.trim_start_matches("host/clippy-");
            let mut command = cargo(run, &["clippy", "--locked", "--target-dir"]);
            command
                .arg(&run.project.target)
                .args(["--", "-D", "warnings"])
                .current_dir(run.project.root.join("examples").join(example));
            command
        }
        "host/doctest" => cargo(run, &["test", "--workspace", "--doc"]),
        "host/doc" => {
            // The library's: that is read by others.
            let mut command = cargo(run, &["doc", "--package", "sksm", "--no-deps"]);
            command.env("RUSTDOCFLAGS", "-D warnings");
            command
        }
        "host/python" => return python(run, name, step),
        "host/mypy" => {
            let mut command = Command::new("mypy");
            // It would write beside the sources.
            command.args(["--cache-dir", "/dev/null"]);
            command.current_dir(run.project.root.join("python"));
            command
        }
        "host/msrv" => {
            let mut command = match crates::oldest_rust(run.project)? {
                Ok(command) => command,
                Err(reason) => bail!(reason),
            };
            command.args(["check", "--workspace", "--all-targets", "--locked"]);
            command
        }
        "host/deny" => cargo(run, &["deny", "check", "bans", "licenses", "sources"]),
        "host/advisories" => cargo(run, &["deny", "check", "--disable-fetch", "advisories"]),
        "host/semver" => {
            let release = match crates::released(run.project)? {
                Ok(release) => release,
                Err(reason) => bail!(reason),
            };
            let mut command = cargo(run, &["semver-checks", "--baseline-rev", &release]);
            for library in published::libraries(run.project)? {
                command.args(["--package", &library]);
            }
            command
        }
        "host/install" => return published::install(run.project, &log(run, name)?, step),
        "host/packages" => return published::packages(run.project, &log(run, name)?, step),
        "host/kernel-rustfmt" => {
            // There the engine has all its modules, the base's own among them.
            let tree = tree()?;
            let mut command = Command::new("rustfmt");
            command
                .args(["--check", "--color", "never", "--config-path"])
                .arg(tree.join(".rustfmt.toml"))
                .arg(tree.join("mm/sksm/sksm.rs"));
            command
        }
        "host/kernel-checkpatch" => {
            let mut command = checkpatch::command(&tree()?);
            command
                .arg("--file")
                .args(files(&kernel.join("mm/sksm"), &["c", "h", "rs"])?)
                .args(own(&["c", "h", "rs"])?)
                .args(files(&kernel.join("tools"), &["c"])?);
            command
        }
        "host/patches" => return patches(run, name, step, origin),
        "host/litmus" => return litmus::ask(run.project, &tree()?, step),
        "host/units" => return deb::units::check(run.project),
        "host/prometheus" => return prometheus(run, name, step),
        "host/deb" => {
            let out = tempfile::tempdir()?;
            let packages = deb::programs(run.project, patches::PLACEHOLDER, out.path())?;
            return deb::installed::check(run.project, &packages);
        }
        "host/lintian" => {
            const BOGUS_MAIL: &str = "bogus-mail-host,bogus-mail-host-in-debian-changelog";
            let out = tempfile::tempdir()?;
            let packages = deb::programs(run.project, patches::PLACEHOLDER, out.path())?;
            let mut lintian = Command::new("lintian");
            lintian
                .args(["--no-cfg", "--display-info", "--pedantic", "--allow-root"])
                .args(["--fail-on", "error,warning,info,pedantic"])
                // A placeholder, here alone.
                .args(["--suppress-tags", BOGUS_MAIL])
                .args(packages);
            return step::run(&mut lintian, &log(run, name)?, step, |line| {
                step.detail(line)
            });
        }
        "host/man-pages" => return man_pages::apply(run.project),
        DEB_KERNEL => {
            let flavour = deb::kernel::Flavour::default();
            return deb::kernel::check(run.project, origin, flavour).map(|_report| ());
        }
        PAGES_16K => return kernel::compile_engine(run.project, Pages::Of16K, origin),
        PAGES_64K => return kernel::compile_engine(run.project, Pages::Of64K, origin),
        _ => bail!("nobody knows how to run it"),
    };
    let log = log(run, name)?;
    step::run(&mut command, &log, step, |line| step.detail(line))
}

fn record(run: &Run, step: &Step, name: &str, result: Result<()>) -> Result<()> {
    let verdict = match result {
        Ok(()) => Verdict::Passed(format!("({:.2} s)", step.seconds())),
        Err(error) => {
            interrupt::check()?;
            Verdict::Failed(format!("{error:#}"))
        }
    };
    run.record(step, name, verdict, None);
    Ok(())
}

/// The series that `cargo xtask patches` writes: it makes what is built, and checkpatch finds nothing in it.
fn patches(run: &Run, name: &str, step: &Step, origin: &Origin) -> Result<()> {
    let out = tempfile::tempdir()?;
    let series = patches::make(run.project, origin, patches::PLACEHOLDER, out.path())?;
    let mut command = checkpatch::command(&series.tree);
    command.args(&series.patches);
    let log = log(run, name)?;
    step::run(&mut command, &log, step, |line| step.detail(line))
}

/// The rules for Prometheus, and what their own tests expect of them.
fn prometheus(run: &Run, name: &str, step: &Step) -> Result<()> {
    let log = log(run, name)?;
    for of in ["check rules sksm.rules.yml", "test rules sksm.test.yml"] {
        let mut promtool = Command::new("promtool");
        promtool
            .args(of.split(' '))
            .current_dir(run.project.root.join("packaging/prometheus"));
        step::run(&mut promtool, &log, step, |line| step.detail(line))?;
    }
    Ok(())
}

/// Debian's, which has the packages that the tool installs, whatever else is in PATH.
const PYTHON: &str = "/usr/bin/python3";

/// The package for Python, from the repository and as it would be published.
fn python(run: &Run, name: &str, step: &Step) -> Result<()> {
    let sources = run.project.root.join("python");
    let log = log(run, name)?;
    let made = tempfile::tempdir()?;
    let made = made.path();
    let mut make = Command::new(PYTHON);
    make.args(["-B", "-m", "hatchling", "build", "--target", "sdist"])
        .arg("--directory")
        .arg(made)
        .current_dir(&sources);
    step::run(&mut make, &log, step, |line| step.detail(line))?;
    let release = format!("sksm-{}", env!("CARGO_PKG_VERSION"));
    let archive = made.join(format!("{release}.tar.gz"));
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).arg("-C").arg(made);
    step::run(&mut unpack, &log, step, |line| step.detail(line))?;
    python_installed(&archive, &made.join(release).join("tests"), &log, step)?;
    python_installed(&sources, &sources.join("tests"), &log, step)
}

/// Installs it as people do, and runs its tests with what was installed; those that merge are skipped here.
fn python_installed(package: &Path, tests: &Path, log: &Path, step: &Step) -> Result<()> {
    let installed = tempfile::tempdir()?;
    let mut install = Command::new(PYTHON);
    install
        // What the user or the machine has configured for pip is not meant for this.
        .args(["-m", "pip", "--isolated", "install", "--quiet"])
        .args(["--no-build-isolation", "--root-user-action", "ignore"])
        .args(["--no-deps", "--no-index", "--no-cache-dir", "--target"])
        .args([installed.path(), package]);
    step::run(&mut install, log, step, |line| step.detail(line))?;
    let mut unittest = Command::new(PYTHON);
    unittest
        .args(["-B", "-W", "error", "-m", "unittest", "--verbose"])
        .env("PYTHONPATH", installed.path())
        .current_dir(tests);
    step::run(&mut unittest, log, step, |line| step.detail(line))
}

/// Files below a directory, by extension, in order.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    Ok(files::below(dir)?
        .into_keys()
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| extensions.iter().any(|&wanted| ext == wanted))
        })
        .map(|path| dir.join(path))
        .collect())
}
