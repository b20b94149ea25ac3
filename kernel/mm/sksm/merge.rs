// SPDX-License-Identifier: GPL-2.0-only

//! One `MADV_MERGE` call: walks the range and decides, page by page, what happens.

use core::mem::{replace, take};
use core::ptr::{read_volatile, NonNull};
use core::sync::atomic::Ordering;
use kernel::bindings;
use kernel::ffi::{c_int, c_ulong};
use kernel::page::PAGE_SHIFT;
use kernel::prelude::*;

use super::batch::{Batch, Candidate, Fate, Leftover};
use super::domain::Domain;
use super::folio::{Folio, LockedFolio, Locking};
use super::gfp;
use super::index::{self, Found, Search};
use super::node::{Key, Node};
use super::pte::{PteRange, SlotSet, MAX_SLOTS};
use super::rmap::Entry;
use super::stats::Tally;
use super::sysfs::MERGE_ACROSS_NODES;

/// After so many pages, about 20 microseconds of work, others get their turn.
const RESCHED: usize = 16;

/// What makes a page walk end early, with success.
const STOP: c_int = 1;

/// The state of one call.
pub(crate) struct Call {
    /// `None` when the memory's owner has gone: nothing merges then.
    domain: Option<Domain>,
    candidates: KVVec<Candidate>,
    /// All CPUs were drained; once a call is enough.
    drained: bool,
    across_nodes: bool,
    seed: u64,
    mm: *mut bindings::mm_struct,
    /// Where the walk ended early, as others wait for mmap_lock.
    stopped: Option<usize>,
    tally: Tally,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tally.close(self.mm);
    }
}

static WALK: WalkOps = WalkOps(bindings::mm_walk_ops {
    pmd_entry: Some(merge_pmd),
    // SAFETY: All-zero says that the other callbacks are absent and mmap_lock is held for read.
    ..unsafe { core::mem::zeroed() }
});

struct WalkOps(bindings::mm_walk_ops);

// SAFETY: Function pointers and constants.
unsafe impl Sync for WalkOps {}

/// `pmd_entry` of the page walk; returns 0, [`STOP`] or a negative errno.
///
/// # Safety
///
/// Called by `walk_page_range_vma()` with the `private` of [`Call::merge_vma`].
unsafe extern "C" fn merge_pmd(
    pmd: *mut bindings::pmd_t,
    start: c_ulong,
    end: c_ulong,
    walk: *mut bindings::mm_walk,
) -> c_int {
    // SAFETY: `private` is the call, borrowed mutably by merge_vma() and by nobody else.
    let (call, vma) = unsafe { (&mut *(*walk).private.cast::<Call>(), (*walk).vma) };
    let mut at = start;
    while at < end {
        // SAFETY: Looks at the current task.
        if unsafe { bindings::sksm_fatal_signal_pending() } {
            return EINTR.to_errno();
        }
        // SAFETY: The walk holds mmap_lock, and `pmd` is the entry of this range.
        let range = unsafe { PteRange::new(vma, pmd, at, end) };
        if let Err(error) = call.merge_range(&range) {
            return error.to_errno();
        }
        at += MAX_SLOTS << PAGE_SHIFT;
        // SAFETY: No lock but mmap_lock is held.
        unsafe { bindings::sksm_cond_resched() };
        // SAFETY: The walk's mm is valid.
        if unsafe { bindings::sksm_mmap_lock_is_contended(call.mm) } {
            call.stopped = Some(at.min(end));
            return STOP;
        }
    }
    0
}

impl Call {
    /// Starts a call on memory of `mm`, which is valid.
    pub(crate) fn new(mm: *mut bindings::mm_struct) -> Self {
        Self {
            // SAFETY: The mm is valid.
            domain: unsafe { Domain::of(mm) },
            candidates: KVVec::new(),
            drained: false,
            across_nodes: MERGE_ACROSS_NODES.load(Ordering::Relaxed),
            seed: index::seed(),
            mm,
            stopped: None,
            tally: Tally::default(),
        }
    }

