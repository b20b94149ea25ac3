// SPDX-License-Identifier: GPL-2.0-only

//! A run of entries of one page table.

use core::ops::Range;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::PAGE_SHIFT;

use super::base::ARef;
use super::folio::Folio;
use super::mm::{functions, Mm, Vma};

/// Entries handled in one batch: those of a page table where pages have 4 KiB.
pub(crate) const MAX_SLOTS: usize = 512;

/// The memory under one page table, in bytes.
const TABLE: usize = (bindings::SKSM_TABLE_ENTRIES as usize) << PAGE_SHIFT;

/// A run of pages of `vma` under one PMD; from [`PteRange::next`] at most [`MAX_SLOTS`].
///
/// # Invariants
///
/// `mmap_lock` or the lock of `vma` is held for read, `vma` covers the run, and `pmd` is its PMD
/// entry.
pub(crate) struct PteRange<'a> {
    vma: &'a Vma,
    pmd: *mut bindings::pmd_t,
    start: usize,
    len: usize,
    anonymous: bool,
}

impl<'a> PteRange<'a> {
    /// The run at `*at`, of pages up to `end`; `None` where there are no page tables. `*at` is
    /// behind it then, or behind the gap.
    ///
    /// # Safety
    ///
    /// `mmap_lock` or the lock of `vma` is held for read while the result lives; `vma` covers the
    /// range, and KSM would take its pages: so there are no larger entries in what holds PMDs.
    pub(crate) unsafe fn next(vma: &'a Vma, at: &mut usize, end: usize) -> Option<Self> {
        let start = *at;
        // SAFETY: The lock keeps what holds the page tables.
        let pmd = unsafe { bindings::sksm_find_pmd(vma.mm().as_ptr(), start, end, at) };
        if pmd.is_null() {
            return None;
        }
        *at = (*at).min(start + (MAX_SLOTS << PAGE_SHIFT));
        // INVARIANT: As the caller promises, and up to here the pages are under this entry.
        Some(Self {
            vma,
            pmd,
            start,
            len: (*at - start) >> PAGE_SHIFT,
            anonymous: vma.is_anonymous(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no file behind the pages.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    pub(crate) fn vma(&self) -> &'a Vma {
        self.vma
    }

    pub(crate) fn mm(&self) -> &'a Mm {
        self.vma.mm()
    }

    pub(crate) fn addr(&self, slot: usize) -> usize {
        self.start + (slot << PAGE_SHIFT)
    }

    /// Locks the page table; `None` when there is none any more.
    pub(crate) fn lock(&self) -> Option<LockedPtes<'_>> {
        let mut ptl = core::ptr::null_mut();
        // SAFETY: The lock keeps the PMD's page in place.
        let first =
            unsafe { bindings::sksm_pte_lock(self.mm().as_ptr(), self.pmd, self.start, &mut ptl) };
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
        self.mm().notifier_start(&mut range, from, to);
        Notifier(range)
    }

    /// The anonymous folio that a huge PMD maps here, with a reference.
    pub(crate) fn huge_folio(&self) -> Option<ARef<Folio>> {
        // SAFETY: The VMA is kept, and `pmd` belongs to it. The call takes a reference.
        unsafe {
            let folio = bindings::sksm_pmd_get_folio(self.vma.as_ptr(), self.pmd, self.start);
            NonNull::new(folio).map(|folio| ARef::from_raw(folio.cast()))
        }
    }

    /// All of the page table that the VMA covers.
    pub(crate) fn whole_table(&self) -> Self {
        let start = self.start & !(TABLE - 1);
        let from = start.max(self.vma.start());
        let to = (start + TABLE).min(self.vma.end());
        // INVARIANT: Within the VMA, and under the same PMD.
        Self {
            start: from,
            len: (to - from) >> PAGE_SHIFT,
            ..*self
        }
    }
}

/// An open mmu_notifier bracket.
pub(crate) struct Notifier(bindings::mmu_notifier_range);

impl Drop for Notifier {
    fn drop(&mut self) {
        notifier_end(&mut self.0);
    }
}

/// The run with its page table locked: no sleeping.
///
/// # Invariants
///
/// `first` maps the entry of slot 0 and `ptl` is held.
pub(crate) struct LockedPtes<'a> {
    range: &'a PteRange<'a>,
    first: NonNull<bindings::pte_t>,
    ptl: *mut bindings::spinlock_t,
}

