//! Loads the object into real programs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use sksm::{Support, support};

/// The object as it is installed. Cargo builds no shared objects for tests, so it is built here.
fn preload() -> &'static Path {
    static OBJECT: OnceLock<PathBuf> = OnceLock::new();
    OBJECT.get_or_init(|| build("installed", &[]))
}

/// The object as the demo has it.
fn with_experiment() -> &'static Path {
    static OBJECT: OnceLock<PathBuf> = OnceLock::new();
    OBJECT.get_or_init(|| build("experiment", &["--features", "experiment"]))
}

fn build(name: &str, features: &[&str]) -> PathBuf {
    // A directory each: every build leaves its result in the same place, where another process of the tests may just look.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--package", "sksm-preload"])
        .args([
            "--profile",
            "preload",
            "--no-default-features",
            "--target-dir",
        ])
        .arg(&target)
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success());
    target.join("preload/libsksm_preload.so")
}

/// Has the kernel merge, for all that the object can see; as slowly as `PRETEND_NS` says for a page.
fn pretend() -> &'static Path {
    static OBJECT: OnceLock<PathBuf> = OnceLock::new();
    let source = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int madvise(void *start, size_t len, int advice) {
    if (advice != 26) return syscall(SYS_madvise, start, len, advice);
    const char *slow = getenv("PRETEND_NS");
    if (slow) {
        long long end = now() + atoll(slow) * (long long)(len / 4096);
        while (now() < end) {}
    }
    return 0;
}
/* The engine's directory is where it is looked for. */
int statfs(const char *path, struct statfs *found) {
    if (!strcmp(path, "/sys/kernel/mm/sksm")) path = "/sys/kernel";
    return syscall(SYS_statfs, path, found);
}"#;
    OBJECT.get_or_init(|| compile("pretend.so", &["-shared", "-fPIC", "-O1"], source))
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
        .env("LD_PRELOAD", with_experiment())
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
            .env("LD_PRELOAD", with_experiment())
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
            .env("LD_PRELOAD", with_experiment())
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

/// Where relocations are, and where its own state is.
#[test]
fn an_idle_object_costs_two_pages_and_no_other_library() {
    let (sleeper, _) = Sleeper::new("idle");
    assert_eq!(
        sleeper.pages("Anonymous", |mapping| mapping.contains("libsksm_preload")),
        2
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

/// A program with the object loaded as a user would, quiet.
fn with_object(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LD_PRELOAD", preload())
        .env("SKSM", "text,data,heap");
    command
}

/// What SKSM_VERBOSE lets it say.
fn said(command: &mut Command) -> String {
    let output = command.env("SKSM_VERBOSE", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn outcome() -> &'static str {
    match support() {
        Support::Merge => "merged ",
        _ => "nothing done, this kernel has no MADV_MERGE",
    }
}

#[test]
fn programs_run_as_without_it() {
    // `cargo xtask setup` installs them, but for the last.
    let programs: [(&str, &[&str]); 8] = [
        // Written in Rust.
        (env!("CARGO"), &["--version"]),
        ("bash", &["-c", "echo $((6 * 7)) >&2; bash -c 'exit 3'"]),
        ("perl", &["-e", "print 1 .. 9; exit 3"]),
        ("python3", &["-c", "import json; print(json.dumps([1]))"]),
        ("git", &["--version"]),
        ("sqlite3", &[":memory:", "select 6 * 7"]),
        ("openssl", &["dgst", "-sha256", "/etc/hostname"]),
        ("node", &["-e", "console.log([1, 2].map(x => x * 2))"]),
    ];
    for (program, arguments) in programs {
        let plain = match Command::new(program).args(arguments).output() {
            Ok(plain) => plain,
            Err(error) if program == "node" => {
                skip("preload/node", &error.to_string());
                continue;
            }
            Err(error) => panic!("{program}: {error}; `cargo xtask setup` installs it"),
        };
        assert_eq!(with_object(program, arguments).output().unwrap(), plain);
    }
}

/// A program starts with the object and another one, whichever comes first.
fn assert_starts_beside(other: &Path) {
    let (one, other) = (preload().display(), other.display());
    for both in [format!("{one}:{other}"), format!("{other}:{one}")] {
        let mut command = Command::new("timeout");
        command
            .args(["60", "/bin/echo", "hello"])
            .env("LD_PRELOAD", both)
            .env("SKSM", "text");
        assert_said_hello(&command.output().unwrap());
    }
}

/// Two copies of the object, as where a service has one, and a program that it starts another: each has to find what comes after it.
#[test]
fn a_program_starts_with_two_copies_of_the_object() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libsksm_preload-copy.so");
    std::fs::copy(preload(), &copy).unwrap();
    assert_starts_beside(&copy);
}

/// An object of somebody else's that starts programs, too, before and after this one.
#[test]
fn a_program_starts_with_anothers_start() {
    let source = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
typedef int main_fn(int, char **, char **);
int __libc_start_main(main_fn *main, int argc, char **argv, void *init, void *fini, void *rtld, void *end) {
    int (*next)(main_fn *, int, char **, void *, void *, void *, void *) = dlsym(RTLD_NEXT, "__libc_start_main");
    return next(main, argc, argv, init, fini, rtld, end);
}"#;
    let object = compile("starts.so", &["-shared", "-fPIC", "-ldl"], source);
    assert_starts_beside(&object);
}

/// Whoever reads what it says may have gone, or read no more: that ends no program, and holds none up.
#[test]
fn no_program_waits_or_ends_for_what_is_said() {
    let script = format!("kill -{SIGNAL} $$; echo hello");
    let run = |stderr: OwnedFd| {
        let mut command = with_object("timeout", &["60", "bash", "-c", &script]);
        command
            .env("SKSM_VERBOSE", "1")
            .env("SKSM_SIGNAL", SIGNAL)
            .stderr(stderr);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"hello\n");
    };
    let (reader, writer) = pipe();
    drop(reader);
    run(writer);
    let (_reader, writer) = pipe();
    // SAFETY: a descriptor of ours.
    let set = |fd: i32, flags: i32| assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0);
    let mut full = File::from(writer);
    set(full.as_raw_fd(), libc::O_NONBLOCK);
    while full.write(&[0; 4096]).is_ok() {}
    set(full.as_raw_fd(), 0);
    run(full.into());
}

