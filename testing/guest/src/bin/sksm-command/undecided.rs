//! Where nobody can say whether the kernel merges: that is said, with the reason and what to do, and not that it does not.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use serde_json::Value;
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::syscall::check;

use crate::command::{self, run, said};

pub const TESTS: &[Test] = &[
    test("undecided/filter", || {
        told(|| refuse_advice(libc::EPERM), "seccomp filter", 4)
    }),
    test("undecided/filter-and-no-sysfs", || {
        let hidden = || {
            hide_files()?;
            refuse_advice(libc::ENOSYS)
        };
        told(hidden, "seccomp filter", 4)
    }),
    test("undecided/no-sysfs", no_sysfs),
    test("undecided/no-descriptor", no_descriptor),
];

/// Under a filter for the advices that no C library gives, as one that lists what it knows.
fn refuse_advice(errno: i32) -> io::Result<()> {
    let word = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let filter = [
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        word(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            3,
            libc::SYS_madvise as u32,
        ),
        // The lower half of the third argument.
        word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 32),
        word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 26),
        word(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        word(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: takes numbers, and a program that is valid for the call.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let mode = libc::SECCOMP_MODE_FILTER;
        check(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program))?;
    }
    Ok(())
}

/// No sysfs, for this process.
fn hide_files() -> io::Result<()> {
    let mount = |kind: &CStr, path: &CStr, flags| {
        // SAFETY: strings that end in a nul byte, or none.
        check(unsafe {
            libc::mount(
                kind.as_ptr(),
                path.as_ptr(),
                kind.as_ptr(),
                flags,
                std::ptr::null(),
            )
        })
    };
    // SAFETY: takes numbers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"tmpfs", c"/sys", 0)?;
    Ok(())
}

fn with(
    before: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    arguments: &[&str],
) -> Result<Output> {
    let mut command = Command::new(beside("sksm")?);
    command.args(arguments);
    // SAFETY: makes system calls, and allocates nothing.
    unsafe { command.pre_exec(before) };
    run(&mut command)
}

/// Every verb that merges says so, and what a program's preload object has to say.
fn told(
    before: impl Fn() -> io::Result<()> + Copy + Send + Sync + 'static,
    reason: &str,
    status: i32,
) -> Result<()> {
    let pid = std::process::id().to_string();
    for arguments in [
        &["merge", "--pid", &pid] as &[&str],
        &["unmerge", "--pid", &pid],
        &["scan", "--once", "--pid", &pid, "--stable", "100ms"],
    ] {
        let output = with(before, arguments)?;
        let words = said(&output.stderr);
        ensure!(output.status.code() == Some(status), "{output:?}");
        doubts(&words, reason)?;
        let output = with(before, &[arguments, &["--json"]].concat())?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        doubts(&report["error"]["message"].to_string(), reason)?;
    }
    let output = with(before, &["run", "--verbose", "--", "/bin/true"])?;
    ensure!(output.status.success(), "{output:?}");
    let words = said(&output.stderr);
    doubts(&words, reason)?;
    let object = words.lines().find(|line| line.contains(" at start: "));
    doubts(object.unwrap_or_default(), reason)?;
    doctor(before, reason)
}

fn doctor(
    before: impl Fn() -> io::Result<()> + Copy + Send + Sync + 'static,
    reason: &str,
) -> Result<()> {
    let report: Value = serde_json::from_slice(&with(before, &["doctor", "--json"])?.stdout)?;
    let check = command::check(&report, "MADV_MERGE")?;
    ensure!(check["state"] == "unknown", "{report}");
    doubts(&check["detail"].to_string(), reason)?;
    ensure!(
        command::check(&report, "process_madvise")?["state"] == "unknown",
        "{report}"
    );
    let next = report["next"].to_string();
    ensure!(
        next.contains("find out whether this kernel merges") && !next.contains("CONFIG_SKSM"),
        "{report}"
    );
    // Not that the kernel cannot.
    let required = with(before, &["doctor", "--require", "merge"])?;
    ensure!(required.status.code() == Some(1), "{required:?}");
    Ok(())
}

fn doubts(words: &str, reason: &str) -> Result<()> {
    ensure!(
        words.contains("cannot be found out") && words.contains(reason),
        "{words:?} does not say {reason:?}"
    );
    ensure!(
        !words.contains("no MADV_MERGE") && !words.contains("boot a kernel"),
        "{words:?}"
    );
    Ok(())
}

/// Proc tells as well, and a page is tried: that merging works is found out, and why nothing is counted is said.
fn no_sysfs() -> Result<()> {
    let report: Value = serde_json::from_slice(&with(hide_files, &["doctor", "--json"])?.stdout)?;
    ensure!(
        command::check(&report, "MADV_MERGE")?["state"] == "yes",
        "{report}"
    );
    let output = with(hide_files, &["stat"])?;
    let words = said(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        words.contains("this kernel merges, but") && words.contains("sysfs"),
        "{words}"
    );
    Ok(())
}

/// As in a program that has opened all it may: the file that would tell cannot be opened, nor a pipe for the page that is tried.
fn no_descriptor() -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--ask-without-descriptors");
    // SAFETY: makes system calls, and allocates nothing.
    unsafe { command.pre_exec(hide_files) };
    let output = run(&mut command)?;
    doubts(&said(&output.stdout), "free descriptor")
}

/// What the library says there, on standard output.
pub fn ask_without_descriptors() -> Result<()> {
    let most = libc::rlimit {
        rlim_cur: 3,
        rlim_max: 3,
    };
    // SAFETY: reads a structure that is valid for the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) })?;
    match sksm::require() {
        Ok(()) => println!("it merges"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
