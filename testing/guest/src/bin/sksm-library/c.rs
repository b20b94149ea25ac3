//! The library for C, as it is packaged.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::program::beside;

use crate::scratch::Scratch;

const HEADER: &str = include_str!("../../../../../crates/sksm-capi/include/sksm.h");
const FUNCTIONS: &str = include_str!("../../../../../crates/sksm-capi/tests/functions.c");
const EXAMPLE: &str = include_str!("../../../../../crates/sksm-capi/examples/table.c");

/// Builds a C program with the library, runs it, and tells what it printed.
fn run(name: &str, source: &str) -> Result<String> {
    let scratch = Scratch::new(name)?;
    std::fs::write(scratch.file("sksm.h"), HEADER)?;
    symlink(beside("libsksm.so")?, scratch.file("libsksm.so.0"))?;
    symlink("libsksm.so.0", scratch.file("libsksm.so"))?;
    let program = scratch.compile(name, source, &["-I.", "-L.", "-lsksm"])?;
    let output = with_library(&program, &scratch.0).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

fn with_library(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", dir);
    command
}

pub fn functions() -> Result<()> {
    let printed = run("functions", FUNCTIONS)?;
    ensure!(printed.ends_with("; merging is there\n"), "{printed}");
    Ok(())
}

pub fn example() -> Result<()> {
    let printed = run("table", EXAMPLE)?;
    let kib = (printed.strip_prefix("merge: done\n"))
        .and_then(|rest| rest.strip_suffix(" KiB more are merged\n"))
        .with_context(|| printed.clone())?;
    // Of 4 MiB, without the pages at its ends.
    ensure!(kib.parse::<u64>()? > 4000, "{printed}");
    Ok(())
}