/// Says so past cargo, which hides what a test prints; `cargo xtask test` counts such lines.
fn skip(name: &str, reason: &str) {
    // Not by eprintln!(), which the test harness keeps to itself.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "\nSKIP {name}: {reason}").unwrap();
}

#[test]
fn it_says_what_it_did_when_asked() {
    let line = said(&mut with_object("/bin/echo", &["hello"]));
    assert!(line.starts_with("sksm: process "), "{line}");
    assert!(line.contains(" at start: "), "{line}");
    assert!(line.contains(outcome()), "{line}");
    assert_eq!(line.matches('\n').count(), 1);
}

#[test]
fn what_is_not_understood_is_said() {
    for (name, value) in [
        ("SKSM", "everything"),
        ("SKSM_MIN_PAGES", "many"),
        ("SKSM_AFTER", "1d"),
        ("SKSM_SIGNAL", "KILL"),
        ("SKSM_SECCOMP", "yes"),
    ] {
        let line = said(with_object("/bin/echo", &["hello"]).env(name, value));
        let reason = format!(" at start: {name} is not understood: {value}\n");
        assert!(line.contains(&reason), "{line}");
        // A list that is not understood is nothing to do.
        assert_eq!(line.contains(outcome()), name != "SKSM", "{line}");
        let quiet = with_object("/bin/echo", &["hello"])
            .env(name, value)
            .output();
        assert_said_hello(&quiet.unwrap());
    }
    let units = said(with_object("/bin/echo", &["hello"]).env("SKSM_AFTER", "1h"));
    assert!(!units.contains("not understood"), "{units}");
}

/// A program with the object on a kernel that merges, for all that it can see.
fn where_it_merges(program: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = with_object(program.as_ref().to_str().unwrap(), arguments);
    let both = format!("{}:{}", pretend().display(), preload().display());
    command.env("LD_PRELOAD", both);
    command
}

/// Of each line that says this: the process.
fn who_said(lines: &str, what: &str) -> BTreeSet<u32> {
    let of_line = |line: &str| {
        let (process, _) = line.strip_prefix("sksm: process ")?.split_once(what)?;
        process.trim().parse().ok()
    };
    lines.lines().filter_map(of_line).collect()
}

/// What SKSM_VERBOSE lets a program say that ends with its input: that ends once enough was said. Nobody knows how long that takes.
fn said_until(command: &mut Command, enough: impl Fn(&str) -> bool) -> String {
    let mut child = command
        .env("SKSM_VERBOSE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        lines
            .map(Result::unwrap)
            .try_for_each(|line| send.send(line))
    });
    let mut said = String::new();
    while input.is_some() {
        // Not for ever, if it is never said.
        match receive.recv_timeout(Duration::from_secs(120)) {
            Ok(line) => said += &(line + "\n"),
            Err(_) => input = None,
        }
        if enough(&said) {
            input = None;
        }
    }
    said.extend(receive.iter().map(|line| line + "\n"));
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {said}");
    assert!(enough(&said), "{said}");
    said
}

#[test]
fn it_merges_again_after_the_time_where_it_can() {
    let what = " after the time: merged ";
    if support() == Support::Merge {
        said_until(with_object("cat", &[]).env("SKSM_AFTER", "10ms"), |line| {
            line.contains(what)
        });
    } else {
        let line = said(with_object("/bin/sleep", &["0.1"]).env("SKSM_AFTER", "10ms"));
        assert!(!line.contains(" after the time: "), "{line}");
        assert!(line.contains(outcome()), "{line}");
    }
    said_until(
        where_it_merges("cat", &[]).env("SKSM_AFTER", "10ms"),
        |line| line.contains(what),
    );
}

