//! `sksm top` on a terminal: what keys and signals do, and that the terminal is given back.

mod pty;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use pty::Pty;

/// Tests by their names.
macro_rules! tests {
    ($($name:ident)*) => {[$((stringify!($name), $name as fn())),*]};
}

/// Where the kernel merges nothing there is nothing to see, and the tests of that are listed as ignored.
fn main() -> std::process::ExitCode {
    let nothing_merges = sksm::support() == sksm::Support::None;
    let trial = |(name, test): (&str, fn()), ignored| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(ignored)
    };
    let drawn = tests![
        keys_are_answered_and_end_it
        signals_end_it_and_the_terminal_is_given_back
        it_can_be_suspended
        it_comes_back_after_a_hard_stop
        it_ends_with_its_terminal
        the_smallest_terminal_will_do
        one_look_as_json
    ];
    let mut trials: Vec<Trial> = drawn.map(|test| trial(test, nothing_merges)).into();
    trials.extend(tests![without_a_terminal_it_says_what_to_do].map(|test| trial(test, false)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn top() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
    command.args(["top", "--interval", "1"]);
    command
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

    fn expect_stopped(&self) {
        let (own, mut status) = (self.0.id() as i32, 0);
        // SAFETY: our own child, and a valid place for its status.
        let pid = unsafe { libc::waitpid(own, &mut status, libc::WUNTRACED) };
        assert_eq!(pid, own);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
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
    let output = pty.output();
    let other = output.find("\u{1b}[?1049h").expect("another screen");
    let cleared = output.find("\u{1b}[2J").expect("a blank one");
    let drawn = output.find("sksm").expect("the first line");
    assert!(other < cleared && cleared < drawn, "{output:?}");
    running
}

fn keys_are_answered_and_end_it() {
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

fn signals_end_it_and_the_terminal_is_given_back() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGXCPU,
        libc::SIGPWR,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ] {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut running = started(&pty);
        running.signal(signal);
        assert_eq!(running.wait().signal(), Some(signal));
        pty.expect_restored(modes);
    }
}

/// By its key, and by whoever sends the signal.
fn it_can_be_suspended() {
    let stops: [fn(&Pty, &Running); 2] = [
        |pty, _| pty.press("\u{1a}"),
        |_, running| running.signal(libc::SIGTSTP),
    ];
    for stop in stops {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut running = started(&pty);
        stop(&pty, &running);
        running.expect_stopped();
        pty.expect_restored(modes);
        running.signal(libc::SIGCONT);
        // Not for words on the screen: those from before the stop may still be on their way.
        pty.wait_for_modes(|now| now != modes);
        pty.press("q");
        assert!(running.wait().success());
        pty.expect_restored(modes);
    }
}

/// Stopped so that it cannot give the terminal back, it takes it anew from whoever had it meanwhile.
fn it_comes_back_after_a_hard_stop() {
    let pty = Pty::new(24, 80);
    let modes = pty.modes();
    let mut running = started(&pty);
    let own = pty.modes();
    running.signal(libc::SIGSTOP);
    running.expect_stopped();
    pty.set_modes(modes);
    running.signal(libc::SIGCONT);
    pty.wait_for_modes(|now| now == own);
    pty.press("q");
    assert!(running.wait().success());
    pty.expect_restored(modes);
}

fn it_ends_with_its_terminal() {
    let pty = Pty::new(24, 80);
    let mut running = started(&pty);
    // The kernel tells the session so.
    drop(pty);
    assert_eq!(running.wait().signal(), Some(libc::SIGHUP));
}

fn the_smallest_terminal_will_do() {
    let pty = Pty::new(1, 1);
    let mut running = Running(pty.start(&mut top()));
    pty.wait_for("\u{1b}[?1049h", 0);
    std::thread::sleep(Duration::from_millis(1500));
    pty.press("h");
    pty.press("q");
    assert_eq!(running.wait().code(), Some(0), "{}", pty.output());
}

fn without_a_terminal_it_says_what_to_do() {
    let output = top().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("sksm top --json"), "{text}");
    assert!(output.stdout.is_empty());
}

fn one_look_as_json() {
    let output = (top().args(["--json", "--sort", "pid"]).stdin(Stdio::null()))
        .output()
        .unwrap();
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
