//! An array without addresses in Node.js, Java and Go, as the guide has it: 32 MiB that two processes share.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::frames;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

pub const TESTS: &[Test] = &[
    test("guide/node-array", node),
    test("guide/java-array", java),
    test("guide/go-array", go),
];

const NODE: &str = include_str!("../../../../../examples/arrays/array.js");
const JAVA: &str = include_str!("../../../../../examples/arrays/Array.java");
const GO: &str = include_str!("../../../../../examples/arrays/array.go");

/// Skips the test where this is not Debian's.
pub fn needed(program: &str) -> Result<()> {
    match Path::new("/usr/bin").join(program).exists() {
        true => Ok(()),
        false => skip(format!("{program} is not installed")),
    }
}

/// A file in a directory of this process's own.
fn written(name: &str, content: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("sksm-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), content)?;
    Ok(dir)
}

fn succeeds(command: &mut Command) -> Result<()> {
    let output = command.env("PATH", "/usr/bin:/bin").output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

fn node() -> Result<()> {
    needed("node")?;
    let dir = written("array.js", NODE)?;
    merged_at_a_signal(&["node", text(&dir.join("array.js"))?])
}

fn java() -> Result<()> {
    needed("java")?;
    needed("javac")?;
    let dir = written("Array.java", JAVA)?;
    succeeds(Command::new("/usr/bin/javac").arg(dir.join("Array.java")))?;
    // Another one would not begin a region with the array, nor a page.
    let collector = "-XX:+UseG1GC";
    merged_at_a_signal(&["java", collector, "-Xmx256m", "-cp", text(&dir)?, "Array"])
}

/// Nothing can be loaded into it, so it asks for itself.
fn go() -> Result<()> {
    needed("go")?;
    let dir = written("array.go", GO)?;
    let program = dir.join("array-go");
    let mut compiler = Command::new("/usr/bin/go");
    compiler
        .args(["build", "-o", text(&program)?, "array.go"])
        .current_dir(&dir)
        .env("HOME", &dir)
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "-p=1");
    succeeds(&mut compiler)?;
    let start = || Program::start(&mut Command::new(&program), "merged");
    let first = start()?;
    let before = frames::of([first.0.id()])?.len();
    let second = start()?;
    let both = frames::of([first.0.id(), second.0.id()])?.len();
    let saved = (2 * before).saturating_sub(both);
    ensure!(
        saved >= (31 << 20) / PAGE,
        "{before} pages of one, {both} of both"
    );
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// All but what each process has of its own.
fn merged_at_a_signal(words: &[&str]) -> Result<()> {
    let start = || {
        let mut command = Command::new(beside("sksm")?);
        command.args(["run", "--what", "heap", "--signal", "--verbose", "--"]);
        Program::start(command.args(words), "ready")
    };
    let mut programs = [start()?, start()?];
    let pids = programs.each_ref().map(|program| program.0.id());
    let before = frames::of(pids)?.len();
    programs.iter_mut().try_for_each(Program::merge)?;
    let saved = before.saturating_sub(frames::of(pids)?.len());
    ensure!(
        saved >= (31 << 20) / PAGE,
        "{saved} of {before} pages saved"
    );
    Ok(())
}

/// One that has said so.
struct Program(Child, Lines<BufReader<ChildStderr>>);

impl Program {
    fn start(command: &mut Command, said: &str) -> Result<Self> {
        let mut child = command
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let program = Self(child, lines);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim_end() == said, "it says {line:?}");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What people paste is what is run.
    #[test]
    fn the_guide_has_the_programs_as_they_are() {
        const GUIDE: &str = include_str!("../../../../../docs/python.md");
        for (language, program) in [("js", NODE), ("java", JAVA), ("go", GO)] {
            let quoted = format!("```{language}\n{program}```\n");
            assert!(GUIDE.contains(&quoted), "the guide has another {language}");
        }
    }
}
