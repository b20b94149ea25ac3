// SPDX-License-Identifier: GPL-2.0-only

//! Undoes what was merged, on the whole machine. `MADV_UNMERGEABLE` does it for a range.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::page::PAGE_SHIFT;
use kernel::prelude::*;

use super::mm::{self, Mm, Vma};

/// Pages that are parted before others may have mmap_lock.
const CHUNK: usize = 512 << PAGE_SHIFT;

/// The memory of a process, kept in use.
///
/// # Invariants
///
/// Owns one of `mm_users`.
struct Process(NonNull<bindings::mm_struct>);

impl Process {
    /// The process with the lowest number from `pid` on; `pid` is then the next one.
    fn next(pid: &mut i32) -> Option<Self> {
        // SAFETY: `pid` is valid.
        let mm = unsafe { bindings::sksm_next_mm(pid) };
        // INVARIANT: The call took the count.
        NonNull::new(mm).map(Self)
    }

    fn mm(&self) -> &Mm {
        // SAFETY: By the invariant.
        unsafe { Mm::from_raw(self.0.as_ptr()) }
    }

    /// Gives each mapping a page of its own. Sleeps; a signal ends it.
    fn unmerge(&self) -> Result {
        let mut at = 0;
        loop {
            let lock = MmapLock::read(self.mm())?;
            let Some(vma) = lock.find_vma(at) else {
                return Ok(());
            };
            let start = at.max(vma.start());
            at = vma.end().min(start.saturating_add(CHUNK));
            let any = bindings::ksm_owner_KSM_OWNER_ANY;
            // SAFETY: The lock keeps the VMA.
            to_result(unsafe { bindings::ksm_unshare_range(vma.as_ptr(), start, at, any) })?;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: By the invariant. May sleep, and no lock is held.
        unsafe { bindings::mmput(self.0.as_ptr()) };
    }
}

/// mmap_lock, for read.
struct MmapLock<'a>(&'a Mm);

impl<'a> MmapLock<'a> {
    fn read(mm: &'a Mm) -> Result<Self> {
        match mm.read_lock_killable() {
            0 => Ok(Self(mm)),
            _ => Err(EINTR),
        }
    }

    /// The first VMA that ends above an address.
    fn find_vma(&self, addr: usize) -> Option<&Vma> {
        // SAFETY: The lock is held, and keeps the VMA.
        unsafe {
            let vma = bindings::find_vma(self.0.as_ptr(), addr);
            (!vma.is_null()).then(|| Vma::from_raw(vma))
        }
    }
}

impl Drop for MmapLock<'_> {
    fn drop(&mut self) {
        // SAFETY: It has been taken for read, and nobody else gives it back.
        unsafe { bindings::sksm_mmap_read_unlock(self.0.as_ptr()) };
    }
}

/// Gives each mapping of a merged page, and of a zero page that a merge placed, a page of its own;
/// KSM's too, as zero pages do not tell. Sleeps; a signal ends it. A process whose memory cgroup
/// has nothing left keeps what it shares, and the others do not wait for it.
pub(crate) fn all() -> Result {
    let mut pid = 1;
    let mut outcome = Ok(());
    while let Some(process) = Process::next(&mut pid) {
        match process.unmerge() {
            Err(error) if error == ENOMEM => outcome = Err(error),
            done => done?,
        }
        mm::cond_resched();
    }
    outcome
}
