//! Why a process cannot be looked at or merged, in words that hold for who asks; and many of those in few lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sksm::Error;

use crate::domain::Users;
use crate::rights;
use crate::{output, target};

/// Whether it is for want of a right.
pub fn denied(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// What is in the way with this process.
pub fn of(pid: u32, error: &Error) -> String {
    match error {
        Error::Read { file, .. } if denied(error) => {
            let more = capabilities(pid) & !capabilities(std::process::id()) != 0;
            let may = match (rights::may_trace(), rights::may_open_all()) {
                (true, false) if OF_ITS_USER.contains(file) => May::Trace,
                (true, _) => May::All,
                (false, _) => May::Nothing,
            };
            unreadable(may, rights::ptrace_scope(), more).into()
        }
        Error::Gone { .. } if !Path::new(&format!("/proc/{pid}")).exists() => {
            "there is no such process (any more)".into()
        }
        Error::Gone { .. } => GONE.into(),
        _ => error.to_string(),
    }
}

/// And what to do about it.
pub const NOT_DUMPABLE: &str = "not dumpable, as after a change of user: only itself may merge its memory, or its service's \
    control group needs a mark: echo user > memory.merge_domain";

pub const GONE: &str = "has exited, or runs another program now";

/// What nobody else may open, whoever may trace the process.
const OF_ITS_USER: [&str; 3] = ["/proc/PID/pagemap", "/proc/PID/mem", "/proc/PID/ksm_stat"];

/// What this command may do to processes of others.
#[derive(Clone, Copy)]
enum May {
    Nothing,
    /// But not open what is their user's alone.
    Trace,
    All,
}

/// A process of the same user may be refused as well: by Yama.
fn unreadable(may: May, ptrace_scope: u32, more: bool) -> &'static str {
    match (may, ptrace_scope) {
        (May::Trace, 0..=2) => {
            "not permitted: beside CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH is needed to read the pagemap of other users"
        }
        (May::All, 0..=2) if more => {
            "not permitted, even with CAP_SYS_PTRACE: it has rights that this command has not \
             (CapPrm in /proc/PID/status)"
        }
        (May::All, 0..=2) => {
            "not permitted, even with CAP_SYS_PTRACE: it is of another user namespace, or a \
             security module protects it"
        }
        (_, 0) => "not permitted: run as root, or with CAP_SYS_PTRACE",
        (_, 1 | 2) => {
            "not permitted: run as root, or with CAP_SYS_PTRACE, or (for processes of your own) \
             with kernel.yama.ptrace_scope 0"
        }
        _ => "not permitted: kernel.yama.ptrace_scope is 3, which lasts until a reboot",
    }
}

/// Those that the process may have.
fn capabilities(pid: u32) -> u64 {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    u64::from_str_radix(mask.unwrap_or_default().trim(), 16).unwrap_or(0)
}

/// Processes of which the same is to be told: one by one if they are few, else how many there are of each user.
#[derive(Default)]
pub struct Crowd(BTreeMap<String, Vec<(u32, String)>>);

/// So many processes are named on the terminal.
const FEW: usize = 5;

impl Crowd {
    pub fn add(&mut self, pid: u32, name: &str, reason: &str) {
        let all = self.0.entry(reason.into()).or_default();
        all.push((pid, name.into()));
    }

    /// A note for each reason.
    pub fn tell(&self, what: &str) {
        for line in self.lines_of(what, target::user_of) {
            output::note(&line);
        }
    }

    /// All in one, as the reason of an error: who it is, and why.
    pub fn lines(&self) -> String {
        let lines = self.lines_of("", target::user_of);
        let lines = lines.iter().map(|line| line.trim_start_matches(": "));
        lines.collect::<Vec<_>>().join("; ")
    }

    fn lines_of(&self, what: &str, user_of: impl Fn(u32) -> Option<u32>) -> Vec<String> {
        let users = Users::read();
        let line = |(reason, all): (&String, &Vec<(u32, String)>)| {
            let count = all.len();
            if count <= FEW {
                let named = all.iter().map(|(pid, name)| format!("{pid} {name}"));
                let named: Vec<String> = named.collect();
                return format!("{what}: {}: {reason}", named.join(", "));
            }
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for (pid, _) in all {
                let user = user_of(*pid).map_or("gone".into(), |user| users.name(user));
                *counts.entry(user).or_default() += 1;
            }
            let mut counts: Vec<_> = counts.into_iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let more = counts.len().saturating_sub(FEW);
            let shown = counts.iter().take(FEW);
            let shown = shown.map(|(user, count)| format!("{user}: {count}"));
            let mut shown: Vec<String> = shown.collect();
            shown.extend((more > 0).then(|| format!("{more} more users")));
            let shown = shown.join(", ");
            format!("{what}: {count} processes ({shown}): {reason}; --json names them")
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_one_that_is_open() {
        for scope in 0..=2 {
            for more in [false, true] {
                let told = unreadable(May::All, scope, more);
                assert!(!told.contains("as root"), "{told}");
            }
            assert!(unreadable(May::Nothing, scope, false).contains("as root"));
            let told = unreadable(May::Trace, scope, true);
            assert!(told.contains("CAP_DAC_READ_SEARCH"), "{told}");
        }
        assert!(unreadable(May::All, 1, true).contains("CapPrm"));
        for may in [May::Nothing, May::Trace, May::All] {
            assert!(unreadable(may, 3, false).contains("reboot"));
        }
    }

    #[test]
    fn a_crowd_is_counted() {
        let mut crowd = Crowd::default();
        crowd.add(1, "init", "because");
        let root = |_| Some(0);
        assert_eq!(
            crowd.lines_of("left out", root),
            ["left out: 1 init: because"]
        );
        (2..10_000).for_each(|pid| crowd.add(pid, "sh", "because"));
        let lines = crowd.lines_of("left out", |pid| (pid % 10 != 0).then_some(0));
        assert_eq!(lines.len(), 1);
        let right = "left out: 9999 processes (root: 9000, gone: 999): because; --json names them";
        assert_eq!(lines[0], right);
        // However many users there are.
        let lines = crowd.lines_of("left out", |pid| Some(70_000 + pid));
        assert!(lines[0].len() < 200, "{lines:?}");
    }
}