/// A daemon, whose parent waits for it, and workers that it forks when its own time has passed.
#[test]
fn workers_and_daemons_merge_each_after_its_own_time() {
    let script = "use POSIX; my $daemon = fork; alarm 60; if ($daemon) { wait; exit } \
                  POSIX::setsid(); sysread STDIN, my $byte, 1; \
                  for (1, 2) { next if fork; alarm 60; sysread STDIN, $byte, 1; exit } wait; wait";
    let mut child = where_it_merges("perl", &["-e", script])
        .env("SKSM_AFTER", "50ms")
        .env("SKSM_VERBOSE", "1")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let what = " after the time: merged ";
    let mut said = String::new();
    let mut wait_for = |processes, lines: &mut dyn Iterator<Item = std::io::Result<String>>| {
        while who_said(&said, what).len() < processes {
            let line = lines.next().unwrap_or_else(|| panic!("they ended: {said}"));
            said += &(line.unwrap() + "\n");
        }
    };
    wait_for(2, &mut lines);
    input.write_all(b"\n").unwrap();
    wait_for(4, &mut lines);
    drop(input);
    assert!(child.wait().unwrap().success());
    said.extend(lines.map(|line| line.unwrap() + "\n"));
    assert_eq!(said.matches(" after the time: ").count(), 4, "{said}");
}

/// Python 3.12 and later warn at a fork of a program with threads.
#[test]
fn there_is_no_thread_for_it() {
    let mut command = where_it_merges("grep", &["Threads:", "/proc/self/status"]);
    let output = command.env("SKSM_AFTER", "100s").output().unwrap();
    assert_eq!(text(&output.stdout), "Threads:\t1\n");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Neither what a program blocks or waits for, nor what it resets, is in the way, and its calls go on.
#[test]
fn the_programs_signals_are_its_own() {
    let source = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
int main(int argc, char **argv) {
    sigset_t all, pending;
    struct signalfd_siginfo got;
    char byte;
    sigfillset(&all);
    if (!strcmp(argv[1], "reset"))
        for (int i = 1; i <= SIGRTMAX; i++) signal(i, SIG_DFL);
    if (!strcmp(argv[1], "block")) sigprocmask(SIG_BLOCK, &all, NULL);
    int fd = signalfd(-1, &all, SFD_NONBLOCK);
    if (read(0, &byte, 1) != 0) return 1;
    if (read(fd, &got, sizeof got) > 0) return 2;
    sigpending(&pending);
    for (int i = 1; i <= SIGRTMAX; i++) if (sigismember(&pending, i) == 1) return 3;
    return 0;
}"#;
    let program = compile("signals", &[], source);
    for what in ["plain", "reset", "block"] {
        let mut child = where_it_merges(&program, &[what])
            .env("SKSM_AFTER", "200ms")
            .env("SKSM_VERBOSE", "1")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let merged = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for line in lines.map(Result::unwrap) {
                    assert!(!line.contains("later"), "{line}");
                    merged.fetch_or(line.contains(" after the time: merged "), SeqCst);
                }
            });
            outlived(&merged);
            // It ends by that, and so does what it says.
            drop(child.stdin.take());
        });
        assert_eq!(child.wait().unwrap().code(), Some(0), "{what}");
        assert!(merged.into_inner(), "{what}: nothing was merged");
    }
}

/// Waits until it is done, or until so many programs that were started later have ended, each after more than that time.
fn outlived(done: &AtomicBool) {
    for _ in 0..50 {
        if done.load(SeqCst) {
            break;
        }
        let status = Command::new("/bin/sleep").arg("0.3").status().unwrap();
        assert!(status.success());
    }
}

/// A signal that means nothing else, as the guide has it.
const SIGNAL: &str = "RTMIN+12";

#[test]
fn it_merges_again_at_the_signal() {
    let script = format!("kill -{SIGNAL} $$; kill -{SIGNAL} $$; echo alive");
    let arguments = ["-c", script.as_str()];
    let line = said(with_object("bash", &arguments).env("SKSM_SIGNAL", SIGNAL));
    if support() != Support::Merge {
        assert_eq!(line.matches(" at the signal: ").count(), 2, "{line}");
    }
    let without = with_object("bash", &arguments).output().unwrap();
    assert!(!without.status.success(), "nobody else catches it");
    let script = format!("kill -{SIGNAL} $$; read; true");
    said_until(
        where_it_merges("bash", &["-c", &script]).env("SKSM_SIGNAL", SIGNAL),
        |line| line.contains(" at the signal: merged "),
    );
}

