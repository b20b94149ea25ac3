//! What a process may do, apart from whose it is.

use anyhow::{Context, Result};

use crate::memory::process::become_user;
use crate::syscall::check;

/// Sets of capabilities: CAP_SYS_NICE, and all up to CAP_CHECKPOINT_RESTORE.
pub const SYS_NICE: u64 = 1 << 23;
pub const ALL: u64 = (1 << 41) - 1;

/// Makes this process one of an ordinary user that has these capabilities all the same, for good.
pub fn become_user_with(uid: u32, capabilities: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).context("keepcaps")?;
    become_user(uid)?;
    // Version and process; then effective, permitted and inheritable of the low half, and of the high one.
    let [low, high] = [capabilities as u32, (capabilities >> 32) as u32];
    let (header, sets) = ([VERSION_3, 0], [low, low, 0, high, high, 0]);
    // SAFETY: valid for this version.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })
        .context("capset")?;
    set_dumpable(true)
}

/// Opens this process to others of its user, or closes it, as the kernel does with one that has gained or lost rights.
pub fn set_dumpable(on: bool) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, u64::from(on), 0, 0, 0) })
        .context("dumpable")
        .map(drop)
}

/// Sets the effective user only, and with it what this process may do now.
pub fn set_effective(uid: u32) -> Result<()> {
    const SAME: u32 = u32::MAX;
    set_users(SAME, uid, SAME)
}

/// Leaves this process what it may do whatever users it becomes.
pub fn keep_rights() -> Result<()> {
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) })
        .context("securebits")
        .map(drop)
}

/// Sets the real, effective and saved user, and leaves the rest as it comes.
pub fn set_users(real: u32, effective: u32, saved: u32) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::setresuid(real, effective, saved) })
        .context("setresuid")
        .map(drop)
}
