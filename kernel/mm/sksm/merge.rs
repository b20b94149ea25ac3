// SPDX-License-Identifier: GPL-2.0-only

//! One `MADV_MERGE` call: walks the range and decides, page by page, what happens.

use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::PAGE_SHIFT;
use kernel::prelude::*;

use super::base::{self, atomic::Relaxed};
use super::batch::{Batch, Candidate, State};
use super::content::{self, Secret};
use super::domain::{self, Domain};
use super::folio::{FolioGuard, LockedFolio, Locking, ProtectedFolio};
use super::gfp;
use super::index::{self, Found, Search};
use super::mm::{self, Lock, Mm, Vma};
use super::node::Node;
use super::pte::{PteRange, MAX_SLOTS};
use super::rmap::Entry;
use super::stats::{Process, Tally};
use super::sysfs::{MAX_PAGE_SHARING, MERGE_ACROSS_NODES};

/// After so many pages, about 20 microseconds of work, others get their turn.
const RESCHED: usize = 16;

/// How often a page is published where something else was published meanwhile.
const TURNS: usize = 4;

/// Calls for so few pages do without memory for the batch: on 64 bits it takes 56 bytes a page.
const FEW: usize = 4;

/// After so many pages in a row for which there was no memory, a call ends.
const LACKING: usize = 16;

/// Where to begin with `start..end`, which ends with what is before that: a place for each CPU, far
/// from those of others. Tasks that merge the same at the same time, as workers that start together
/// do, each publish a part of it then, and find the rest published. If all began at the same page,
/// they would meet at each page, and the first would publish everything. Addresses may have tags.
pub(crate) fn beginning(start: usize, end: usize) -> usize {
    const RUN: usize = MAX_SLOTS << PAGE_SHIFT;
    // Any length comes here: the product has to fit, and the place to stay clear of tags.
    const MOST: usize = 1 << 20;

    let runs = (end - start) / RUN;
    if runs < 2 {
        return start;
    }
    // A half, a quarter, three quarters, an eighth, and so on: the first so many CPUs are spread
    // evenly.
    let part = u64::from(mm::this_cpu().reverse_bits());
    match (part * runs.min(MOST) as u64 >> u32::BITS) as usize {
        0 => start,
        run => (start & !(RUN - 1)) + run * RUN,
    }
}

/// The state of one call.
pub(crate) struct Call<'a> {
    secret: &'static Secret,
    /// `None` when the memory is in no domain: nothing merges then.
    domain: Option<Domain>,
    /// Room for candidates, once there were more than a few.
    many: Option<KVVec<Candidate>>,
    /// All CPUs were drained; once a call is enough.
    drained: bool,
    across_nodes: bool,
    max_page_sharing: usize,
    /// There was no memory for some page.
    lacked_memory: bool,
    /// For so many pages in a row there was none.
    lacking: usize,
    /// Another process asks.
    remote: bool,
    mm: &'a Mm,
    tally: Tally,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.tally.close(self.mm);
    }
}

impl<'a> Call<'a> {
    /// Starts a call on memory of `mm`. May sleep.
    pub(crate) fn new(mm: &'a Mm) -> Result<Self> {
        let secret = Secret::get()?;
        let remote = !mm.is_current();
        Ok(Self {
            secret,
            domain: Domain::of(mm, remote, secret),
            many: None,
            drained: false,
            across_nodes: MERGE_ACROSS_NODES.load(Relaxed),
            max_page_sharing: MAX_PAGE_SHARING.load(Relaxed) as usize,
            lacked_memory: false,
            lacking: 0,
            remote,
            mm,
            tally: Tally::default(),
        })
    }

    pub(crate) fn lacked_memory(&self) -> bool {
        self.lacked_memory
    }

    /// What becomes of a page for which there is an answer, or no memory: that costs the page only,
    /// unless it happens time and again.
    fn left_without_memory(&mut self, found: Result<State>) -> Result<State> {
        match found {
            Err(error) if error == ENOMEM && self.lacking < LACKING => {
                self.lacked_memory = true;
                self.lacking += 1;
                Ok(State::Busy)
            }
            found => {
                self.lacking = 0;
                found
            }
        }
    }

