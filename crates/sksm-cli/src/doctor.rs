//! The verb `doctor`.

use std::fs;
use std::fs::File;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm::{Error, SystemStatistics};

use crate::domain::{Mode, Names, Owner};
use crate::estimate::pagemap;
use crate::output::{self, BAD, BOLD, GOOD, WARN};
use crate::rights::{self, CAP_SYS_NICE, has, may_trace, ptrace_scope, status_field};
use crate::scan::seen::{self, Seen};
use crate::scan::state as scan_state;
use crate::{exit, ksm, store, support};

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
    /// It could not be found out.
    Unknown,
}

#[derive(clap::Args)]
pub struct Args {
    /// Fail unless this can be done here: status 3 where the kernel cannot, 4 where a right is missing
    #[arg(long, value_name = "WHAT", value_enum)]
    require: Vec<Need>,
}

/// What a machine may be set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Need {
    /// Programs merge their own memory
    Merge,
    /// `sksm merge` merges in other processes
    Others,
    /// `sksm scan` can run, for processes of all users
    Scan,
    /// Text can be shared by the store
    Store,
    /// KSM's scanner runs
    Ksm,
}

impl Need {
    /// The checks that it depends on, and the status where one of them says no.
    fn checks(self) -> &'static [(&'static str, u8)] {
        match self {
            Need::Merge => &[
                ("MADV_MERGE", exit::UNSUPPORTED),
                ("merge domain", exit::DENIED),
            ],
            // It does no more than `merge`, again and again.
            Need::Others | Need::Scan => &[
                ("MADV_MERGE", exit::UNSUPPORTED),
                ("process_madvise", exit::UNSUPPORTED),
                ("CAP_SYS_NICE", exit::DENIED),
                ("reading processes", exit::DENIED),
            ],
            Need::Store => &[("store", exit::UNSUPPORTED)],
            Need::Ksm => &[("KSM", exit::UNSUPPORTED)],
        }
    }

    /// Why it is not met, and the status that says so.
    fn unmet(self, checks: &[Check]) -> Option<(u8, String)> {
        let unmet = |(name, status): &(&str, u8)| {
            // A scanner that is there and stands still is none, and one that sees one user's processes is not what a machine is
            // set up for; of the others what is limited will do.
            let met = |check: &&Check| match (self, *name) {
                (Need::Ksm | Need::Store, _) | (Need::Scan, "reading processes") => {
                    check.state == State::Yes
                }
                _ => matches!(check.state, State::Yes | State::Limited),
            };
            let check = checks.iter().find(|check| check.name == *name);
            let check = check.filter(|check| !met(check))?;
            // That the kernel cannot do it is not known then.
            let status = match check.state {
                State::Unknown => exit::FAILED,
                _ => *status,
            };
            Some((status, format!("{name}: {}", check.detail)))
        };
        self.checks().iter().find_map(unmet)
    }
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let report = examine();
    if json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    for need in args.require {
        if let Some((status, why)) = need.unmet(&report.checks) {
            return Err(exit::with(
                status,
                &format!("what is required is not there: {why}"),
            ));
        }
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

    let (for_ksm, for_ksm_detail) = match ksm::in_the_way() {
        Ok(None) => (
            State::Yes,
            "programs can be started for KSM: sksm run --ksm -- CMD, or MemoryKSM=yes in a unit"
                .into(),
        ),
        Ok(Some(why)) => (
            State::No,
            format!("programs cannot be started for KSM: {why}"),
        ),
        Err(error) => (State::Unknown, format!("{error:#}")),
    };
    let asked = sksm::require();
    let merges = asked.is_ok();
    let (state, detail) = match asked {
        Ok(()) => (State::Yes, "pages merge when a program asks".into()),
        Err(error @ Error::Undecided { .. }) => (State::Unknown, error.to_string()),
        Err(_) => (
            State::No,
            "this kernel was built without CONFIG_SKSM".into(),
        ),
    };
    let unknown = state == State::Unknown;
    check("MADV_MERGE", state, &detail);
    let text_in_store = store::in_the_way();
    check(
        "store",
        yes(text_in_store.is_none()),
        &match &text_in_store {
            None => "patched text and frozen data can be in memory once for each user; no heaps"
                .to_owned(),
            Some(reason) => format!("no text can be shared without MADV_MERGE: {reason}"),
        },
    );
    if let Err(Error::Undecided { errno }) = asked {
        next.push(support::step_of_doubt(errno).into());
        next.push("see what merging would save, in any case: sksm estimate --all".into());
    } else if merges {
        next.push("see what your programs would save: sksm estimate --all".into());
        next.push("run a program that merges its patched text: sksm run -- CMD".into());
    } else {
        next.push("see what merging would save, on this kernel: sksm estimate --all".into());
        next.push(format!(
            "boot a kernel with CONFIG_SKSM to save it: {}",
            support::KERNEL
        ));
        if text_in_store.is_none() {
            next.push("or, on this kernel, share patched text: sksm run --store -- CMD".into());
        }
        if for_ksm == State::Yes {
            next.push(format!("or, on this kernel, have {}", ksm::ADVICE));
        }
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
    if let Some(mode) = Mode::read() {
        let (state, detail, step) = match Owner::of(std::process::id()) {
            Ok(own) => merge_domain(&own, mode, &Names::new()),
            Err(error) => (
                State::Limited,
                format!("that of this process cannot be told: {error}"),
                None,
            ),
        };
        check("merge domain", state, &detail);
        next.extend(step);
    }

    let remote = merges && remote_advice();
    check(
        "process_madvise",
        if unknown { State::Unknown } else { yes(remote) },
        match (merges, remote) {
            (false, _) if unknown => "it is not known whether there is a MADV_MERGE to ask for",
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
        (true, 0..=2) if !rights::may_open_all() => (
            State::Limited,
            "own processes can be read; CAP_DAC_READ_SEARCH is needed for those of other users"
                .into(),
        ),
        (true, 0..=2) => (State::Yes, "those of every user can be read".to_owned()),
        (false, 0) => (State::Limited, "own processes can be read".into()),
        (_, 3) => (
            State::No,
            "kernel.yama.ptrace_scope is 3: nothing can be read until a reboot".into(),
        ),
        (_, 2) => (
            State::No,
            "kernel.yama.ptrace_scope is 2: only with CAP_SYS_PTRACE can anything be read".into(),
        ),
        _ => (
            State::No,
            format!("kernel.yama.ptrace_scope is {scope}: only children can be read"),
        ),
    };
    check("reading processes", state, &detail);
    if !ptrace || !has(CAP_SYS_NICE) {
        next.push(match rights::is_root() {
            true => "for processes of others, give this root CAP_SYS_PTRACE and CAP_SYS_NICE: a container's has not all rights".into(),
            false => "for processes of others, run sksm as root: sudo sksm estimate --all".into(),
        });
    }

    let scanner = Seen::now();
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
            Some(1) => {
                "the scanner runs: what programs hand over merges after a while, for processor time"
            }
            Some(_) if scanner.runs() => "there, and not started: `sksm scan` stands in for it",
            Some(_) => "there, but not started: echo 1 > /sys/kernel/mm/ksm/run",
            None => "this kernel was built without CONFIG_KSM",
        },
    );
    let ksmd = running == Some(1);
    let can = scan_can(&checks, &scanner, ksmd);
    next.extend(scan_next(can.state, &scanner, ksmd));
    checks.push(can);
    let mut check = |name, state, detail: &str| {
        checks.push(Check {
            name,
            state,
            detail: detail.into(),
        });
    };
    check("PR_SET_MEMORY_MERGE", for_ksm, &for_ksm_detail);
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
    let userfaultfd = sksm_scan::Tracker::can_note_writes();
    check(
        "userfaultfd",
        yes(userfaultfd),
        if userfaultfd {
            "writes can be tracked"
        } else {
            "writes cannot be tracked: not built in, refused here, or a kernel before 6.7"
        },
    );
    let filtered = status_field("Seccomp:").is_some_and(|mode| mode != "0");
    check(
        "seccomp",
        if filtered { State::Limited } else { State::Yes },
        if filtered {
            "a filter is in force here; the preload object tries out first whether it lets merging pass"
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

const SCAN: &str = "sksm scan";

/// Whether the scanner could run here, whether one does, and whether KSM's does beside it.
fn scan_can(checks: &[Check], scanner: &Seen, ksmd: bool) -> Check {
    let (mut state, mut detail) = match Need::Others.unmet(checks) {
        // What is missing is told there.
        Some((_, why)) => {
            let name = why.split(':').next().unwrap_or_default();
            (State::No, format!("cannot run here: see {name}"))
        }
        None => {
            let others = checks
                .iter()
                .find(|check| check.name == "reading processes");
            match others.is_some_and(|check| check.state == State::Yes) {
                true => (State::Yes, "can run here".into()),
                false => (
                    State::Limited,
                    "can run here, for processes of this user alone".into(),
                ),
            }
        }
    };
    detail += &match (&scanner.state, &scanner.hidden) {
        (Some(of), _) if of.running => {
            format!("; one runs: {}", seen::running(of, scan_state::now()))
        }
        (Some(of), _) => format!("; one ran, {}", seen::running(of, scan_state::now())),
        (None, Some(why)) => format!("; {why}"),
        (None, None) => "; none runs as a service".into(),
    };
    if ksmd && (state != State::No || scanner.runs()) {
        state = State::Limited;
        detail += "; ksmd scans the same memory beside it";
    }
    Check {
        name: SCAN,
        state,
        detail,
    }
}

fn scan_next(can: State, scanner: &Seen, ksmd: bool) -> Vec<String> {
    let mut next = Vec::new();
    if can == State::No && !scanner.runs() {
        return next;
    }
    if !scanner.runs() && scanner.hidden.is_none() {
        next.push(
            "merge what stays the same, in place of ksmd: systemctl enable --now sksm-scan".into(),
        );
    }
    if ksmd {
        next.push(
            "have `sksm scan` do it alone: echo 0 > /sys/kernel/mm/ksm/run, which leaves merged what is; \
             where ksmtuned starts it again: systemctl disable --now ksmtuned"
                .into(),
        );
    }
    next
}

/// Which domain a process is in, by what, and what to do about it.
fn merge_domain(own: &Owner, mode: Mode, names: &Names) -> (State, String, Option<String>) {
    let domain = match own.domain(mode) {
        Ok(domain) => domain,
        Err(apart) => {
            let detail = format!("nothing of this process merges: {apart}");
            return (State::No, detail, Some(apart.remedy()));
        }
    };
    let by = match &own.group.mark {
        Some((mark, group)) => format!("its control group {group} is marked {}", mark.name()),
        None if own.group.hidden => format!(
            "no mark of a control group is seen from here, those above may have one; the machine's is {}",
            mode.name()
        ),
        None => format!(
            "no control group is marked, the machine's is {}",
            mode.name()
        ),
    };
    let detail = format!("this process shares with: {} ({by})", names.of(&domain));
    let alone = mode == Mode::Cgroup && own.group.mark.is_none();
    let step = alone.then(|| {
        "have a user's control groups share, if that is what you want: \
         echo user > /sys/kernel/mm/sksm/domain"
            .into()
    });
    (State::Yes, detail, step)
}

fn show(report: &Report) -> Result<()> {
    let mut text = format!("{BOLD}Linux {}{BOLD:#}\n", report.kernel);
    for check in &report.checks {
        let (style, mark) = match check.state {
            State::Yes => (GOOD, "yes"),
            State::No => (BAD, "no"),
            State::Limited => (WARN, "so-so"),
            State::Unknown => (WARN, "?"),
        };
        let (name, detail) = (check.name, output::clean(&check.detail));
        text += &format!("  {name:20} {style}{mark:6}{style:#} {detail}\n");
    }
    text += &format!("{BOLD}What to do next{BOLD:#}\n");
    for step in &report.next {
        text += &format!("  {step}\n");
    }
    output::print(&text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_required_has_its_status() {
        let check = |name, state| Check {
            name,
            state,
            detail: "because".into(),
        };
        let checks = [
            check("MADV_MERGE", State::Yes),
            check("process_madvise", State::Yes),
            check("CAP_SYS_NICE", State::No),
            check("reading processes", State::Limited),
            check("KSM", State::Limited),
        ];
        assert_eq!(Need::Merge.unmet(&checks), None);
        let right = |status, name: &str| Some((status, format!("{name}: because")));
        assert_eq!(
            Need::Others.unmet(&checks),
            right(exit::DENIED, "CAP_SYS_NICE")
        );
        assert_eq!(Need::Ksm.unmet(&checks), right(exit::UNSUPPORTED, "KSM"));
        assert_eq!(
            Need::Scan.unmet(&checks),
            right(exit::DENIED, "CAP_SYS_NICE")
        );
        let checks = [check("MADV_MERGE", State::Unknown)];
        assert_eq!(
            Need::Merge.unmet(&checks),
            right(exit::FAILED, "MADV_MERGE")
        );
        let checks = [check("MADV_MERGE", State::No)];
        assert_eq!(
            Need::Merge.unmet(&checks),
            right(exit::UNSUPPORTED, "MADV_MERGE")
        );
    }

    #[test]
    fn the_scanner_and_ksmd_are_told_apart() {
        let ready = |reading| {
            [
                ("MADV_MERGE", State::Yes),
                ("process_madvise", State::Yes),
                ("CAP_SYS_NICE", State::Yes),
                ("reading processes", reading),
            ]
            .map(|(name, state)| Check {
                name,
                state,
                detail: String::new(),
            })
        };
        let all = ready(State::Yes);
        let none = Seen::default();
        let running = Seen {
            state: Some(scan_state::tests::example()),
            hidden: None,
        };
        let said = |checks: &[Check], scanner: &Seen, ksmd| {
            let can = scan_can(checks, scanner, ksmd);
            let next = scan_next(can.state, scanner, ksmd).join("\n");
            (can.state, can.detail, next)
        };
        let (state, detail, next) = said(&all, &none, false);
        assert!(state == State::Yes && detail == "can run here; none runs as a service");
        assert!(next.contains("enable --now sksm-scan") && !next.contains("ksm/run"));
        let (state, detail, next) = said(&all, &running, true);
        assert!(state == State::Limited && detail.contains("one runs: process 42, since "));
        assert!(
            detail.ends_with("ksmd scans the same memory beside it"),
            "{detail}"
        );
        assert!(
            next.starts_with("have `sksm scan` do it alone: echo 0 > "),
            "{next}"
        );
        let (state, detail, _) = said(&ready(State::Limited), &none, false);
        assert!(state == State::Limited && detail.contains("of this user alone"));
        // Which is not what a machine is set up for.
        let unmet = Need::Scan.unmet(&ready(State::Limited));
        assert_eq!(unmet.map(|(status, _)| status), Some(exit::DENIED));
        assert_eq!(Need::Scan.unmet(&all), None);
        let mut without = ready(State::Yes);
        without[2].state = State::No;
        let (state, detail, next) = said(&without, &none, true);
        assert!(state == State::No && detail.starts_with("cannot run here: see CAP_SYS_NICE;"));
        assert_eq!(next, "");
    }
}
