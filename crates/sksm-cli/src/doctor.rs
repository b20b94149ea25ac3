//! The verb `doctor`.

use std::fs;
use std::fs::File;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm::{Support, SystemStatistics};

use crate::estimate::pagemap;
use crate::output::{self, BAD, BOLD, GOOD, WARN};

#[derive(Serialize)]
struct Report {
    kernel: String,
    checks: Vec<Check>,
    next: Vec<String>,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    state: State,
    detail: String,
}

#[derive(Serialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum State {
    Yes,
    No,
    Limited,
}

const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_NICE: u32 = 23;

pub fn run(json: bool) -> Result<ExitCode> {
    let report = examine();
    if json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn examine() -> Report {
    let mut checks = Vec::new();
    let mut next = Vec::new();
    let mut check = |name, state, detail: &str| {
        checks.push(Check {
            name,
            state,
            detail: detail.into(),
        });
    };
    let yes = |there| if there { State::Yes } else { State::No };

    let merges = sksm::support() == Support::Merge;
    check(
        "MADV_MERGE",
        yes(merges),
        if merges {
            "pages merge when a program asks"
        } else {
            "this kernel was built without CONFIG_SKSM"
        },
    );
    if merges {
        next.push("see what your programs would save: sksm estimate --all".into());
        next.push("run a program that merges its patched text: sksm run -- CMD".into());
    } else {
        next.push("see what merging would save, on this kernel: sksm estimate --all".into());
        next.push("boot a kernel with CONFIG_SKSM to save it".into());
    }
    if let Some(counters) = SystemStatistics::sksm() {
        let domain = fs::read_to_string("/sys/kernel/mm/sksm/domain").unwrap_or_default();
        let most = counters.get("max_page_sharing").unwrap_or_default();
        check(
            "limits",
            State::Limited,
            &format!(
                "merge domains: {}; one copy serves {most} mappings",
                domain.trim()
            ),
        );
    }

    let capabilities = capabilities();
    let has = |capability: u32| capabilities >> capability & 1 != 0;
    let remote = merges && remote_advice();
    check(
        "process_madvise",
        yes(remote),
        match (merges, remote) {
            (false, _) => "no MADV_MERGE to ask for",
            (true, true) => "other processes can be merged",
            (true, false) => "the kernel refuses the advice for other processes",
        },
    );
    check(
        "CAP_SYS_NICE",
        yes(has(CAP_SYS_NICE)),
        "needed to merge in other processes",
    );
    let scope = ptrace_scope();
    let ptrace = may_trace();
    let (state, detail) = match (ptrace, scope) {
        (true, 0..=2) => (State::Yes, "those of every user can be read".to_owned()),
        (false, 0) => (State::Limited, "own processes can be read".into()),
        (_, 3) => (
            State::No,
            "kernel.yama.ptrace_scope is 3: nothing can be read until a reboot".into(),
        ),
        _ => (
            State::No,
            format!("kernel.yama.ptrace_scope is {scope}: only children can be read"),
        ),
    };
    check("reading processes", state, &detail);
    if !ptrace || !has(CAP_SYS_NICE) {
        next.push("for processes of others, run sksm as root: sudo sksm estimate --all".into());
    }

    let ksm = SystemStatistics::ksm();
    let running = ksm.as_ref().and_then(|ksm| ksm.get("run"));
    check(
        "KSM",
        match running {
            Some(1) => State::Yes,
            Some(_) => State::Limited,
            None => State::No,
        },
        match running {
            Some(1) => "the scanner runs",
            Some(_) => "there, but not started: echo 1 > /sys/kernel/mm/ksm/run",
            None => "this kernel was built without CONFIG_KSM",
        },
    );
    let scan = File::open("/proc/self/pagemap").is_ok_and(|file| pagemap::scans(&file));
    check(
        "PAGEMAP_SCAN",
        yes(scan),
        if scan {
            "sparse memory is read fast"
        } else {
            "estimate reads whole page tables instead"
        },
    );
    let userfaultfd = userfaultfd();
    check(
        "userfaultfd",
        yes(userfaultfd),
        if userfaultfd {
            "writes can be tracked"
        } else {
            "writes cannot be tracked: not built in, or vm.unprivileged_userfaultfd is 0"
        },
    );
    let filtered = status_field("Seccomp:").is_some_and(|mode| mode != "0");
    check(
        "seccomp",
        if filtered { State::Limited } else { State::Yes },
        if filtered {
            "a filter is in force here; the preload object then does nothing, see SKSM_SECCOMP"
        } else {
            "no filter is in force here"
        },
    );
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Report {
        kernel: release.trim().into(),
        checks,
        next,
    }
}

fn show(report: &Report) -> Result<()> {
    let mut text = format!("{BOLD}Linux {}{BOLD:#}\n", report.kernel);
    for check in &report.checks {
        let (style, mark) = match check.state {
            State::Yes => (GOOD, "yes"),
            State::No => (BAD, "no"),
            State::Limited => (WARN, "so-so"),
        };
        let (name, detail) = (check.name, &check.detail);
        text += &format!("  {name:18} {style}{mark:6}{style:#} {detail}\n");
    }
    text += &format!("{BOLD}What to do next{BOLD:#}\n");
    for step in &report.next {
        text += &format!("  {step}\n");
    }
    output::print(&text)
}

/// What Yama allows: 0, as without it, leaves processes of one user open to each other.
pub fn ptrace_scope() -> u32 {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    scope.map_or(0, |scope| scope.trim().parse().unwrap_or(0))
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().into())
}

fn capabilities() -> u64 {
    let mask = status_field("CapEff:").unwrap_or_default();
    u64::from_str_radix(&mask, 16).unwrap_or(0)
}

/// Whether this process may read those of all users, as far as its user namespace reaches.
pub fn may_trace() -> bool {
    capabilities() >> CAP_SYS_PTRACE & 1 != 0
}

/// Asks for no ranges of this process: the kernel looks at the advice first.
fn remote_advice() -> bool {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    if fd < 0 {
        return false;
    }
    let none: [libc::iovec; 0] = [];
    // SAFETY: no ranges are given; the descriptor was opened above.
    unsafe {
        let pointer = none.as_ptr();
        let done = libc::syscall(
            libc::SYS_process_madvise,
            fd,
            pointer,
            0,
            sksm::MADV_MERGE,
            0,
        );
        libc::close(fd as i32);
        done == 0
    }
}

fn userfaultfd() -> bool {
    // SAFETY: opens a new descriptor, closed at once.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
        fd >= 0 && libc::close(fd as i32) == 0
    }
}