/// What is sent to a program that has its own use for the signal is no merge.
#[test]
fn a_signal_that_is_not_the_objects_is_told() {
    let what = " by now: signal 12 is the program's";
    let taken = "$SIG{USR2} = sub {}; <STDIN>";
    let line = said_until(
        where_it_merges("perl", &["-e", taken]).env("SKSM_SIGNAL", "USR2"),
        |line| line.contains(what),
    );
    assert_eq!(line.matches(what).count(), 1, "{line}");
    let left = "my $end = time + 2; sleep 1 while time < $end";
    let line = said(where_it_merges("perl", &["-e", left]).env("SKSM_SIGNAL", "USR2"));
    assert!(!line.contains("is the program's"), "{line}");
    // Also a worker's, and after the time.
    let worker = "$SIG{USR2} = sub {}; my $worker = fork or do { <STDIN>; exit }; \
                  1 until waitpid($worker, 0) == $worker";
    let mut command = where_it_merges("perl", &["-e", worker]);
    command
        .env("SKSM_SIGNAL", "USR2")
        .env("SKSM_AFTER", "100ms");
    said_until(&mut command, |line| who_said(line, what).len() == 2);
    let script = "trap '' USR2; exec /bin/echo hello";
    let line = said(with_object("sh", &["-c", script]).env("SKSM_SIGNAL", "USR2"));
    assert!(
        line.contains("signal 12 is the program's already, or ignored"),
        "{line}"
    );
}

/// As glibc before 2.34 does in every program with threads. Whatever the program makes of the signal that is taken instead, also while
/// a timer runs, it does not die of it.
#[test]
fn a_libc_that_keeps_its_signals_costs_no_program_its_life() {
    let source = r#"
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile int came;
static void count(int signal) { came += signal == SIGURG; }
__attribute__((constructor)) static void keep(void) {
    unsigned long kept[8] = { (unsigned long)count };
    syscall(SYS_rt_sigaction, 32, kept, NULL, 8);
}
int main(int argc, char **argv) {
    char byte;
    if (!strcmp(argv[1], "reset"))
        for (int i = 1; i <= SIGRTMAX; i++) signal(i, SIG_DFL);
    if (!strcmp(argv[1], "taken")) {
        signal(SIGURG, count);
        raise(SIGRTMIN + 12);
    }
    /* Longer than the timer that was set before. */
    struct timespec rest = { 0, 300000000 };
    while (nanosleep(&rest, &rest)) {}
    if (came > 1) return 1;
    return read(0, &byte, 1);
}"#;
    let program = compile("older", &[], source);
    let ends = |what: &str, enough: &dyn Fn(&str) -> bool| {
        let mut command = where_it_merges(&program, &[what]);
        command.env("SKSM_AFTER", "100ms");
        said_until(&mut command, enough);
        // With a signal of the program's as well, which it may lose.
        command.env("SKSM_SIGNAL", SIGNAL);
        said_until(&mut command, enough)
    };
    ends("left", &|line| line.contains(" after the time: merged "));
    ends("reset", &|line| line.contains(" at start: merged "));
    let mut command = where_it_merges(&program, &["taken"]);
    command.env("SKSM_SIGNAL", SIGNAL);
    said_until(&mut command, |line| {
        line.contains(" at the signal: nothing will be done later, SIGURG is the program's")
    });
}

