//! Runs tests and reports each in one line of stdout, details before it on stderr:
//!
//! ```text
//! ok NAME (0.12 s)            or, with a note: ok NAME (0.12 s): NOTE
//! FAIL NAME: reason
//! SKIP NAME: why it cannot run here
//! ```
//!
//! Each test runs in a process of its own, so a crash is one FAIL. A test is hermetic: it also fails if SKSM's counters are not
//! back where they were once its processes have gone.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::patience::{PATIENCE, deadline};
use crate::machine::settings::Settings;
use crate::machine::sysfs::Counters;
use crate::memory::process::{self, Pidfd};
use crate::skip::Skip;

/// A named test.
#[derive(Clone, Copy)]
pub struct Test {
    name: &'static str,
    run: fn() -> Result<()>,
}

pub const fn test(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test { name, run }
}

/// What every test program can be asked.
#[derive(clap::Args)]
pub struct Options {
    /// List the names of all tests, run none
    #[arg(long)]
    list: bool,
    /// Run only tests whose name contains this
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Run only a share of the tests, as in 2/3: others run the rest
    #[arg(long, value_name = "K/N", value_parser = share)]
    share: Option<(usize, usize)>,
    /// A test that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
}

fn share(text: &str) -> Result<(usize, usize)> {
    let (share, shares) = text.split_once('/').context("no K/N")?;
    let (share, shares) = (share.parse()?, shares.parse()?);
    ensure!(1 <= share && share <= shares, "no share of {shares}");
    Ok((share, shares))
}

enum Outcome {
    /// With what is worth knowing about it, if anything is.
    Ok(String),
    Fail(String),
    Skip(String),
}

impl Outcome {
    fn from_result(result: Result<String>) -> Self {
        match result {
            Ok(note) => Self::Ok(note),
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(reason) => Self::Skip(reason.to_string()),
                None => Self::Fail(format!("{error:#}")),
            },
        }
    }

    fn encode(&self) -> String {
        match self {
            Self::Ok(note) => format!("o{note}"),
            Self::Fail(reason) => format!("f{reason}"),
            Self::Skip(reason) => format!("s{reason}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let rest = || text[1..].to_owned();
        match text.chars().next()? {
            'o' => Some(Self::Ok(rest())),
            'f' => Some(Self::Fail(rest())),
            's' => Some(Self::Skip(rest())),
            _ => None,
        }
    }
}

/// Runs the tests that were asked for, and tells whether none failed.
pub fn run(tests: &[Test], options: &Options) -> ExitCode {
    let wanted = |test: &&Test| match &options.only {
        Some(pattern) => test.name.contains(pattern.as_str()),
        None => true,
    };
    let (share, shares) = options.share.unwrap_or((1, 1));
    let mut failed = false;
    let mut any = false;
    // Neighbours take about as long.
    let tests = tests.iter().filter(wanted);
    for test in tests.skip(share - 1).step_by(shares) {
        any = true;
        if options.list {
            println!("{}", test.name);
        } else {
            let timeout = Duration::from_secs(options.timeout);
            failed |= !run_one(test.name, timeout, || (test.run)().map(|()| String::new()));
        }
    }
    if !any {
        eprintln!("no test has that in its name; --list shows the names");
    }
    ExitCode::from(u8::from(failed || !any))
}

/// Runs one test, which may return a note, and prints its line. False if it failed.
pub fn run_one(name: &str, timeout: Duration, test: impl FnOnce() -> Result<String>) -> bool {
    let start = Instant::now();
    let outcome =
        hermetic(timeout, test).unwrap_or_else(|error| Outcome::Fail(format!("{error:#}")));
    print_line(name, start, &outcome)
}

/// Prints the line of a test that ran in this process. False if it failed.
pub fn line(name: &str, start: Instant, result: Result<()>) -> bool {
    print_line(
        name,
        start,
        &Outcome::from_result(result.map(|()| String::new())),
    )
}

fn print_line(name: &str, start: Instant, outcome: &Outcome) -> bool {
    let one_line = |reason: &str| reason.lines().collect::<Vec<_>>().join("; ");
    match outcome {
        Outcome::Ok(note) => {
            let colon = if note.is_empty() { "" } else { ": " };
            let seconds = start.elapsed().as_secs_f64();
            println!("ok {name} ({seconds:.2} s){colon}{note}");
        }
        Outcome::Fail(reason) => println!("FAIL {name}: {}", one_line(reason)),
        Outcome::Skip(reason) => println!("SKIP {name}: {}", one_line(reason)),
    }
    !matches!(outcome, Outcome::Fail(_))
}

/// Runs the test in its own process, then checks that nothing is left of it.
fn hermetic(timeout: Duration, test: impl FnOnce() -> Result<String>) -> Result<Outcome> {
    // Processes whose parent dies become ours, so that all can be waited for.
    process::adopt_orphans()?;
    let settings = Settings::save()?;
    // Its first question is a call that merges, which the test's counters would show; children know the answer.
    let _ = sksm::support();
    let before = Counters::now().ok();
    let outcome = in_child(timeout, test);
    process::reap_all(PATIENCE)?;
    settings.restore()?;
    let left = before.map_or(Ok(()), |before| released(&before));
    Ok(match (outcome?, left) {
        (Outcome::Ok(_) | Outcome::Skip(_), Err(error)) => Outcome::Fail(format!("{error:#}")),
        (outcome, _) => outcome,
    })
}

/// Waits until what the engine holds is what it held before: merged pages are released after an RCU grace period, by a work item.
fn released(before: &Counters) -> Result<()> {
    let deadline = deadline();
    loop {
        let now = Counters::now()?;
        if now.held() == before.held() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let differing: Vec<_> = (before.held().iter().zip(now.held()))
                .filter(|(was, is)| *was != is)
                .map(|((name, was), (_, is))| format!("{name} {is}, was {was}"))
                .collect();
            bail!("after all processes have gone: {}", differing.join(", "));
        }
        // A CPU's batch of pages on their way between LRU lists may hold the last reference. Compaction empties all of them;
        // a kernel without it has one CPU or is only slower here.
        std::fs::write("/proc/sys/vm/compact_memory", "1").ok();
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the test in a child, in a process group of its own, all of which is killed in the end.
fn in_child(timeout: Duration, test: impl FnOnce() -> Result<String>) -> Result<Outcome> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let child = process::fork()?;
    if child == 0 {
        drop(ours);
        process::own_group(0);
        let result = catch_unwind(AssertUnwindSafe(test)).unwrap_or_else(|panic| {
            let text = (panic.downcast_ref::<String>().map(String::as_str))
                .or(panic.downcast_ref::<&str>().copied());
            bail!("panic: {}", text.unwrap_or("without a message"))
        });
        let sent = (&theirs).write_all(Outcome::from_result(result).encode().as_bytes());
        process::exit_now(i32::from(sent.is_err()));
    }
    drop(theirs);
    process::own_group(child);
    let ended = Pidfd::open(child)?.ends_within(timeout)?;
    process::kill_group(child);
    let status = process::wait(child)?;
    if !ended {
        bail!("no end within {} s", timeout.as_secs());
    }
    // Whoever else held the other end is dead or dying, and all that was sent is there already.
    ours.set_nonblocking(true)?;
    let mut text = Vec::new();
    if let Err(error) = ours.read_to_end(&mut text) {
        ensure!(error.kind() == std::io::ErrorKind::WouldBlock, error);
    }
    let text = String::from_utf8_lossy(&text);
    Outcome::decode(&text).with_context(|| format!("died without a word: {status}"))
}