    /// Merges `start..end` of `vma`; returns `end`, or where it stopped as others wait for the
    /// lock, or may do so.
    ///
    /// # Safety
    ///
    /// `vma` covers the range, and `lock` is held for read.
    pub(crate) unsafe fn merge_vma(
        &mut self,
        vma: &Vma,
        start: usize,
        end: usize,
        lock: Lock,
    ) -> Result<usize> {
        if !vma.is_compatible() || vma.anon_vma().is_none() {
            return Ok(end);
        }
        let private = self.remote && domain::is_private(vma);
        let pages = (end - start) >> PAGE_SHIFT;
        if private || self.domain.is_none() {
            self.tally.refused += pages;
            return Ok(end);
        }
        if pages <= FEW {
            let mut room = [const { MaybeUninit::uninit() }; FEW];
            // SAFETY: As the caller promises, and the VMA is compatible.
            return unsafe { self.merge_runs(vma, start, end, lock, &mut room) };
        }
        let mut many = self.many.take().unwrap_or(KVVec::new());
        many.reserve(pages.min(MAX_SLOTS), gfp())?;
        // SAFETY: As above.
        let merged = unsafe { self.merge_runs(vma, start, end, lock, many.spare_capacity_mut()) };
        self.many = Some(many);
        merged
    }

    /// The same, of a VMA that has pages to merge, run by run. `room` is for so many candidates as
    /// there are pages in the longest run.
    ///
    /// # Safety
    ///
    /// As for [`PteRange::next`].
    unsafe fn merge_runs(
        &mut self,
        vma: &Vma,
        start: usize,
        end: usize,
        lock: Lock,
        room: &mut [MaybeUninit<Candidate>],
    ) -> Result<usize> {
        let mut at = start;
        while at < end {
            if mm::fatal_signal_pending() {
                return Err(EINTR);
            }
            // SAFETY: As the caller promises.
            if let Some(range) = unsafe { PteRange::next(vma, &mut at, end) } {
                self.merge_range(&range, room)?;
                // Who waits for a VMA's lock cannot be seen, so it is let go each time.
                if lock == Lock::Vma || self.mm.is_lock_contended() {
                    break;
                }
            }
            mm::cond_resched();
        }
        Ok(at)
    }

    /// Merges the pages of one run, those that need a second look included.
    fn merge_range(&mut self, range: &PteRange<'_>, room: &mut [MaybeUninit<Candidate>]) -> Result {
        if let Some(folio) = range.huge_folio() {
            let folio = FolioGuard::lock(folio, Locking::Wait)?;
            // Split or not: what is left huge is found to have no page table.
            if !folio.is_some_and(|folio| folio.split()) {
                self.tally.busy += range.len();
                return Ok(());
            }
            let table = range.whole_table();
            let zeros = table.lock().map_or(0, |mut ptes| {
                let slots = 0..table.len();
                slots.filter(|slot| ptes.adopt_zero(*slot)).count()
            });
            self.count_zeros(zeros);
        }
        let mut batch = Batch::collect(range, room);
        let all = 0..batch.candidates().len();
        if batch.left && batch.has(State::is_batched) {
            // Pages that were written just now are in this CPU's batch.
            mm::drain_local_batches();
            batch.collect_again(State::is_batched);
        }
        self.steps(&mut batch, all.clone())?;
        if !batch.left {
            return Ok(());
        }
        if batch.has(State::is_large) {
            let zeros = batch.split_large()?;
            self.count_zeros(zeros);
            batch.collect_again(State::is_large);
            self.steps(&mut batch, all.clone())?;
        }
        if !self.drained && batch.has(State::is_batched) {
            mm::drain_all_batches();
            self.drained = true;
            batch.collect_again(State::is_batched);
            self.steps(&mut batch, all.clone())?;
        }
        for at in all {
            if batch.candidates()[at].state.is_locked() {
                batch.collect_waiting(at)?;
                self.steps(&mut batch, at..at + 1)?;
            }
        }
        for candidate in batch.candidates() {
            if candidate.state.is_left() {
                self.tally.busy += 1;
                self.mm.trace_busy(range.addr(candidate.slot));
            }
        }
        Ok(())
    }

    /// Pages that became the zero page when a huge page was split.
    fn count_zeros(&mut self, pages: usize) {
        self.tally.scanned += pages;
        self.tally.merged += pages;
    }

    /// Takes what is collected through all steps; `which` of the candidates that may be.
    fn steps(&mut self, batch: &mut Batch<'_>, which: Range<usize>) -> Result {
        batch.protect();
        let result = self.decide_all(batch, which);
        // Also after an error: what was found is merged.
        self.tally.merged += batch.replace();
        batch.let_go();
        result
    }

