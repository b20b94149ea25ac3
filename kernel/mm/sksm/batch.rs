// SPDX-License-Identifier: GPL-2.0-only

//! The page-table side of a merge, for a batch of pages: collect, write-protect, replace.
//!
//! Between the steps the candidates' folio locks are held. With its lock held, its exclusivity
//! given up and every mapping read-only, a folio cannot change: a write fault copies it.

use core::mem::{forget, replace, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::slice;
use kernel::bindings;
use kernel::prelude::*;

use super::base::barrier::{smp_mb, Full};
use super::base::ARef;
use super::folio::{Folio, FolioGuard, Locking, ProtectedFolio, Puts};
use super::node::Pending;
use super::pte::{self, LockedPtes, PteRange};
use super::stats::Process;

/// How far a page has come.
pub(crate) enum State {
    /// Nothing is left to do.
    Done,
    /// Somebody else uses it.
    Busy,
    /// It has references too many, which may be those of per-CPU batches.
    Batched,
    /// Somebody else has the folio lock.
    Locked,
    /// It is part of a large folio.
    Large,
    /// Locked by this batch.
    Collected(FolioGuard),
    /// Write-protected: its bytes are stable.
    Stable(ProtectedFolio),
    /// Equal to the zero page.
    Zero(FolioGuard),
    /// Equal to this merged page.
    Twin(FolioGuard, Pending),
}

impl State {
    /// What a folio with references too many is.
    fn in_use(folio: &Folio) -> Self {
        if folio.maybe_batched() {
            Self::Batched
        } else {
            Self::Busy
        }
    }

    /// The folio, while the batch has its lock.
    fn folio(&self) -> Option<&FolioGuard> {
        match self {
            Self::Collected(folio) | Self::Zero(folio) | Self::Twin(folio, _) => Some(folio),
            Self::Stable(folio) => Some(folio),
            Self::Done | Self::Busy | Self::Batched | Self::Locked | Self::Large => None,
        }
    }

    fn into_folio(self) -> Option<ARef<Folio>> {
        match self {
            Self::Collected(folio) | Self::Zero(folio) | Self::Twin(folio, _) => {
                Some(folio.unlock())
            }
            Self::Stable(folio) => Some(folio.into_guard().unlock()),
            Self::Done | Self::Busy | Self::Batched | Self::Locked | Self::Large => None,
        }
    }

    /// The state, if it is such a one, for [`State::set`] to put another in its place.
    pub(crate) fn take(&mut self, which: fn(&Self) -> bool) -> Option<Self> {
        which(self).then(|| replace(self, Self::Done))
    }

    /// What comes after a state that was taken.
    pub(crate) fn set(&mut self, next: Self) {
        debug_assert!(matches!(self, Self::Done));
        // Nothing to drop, which the compiler cannot see.
        forget(replace(self, next));
    }

    pub(crate) fn is_stable(&self) -> bool {
        matches!(self, Self::Stable(..))
    }

    pub(crate) fn is_batched(&self) -> bool {
        matches!(self, Self::Batched)
    }

    pub(crate) fn is_large(&self) -> bool {
        matches!(self, Self::Large)
    }

    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Locked)
    }

    /// Whether the page was left alone because somebody else uses it.
    pub(crate) fn is_left(&self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Batched | Self::Locked | Self::Large
        )
    }

    fn is_collected(&self) -> bool {
        matches!(self, Self::Collected(_))
    }

    fn is_to_replace(&self) -> bool {
        matches!(self, Self::Zero(_) | Self::Twin(..))
    }
}

/// A page of the batch.
pub(crate) struct Candidate {
    pub(crate) slot: usize,
    pub(crate) state: State,
    /// The hash of its sample, once that is known.
    pub(crate) sample: Option<u64>,
    /// The entry while it is cleared.
    pte: bindings::pte_t,
}

impl Candidate {
    /// Clears the entry if it still maps the folio.
    fn clear(&mut self, ptes: &mut LockedPtes<'_>) -> bool {
        let folio = self.state.folio();
        let old = folio.and_then(|folio| ptes.clear_if(self.slot, folio));
        self.pte = old.unwrap_or(self.pte);
        old.is_some()
    }
}