/// A kernel that knows another advice by the number: what it is meant for there would have the program lose its memory.
#[test]
fn another_kernels_advice_destroys_no_program() {
    let source = r#"
#include <errno.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
int madvise(void *start, size_t len, int advice) {
    return syscall(SYS_madvise, start, len, advice == 26 ? MADV_DONTNEED : advice);
}
/* Whether or not it looks as if the engine were there. */
int statfs(const char *path, struct statfs *found) {
    if (getenv("NAMED") && !strcmp(path, "/sys/kernel/mm/sksm")) path = "/sys/kernel";
    return syscall(SYS_statfs, path, found);
}"#;
    let kernel = compile(
        "another-kernel.so",
        &["-shared", "-fPIC", "-O1", "-D_GNU_SOURCE"],
        source,
    );
    let script = "a=({1..2000}); f() { echo ${#a[@]} ${a[1234]}; }; f; bash -c 'echo alive'; f";
    for named in [None, Some("1")] {
        let mut command = with_object("bash", &["-c", script]);
        let both = format!("{}:{}", kernel.display(), preload().display());
        command
            .env("LD_PRELOAD", both)
            .env("SKSM", "heap,data")
            .env("SKSM_VERBOSE", "1");
        if let Some(named) = named {
            command.env("NAMED", named);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = text(&output.stdout);
        assert_eq!(printed, "2000 1235\nalive\n2000 1235\n", "{output:?}");
        let line = text(&output.stderr);
        let what = "nothing done, this kernel has no MADV_MERGE";
        assert_eq!(
            who_said(line, &format!(" at start: {what}")).len(),
            2,
            "{line}"
        );
    }
}

/// A coroutine's stack has no room for more than the coroutine.
#[test]
fn a_small_stack_is_not_used() {
    let source = r#"
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
static ucontext_t back, in;
static void coroutine(void) {
    volatile char used[2800];
    memset((char *)used, 1, sizeof used);
    kill(getpid(), SIGRTMIN + 12);
    // Not by sleeping: the timer comes here.
    struct pollfd input = { 0, 0, 0 };
    while (poll(&input, 1, 0) <= 0) for (volatile long i = 0; i < 1000000; i++) {}
}
int main(void) {
    char *stack = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(stack, 4096, PROT_NONE);
    getcontext(&in);
    in.uc_stack.ss_sp = stack + 4096;
    in.uc_stack.ss_size = 4096;
    in.uc_link = &back;
    makecontext(&in, coroutine, 0);
    swapcontext(&back, &in);
    return 0;
}"#;
    let program = compile("coroutine", &["-O1", "-Wl,-z,now"], source);
    said_until(
        where_it_merges(&program, &[]).env("SKSM_SIGNAL", SIGNAL),
        |line| line.contains(" at the signal: merged "),
    );
}

/// Whatever there is to merge, no request waits for all of it.
#[test]
fn a_long_merge_leaves_the_program_time() {
    // By its own processor time, which others that run meanwhile take no part in; and until it is told that all is merged.
    let source = r#"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static long long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(void) {
    char *large = malloc(64 << 20);
    memset(large, 1, 64 << 20);
    long long longest = 0, last = now(CLOCK_THREAD_CPUTIME_ID);
    struct pollfd input = { 0, 0, 0 };
    /* Not for ever, if nobody merges. */
    long long end = now(CLOCK_MONOTONIC) + 600000000000LL;
    while (poll(&input, 1, 0) <= 0 && now(CLOCK_MONOTONIC) < end) {
        long long next = now(CLOCK_THREAD_CPUTIME_ID);
        if (next - last > longest) longest = next - last;
        last = next;
    }
    printf("%lld\n", longest / 1000000 + large[5] - 1);
    return 0;
}"#;
    let program = compile("long", &["-O1"], source);
    let mut child = where_it_merges(&program, &[])
        .env("SKSM", "heap")
        .env("SKSM_AFTER", "500ms")
        .env("SKSM_VERBOSE", "1")
        .env("PRETEND_NS", "20000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let what = " after the time: merged ";
    let mut lines = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        lines += &(line.unwrap() + "\n");
        if lines.contains(what) {
            // The program's input ends.
            drop(child.stdin.take());
        }
    }
    let output = child.wait_with_output().unwrap();
    // 64 MiB, which take 330 ms.
    let (_, merged) = lines.split_once(what).unwrap_or_else(|| panic!("{lines}"));
    let kib: u64 = merged.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(kib > 64 << 10, "{lines}");
    let longest: u64 = text(&output.stdout).trim().parse().unwrap();
    // A slice is 10 ms by the clock, of which others may take most.
    assert!((1..100).contains(&longest), "{longest} ms");
}

/// A daemon closes all it has inherited, and opens its files.
#[test]
fn nothing_is_written_into_the_programs_files() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("database");
    // Moved elsewhere and back it is the same.
    let script = format!(
        "exec 3>&2 2>'{}'; kill -{SIGNAL} $$; sleep 0.3 2>/dev/null; \
         exec 2>&3; kill -{SIGNAL} $$; read; true",
        file.display()
    );
    let line = said_until(
        where_it_merges("bash", &["-c", &script]).env("SKSM_SIGNAL", SIGNAL),
        |line| line.contains(" at the signal: merged "),
    );
    assert!(line.contains(" at start: merged "), "{line}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
}

#[test]
fn programs_with_address_sanitizer_start() {
    let source = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }";
    let probe = Path::new(env!("CARGO_TARGET_TMPDIR")).join("has-asan.c");
    std::fs::write(&probe, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-fsanitize=address", "-o", "/dev/null"])
        .arg(probe);
    if !compiler.output().unwrap().status.success() {
        return skip("preload/asan", "this compiler has no AddressSanitizer");
    }
    let program = compile("asan", &["-fsanitize=address"], source);
    let mut command = with_object(program.to_str().unwrap(), &[]);
    assert_said_hello(&command.output().unwrap());
    let line = said(&mut command);
    assert!(line.contains(outcome()), "{line}");
    let line = said(where_it_merges(&program, &[]).env("SKSM_AFTER", "1h"));
    assert!(line.contains("merged "), "{line}");
}

/// What only the demo needs makes text writable.
#[test]
fn the_installed_object_holds_no_experiment() {
    let object = std::fs::read(preload()).unwrap();
    for word in ["SKSM_EXPERIMENT", "mprotect"] {
        let found = object
            .windows(word.len())
            .any(|bytes| bytes == word.as_bytes());
        assert!(!found, "{word}");
    }
    let line = said(with_object("/bin/echo", &["hello"]).env("SKSM_EXPERIMENT", "patch"));
    assert!(line.contains(outcome()), "{line}");
}

/// Programs bring libraries of their own in containers: those of RHEL 7 and all later ones will do.
#[test]
fn an_old_libc_is_enough() {
    let output = Command::new("objdump")
        .arg("-T")
        .arg(preload())
        .output()
        .unwrap();
    let mut versions: Vec<Vec<u32>> = text(&output.stdout)
        .split("GLIBC_")
        .skip(1)
        .map(|rest| {
            let version = rest.split(|letter: char| letter != '.' && !letter.is_ascii_digit());
            let numbers = version.take(1).flat_map(|version| version.split('.'));
            numbers.map(|number| number.parse().unwrap()).collect()
        })
        .collect();
    versions.sort();
    assert!(*versions.last().unwrap() <= vec![2, 17], "{versions:?}");
}

