//! Runs a command with its output in a log and its progress on the screen.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::Signal,
};

use crate::{
    ground::interrupt::{self, Group},
    terminal::progress::Step,
};

/// Lines of the log that a failure shows.
const TAIL: usize = 30;

/// Runs `command`; `on_line` sees each line of its output. A failure shows the end of the log.
pub fn run(
    command: &mut Command,
    log: &Path,
    step: &Step,
    mut on_line: impl FnMut(&str),
) -> Result<()> {
    let mut log_file =
        File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut note = |line: &[u8]| {
        let written = log_file.write_all(line);
        written.with_context(|| format!("cannot write {}", log.display()))
    };
    note(format!("$ {}\n", describe(command)).as_bytes())?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // Before the group, so that it is there for longer: a pipe without a reader kills whoever writes.
    let mut reader = BufReader::new(File::from(reader));
    let mut group = Group::spawn(command, Signal::TERM)?;
    // The command holds the pipe's write ends; the reader would never see the end otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let relayed = relay(&mut reader, step, |line| {
        note(line)?;
        on_line(String::from_utf8_lossy(line).trim_end());
        Ok(())
    });
    if relayed.is_err() {
        group.stop();
        // What it says while it cleans up would fill the pipe, and it would wait for ever.
        let _ = relay(&mut reader, step, |_| Ok(()));
    }
    let status = group.child.wait()?;
    interrupt::check()?;
    relayed?;
    if !status.success() {
        bail!(
            "{} failed ({status})\n{}\nlog: {}",
            command.get_program().to_string_lossy(),
            tail(log)?,
            log.display()
        );
    }
    Ok(())
}

/// Passes lines on until all that write have ended.
fn relay(
    reader: &mut BufReader<File>,
    step: &Step,
    mut on_line: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        while reader.buffer().is_empty() && !readable(reader, Duration::from_secs(1))? {
            step.tick();
        }
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        on_line(&line)?;
        step.tick();
    }
}

fn readable(reader: &BufReader<File>, patience: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(reader.get_ref(), PollFlags::IN)];
    match poll(&mut fds, Some(&patience.try_into()?)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs a command that takes no time and says little; returns its output. A failure shows what it complained of.
pub fn output(command: &mut Command) -> Result<String> {
    let whole = describe(command);
    // A commit's message would go on for lines.
    let what = whole.lines().next().unwrap_or_default();
    let output = command
        .output()
        .with_context(|| format!("cannot run `{what}`"))?;
    if !output.status.success() {
        bail!(
            "`{what}` failed ({})\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{what}` did not print text"))
}

/// The command line, as a person would type it.
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a log.
pub fn tail(log: &Path) -> Result<String> {
    let mut text = Vec::new();
    File::open(log)?.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = VecDeque::new();
    for line in text.lines() {
        if lines.len() == TAIL {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    Ok(lines.into_iter().collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_command_fails_with_its_complaint() {
        let sh = |script: &str| output(Command::new("sh").args(["-c", script]));
        assert_eq!(sh("echo out; echo err >&2").unwrap(), "out\n");
        let error = sh("echo out; echo err >&2; exit 3\n:")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`sh -c echo out; echo err >&2; exit 3` failed (exit status: 3)\nerr"
        );
        let error = output(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot run `/no/such/program`: "));
        assert!(sh("printf '\\377'").is_err());
    }

    #[test]
    fn a_log_that_takes_no_more_is_named_and_the_command_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        output(Command::new("mkfifo").arg(&log)).unwrap();
        let reader = std::thread::spawn({
            let log = log.clone();
            move || BufReader::new(File::open(log).unwrap()).read_line(&mut String::new())
        });
        // While it cleans up it says more than a pipe holds.
        let script =
            "trap 'seq 100000; touch clean; exit 1' TERM; while :; do echo on; sleep 0.1; done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir.path());
        let error = run(&mut command, &log, &Step::begin("test"), |_| {}).unwrap_err();
        reader.join().unwrap().unwrap();
        let expected = format!("cannot write {}: ", log.display());
        assert!(format!("{error:#}").starts_with(&expected), "{error:#}");
        assert!(dir.path().join("clean").exists());
        assert_eq!(interrupt::killed(), 0);
    }

    #[test]
    fn failure_shows_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut seen = 0;
        let error = run(
            Command::new("sh").args(["-c", "seq 100; echo broken >&2; exit 3"]),
            &log,
            &Step::begin("test"),
            |_| seen += 1,
        )
        .unwrap_err()
        .to_string();
        assert_eq!(seen, 101);
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("\nbroken\n"), "{error}");
        assert!(error.contains(&log.display().to_string()), "{error}");
        assert!(!error.contains("\n71\n"), "{error}");
        assert!(error.contains("\n72\n"), "{error}");
    }
}
