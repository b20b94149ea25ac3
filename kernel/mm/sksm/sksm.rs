// SPDX-License-Identifier: GPL-2.0-only

//! Synchronous kernel samepage merging.
//!
//! `madvise(addr, len, MADV_MERGE)` says that a range is stable. Its private anonymous pages are
//! write-protected, hashed, and shared with equal pages of the same merge domain before the call
//! returns. A later write is an ordinary copy-on-write fault.
//!
//! ```text
//!   madvise ── merge ── batch (one page table: collect, protect, replace)
//!                │
//!                ├──── index (checksum, domain, nid) ──► node ──► folio
//!                │                                        │
//!                └─ publish: the page becomes the node's  └─► rmap: (anon_vma, offset)
//! ```
//!
//! # Lock order
//!
//! 1. `mmap_lock`, for read.
//! 2. Candidate folio locks: taken with trylock, or one alone while none else is held.
//! 3. The mutex of one shard of [`index`], picked by checksum.
//! 4. The lock of one merged folio. Guards the node's reverse map and `folio->mapping`. Nobody
//!    waits for 2 or 3 while holding it. A folio that was published is unlocked at once, so a
//!    merged folio is never among the locks of level 2.
//! 5. `anon_vma->rwsem`, for read.
//! 6. The page-table lock.
//! 7. The hash table's bucket lock; taken with interrupts off, also from the page-free path.
//!
//! `mmu_notifier` calls come between 2 and 6. Memory is allocated with [`gfp`] under 1 to 4:
//! reclaim only tries folio locks, and takes none of the mutexes.
//!
//! # Contexts
//!
//! Everything runs in process context and may sleep, except [`sksm_folio_free`] (any context, hard
//! interrupts too) and [`sksm_withdraw`] (page-table lock held).

use kernel::alloc::flags::{__GFP_NOWARN, __GFP_RETRY_MAYFAIL};
use kernel::alloc::Flags;
use kernel::bindings;
use kernel::prelude::*;

mod batch;
mod domain;
mod folio;
mod index;
mod merge;
mod node;
mod pte;
mod rcu;
mod release;
mod rmap;
mod stats;
mod sysfs;

use folio::LockedFolio;
use node::Node;

const __LOG_PREFIX: &[u8] = b"sksm\0";

/// How the engine allocates for a call: an advice is not worth having a process killed for.
fn gfp() -> Flags {
    GFP_KERNEL | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
}

/// The same for what stays, which is charged to the caller's memory cgroup.
fn gfp_account() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN
}

/// Boot-time set-up.
#[no_mangle]
extern "C" fn sksm_init() -> i32 {
    match index::init().and_then(|()| sysfs::init()) {
        Ok(()) => 0,
        Err(error) => {
            pr_err!("cannot start: {:?}\n", error);
            error.to_errno()
        }
    }
}

/// Starts one `MADV_MERGE` call on `mm`; NULL when there is no memory.
///
/// # Safety
///
/// `mm` must stay valid until [`sksm_call_end`].
#[no_mangle]
unsafe extern "C" fn sksm_call_begin(mm: *mut bindings::mm_struct) -> *mut merge::Call {
    match KBox::new(merge::Call::new(mm), gfp()) {
        Ok(call) => KBox::into_raw(call),
        Err(_) => core::ptr::null_mut(),
    }
}

/// Merges `start..end` of `vma`, or the beginning of it if others wait for `mmap_lock`. Returns 0,
/// with the end of what was merged in `start`, or `-EINTR` or `-EAGAIN`.
///
/// # Safety
///
/// `call` comes from [`sksm_call_begin`]; `vma` belongs to its mm, covers the range, and
/// `mmap_lock` is held for read. `start` is valid.
#[no_mangle]
unsafe extern "C" fn sksm_merge_vma(
    call: *mut merge::Call,
    vma: *mut bindings::vm_area_struct,
    start: *mut usize,
    end: usize,
) -> i32 {
    // SAFETY: The caller owns both and calls from one thread.
    let (call, start) = unsafe { (&mut *call, &mut *start) };
    // SAFETY: The caller holds mmap_lock over a range that `vma` covers.
    match unsafe { call.merge_vma(vma, *start, end) } {
        Ok(at) => {
            *start = at;
            0
        }
        Err(error) if error == EINTR => EINTR.to_errno(),
        // Memory, or a hash table that cannot grow just now.
        Err(_) => EAGAIN.to_errno(),
    }
}

