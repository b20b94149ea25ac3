//! What this process may do to others.

use std::fs;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_NICE: u32 = 23;

/// Whether it has this capability in its user namespace.
pub fn has(capability: u32) -> bool {
    let mask = status_field("CapEff:").unwrap_or_default();
    u64::from_str_radix(&mask, 16).unwrap_or(0) >> capability & 1 != 0
}

/// Whether this process may read those of all users, as far as its user namespace reaches.
pub fn may_trace() -> bool {
    has(CAP_SYS_PTRACE)
}

/// Whether it may open files that only their owners may: in `/proc/PID` some are, whoever may trace the process.
pub fn may_open_all() -> bool {
    has(CAP_DAC_OVERRIDE) || has(CAP_DAC_READ_SEARCH)
}

/// Whether it is root already, whatever that is worth here.
pub fn is_root() -> bool {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// What Yama allows: 0, as without it, leaves processes of one user open to each other.
pub fn ptrace_scope() -> u32 {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    scope.map_or(0, |scope| scope.trim().parse().unwrap_or(0))
}

pub fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().into())
}
