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
//!                ├──── index (hash, domain, nid) ──► node ──► folio
//!                │                                    │
//!                └─ publish: the page itself          └─► rmap: (anon_vma, offset)
//!                   becomes the node's
//! ```
//!
//! # Lock order
//!
//! 1. `mmap_lock`, or the lock of one VMA, for read.
//! 2. Candidate folio locks: taken with trylock, or one alone while none else is held.
//! 3. The lock of one merged folio. Guards the node's reverse map and `folio->mapping`. Nobody
//!    waits for 2 while holding it. A folio that was published is unlocked at once, so a merged
//!    folio is never among the locks of level 2.
//! 4. `anon_vma->rwsem`, for read.
//! 5. The page-table lock.
//!    The locks of a swap slot, of its place in the swap cache (`i_pages`) and in swap space, come
//!    here too.
//! 6. The lock of one shard of [`index`], picked by the hash of a sample; with interrupts off, also
//!    from the page-free path.
//! 7. A bucket lock of a hash table: of the index, or of [`asleep`].
//!
//! `mmu_notifier` calls come between 2 and 5. Memory is allocated with [`gfp`] under 1 to 3:
//! reclaim only tries folio locks. Waiting for a folio lock ends with a fatal signal.
//!
//! # Contexts
//!
//! C hands over what is in use and not NULL: references are made of it, that of a [`LockedFolio`]
//! where the caller has locked the folio, or has it for himself. Which locks else are held is said
//! there.
//!
//! Everything runs in process context and may sleep, except [`sksm_folio_free`] (any context, hard
//! interrupts too), [`sksm_folio_sleep`], [`__sksm_slot_freed`] and [`__sksm_slot_asleep`] (any
//! context), [`sksm_merge_from`], which does not, and [`sksm_withdraw`], [`sksm_unmapped`],
//! [`sksm_swapped`] and [`sksm_swapped_in`] (page-table lock held).

use kernel::alloc::flags::{__GFP_NOWARN, __GFP_RETRY_MAYFAIL};
use kernel::alloc::Flags;
use kernel::bindings;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;

mod asleep;
mod base;
mod batch;
mod content;
mod domain;
mod folio;
mod index;
mod merge;
mod mm;
mod node;
mod pte;
mod release;
mod rescue;
mod rmap;
mod stats;
mod sysfs;
mod unmerge;

use asleep::Slot;
use folio::{Folio, LockedFolio};
use mm::{Lock, Mm, Vma};
use node::Node;
use stats::{Process, Stat};

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
///
/// # Safety
///
/// Called once, before all else.
#[export]
unsafe extern "C" fn sksm_init() -> c_int {
    // SAFETY: As the caller promises.
    let table = kernel::error::to_result(unsafe {
        bindings::sksm_release_init();
        bindings::sksm_index_init()
    });
    match table.and_then(|()| sysfs::init()) {
        Ok(()) => 0,
        Err(error) => {
            pr_err!("cannot start: {:?}\n", error);
            error.to_errno()
        }
    }
}

