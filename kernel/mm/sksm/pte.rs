// SPDX-License-Identifier: GPL-2.0-only

//! A run of entries of one page table.

use core::ops::Range;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::PAGE_SHIFT;

use super::folio::Folio;

/// Entries handled in one batch: a page table's worth on the common architectures.
pub(crate) const MAX_SLOTS: usize = 512;

/// A set of slots of a [`PteRange`].
#[derive(Clone, Copy, Default)]
pub(crate) struct SlotSet([u64; MAX_SLOTS / 64]);

impl SlotSet {
    pub(crate) fn first(count: usize) -> Self {
        let mut set = Self::default();
        for (base, word) in set.0.iter_mut().enumerate() {
            *word = match count.saturating_sub(base * 64) {
                0 => 0,
                some @ 1..64 => (1 << some) - 1,
                _ => u64::MAX,
            };
        }
        set
    }

    pub(crate) fn one(slot: usize) -> Self {
        let mut set = Self::default();
        set.insert(slot);
        set
    }

    pub(crate) fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    pub(crate) fn contains(&self, slot: usize) -> bool {
        self.0[slot / 64] & 1 << (slot % 64) != 0
    }

    /// From the first slot to behind the last.
    pub(crate) fn bounds(&self) -> Range<usize> {
        let used = |word: &u64| *word != 0;
        let (Some(first), Some(last)) =
            (self.0.iter().position(used), self.0.iter().rposition(used))
        else {
            return 0..0;
        };
        let end = (last + 1) * 64 - self.0[last].leading_zeros() as usize;
        first * 64 + self.0[first].trailing_zeros() as usize..end
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(word, other)| *word |= other);
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        self.bounds().filter(move |slot| self.contains(*slot))
    }
}

/// Up to [`MAX_SLOTS`] pages of `vma` under one PMD.
///
/// # Invariants
///
/// `mmap_lock` is held for read, `vma` covers the run, and `pmd` is its PMD entry.
pub(crate) struct PteRange {
    vma: *mut bindings::vm_area_struct,
    pmd: *mut bindings::pmd_t,
    start: usize,
    len: usize,
}

impl PteRange {
    /// # Safety
    ///
    /// The invariants hold while the result lives.
    pub(crate) unsafe fn new(
        vma: *mut bindings::vm_area_struct,
        pmd: *mut bindings::pmd_t,
        start: usize,
        end: usize,
    ) -> Self {
        // INVARIANT: As the caller promises.
        Self {
            vma,
            pmd,
            start,
            len: ((end - start) >> PAGE_SHIFT).min(MAX_SLOTS),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn vma(&self) -> *mut bindings::vm_area_struct {
        self.vma
    }

    pub(crate) fn mm(&self) -> *mut bindings::mm_struct {
        // SAFETY: `vma` is valid and its mm never changes.
        unsafe { (*self.vma).vm_mm }
    }

    pub(crate) fn addr(&self, slot: usize) -> usize {
        self.start + (slot << PAGE_SHIFT)
    }

    /// The page offset that anonymous reverse maps know this slot by.
    pub(crate) fn pgoff(&self, slot: usize) -> usize {
        // SAFETY: The address is in `vma`.
        unsafe { bindings::sksm_vma_pgoff(self.vma, self.addr(slot)) }
    }

    /// The VMA's anon_vma: present, as the VMA has anonymous pages.
    pub(crate) fn anon_vma(&self) -> *mut bindings::anon_vma {
        // SAFETY: `vma` is valid; mmap_lock keeps its anon_vma.
        unsafe { (*self.vma).anon_vma }
    }

    /// Locks the page table; `None` when there is none any more.
    pub(crate) fn lock(&self) -> Option<LockedPtes<'_>> {
        let mut ptl = core::ptr::null_mut();
        // SAFETY: mmap_lock keeps the PMD's page in place.
        let first = unsafe { bindings::sksm_pte_lock(self.mm(), self.pmd, self.start, &mut ptl) };
        // INVARIANT: The table is mapped and locked if the pointer is not NULL.
        NonNull::new(first).map(|first| LockedPtes {
            range: self,
            first,
            ptl,
        })
    }

    /// Brackets changes to the slots `from..=to` for secondary MMUs. May sleep.
    pub(crate) fn notify(&self, from: usize, to: usize) -> Notifier {
        let mut range = bindings::mmu_notifier_range::default();
        let (from, to) = (self.addr(from), self.addr(to + 1));
        // SAFETY: The mm is valid; `range` is initialised by the call.
        unsafe { bindings::sksm_notifier_start(&mut range, self.mm(), from, to) };
        Notifier(range)
    }

    /// The anonymous folio that a huge PMD maps here, with a reference.
    pub(crate) fn huge_folio(&self) -> Option<Folio> {
        // SAFETY: mmap_lock is held and `pmd` belongs to `vma`.
        let folio = unsafe { bindings::sksm_pmd_get_folio(self.vma, self.pmd, self.start) };
        // SAFETY: The call took a reference.
        NonNull::new(folio).map(|folio| unsafe { Folio::from_raw(folio) })
    }
}

/// An open mmu_notifier bracket.
pub(crate) struct Notifier(bindings::mmu_notifier_range);

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: Opened by `PteRange::notify`.
        unsafe { bindings::sksm_notifier_end(&mut self.0) };
    }
}