    /// Merges `start..end` of `vma`; returns `end`, or where it stopped as others wait for
    /// mmap_lock.
    ///
    /// # Safety
    ///
    /// `vma` covers the range and mmap_lock is held for read.
    pub(crate) unsafe fn merge_vma(
        &mut self,
        vma: *mut bindings::vm_area_struct,
        start: usize,
        end: usize,
    ) -> Result<usize> {
        // SAFETY: `vma` is valid. Volatile, as a page fault may set the pointer meanwhile, once.
        let worthwhile = unsafe {
            bindings::vma_ksm_compatible(vma)
                && !read_volatile(&raw const (*vma).anon_vma).is_null()
        };
        if !worthwhile || self.domain.is_none() {
            return Ok(end);
        }
        let slots = ((end - start) >> PAGE_SHIFT).min(MAX_SLOTS);
        if self.candidates.capacity() < slots {
            self.candidates.reserve(slots, gfp())?;
        }
        // SAFETY: The caller holds mmap_lock; merge_pmd() gets the call back as `private`.
        kernel::error::to_result(unsafe {
            bindings::walk_page_range_vma(
                vma,
                start,
                end,
                &WALK.0,
                core::ptr::from_mut(self).cast(),
            )
        })?;
        Ok(self.stopped.take().unwrap_or(end))
    }

    /// Merges the pages of one run, those that need a second try included.
    fn merge_range(&mut self, range: &PteRange) -> Result {
        if let Some(folio) = range.huge_folio() {
            // Split or not: what is left huge is found to have no page table.
            if !folio.lock().split() {
                self.tally.busy += range.len();
                return Ok(());
            }
        }
        let mut left = Leftover::default();
        self.pass(range, SlotSet::first(range.len()), Locking::Try, &mut left)?;
        if !left.large.is_empty() {
            let large = take(&mut left.large);
            split_large(range, large);
            self.pass(range, large, Locking::Try, &mut left)?;
        }
        if !left.batched.is_empty() && !self.drained {
            // SAFETY: No lock but mmap_lock is held, which the work on other CPUs does not take.
            unsafe { bindings::lru_add_drain_all() };
            self.drained = true;
            let batched = take(&mut left.batched);
            self.pass(range, batched, Locking::Try, &mut left)?;
        }
        for slot in take(&mut left.locked).iter() {
            self.pass(range, SlotSet::one(slot), Locking::Wait, &mut left)?;
        }
        left.busy.union(&left.large);
        left.busy.union(&left.batched);
        self.tally.busy += left.busy.len();
        for slot in left.busy.iter() {
            // SAFETY: Only prints its arguments.
            unsafe { bindings::sksm_trace_busy(self.mm, range.addr(slot)) };
        }
        Ok(())
    }

    /// Takes the pages of `slots` through all steps.
    fn pass(
        &mut self,
        range: &PteRange,
        slots: SlotSet,
        locking: Locking,
        left: &mut Leftover,
    ) -> Result {
        let mut candidates = replace(&mut self.candidates, KVVec::new());
        let result = self.steps(range, &mut candidates, slots, locking, left);
        self.candidates = candidates;
        result
    }

    fn steps(
        &mut self,
        range: &PteRange,
        candidates: &mut KVVec<Candidate>,
        slots: SlotSet,
        locking: Locking,
        left: &mut Leftover,
    ) -> Result {
        let mut batch = Batch::new(range, candidates);
        // Those of earlier passes had their second try.
        let earlier = take(&mut left.batched);
        batch.collect(slots, locking, left)?;
        if !left.batched.is_empty() {
            // Pages that were written just now are in this CPU's batch.
            // SAFETY: Does not sleep; folio locks do not matter to it.
            unsafe { bindings::lru_add_drain() };
            batch.collect(take(&mut left.batched), locking, left)?;
        }
        left.batched.union(&earlier);
        batch.protect(left);
        let result = self.decide_all(range, &mut batch, left);
        // Also after an error: what was found is merged.
        self.tally.merged += batch.replace();
        result
    }