/// The kernel lists a process's groups before it tells of a filter.
#[test]
fn a_filter_is_seen_behind_many_groups() {
    use std::os::unix::process::CommandExt;
    let groups: Vec<libc::gid_t> = (1_000_000..1_001_000).collect();
    let set = move || {
        // SAFETY: as many groups as it says.
        match unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    let mut command = with_object("/bin/echo", &["hello"]);
    // SAFETY: makes one system call, and allocates nothing.
    unsafe { command.pre_exec(set) };
    match command.env("SKSM_VERBOSE", "1").output() {
        Ok(output) => {
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains(outcome()), "{said}");
        }
        Err(error) => skip("preload/many-groups", &format!("only root may: {error}")),
    }
}

/// Puts a filter over the program in which `madvise` has this result.
fn filtered(command: &mut Command, result: u32) -> &mut Command {
    filtered_call(command, libc::SYS_madvise, result)
}

/// Puts a filter over the program in which this call has this result.
fn filtered_call(command: &mut Command, call: i64, result: u32) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let word = |code: u32, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut filter = [
        // The number of the call.
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32),
        word(libc::BPF_RET | libc::BPF_K, result),
        word(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    filter[1].jf = 1;
    let set = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: takes numbers, and a program that is valid for the call.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(set) }
}

#[test]
fn a_filter_that_kills_is_not_provoked() {
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    for (result, reason) in [
        (
            kill,
            "nothing done, the seccomp filter would end the program for it",
        ),
        (
            libc::SECCOMP_RET_TRAP,
            "nothing done, the seccomp filter would end the program for it",
        ),
        (refuse, "no MADV_MERGE, or the seccomp filter refuses it"),
    ] {
        let mut command = with_object("/bin/echo", &["hello"]);
        command.env("SKSM_AFTER", "1h").env("SKSM_SIGNAL", SIGNAL);
        let output = filtered(&mut command, result).output().unwrap();
        assert_said_hello(&output);
        let mut command = with_object("/bin/echo", &["hello"]);
        let line = said(filtered(&mut command, result));
        assert!(line.contains(reason), "{line}");
    }
}

/// As Docker's.
#[test]
fn a_filter_that_lets_it_pass_is_no_obstacle() {
    let mut command = where_it_merges("cat", &[]);
    command.env("SKSM_AFTER", "100ms");
    let line = said_until(filtered(&mut command, libc::SECCOMP_RET_ALLOW), |line| {
        line.contains(" after the time: merged ")
    });
    assert!(line.contains(" at start: merged "), "{line}");
}

/// There are no timers to be had, which the trial finds out.
#[test]
fn a_filter_may_kill_for_timers() {
    let mut command = where_it_merges("/bin/true", &[]);
    command.env("SKSM_AFTER", "100ms");
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let line = said(filtered_call(&mut command, libc::SYS_timer_create, kill));
    assert!(line.contains(" at start: merged "), "{line}");
    assert!(
        line.contains(" for later: nothing done, the seccomp filter "),
        "{line}"
    );
    let mut command = where_it_merges("/bin/true", &[]);
    command.env("SKSM_AFTER", "100ms");
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let line = said(filtered_call(&mut command, libc::SYS_timer_create, refuse));
    assert!(
        line.contains("there is no timer for it: error number 1\n"),
        "{line}"
    );
}

/// Nobody knows what it does, and no child of a large program is worth finding out.
#[test]
fn under_a_later_filter_nothing_is_done() {
    let source = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void) {
    struct sock_filter allow = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
    struct sock_fprog program = { 1, &allow };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    char byte;
    return read(0, &byte, 1);
}"#;
    let program = compile("later", &[], source);
    // Long after the filter, which comes at once.
    let mut command = where_it_merges(&program, &[]);
    command.env("SKSM_AFTER", "3s");
    said_until(&mut command, |line| {
        line.contains(" after the time: nothing done under a seccomp filter that has come since")
    });
    command.env("SKSM_SECCOMP", "allowed");
    said_until(&mut command, |line| {
        line.contains(" after the time: merged ")
    });
}

/// It is not taken for one who is confined.
#[test]
fn without_a_free_descriptor_that_is_told() {
    let source = r#"
#include <fcntl.h>
#include <unistd.h>
int main(void) {
    while (open("/dev/null", O_RDONLY) >= 0);
    char byte;
    return read(0, &byte, 1);
}"#;
    let program = compile("full", &[], source);
    let mut command = where_it_merges(&program, &[]);
    command.env("SKSM_AFTER", "3s");
    said_until(&mut command, |line| {
        line.contains(" after the time: nothing done, ") && line.contains(" a free descriptor ")
    });
}

