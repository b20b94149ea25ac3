//! The package for Python on a kernel that merges, with real servers: runs the tests that are beside it.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use sksm_guest::harness::report::{self, Options, Test, test};
use sksm_guest::skip::skip;

/// Runs the tests of the package for Python, one line a group; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

const TESTS: &[Test] = &[
    test("handshake", || unittest("test_handshake")),
    test("mappings", || unittest("test_mappings")),
    test("merge", || unittest("test_merge")),
    test("merging", || unittest("test_merging.Merging")),
    test("workers", || unittest("test_merging.Workers")),
    test("numpy/addresses", || unittest("test_numpy.Addresses")),
    test("numpy/arrays", || unittest("test_numpy.Arrays")),
    test("multiprocessing", || {
        unittest("test_servers.Multiprocessing")
    }),
    test("gunicorn", || unittest("test_servers.Gunicorn")),
    test("celery", || unittest("test_servers.Celery")),
    test("uwsgi", || unittest("test_servers.Uwsgi")),
];

/// Debian's, whose packages the tests use, whatever else is in PATH.
const PYTHON: &str = "/usr/bin/python3";

fn main() -> ExitCode {
    report::run(TESTS, &Arguments::parse().options)
}

/// Runs some of the package's own tests. What they skip is skipped here.
fn unittest(name: &str) -> Result<()> {
    let package = std::env::current_exe()?.with_file_name("python");
    ensure!(package.is_dir(), "{} is not there", package.display());
    ensure!(
        Path::new(PYTHON).is_file(),
        "`cargo xtask setup` installs it"
    );
    let output = Command::new(PYTHON)
        .args(["-B", "-W", "error", "-m", "unittest", "--verbose", name])
        .current_dir(package.join("tests"))
        .env("PYTHONPATH", package.join("src"))
        // Here nothing may be skipped for want of such a kernel.
        .env("SKSM_TEST_MERGES", "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{}{said}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success(), "{}", failures(&said));
    if let Some((_, reason)) = said.split_once("... skipped '") {
        return skip(reason.split('\'').next().unwrap_or(reason));
    }
    if said.contains("Ran 0 tests") {
        bail!("there is no test {name}");
    }
    Ok(())
}

/// Of what was said, the tests that failed and the last line of each's trace.
fn failures(said: &str) -> String {
    let parts = said.split("======").skip(1);
    let told = parts.filter_map(|part| {
        let lines: Vec<&str> = part.lines().filter(|line| !line.is_empty()).collect();
        let test = lines.iter().find(|line| line.contains(": "))?;
        let end = lines.iter().take_while(|line| !line.starts_with("Ran "));
        let why = end.filter(|line| !line.starts_with("---")).last()?;
        Some(format!("{test}: {why}"))
    });
    let told: Vec<String> = told.collect();
    match told.is_empty() {
        true => said.lines().last().unwrap_or("it said nothing").to_owned(),
        false => told.join("; "),
    }
}