    /// First what can be decided at once, then what somebody else is at work on.
    fn decide_all(
        &mut self,
        range: &PteRange,
        batch: &mut Batch<'_>,
        left: &mut Leftover,
    ) -> Result {
        for locking in [Locking::Try, Locking::Wait] {
            let mut contended = false;
            for (count, candidate) in batch.candidates().iter_mut().enumerate() {
                if !matches!(candidate.fate, Fate::Protected) {
                    continue;
                }
                candidate.fate = self.decide(range, candidate, locking, left)?;
                contended |= matches!(candidate.fate, Fate::Protected);
                if matches!(candidate.fate, Fate::Leave) {
                    // A merged page now, perhaps: others may wait for its lock.
                    candidate.folio = None;
                }
                if count % RESCHED == 0 {
                    // SAFETY: Folio locks may be held while sleeping.
                    unsafe { bindings::sksm_cond_resched() };
                }
            }
            if !contended {
                break;
            }
        }
        Ok(())
    }

    /// Steps 3, 4 and 6 for one write-protected page: zero page, merged page, or published.
    /// Undecided, so still protected, if it was not to wait and would have to.
    fn decide(
        &mut self,
        range: &PteRange,
        candidate: &mut Candidate,
        locking: Locking,
        left: &mut Leftover,
    ) -> Result<Fate> {
        let (Some(folio), Some(domain)) = (&candidate.folio, self.domain) else {
            return Ok(Fate::Leave);
        };
        if candidate.sample.is_none() {
            self.tally.scanned += 1;
            candidate.sample = folio.sample_checksum(self.seed);
        }
        let Some(checksum) = candidate.sample else {
            return Ok(Fate::Zero);
        };
        let key = Key {
            checksum,
            domain: domain.id,
            kind: domain.kind as u8,
            full: 0,
            nid: if self.across_nodes {
                bindings::NUMA_NO_NODE as i16
            } else {
                folio.nid() as i16
            },
            pending: 0,
        };
        let mut search = Search::new(folio, key, self.seed).ok_or(ENOMEM)?;
        let published = search.shard.published();
        let place = || {
            // SAFETY: mmap_lock is held and the VMA has an anon_vma, checked by merge_vma().
            unsafe {
                Entry::new(
                    NonNull::new_unchecked(range.anon_vma()),
                    range.pgoff(candidate.slot),
                )
            }
        };
        match search.find(locking, place)? {
            Found::Page(page) => return Ok(Fate::Merge(page)),
            Found::Contended => return Ok(Fate::Protected),
            Found::Nothing(_) => {}
        }
        // A swap entry elsewhere could turn into a mapping that no reverse map knows.
        if !folio.leave_swapcache() {
            left.busy.insert(candidate.slot);
            return Ok(Fate::Leave);
        }
        let node = Node::new(folio, own_place(folio))?;
        let _publishing = search.shard.lock();
        if search.shard.published() != published {
            if let Found::Page(page) = search.find(Locking::Wait, place)? {
                return Ok(Fate::Merge(page));
            }
        }
        Node::publish(node, search.key(), folio, search.shard)?;
        self.tally.published += 1;
        // SAFETY: Only prints its arguments.
        unsafe {
            bindings::sksm_trace_publish(self.mm, range.addr(candidate.slot), folio.as_ptr());
        }
        Ok(Fate::Leave)
    }
}

/// Where a folio that is not merged yet belongs by its own account.
fn own_place(folio: &LockedFolio) -> Entry {
    let anon_vma = (folio.mapping() & !(bindings::PAGE_MAPPING_FLAGS as usize)) as *mut _;
    // SAFETY: An anonymous folio that a VMA maps names an anon_vma that this VMA is linked to, and
    // mmap_lock is held.
    unsafe { Entry::new(NonNull::new_unchecked(anon_vma), folio.index()) }
}

/// Splits the large folios of `slots`, where possible. May sleep.
fn split_large(range: &PteRange, slots: SlotSet) {
    for slot in slots.iter() {
        let folio = range.lock().and_then(|ptes| {
            let (_, folio) = ptes.next_folio(slot..slot + 1)?;
            // SAFETY: The mapping holds a reference while the table is locked.
            Some(unsafe { Folio::get(folio) })
        });
        if let Some(folio) = folio {
            if folio.state().is_large() {
                folio.lock().split();
            }
        }
    }
}