    /// First what can be decided at once, then what somebody else is at work on.
    fn decide_all(&mut self, batch: &mut Batch<'_>, which: Range<usize>) -> Result {
        let range = batch.range;
        for locking in [Locking::Try, Locking::Wait] {
            let (mut contended, mut busy) = (false, false);
            for (count, candidate) in batch.candidates()[which.clone()].iter_mut().enumerate() {
                if let Some(State::Stable(folio)) = candidate.state.take(State::is_stable) {
                    let (slot, sample) = (candidate.slot, &mut candidate.sample);
                    let next = self.decide(range, slot, folio, sample, locking);
                    let next = self.left_without_memory(next)?;
                    contended |= next.is_stable();
                    busy |= next.is_left();
                    candidate.state.set(next);
                }
                if (count + 1) % RESCHED == 0 {
                    mm::cond_resched();
                }
            }
            batch.left |= busy;
            if !contended {
                break;
            }
        }
        Ok(())
    }

    /// Steps 3 and 4 for one write-protected page: zero page, merged page, or published. It stays
    /// as it is if this was not to wait and would have to. `known` is the hash of its sample if
    /// that is known. May sleep.
    fn decide(
        &mut self,
        range: &PteRange<'_>,
        slot: usize,
        folio: ProtectedFolio,
        known: &mut Option<u64>,
        locking: Locking,
    ) -> Result<State> {
        let Some(domain) = self.domain else {
            return Ok(State::Done);
        };
        let nid = if self.across_nodes {
            bindings::NUMA_NO_NODE
        } else {
            folio.nid()
        };
        let domain = domain.word(nid, self.secret) & !index::CLASS;
        *known = known.or_else(|| {
            self.tally.scanned += 1;
            folio.bytes().with_words(|words| {
                // A file mapping may lose a zero page: mm takes it for nothing of the process's.
                let zero = range.is_anonymous() && content::is_zero(words);
                (!zero).then(|| self.secret.hash_sample(words, domain))
            })
        });
        let Some(sample) = *known else {
            return Ok(State::Zero(folio.into_guard()));
        };
        let search = Search {
            candidate: folio.bytes(),
            secret: self.secret,
            domain,
            sample,
            most: self.max_page_sharing,
        };
        // A VMA with anonymous pages has one.
        let Some(anon_vma) = range.vma().anon_vma() else {
            return Ok(State::Done);
        };
        let pgoff = range.vma().pgoff(range.addr(slot));
        // SAFETY: The VMA is kept by the lock, and linked to the anon_vma.
        let place = || unsafe { Entry::new(anon_vma, pgoff) };
        for _ in 0..TURNS {
            let vacancy = match search.find(locking, place)? {
                Found::Page(page) => return Ok(State::Twin(folio.into_guard(), page)),
                Found::Contended if locking == Locking::Try => {
                    return Ok(State::Stable(folio));
                }
                Found::Contended => break,
                Found::Vacant(vacancy) => vacancy,
            };
            // With users enough already it would serve nobody.
            if folio.mapcount().max(0) as usize >= self.max_page_sharing {
                break;
            }
            // A swap entry elsewhere could turn into a mapping that no reverse map knows.
            if !folio.leave_swapcache() {
                break;
            }
            let node = Node::new(&folio, own_place(&folio), nid)?;
            match Node::publish(node, &vacancy, &folio, Process(self.mm)) {
                Ok(true) => {
                    self.tally.published += 1;
                    self.mm.trace_publish(range.addr(slot), &folio);
                    // Unlocked here: it is a merged page now, and others may wait for its lock.
                    return Ok(State::Done);
                }
                // Something else was published meanwhile: perhaps the twin.
                Ok(false) => {}
                // A table that cannot take it just now.
                Err(_) => break,
            }
        }
        Ok(State::Busy)
    }
}

/// Where a folio that is not merged yet belongs by its own account.
fn own_place(folio: &LockedFolio) -> Entry {
    let anon_vma = (folio.mapping() & !base::MAPPING_FLAGS) as *mut _;
    // SAFETY: The folio was mapped when it was locked, by a VMA that is linked to this anon_vma;
    // the lock keeps the pointer, and the call's lock the VMA.
    unsafe { Entry::new(NonNull::new_unchecked(anon_vma), folio.index()) }
}