/// Ends a call.
///
/// # Safety
///
/// `call` comes from [`sksm_call_begin`] and is not used again.
#[no_mangle]
unsafe extern "C" fn sksm_call_end(call: *mut merge::Call) {
    // SAFETY: `sksm_call_begin` made it with `KBox::into_raw`.
    drop(unsafe { KBox::from_raw(call) });
}

/// The last reference to a merged folio has gone, or memory failure unmapped it for good. Any
/// context.
///
/// # Safety
///
/// `folio` is a merged folio with no reference left, or a poisoned one that the caller has locked.
#[no_mangle]
unsafe extern "C" fn sksm_folio_free(folio: *mut bindings::folio) {
    // SAFETY: A folio without references belongs to the caller.
    unsafe { Node::folio_freed(folio) };
}

/// A write fault on a merged folio: if this mapping is its only user, the page becomes an ordinary
/// exclusive anonymous page again and true is returned. Page-table lock held.
///
/// # Safety
///
/// The page table of `vma`, locked by the caller, maps `folio` at `addr`.
#[no_mangle]
unsafe extern "C" fn sksm_withdraw(
    folio: *mut bindings::folio,
    vma: *mut bindings::vm_area_struct,
    addr: usize,
) -> bool {
    // SAFETY: As the caller promises.
    unsafe { Node::withdraw(folio, vma, addr) }
}

/// `rmap_walk()` for merged folios. May sleep unless `rwc->try_lock`.
///
/// # Safety
///
/// `folio` is a locked merged folio; `rwc` is valid.
#[no_mangle]
unsafe extern "C" fn sksm_rmap_walk(
    folio: *mut bindings::folio,
    rwc: *mut bindings::rmap_walk_control,
) {
    // SAFETY: The caller holds the folio lock for the whole call.
    let folio = unsafe { LockedFolio::borrow(folio) };
    if let Some(node) = Node::of(&folio) {
        // SAFETY: `rwc` is valid and used by this thread alone.
        rmap::walk(node.rmap(&folio), &folio, unsafe { &mut *rwc });
    }
}

/// `collect_procs_ksm()` for merged folios.
///
/// # Safety
///
/// `folio` is a locked merged folio; `to_kill` is the caller's list.
#[no_mangle]
unsafe extern "C" fn sksm_collect_mappers(
    folio: *mut bindings::folio,
    to_kill: *mut bindings::list_head,
    force_early: i32,
) {
    // SAFETY: The caller holds the folio lock for the whole call.
    let folio = unsafe { LockedFolio::borrow(folio) };
    if let Some(node) = Node::of(&folio) {
        node.rmap(&folio).for_each_vma(|vma, addr| {
            // SAFETY: `vma` stays while its anon_vma is locked; `to_kill` as the caller promises.
            unsafe {
                if bindings::sksm_mapped_at(folio.as_ptr(), vma, addr) {
                    bindings::sksm_collect_procs(folio.as_ptr(), vma, addr, to_kill, force_early);
                }
            }
        });
    }
}

/// `folio_migrate_ksm()` for merged folios: the node follows.
///
/// # Safety
///
/// Both folios are locked, `new->mapping` equals `old->mapping`, and no page table maps `old`.
#[no_mangle]
unsafe extern "C" fn sksm_migrate(new: *mut bindings::folio, old: *mut bindings::folio) {
    // SAFETY: The caller holds both folio locks for the whole call.
    let (new, old) = unsafe { (LockedFolio::borrow(new), LockedFolio::borrow(old)) };
    Node::migrate(&new, &old);
}

/// Releases retired nodes; runs on a workqueue.
#[no_mangle]
extern "C" fn sksm_release(_work: *mut bindings::work_struct) {
    release::run();
}