/// Neither at the signal nor in a child are calls made that such a filter may kill for.
#[test]
fn under_a_later_filter_no_timer_is_made() {
    let source = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define KILL_FOR(call) \
    { BPF_JMP | BPF_JEQ | BPF_K, 0, 1, call }, { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_PROCESS }
int main(int count, char **words) {
    struct sock_filter filter[] = {
        { BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr) },
        KILL_FOR(SYS_timer_create), KILL_FOR(SYS_timer_settime), KILL_FOR(SYS_sigaltstack),
        { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW },
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    if (count > 1) return raise(SIGRTMIN + 12);
    int status;
    pid_t child = fork();
    if (child == 0) _exit(0);
    return waitpid(child, &status, 0) != child || status != 0;
}"#;
    let program = compile("confined", &[], source);
    for words in [&["signal"][..], &[]] {
        let mut command = where_it_merges(&program, words);
        command
            .env("SKSM_AFTER", "1h")
            .env("SKSM_SIGNAL", "RTMIN+12");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

/// The one who says that the filter allows it is believed: a refusal harms nobody, and the call is made.
#[test]
fn a_filter_can_be_declared_harmless() {
    let mut command = with_object("/bin/echo", &["hello"]);
    command.env("SKSM_SECCOMP", "allowed");
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let line = said(filtered(&mut command, refuse));
    assert!(line.contains("no MADV_MERGE"), "{line}");
    let mut command = with_object("/bin/echo", &["hello"]);
    command.env("SKSM_SECCOMP", "allowed");
    let output = filtered(&mut command, libc::SECCOMP_RET_KILL_PROCESS).output();
    assert!(
        !output.unwrap().status.success(),
        "the filter does not filter"
    );
}

/// Builds something written in C.
fn compile(name: &str, flags: &[&str], source: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = dir.join(format!("{name}.c"));
    std::fs::write(&file, source).unwrap();
    let result = dir.join(name);
    let mut compiler = Command::new("cc");
    compiler.arg("-o").arg(&result).args(flags).arg(&file);
    let output = compiler.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    result
}

/// Builds a C program and runs it with the object.
fn run_c(name: &str, flags: &[&str], source: &str) -> Output {
    let program = compile(name, flags, source);
    with_object(program.to_str().unwrap(), &[])
        .env("SKSM_VERBOSE", "1")
        .output()
        .unwrap()
}

#[test]
fn static_programs_do_not_notice() {
    let source = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }";
    assert_said_hello(&run_c("static", &["-static"], source));
}

#[test]
fn cpp_programs_have_their_objects() {
    let source = r#"
#include <iostream>
#include <stdexcept>
#include <string>
static std::string word("hello");
int main() {
    try { throw std::runtime_error(word); } catch (const std::exception &error) { std::cout << error.what() << '\n'; }
}"#;
    let output = run_c(
        "objects",
        &["-x", "c++", "-Wl,--no-as-needed", "-lstdc++"],
        source,
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"hello\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(outcome()), "{said}");
}

#[test]
fn it_works_after_constructors_and_keeps_errno() {
    let source = r#"
#include <errno.h>
#include <unistd.h>
__attribute__((constructor)) static void before(void) { write(2, "constructor\n", 12); errno = EXDEV; }
int main(void) { return errno == EXDEV ? 0 : 1; }"#;
    let output = run_c("constructor", &[], source);
    assert!(output.status.success(), "errno is another one: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    assert_eq!(first, "constructor");
    assert!(second.contains(" at start: "), "{text}");
}

/// A program that patches its own code before `main`, and calls it there.
fn patcher(name: &str, flags: &[&str]) -> PathBuf {
    let source = r#"
#include <stdio.h>
#include <sys/mman.h>
__asm__(".text\n.balign 4096\n.globl number\n.type number,@function\n"
        "number: mov $1, %eax\nret\n.size number, .-number\n.balign 4096, 0x90\n");
int number(void);
__attribute__((constructor)) static void patch(void) {
    char *page = (char *)number;
    mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    page[1] = 7;
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
}
int main(void) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    int stored = 0;
    while (fgets(line, sizeof line, maps)) {
        char *start, *end;
        sscanf(line, "%p-%p", (void **)&start, (void **)&end);
        if (start <= (char *)number && (char *)number < end)
            for (char *at = line; *at; at++) stored += *at == '.';
    }
    printf("%d %s\n", number(), stored >= 2 ? "stored" : "own");
    return 0;
}"#;
    compile(name, flags, source)
}

fn private_directory() -> PathBuf {
    use std::os::unix::fs::DirBuilderExt;
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, SeqCst);
    let path = format!("/dev/shm/sksm-test-{}-{number}", std::process::id());
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .unwrap();
    path.into()
}

/// Runs it with the store, and tells what it printed and what was said.
fn stored(program: &Path, store: &Path, set_up: impl FnOnce(&mut Command)) -> (String, String) {
    let mut command = Command::new(program);
    command
        .env("LD_PRELOAD", preload())
        .env("SKSM_STORE", "1")
        .env("SKSM_STORE_DIR", store)
        .env("SKSM_VERBOSE", "1");
    set_up(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Position-independent and not, with all functions looked up at once and not: the second process has the first one's page.
#[test]
fn patched_programs_share_by_the_store() {
    for (name, flags) in [
        ("patcher-pie", ["-fPIE", "-pie", "-Wl,-z,lazy"]),
        ("patcher-fixed", ["-fno-pie", "-no-pie", "-Wl,-z,lazy"]),
        ("patcher-now", ["-fPIE", "-pie", "-Wl,-z,now"]),
    ] {
        let (program, store) = (patcher(name, &flags), private_directory());
        for (new, now) in [(1, false), (0, false), (0, true)] {
            let (printed, said) = stored(&program, &store, |command| {
                if now {
                    command.env("LD_BIND_NOW", "1");
                }
            });
            assert_eq!(printed, "7 stored\n", "{name}: {said}");
            let line = format!(" in the store: shared 1 pages of text, {new} of them new\n");
            assert!(said.contains(&line), "{name}: {said}");
            // It never stands in for it, nor does it do it beside.
            assert!(!said.contains("at start"), "{said}");
        }
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 2);
        std::fs::remove_dir_all(store).unwrap();
    }
}

/// Without the variable nothing is stored, and what merging is asked for by name goes on beside it.
#[test]
fn the_store_is_not_taken_unasked() {
    let (program, store) = (patcher("patcher-unasked", &[]), private_directory());
    for value in ["0", ""] {
        let unasked = |command: &mut Command| _ = command.env("SKSM_STORE", value);
        let (printed, said) = stored(&program, &store, unasked);
        assert_eq!(printed, "7 own\n");
        assert!(!said.contains("in the store"), "{said}");
        assert!(said.contains(outcome()), "{said}");
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    let both = |command: &mut Command| _ = command.env("SKSM", "text");
    let (printed, said) = stored(&program, &store, both);
    assert_eq!(printed, "7 stored\n");
    assert!(said.contains("in the store: shared 1 ") && said.contains(outcome()));
    std::fs::remove_dir_all(store).unwrap();
}

/// Whatever stands against it is said, and the program runs with its own page.
#[test]
fn a_store_that_cannot_be_leaves_the_program_as_it_is() {
    let program = patcher("patcher-alone", &[]);
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-store");
    for (path, reason) in [
        (disk.as_path(), "is not in memory"),
        (Path::new("/proc"), "others may open"),
        (Path::new("relative"), "absolute path"),
        (Path::new("/dev/shm/none/at/all"), "cannot be made"),
    ] {
        let (printed, said) = stored(&program, path, |_| {});
        assert_eq!(printed, "7 own\n");
        let line = "in the store: nothing shared: ";
        assert!(said.contains(line) && said.contains(reason), "{said}");
    }
    let small = |command: &mut Command| _ = command.env("SKSM_STORE_LIMIT", "1K");
    let store = private_directory();
    let (printed, said) = stored(&program, &store, small);
    assert_eq!(printed, "7 own\n");
    assert!(said.contains("raise SKSM_STORE_LIMIT"), "{said}");
    std::fs::remove_dir_all(store).unwrap();
}

/// A filter that would kill for one of the calls is not provoked, and one that refuses them does no harm.
#[test]
fn a_filter_may_be_over_the_store() {
    let program = patcher("patcher-filtered", &[]);
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    // SAFETY: asks for a number.
    let own = unsafe { libc::geteuid() };
    // Root may do what others may not, in the child that tries it out as well.
    let mut users = vec![own];
    if own == 0 {
        let mut other = Command::new(&program);
        let other = std::os::unix::process::CommandExt::uid(&mut other, 65534);
        match other.stdout(Stdio::null()).status() {
            Ok(_) => users.push(65534),
            Err(error) => skip("preload/another-user", &format!("{error}")),
        }
    }
    let calls = [libc::SYS_linkat, libc::SYS_ftruncate, libc::SYS_fcntl];
    for (user, call) in users
        .into_iter()
        .flat_map(|user| calls.map(|call| (user, call)))
    {
        for (result, reason) in [(kill, "would end the program"), (refuse, "nothing shared")] {
            let store = private_directory();
            std::os::unix::fs::chown(&store, Some(user), None).unwrap();
            let filter = |command: &mut Command| {
                if user != own {
                    std::os::unix::process::CommandExt::uid(command, user);
                }
                filtered_call(command, call, result);
            };
            let (printed, said) = stored(&program, &store, filter);
            assert_eq!(printed, "7 own\n", "{user} {call} {said}");
            assert!(said.contains(reason), "{user} {call} {said}");
            std::fs::remove_dir_all(store).unwrap();
        }
    }
    let store = private_directory();
    let harmless = |command: &mut Command| _ = filtered(command, refuse);
    let (printed, said) = stored(&program, &store, harmless);
    assert_eq!(printed, "7 stored\n", "{said}");
    std::fs::remove_dir_all(store).unwrap();
}
