//! Node.js as the guides have it.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::frames;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

use crate::guide::{Workers, randomised};

pub const TESTS: &[Test] = &[
    test("guide/node-workers", workers),
    test("guide/node-array", array),
];

const WORKERS: &str = include_str!("../../../../../examples/workers/workers.js");
const GUIDE: &str = include_str!("../../../../../docs/python.md");

fn needed() -> Result<()> {
    match Command::new("/usr/bin/node").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => skip("node is not installed"),
    }
}

/// How much merges differs from run to run, as the guide says; something does, before and after requests.
fn workers() -> Result<()> {
    randomised()?;
    needed()?;
    let file = ("workers.js", WORKERS);
    let measured = Workers::start(2, &["node", "workers.js"], file)?.measure()?;
    eprintln!("saved, after requests, merged again: {measured:.0?} %");
    ensure!(measured.len() == 4, "{measured:?}");
    ensure!(measured[0] > 2.0 && measured[3] > 2.0, "{measured:?}");
    Ok(())
}

/// Numbers without addresses merge from inside: 32 MiB, but for what each process has of its own.
fn array() -> Result<()> {
    needed()?;
    let code = GUIDE.split("```js\n").nth(1).context("no such code")?;
    let (code, _) = code.split_once("```").context("no end of it")?;
    let file = std::env::temp_dir().join("array.js");
    fs::write(&file, format!("{code}\nconsole.log('ready')\n"))?;
    let mut programs = [Program::start(&file)?, Program::start(&file)?];
    let pids = programs.each_ref().map(|program| program.0.id());
    let before = frames::of(pids)?.len();
    programs.iter_mut().try_for_each(Program::merge)?;
    let saved = before - frames::of(pids)?.len();
    ensure!(
        saved >= (31 << 20) / PAGE,
        "{saved} of {before} pages saved"
    );
    Ok(())
}

/// Node with the preload object, ready.
struct Program(Child, Lines<BufReader<ChildStderr>>);

impl Program {
    fn start(file: &Path) -> Result<Self> {
        let mut child = Command::new(beside("sksm")?)
            .args(["run", "--what", "heap", "--signal", "--verbose", "node"])
            .arg(file)
            .env("PATH", "/usr/bin:/bin")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let program = Self(child, lines);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "node says {line:?}");
        Ok(program)
    }

    fn merge(&mut self) -> Result<()> {
        // SAFETY: takes numbers only; our own child, not waited for yet.
        let sent = unsafe { libc::kill(self.0.id() as i32, libc::SIGRTMIN() + 12) };
        ensure!(sent == 0, "no signal was sent");
        for line in self.1.by_ref() {
            if line?.contains(" at the signal: merged ") {
                return Ok(());
            }
        }
        bail!("it never said that it merged");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
