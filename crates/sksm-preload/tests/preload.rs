//! Loads the object into real programs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use sksm::{Support, support};

/// The object as it is installed. Cargo builds no shared objects for tests, so it is built here.
fn preload() -> &'static Path {
    static OBJECT: OnceLock<PathBuf> = OnceLock::new();
    OBJECT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--offline", "--package", "sksm-preload"])
            .args([
                "--profile",
                "preload",
                "--no-default-features",
                "--target-dir",
            ])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success());
        target.join("preload/libsksm_preload.so")
    })
}

/// A pipe whose ends children inherit.
fn pipe() -> (File, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: pipe writes two descriptors, into ours; both are new and owned here alone.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// Runs `echo hello` with a step and tells its output and the report.
fn echo(step: &str) -> (Output, String) {
    let (mut report, end) = pipe();
    let output = Command::new("/bin/echo")
        .arg("hello")
        .env("LD_PRELOAD", preload())
        .env("SKSM_EXPERIMENT", step)
        .env("SKSM_EXPERIMENT_FD", end.as_raw_fd().to_string())
        .output()
        .unwrap();
    drop(end);
    let mut line = String::new();
    report.read_to_string(&mut line).unwrap();
    (output, line)
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let prefix = format!("{name}=");
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

fn assert_said_hello(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn without_a_step_it_says_and_does_nothing() {
    for step in ["", "nonsense"] {
        let (output, line) = echo(step);
        assert_said_hello(&output);
        assert_eq!(line, "");
    }
}

#[test]
fn without_a_descriptor_it_only_works() {
    for fd in [None, Some("1"), Some("2"), Some("x"), Some("987654")] {
        let mut command = Command::new("/bin/echo");
        command
            .arg("hello")
            .env("LD_PRELOAD", preload())
            .env("SKSM_EXPERIMENT", "patch");
        if let Some(fd) = fd {
            command.env("SKSM_EXPERIMENT_FD", fd);
        }
        assert_said_hello(&command.output().unwrap());
    }
}

#[test]
fn each_step_reports_once() {
    for step in ["idle", "patch", "merge", "ksm"] {
        let (output, line) = echo(step);
        assert_said_hello(&output);
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        assert_eq!(field(&line, "step"), step);
        assert_eq!(field(&line, "pages") == "0", step == "idle");
        let refused = match step {
            "merge" => support() != Support::Merge,
            "ksm" => support() == Support::None,
            _ => false,
        };
        assert_eq!(
            field(&line, "failed"),
            if refused { "advise" } else { "nothing" },
            "{line}"
        );
        assert_eq!(field(&line, "errno") == "0", !refused, "{line}");
    }
}

/// A sleeping process, killed when dropped.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Sleeper {
    /// A process that sleeps, once it has reported; and the report.
    fn new(step: &str) -> (Self, String) {
        let (report, end) = pipe();
        let child = Command::new("/bin/sleep")
            .arg("100")
            .env("LD_PRELOAD", preload())
            .env("SKSM_EXPERIMENT", step)
            .env("SKSM_EXPERIMENT_FD", end.as_raw_fd().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sleeper = Sleeper(child);
        drop(end);
        let mut line = String::new();
        BufReader::new(report).read_line(&mut line).unwrap();
        (sleeper, line)
    }

    /// The sum in pages of a field of smaps over the mappings that are wanted.
    fn pages(&self, name: &str, wanted: impl Fn(&str) -> bool) -> usize {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.0.id())).unwrap();
        let mut sum = None;
        let mut counts = false;
        for line in smaps.lines() {
            // A mapping's first line starts with its address, its fields with a name in capitals.
            if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
                counts = wanted(line);
            } else if let Some(value) = line.strip_prefix(name).filter(|_| counts) {
                let kib: usize = value.split_whitespace().nth(1).unwrap().parse().unwrap();
                *sum.get_or_insert(0) += kib * 1024 / sksm::page_size();
            }
        }
        sum.unwrap_or_else(|| panic!("no {name} in {smaps}"))
    }
}

#[test]
fn patching_gives_the_process_its_own_copy_of_every_page() {
    let (sleeper, line) = Sleeper::new("patch");
    let pages: usize = field(&line, "pages").parse().unwrap();
    let text = |mapping: &str| mapping.contains(" r-xp ") && mapping.contains("libc");
    assert_eq!(sleeper.pages("Size", text), pages);
    assert_eq!(sleeper.pages("Anonymous", text), pages);
}

#[test]
fn an_idle_object_costs_one_page_and_no_other_library() {
    let (sleeper, _) = Sleeper::new("idle");
    assert_eq!(
        sleeper.pages("Anonymous", |mapping| mapping.contains("libsksm_preload")),
        1
    );
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", sleeper.0.id())).unwrap();
    let objects: BTreeSet<&str> = maps
        .lines()
        .filter(|line| line.contains(".so"))
        .map(|line| line.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(
        objects.len(),
        3,
        "more than the loader, libc and the object: {objects:?}"
    );
}