/// Candidates in memory that was there before: with a page table locked there is none to be had.
///
/// # Invariants
///
/// The first `len` of `room` are initialized.
struct Candidates<'a> {
    room: &'a mut [MaybeUninit<Candidate>],
    len: usize,
}

impl<'a> Candidates<'a> {
    fn new(room: &'a mut [MaybeUninit<Candidate>]) -> Self {
        // INVARIANT: There are none.
        Self { room, len: 0 }
    }

    /// Adds one; there is room.
    fn push(&mut self, candidate: Candidate) {
        self.room[self.len].write(candidate);
        // INVARIANT: It is the next one.
        self.len += 1;
    }
}

impl Deref for Candidates<'_> {
    type Target = [Candidate];

    fn deref(&self) -> &[Candidate] {
        // SAFETY: By the invariant.
        unsafe { slice::from_raw_parts(self.room.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Candidates<'_> {
    fn deref_mut(&mut self) -> &mut [Candidate] {
        // SAFETY: By the invariant.
        unsafe { slice::from_raw_parts_mut(self.room.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Candidates<'_> {
    fn drop(&mut self) {
        // Nothing else of them has anything to drop.
        for candidate in self.iter_mut() {
            if candidate.state.folio().is_some() {
                candidate.state = State::Done;
            }
        }
    }
}

/// The candidates of one run of pages.
pub(crate) struct Batch<'a> {
    pub(crate) range: &'a PteRange<'a>,
    candidates: Candidates<'a>,
    /// Whether some page was not collected, and may be put aside or busy.
    pub(crate) left: bool,
}

impl<'a> Batch<'a> {
    /// Step 1: locks the folios of the run that are worth a look, and puts others aside. There is
    /// room for all pages of the run.
    pub(crate) fn collect(range: &'a PteRange<'a>, room: &'a mut [MaybeUninit<Candidate>]) -> Self {
        let mut candidates = Candidates::new(room);
        let mut left = false;
        if let Some(ptes) = range.lock() {
            let mut todo = 0..range.len();
            while let Some((slot, folio)) = ptes.next_folio(todo.clone()) {
                todo.start = slot + 1;
                let state = Self::look(folio);
                if !matches!(state, State::Done) {
                    left |= !state.is_collected();
                    candidates.push(Candidate {
                        slot,
                        state,
                        sample: None,
                        pte: Default::default(),
                    });
                }
            }
        }
        Self {
            range,
            candidates,
            left,
        }
    }

    /// What a folio is that an entry was found to map. It is locked if it is worth more.
    fn look(folio: &Folio) -> State {
        if !folio.is_plain() {
            return State::Done;
        }
        if folio.is_large() {
            return State::Large;
        }
        // Only a first look, which spares the page: the one in protect() decides.
        if folio.other_refs() > 0 {
            return State::in_use(folio);
        }
        match folio.try_lock() {
            Some(folio) => Self::collected(folio),
            None => State::Locked,
        }
    }

    /// A folio of one page that is locked now: it may have been merged before.
    fn collected(folio: FolioGuard) -> State {
        if folio.is_candidate() {
            State::Collected(folio)
        } else {
            State::Done
        }
    }

    /// Looks again at what was put aside for one reason, which should have gone.
    pub(crate) fn collect_again(&mut self, which: fn(&State) -> bool) {
        let ptes = self.range.lock();
        for candidate in self.candidates.iter_mut() {
            if which(&candidate.state) {
                let slots = candidate.slot..candidate.slot + 1;
                let found = ptes.as_ref().and_then(|ptes| ptes.next_folio(slots));
                candidate.state = found.map_or(State::Done, |(_, folio)| Self::look(folio));
            }
        }
    }

    /// Looks again at a page whose folio somebody else had locked, and waits for the lock; no other
    /// folio lock is held. Sleeps; a fatal signal ends it.
    pub(crate) fn collect_waiting(&mut self, at: usize) -> Result {
        let slot = self.candidates[at].slot;
        let found = self.range.lock().and_then(|ptes| {
            let (_, folio) = ptes.next_folio(slot..slot + 1)?;
            Some(ARef::from(folio))
        });
        self.candidates[at].state = match found {
            None => State::Done,
            Some(folio) => {
                let folio = FolioGuard::lock(folio, Locking::Wait)?;
                let small = folio.filter(|folio| !folio.is_large());
                small.map_or(State::Done, Self::collected)
            }
        };
        Ok(())
    }

    /// Splits the large folios that were put aside, where possible. Returns how many pages became
    /// the zero page by that. Sleeps; a fatal signal ends it.
    pub(crate) fn split_large(&mut self) -> Result<usize> {
        for at in 0..self.candidates.len() {
            let Candidate { slot, state, .. } = &self.candidates[at];
            if !matches!(state, State::Large) {
                continue;
            }
            let folio = self.range.lock().and_then(|ptes| {
                let (_, folio) = ptes.next_folio(*slot..*slot + 1)?;
                Some(ARef::from(folio))
            });
            if let Some(folio) = folio.filter(|folio| folio.is_large()) {
                if let Some(folio) = FolioGuard::lock(folio, Locking::Wait)? {
                    folio.split();
                }
            }
        }
        let Some(mut ptes) = self.range.lock() else {
            return Ok(0);
        };
        let large = self.candidates.iter();
        let large = large.filter(|candidate| matches!(candidate.state, State::Large));
        Ok(large.filter(|large| ptes.adopt_zero(large.slot)).count())
    }

    pub(crate) fn candidates(&mut self) -> &mut [Candidate] {
        &mut self.candidates
    }

    /// Whether some candidate is in such a state.
    pub(crate) fn has(&self, which: fn(&State) -> bool) -> bool {
        let mut all = self.candidates.iter();
        all.any(|candidate| which(&candidate.state))
    }

    /// The lowest and the highest slot of the candidates in such a state; `None` when there is
    /// none.
    fn bounds(&self, which: fn(&State) -> bool) -> Option<(usize, usize)> {
        let all = &self.candidates;
        let is = |candidate: &Candidate| which(&candidate.state);
        // They are in the order of their slots.
        let first = all.iter().position(is)?;
        let last = all.iter().rposition(is)?;
        Some((all[first].slot, all[last].slot))
    }

    /// Step 2: write-protects what is collected, with at most one TLB flush. May sleep.
    ///
    /// An entry is cleared before the references are counted: lockless GUP takes its reference
    /// first and looks at the entry again afterwards, so either we see the reference or it sees
    /// the cleared entry.
    pub(crate) fn protect(&mut self) {
        let Some((first, last)) = self.bounds(State::is_collected) else {
            return;
        };
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.drop_all(State::is_collected);
            return;
        };
        let mut flush = ptes.flush_pending();
        for candidate in self.candidates.iter_mut() {
            if candidate.state.is_collected() {
                if candidate.clear(&mut ptes) {
                    let folio = candidate.state.folio();
                    flush |= folio.is_some_and(|folio| pte::may_be_stale(candidate.pte, folio));
                } else {
                    candidate.state = State::Done;
                }
            }
        }
        if flush {
            ptes.flush(first, last);
        }
        // Entries are cleared before references are counted, on every CPU. Pairs with the barrier
        // of who got a reference in try_grab_folio_fast().
        smp_mb(Full);
        for candidate in self.candidates.iter_mut() {
            if let Some(State::Collected(folio)) = candidate.state.take(State::is_collected) {
                let next = Self::protect_one(&mut ptes, candidate, folio);
                self.left |= !next.is_stable();
                candidate.state.set(next);
            }
        }
        // Who held a reference has put it: what he wrote before is seen by those who read the
        // bytes.
        smp_mb(Full);
    }

    /// Decides on one cleared entry, and sets it again.
    fn protect_one(ptes: &mut LockedPtes<'_>, candidate: &Candidate, folio: FolioGuard) -> State {
        // This batch has one reference.
        let used = folio.other_refs() != 1;
        // SAFETY: The entry is cleared and the table locked.
        if used || !unsafe { folio.share() } {
            ptes.set(candidate.slot, candidate.pte);
            return State::in_use(&folio);
        }
        if pte::is_dirty(candidate.pte) {
            folio.mark_dirty();
        }
        ptes.set(candidate.slot, pte::clean_readonly(candidate.pte));
        // SAFETY: The lock is ours, exclusivity is given up, and so no other entry was writable;
        // this one is read-only now. The folio was plain when it was locked.
        State::Stable(unsafe { ProtectedFolio::new(folio) })
    }

    /// Step 5: points the entries of pages that have a twin, or are zero, at what they are equal
    /// to, with one TLB flush before the old pages can be freed. Returns how many. May sleep.
    pub(crate) fn replace(&mut self) -> usize {
        let Some((first, last)) = self.bounds(State::is_to_replace) else {
            return 0;
        };
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.drop_all(State::is_to_replace);
            return 0;
        };
        for candidate in self.candidates.iter_mut() {
            if !candidate.state.is_to_replace() {
                continue;
            }
            // Memory failure looks at this table after it has marked the page.
            let bad = matches!(&candidate.state, State::Twin(_, page) if page.went_bad());
            if bad || !candidate.clear(&mut ptes) {
                candidate.state = State::Done;
            } else if pte::is_writable(candidate.pte) {
                // The folio is locked and not exclusive: while the entry maps it read-only, it has
                // the bytes that were compared. This one went exclusive again before our lock.
                ptes.set(candidate.slot, candidate.pte);
                candidate.state = State::Done;
            }
        }
        ptes.flush(first, last);
        let mm = self.range.mm();
        let vma = self.range.vma().as_ptr();
        let mut count = 0;
        for candidate in self.candidates.iter_mut() {
            let (folio, pte) = match candidate.state.take(State::is_to_replace) {
                Some(State::Twin(folio, page)) => {
                    let addr = self.range.addr(candidate.slot);
                    // SAFETY: The table is locked, the entry clear, and the page referenced.
                    let pte = unsafe {
                        bindings::sksm_folio_add_rmap(page.folio().as_ptr(), vma, addr);
                        bindings::sksm_pte_for_folio(page.folio().as_ptr(), vma, candidate.pte)
                    };
                    mm.trace_merge(addr, Some(page.folio()));
                    page.mapped(Process(mm));
                    (folio, pte)
                }
                Some(State::Zero(folio)) => {
                    let addr = self.range.addr(candidate.slot);
                    mm.account_zero_page();
                    mm.trace_merge(addr, None);
                    (folio, self.range.vma().zero_pte(candidate.pte))
                }
                _ => continue,
            };
            ptes.set(candidate.slot, pte);
            Self::drop_mapping(self.range, &folio);
            count += 1;
            // Unlocked and put with the others, after the page-table lock.
            candidate.state.set(State::Collected(folio));
        }
        count
    }

    /// Ends the old mapping of a folio whose entry maps something else now.
    fn drop_mapping(range: &PteRange<'_>, folio: &FolioGuard) {
        // SAFETY: The table is locked, and the TLB does not hold the old mapping any more. The
        // mapping's reference goes; ours stays, so nothing is freed under the lock.
        unsafe {
            bindings::sksm_folio_remove_rmap(folio.as_ptr(), range.vma().as_ptr());
            if !bindings::sksm_folio_mapped(folio.as_ptr()) {
                folio.leave_swapcache();
            }
            bindings::sksm_folio_put(folio.as_ptr());
        }
    }

    /// Unlocks and puts all folios that the batch still has: nothing is left to do with them.
    pub(crate) fn let_go(&mut self) {
        let mut puts = Puts::new();
        for candidate in self.candidates.iter_mut() {
            if candidate.state.folio().is_some() {
                let state = replace(&mut candidate.state, State::Done);
                state.into_folio().map(|folio| puts.add(folio));
            }
        }
    }

    fn drop_all(&mut self, which: fn(&State) -> bool) {
        for candidate in self.candidates.iter_mut() {
            drop(candidate.state.take(which));
        }
    }
}