/// The run with its page table locked: no sleeping.
///
/// # Invariants
///
/// `first` maps the entry of slot 0 and `ptl` is held.
pub(crate) struct LockedPtes<'a> {
    range: &'a PteRange,
    first: NonNull<bindings::pte_t>,
    ptl: *mut bindings::spinlock_t,
}

impl LockedPtes<'_> {
    fn ptep(&self, slot: usize) -> *mut bindings::pte_t {
        debug_assert!(slot < self.range.len);
        // SAFETY: The run lies within one page table.
        unsafe { self.first.as_ptr().add(slot) }
    }

    /// The first of these slots that maps an anonymous folio which is not merged, and the folio.
    pub(crate) fn next_folio(
        &self,
        slots: Range<usize>,
    ) -> Option<(usize, NonNull<bindings::folio>)> {
        let mut slot = slots.start;
        // SAFETY: The table is locked; all its entries up to the end are the VMA's.
        let folio = unsafe {
            bindings::sksm_pte_next_folio(
                self.range.vma,
                self.range.start,
                self.first.as_ptr(),
                &mut slot,
                slots.end.min(self.range.len),
            )
        };
        NonNull::new(folio).map(|folio| (slot, folio))
    }

    /// Clears an entry if it maps this folio, and returns what it was. The TLB is not flushed.
    pub(crate) fn clear_if(&mut self, slot: usize, folio: &Folio) -> Option<bindings::pte_t> {
        let mut old = bindings::pte_t::default();
        // SAFETY: The table is locked.
        let cleared = unsafe {
            bindings::sksm_pte_clear_if(
                self.range.vma,
                self.range.addr(slot),
                self.ptep(slot),
                folio.as_ptr(),
                &mut old,
            )
        };
        cleared.then_some(old)
    }

    /// Sets an entry that is clear.
    pub(crate) fn set(&mut self, slot: usize, pte: bindings::pte_t) {
        // SAFETY: The table is locked and the entry clear.
        unsafe {
            bindings::sksm_pte_set(self.range.mm(), self.range.addr(slot), self.ptep(slot), pte)
        }
    }

    /// Flushes the TLB for the slots `from..=to`.
    pub(crate) fn flush(&mut self, from: usize, to: usize) {
        // SAFETY: The VMA covers the range.
        unsafe {
            bindings::sksm_flush_tlb(
                self.range.vma,
                self.range.addr(from),
                self.range.addr(to + 1),
            )
        }
    }

    /// Whether another CPU has entries in its TLB that the page table has lost already.
    pub(crate) fn flush_pending(&self) -> bool {
        // SAFETY: The mm is valid and the table locked.
        unsafe { bindings::sksm_tlb_flush_pending(self.range.mm()) }
    }
}

impl Drop for LockedPtes<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant both are ours.
        unsafe { bindings::sksm_pte_unlock(self.first.as_ptr(), self.ptl) };
    }
}

/// A full barrier, for lockless walks of page tables: they take their reference first and look at
/// the entry again, with a barrier between the two.
pub(crate) fn smp_mb() {
    // SAFETY: No preconditions.
    unsafe { bindings::sksm_smp_mb() };
}

pub(crate) fn is_writable(pte: bindings::pte_t) -> bool {
    // SAFETY: Looks at a value.
    unsafe { bindings::sksm_pte_write(pte) }
}

pub(crate) fn is_dirty(pte: bindings::pte_t) -> bool {
    // SAFETY: Looks at a value.
    unsafe { bindings::sksm_pte_dirty(pte) }
}

/// The same mapping, clean and read-only; soft-dirty and userfaultfd bits stay.
pub(crate) fn clean_readonly(pte: bindings::pte_t) -> bindings::pte_t {
    // SAFETY: Works on a value.
    unsafe { bindings::sksm_pte_clean_readonly(pte) }
}