impl LockedPtes<'_> {
    fn ptep(&self, slot: usize) -> *mut bindings::pte_t {
        assert!(slot < self.range.len);
        // SAFETY: The slot is in the run, which lies within one page table.
        unsafe { self.first.as_ptr().add(slot) }
    }

    /// The first of these slots that maps an anonymous folio which is not merged, and the folio.
    pub(crate) fn next_folio(&self, slots: Range<usize>) -> Option<(usize, &Folio)> {
        let mut slot = slots.start;
        // SAFETY: The table is locked; all its entries up to the end are the VMA's. While it is, a
        // mapping holds a reference.
        unsafe {
            let folio = bindings::sksm_pte_next_folio(
                self.range.vma.as_ptr(),
                self.range.start,
                self.first.as_ptr(),
                &mut slot,
                slots.end.min(self.range.len),
            );
            (!folio.is_null()).then(|| (slot, Folio::from_raw(folio)))
        }
    }

    /// Clears an entry if it maps this folio, and returns what it was. The TLB is not flushed.
    pub(crate) fn clear_if(&mut self, slot: usize, folio: &Folio) -> Option<bindings::pte_t> {
        let mut old = bindings::pte_t::default();
        // SAFETY: The table is locked.
        let cleared = unsafe {
            bindings::sksm_pte_clear_if(
                self.range.vma.as_ptr(),
                self.range.addr(slot),
                self.ptep(slot),
                folio.as_ptr(),
                &mut old,
            )
        };
        cleared.then_some(old)
    }

    /// Counts a page as merged that a split made the zero page; false if the entry is no such one.
    pub(crate) fn adopt_zero(&mut self, slot: usize) -> bool {
        // SAFETY: The table is locked.
        unsafe {
            let vma = self.range.vma.as_ptr();
            bindings::sksm_pte_adopt_zero(vma, self.range.addr(slot), self.ptep(slot))
        }
    }

    /// Sets an entry that is clear.
    pub(crate) fn set(&mut self, slot: usize, pte: bindings::pte_t) {
        // SAFETY: The table is locked and the entry clear.
        unsafe {
            let mm = self.range.mm().as_ptr();
            bindings::sksm_pte_set(mm, self.range.addr(slot), self.ptep(slot), pte);
        }
    }

    /// Flushes the TLB for the slots `from..=to`.
    pub(crate) fn flush(&mut self, from: usize, to: usize) {
        let (from, to) = (self.range.addr(from), self.range.addr(to + 1));
        self.range.vma.flush_tlb(from, to);
    }

    /// Whether another CPU has entries in its TLB that the page table has lost already.
    pub(crate) fn flush_pending(&self) -> bool {
        self.range.mm().is_flush_pending()
    }
}

impl Drop for LockedPtes<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant both are ours.
        unsafe { bindings::sksm_pte_unlock(self.first.as_ptr(), self.ptl) };
    }
}

/// Whether some CPU may write the page by an entry that this was before, and have it in its TLB. As
/// for KSM: also if the entry is read-only, but dirty or of an exclusive page.
pub(crate) fn may_be_stale(pte: bindings::pte_t, folio: &Folio) -> bool {
    is_writable(pte) || is_dirty(pte) || folio.is_exclusive()
}

functions! {
    fn notifier_end(range: &mut bindings::mmu_notifier_range) = sksm_notifier_end;
    fn is_writable(pte: bindings::pte_t) -> bool = sksm_pte_write;
    fn is_dirty(pte: bindings::pte_t) -> bool = sksm_pte_dirty;
    /// The same mapping, clean and read-only; soft-dirty and userfaultfd bits stay.
    fn clean_readonly(pte: bindings::pte_t) -> bindings::pte_t = sksm_pte_clean_readonly;
}
