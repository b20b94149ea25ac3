//! Loads the object into real programs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
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
fn a_list_that_is_not_understood_does_nothing() {
    let line = said(with_object("/bin/echo", &["hello"]).env("SKSM", "everything"));
    assert_eq!(line, "");
}

#[test]
fn it_merges_again_after_the_time_where_it_can() {
    let line = said(with_object("/bin/sleep", &["1"]).env("SKSM_AFTER", "10ms"));
    let again = support() == Support::Merge;
    assert_eq!(line.contains(" after the time: "), again, "{line}");
    assert!(line.lines().all(|line| line.contains(outcome())), "{line}");
}

#[test]
fn no_thread_is_started_for_nothing() {
    let threads = |command: &mut Command| {
        let output = command.env("SKSM_AFTER", "100s").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let own = || with_object("grep", &["Threads:", "/proc/self/status"]);
    let with_support = if support() == Support::Merge { 2 } else { 1 };
    assert_eq!(threads(&mut own()), format!("Threads:\t{with_support}\n"));
    // One that would allow it, for all that anybody can see.
    let allow = libc::SECCOMP_RET_ALLOW;
    assert_eq!(threads(filtered(&mut own(), allow)), "Threads:\t1\n");
}

#[test]
fn it_merges_again_at_the_signal() {
    let arguments = ["-c", "kill -USR2 $$; kill -USR2 $$; echo alive"];
    let line = said(with_object("bash", &arguments).env("SKSM_SIGNAL", "USR2"));
    assert_eq!(line.matches(" at the signal: ").count(), 2, "{line}");
    let without = with_object("bash", &arguments).output().unwrap();
    assert!(!without.status.success(), "nobody else catches it");
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
        word(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_madvise as u32,
        ),
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
    for result in [
        libc::SECCOMP_RET_KILL_PROCESS,
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
    ] {
        let mut command = with_object("/bin/echo", &["hello"]);
        let output = filtered(&mut command, result).output().unwrap();
        assert_said_hello(&output);
        let mut command = with_object("/bin/echo", &["hello"]);
        let line = said(filtered(&mut command, result));
        assert!(line.contains("see SKSM_SECCOMP"), "{line}");
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

/// Builds a C program and runs it with the object.
fn run_c(name: &str, flags: &[&str], source: &str) -> Output {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = dir.join(format!("{name}.c"));
    std::fs::write(&file, source).unwrap();
    let program = dir.join(name);
    let mut compiler = Command::new("cc");
    compiler.args(flags).arg(&file).arg("-o").arg(&program);
    assert!(compiler.status().unwrap().success());
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
