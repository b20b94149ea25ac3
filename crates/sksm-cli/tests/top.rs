//! `sksm top` on a terminal: what keys and signals do, and that the terminal is given back.

mod pty;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pty::Pty;

fn top() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
    command.args(["top", "--interval", "1"]);
    command
}

/// Where nothing merges at all there is nothing to see.
fn nothing_merges() -> bool {
    sksm::support() == sksm::Support::None
}

/// One that is never left running.
struct Running(Child);

impl Running {
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes numbers only; our own child, not waited for yet.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts it and waits until it is drawn.
fn started(pty: &Pty) -> Running {
    let modes = pty.modes();
    let running = Running(pty.start(&mut top()));
    pty.wait_for("invert", 0);
    assert_ne!(pty.modes(), modes, "keys would wait for a line's end");
    assert!(pty.output().contains("\u{1b}[?1049h"));
    running
}

#[test]
fn keys_are_answered_and_end_it() {
    if nothing_merges() {
        return;
    }
    for end in ["q", "\u{3}", "\u{1b}"] {
        let pty = Pty::new(40, 120);
        let modes = pty.modes();
        let mut running = started(&pty);
        assert!(pty.output().contains("resident"));
        let seen = pty.output().len();
        pty.press("h");
        let seen = pty.wait_for("suspend", seen);
        pty.press("h+");
        // Drawn at once, not at the next look.
        let seen = pty.wait_for("2", seen);
        pty.press("pimarn");
        pty.wait_for("\u{1b}[7m", seen);
        pty.press(end);
        assert_eq!(running.wait().code(), Some(0), "{end:?}");
        pty.expect_restored(modes);
    }
}

#[test]
fn signals_end_it_and_the_terminal_is_given_back() {
    if nothing_merges() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut running = started(&pty);
        running.signal(signal);
        assert_eq!(running.wait().signal(), Some(signal));
        pty.expect_restored(modes);
    }
}

#[test]
fn it_can_be_suspended() {
    if nothing_merges() {
        return;
    }
    let pty = Pty::new(24, 80);
    let modes = pty.modes();
    let mut running = started(&pty);
    pty.press("\u{1a}");
    let mut status = 0;
    // SAFETY: our own child, and a valid place for its status.
    let pid = unsafe { libc::waitpid(running.0.id() as i32, &mut status, libc::WUNTRACED) };
    assert_eq!(pid, running.0.id() as i32);
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
    pty.expect_restored(modes);
    let seen = pty.output().len();
    running.signal(libc::SIGCONT);
    pty.wait_for("invert", seen);
    assert_ne!(pty.modes(), modes);
    pty.press("q");
    assert!(running.wait().success());
    pty.expect_restored(modes);
}

#[test]
fn it_ends_with_its_terminal() {
    if nothing_merges() {
        return;
    }
    let pty = Pty::new(24, 80);
    let mut running = started(&pty);
    // The kernel tells the session so.
    drop(pty);
    assert_eq!(running.wait().signal(), Some(libc::SIGHUP));
}

#[test]
fn the_smallest_terminal_will_do() {
    if nothing_merges() {
        return;
    }
    let pty = Pty::new(1, 1);
    let mut running = Running(pty.start(&mut top()));
    pty.wait_for("\u{1b}[?1049h", 0);
    std::thread::sleep(Duration::from_millis(1500));
    pty.press("h");
    pty.press("q");
    assert_eq!(running.wait().code(), Some(0), "{}", pty.output());
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let run = |arguments: &[&str]| {
        let mut command = top();
        command.args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    };
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("sksm top --json"), "{text}");
    assert!(output.stdout.is_empty());

    let output = run(&["--json", "--sort", "pid"]);
    if nothing_merges() {
        assert_eq!(output.status.code(), Some(3));
        return;
    }
    assert!(output.status.success(), "{output:?}");
    let look: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(look["saved"]["ksm_bytes"].is_u64(), "{look}");
    assert_eq!(look["missing"].is_string(), look["sksm"].is_null());
    let processes = look["processes"].as_array().unwrap();
    let pids: Vec<_> = (processes.iter())
        .map(|process| process["pid"].as_u64().unwrap())
        .collect();
    assert!(pids.contains(&u64::from(std::process::id())));
    assert!(pids.is_sorted());
}