const _: () = assert!(size_of::<merge::Call<'_>>() <= size_of::<bindings::sksm_call>());
const _: () = assert!(align_of::<merge::Call<'_>>() <= align_of::<bindings::sksm_call>());

/// Starts one `MADV_MERGE` call on `mm`: 0, or `-EAGAIN` when there is no memory. May sleep.
///
/// # Safety
///
/// `call` is the caller's. If this succeeds, [`sksm_call_end`] follows, and `mm` is valid until
/// then.
#[export]
unsafe extern "C" fn sksm_call_begin(
    call: *mut bindings::sksm_call,
    mm: *mut bindings::mm_struct,
) -> c_int {
    // SAFETY: As the caller promises.
    let mm = unsafe { Mm::from_raw(mm) };
    let Ok(new) = merge::Call::new(mm) else {
        return EAGAIN.to_errno();
    };
    // SAFETY: The caller's memory is large enough for it, as is seen to above.
    unsafe { call.cast::<merge::Call<'_>>().write(new) };
    0
}

/// Where a call that is to merge `start..end` begins; what is before that comes last. Does not
/// sleep.
///
/// # Safety
///
/// `start` is not above `end`.
#[export]
unsafe extern "C" fn sksm_merge_from(start: c_ulong, end: c_ulong) -> c_ulong {
    merge::beginning(start, end)
}

/// Merges `*start..end` of `vma`, or the beginning of it if others wait for the lock, or may do so.
/// Returns 0, with the end of what was merged in `*start`, or `-EINTR` or `-EAGAIN`. Sleeps; a
/// fatal signal ends it.
///
/// # Safety
///
/// `call` comes from [`sksm_call_begin`]; `vma` belongs to its mm and covers the range. `mmap_lock`
/// is held for read or, if `vma_lock` says so, the lock of `vma`.
#[export]
unsafe extern "C" fn sksm_merge_vma(
    call: *mut bindings::sksm_call,
    vma: *mut bindings::vm_area_struct,
    start: *mut c_ulong,
    end: c_ulong,
    vma_lock: bool,
) -> c_int {
    let lock = if vma_lock { Lock::Vma } else { Lock::Mmap };
    // SAFETY: As the caller promises: it holds that lock, and `vma` covers the range.
    let merged = unsafe {
        let call = &mut *call.cast::<merge::Call<'_>>();
        call.merge_vma(Vma::from_raw(vma), *start, end, lock)
    };
    match merged {
        Ok(at) => {
            // SAFETY: The caller's.
            unsafe { *start = at };
            0
        }
        Err(error) if error == EINTR => EINTR.to_errno(),
        // No memory.
        Err(_) => EAGAIN.to_errno(),
    }
}

/// Ends a call: 0, or `-EAGAIN` if there was no memory for some of its pages.
///
/// # Safety
///
/// `call` comes from [`sksm_call_begin`] and is not used again.
#[export]
unsafe extern "C" fn sksm_call_end(call: *mut bindings::sksm_call) -> c_int {
    // SAFETY: `sksm_call_begin` wrote it there, and it is read once.
    let call = unsafe { call.cast::<merge::Call<'_>>().read() };
    if call.lacked_memory() {
        EAGAIN.to_errno()
    } else {
        0
    }
}

/// The last reference to a merged folio has gone, or memory failure unmapped it for good. Any
/// context.
///
/// # Safety
///
/// `folio` is a merged folio with no reference left, or a poisoned one that the caller has locked.
#[export]
unsafe extern "C" fn sksm_folio_free(folio: *mut bindings::folio) {
    // SAFETY: As the caller promises.
    Node::folio_freed(unsafe { LockedFolio::from_raw(folio) });
}

/// A write fault on a merged folio: if this mapping is its only user, the page becomes an ordinary
/// exclusive anonymous page again and true is returned. Page-table lock held.
///
/// # Safety
///
/// The page table of `vma`, locked by the caller, maps `folio` at `addr`.
#[export]
unsafe extern "C" fn sksm_withdraw(
    folio: *mut bindings::folio,
    vma: *mut bindings::vm_area_struct,
    addr: c_ulong,
) -> bool {
    // SAFETY: As the caller promises.
    unsafe { Node::withdraw(Folio::from_raw(folio), Vma::from_raw(vma), addr) }
}

/// A mapping of a merged folio has been removed for good, not to migrate. Page-table lock held.
///
/// # Safety
///
/// The caller holds the reference that the mapping had; `vma` is valid.
#[export]
unsafe extern "C" fn sksm_unmapped(
    folio: *mut bindings::folio,
    vma: *mut bindings::vm_area_struct,
) {
    // SAFETY: As the caller promises.
    let (folio, vma) = unsafe { (Folio::from_raw(folio), Vma::from_raw(vma)) };
    Node::unmapped(folio, Process(vma.mm()));
}

/// The same, of one that became a swap entry.
///
/// # Safety
///
/// As for [`sksm_unmapped`].
#[export]
unsafe extern "C" fn sksm_swapped(folio: *mut bindings::folio, vma: *mut bindings::vm_area_struct) {
    // SAFETY: As the caller promises.
    let (folio, vma) = unsafe { (Folio::from_raw(folio), Vma::from_raw(vma)) };
    Stat::Swapped.add(1);
    Node::swapped(folio, Process(vma.mm()));
}

/// A swap entry became a mapping of a merged folio. Page-table lock held.
///
/// # Safety
///
/// `folio` is locked; `vma` is valid.
#[export]
unsafe extern "C" fn sksm_swapped_in(
    folio: *mut bindings::folio,
    vma: *mut bindings::vm_area_struct,
) {
    // SAFETY: As the caller promises.
    let (folio, vma) = unsafe { (Folio::from_raw(folio), Vma::from_raw(vma)) };
    Stat::SwappedIn.add(1);
    Node::swapped_in(folio, Process(vma.mm()));
}

/// A merged folio leaves memory, and its node sleeps under its swap slot. Any context.
///
/// # Safety
///
/// `folio` is locked, in the swap cache at `slot`, clean, not mapped, and about to leave the swap
/// cache: with no reference left, or as it has failed.
#[export]
unsafe extern "C" fn sksm_folio_sleep(folio: *mut bindings::folio, slot: bindings::swp_entry_t) {
    // SAFETY: As the caller promises.
    asleep::sleep(unsafe { LockedFolio::from_raw(folio) }, Slot::new(slot.val));
}

/// A folio of the swap cache that was never mapped becomes the merged page that sleeps under its
/// slot, if there is one. May sleep.
///
/// # Safety
///
/// `folio` is locked, and has no `mapping`.
#[export]
unsafe extern "C" fn __sksm_folio_wake(folio: *mut bindings::folio) {
    // SAFETY: As the caller promises.
    asleep::wake(unsafe { LockedFolio::from_raw(folio) });
}

/// A swap slot is free. Any context.
///
/// # Safety
///
/// Neither swap entry nor swap cache has the slot, and nobody takes it meanwhile.
#[export]
unsafe extern "C" fn __sksm_slot_freed(slot: bindings::swp_entry_t) {
    asleep::forget(Slot::new(slot.val));
}

/// Whether a merged page sleeps under a slot. Any context.
///
/// # Safety
///
/// The caller keeps the slot in use.
#[export]
unsafe extern "C" fn __sksm_slot_asleep(slot: bindings::swp_entry_t) -> bool {
    asleep::is_asleep(Slot::new(slot.val))
}

/// `rmap_walk()` for merged folios. May sleep unless `rwc->try_lock`.
///
/// # Safety
///
/// `folio` is a locked merged folio; `rwc` is valid. Others may use `rwc` as well.
#[export]
unsafe extern "C" fn sksm_rmap_walk(
    folio: *mut bindings::folio,
    rwc: *mut bindings::rmap_walk_control,
) {
    // SAFETY: As the caller promises.
    let folio = unsafe { LockedFolio::from_raw(folio) };
    if let Some(merged) = folio.merged() {
        // SAFETY: `rwc` is valid, and what walks share of it does not change. `contended` is
        // written by those who try, each to one of its own.
        unsafe {
            if !merged.rmap().walk(merged.folio(), rwc) {
                (*rwc).contended = true;
            }
        }
    }
}

/// `collect_procs_ksm()` for merged folios. Sleeps.
///
/// # Safety
///
/// `folio` is a locked merged folio; `to_kill` is the caller's list.
#[export]
unsafe extern "C" fn sksm_collect_mappers(
    folio: *const bindings::folio,
    to_kill: *mut bindings::list_head,
    force_early: c_int,
) {
    // SAFETY: As the caller promises.
    let folio = unsafe { LockedFolio::from_raw(folio.cast_mut()) };
    if let Some(merged) = folio.merged() {
        let folio = merged.folio().as_ptr();
        merged.rmap().for_each_vma(|vma, addr| {
            // SAFETY: `vma` stays while its anon_vma is locked; `to_kill` as the caller promises.
            unsafe {
                if bindings::sksm_mapped_at(folio, vma, addr) {
                    bindings::sksm_collect_procs(folio, vma, addr, to_kill, force_early);
                }
            }
        });
    }
}

/// A merged folio has failed: if there is another page with its bytes, a new page takes its place,
/// and true is returned when nobody maps the failed one any more. Sleeps.
///
/// # Safety
///
/// `folio` is a locked folio with a reference of the caller's.
#[export]
unsafe extern "C" fn sksm_folio_rescue(folio: *mut bindings::folio) -> bool {
    // SAFETY: As the caller promises.
    rescue::rescue(unsafe { LockedFolio::from_raw(folio) })
}

/// `folio_migrate_ksm()` for merged folios: the node follows.
///
/// # Safety
///
/// Both folios are locked, `new->mapping` equals `old->mapping`, and no page table maps `old`.
#[export]
unsafe extern "C" fn sksm_migrate(new: *mut bindings::folio, old: *mut bindings::folio) {
    // SAFETY: As the caller promises.
    let (new, old) = unsafe { (LockedFolio::from_raw(new), LockedFolio::from_raw(old)) };
    Node::migrate(new, old);
}

/// Releases retired nodes; runs on a workqueue.
///
/// # Safety
///
/// The list is of nodes that were retired, and the caller's alone.
#[export]
unsafe extern "C" fn sksm_release(nodes: *mut bindings::llist_node) {
    // SAFETY: As the caller promises.
    unsafe { release::run(nodes) }
}
