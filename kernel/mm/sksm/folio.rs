// SPDX-License-Identifier: GPL-2.0-only

//! Folios by reference and by lock.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use kernel::bindings;

/// Words of 8 bytes in a page.
const WORDS: usize = kernel::page::PAGE_SIZE / 8;

/// A reference to a folio; order-0 unless said otherwise.
///
/// # Invariants
///
/// Owns one reference of the folio.
#[repr(transparent)]
pub(crate) struct Folio(NonNull<bindings::folio>);

impl Folio {
    /// Takes a reference if the folio is not being freed.
    ///
    /// # Safety
    ///
    /// `folio` points to a `struct folio`, in use or not.
    pub(crate) unsafe fn try_get(folio: *mut bindings::folio) -> Option<Self> {
        // SAFETY: A conditional reference may be tried on any struct page.
        if !unsafe { bindings::sksm_folio_try_get(folio) } {
            return None;
        }
        // INVARIANT: The reference was just taken.
        NonNull::new(folio).map(Self)
    }

    /// Takes a reference of a folio that is in use.
    ///
    /// # Safety
    ///
    /// Something else holds a reference during the call.
    pub(crate) unsafe fn get(folio: NonNull<bindings::folio>) -> Self {
        // SAFETY: The count is not zero, as the caller promises.
        unsafe { bindings::sksm_folio_get(folio.as_ptr()) };
        // INVARIANT: The reference was just taken.
        Self(folio)
    }

    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// The caller owns the reference and gives it away.
    pub(crate) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: As the caller promises.
        Self(folio)
    }

    /// Views a folio that something else keeps in use; does not put.
    ///
    /// # Safety
    ///
    /// Somebody holds a reference for as long as the result lives.
    pub(crate) unsafe fn borrow(folio: NonNull<bindings::folio>) -> ManuallyDrop<Self> {
        // INVARIANT: As the caller promises; ManuallyDrop keeps the reference in place.
        ManuallyDrop::new(Self(folio))
    }

    /// Waits for the folio lock. May sleep.
    pub(crate) fn lock(self) -> LockedFolio {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_lock(self.as_ptr()) };
        // INVARIANT: The lock was just taken.
        LockedFolio(self)
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::folio {
        self.0.as_ptr()
    }

    /// `folio->mapping`, flag bits included.
    pub(crate) fn mapping(&self) -> usize {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_mapping(self.as_ptr()) as usize }
    }

    pub(crate) fn is_anon(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_anon(self.as_ptr()) }
    }

    /// A merged page, of SKSM or of KSM.
    pub(crate) fn is_ksm(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_ksm(self.as_ptr()) }
    }

    pub(crate) fn is_large(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_large(self.as_ptr()) }
    }

    pub(crate) fn is_zone_device(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_zone_device(self.as_ptr()) }
    }

    pub(crate) fn is_hwpoison(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_hwpoison(self.as_ptr()) }
    }

    pub(crate) fn in_swapcache(&self) -> bool {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_swapcache(self.as_ptr()) }
    }

    /// Whether references too many may be those of per-CPU batches of the LRU or of mlock, of which
    /// the page itself says nothing. Pins for DMA count differently.
    pub(crate) fn maybe_batched(&self) -> bool {
        // SAFETY: The folio is in use.
        !unsafe { bindings::sksm_folio_maybe_dma_pinned(self.as_ptr()) }
    }

    pub(crate) fn mapcount(&self) -> i32 {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_mapcount(self.as_ptr()) }
    }

    /// References, without the swap cache's.
    pub(crate) fn users(&self) -> i32 {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_ref_count(self.as_ptr()) - i32::from(self.in_swapcache()) }
    }

    pub(crate) fn pfn(&self) -> usize {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_pfn(self.as_ptr()) }
    }

    pub(crate) fn nid(&self) -> i32 {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_nid(self.as_ptr()) }
    }

    /// Marks the folio dirty, so that reclaim writes it to swap rather than drops it.
    pub(crate) fn mark_dirty(&self) {
        // SAFETY: The folio is in use.
        unsafe {
            if !bindings::sksm_folio_dirty(self.as_ptr()) {
                bindings::folio_mark_dirty(self.as_ptr());
            }
        }
    }

    /// Calls `f` with the page's bytes as words. They must be stable: write-protected everywhere.
    fn with_words<R>(&self, f: impl FnOnce(&[u64; WORDS]) -> R) -> R {
        // SAFETY: The folio is in use, so it can be mapped.
        let addr = unsafe { bindings::sksm_folio_map(self.as_ptr()) };
        // SAFETY: `addr` is a page-aligned page that nobody writes, as the engine only reads
        // protected pages.
        let result = f(unsafe { &*addr.cast::<[u64; WORDS]>() });
        // SAFETY: Undoes the mapping above, in reverse order if nested.
        unsafe { bindings::sksm_folio_unmap(addr) };
        result
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.with_words(|words| {
            words
                .chunks_exact(8)
                .all(|line| line.iter().fold(0, |sum, word| sum | word) == 0)
        })
    }

    pub(crate) fn same_bytes(&self, other: &Folio) -> bool {
        self.with_words(|a| {
            other.with_words(|b| {
                a.chunks_exact(8).zip(b.chunks_exact(8)).all(|(a, b)| {
                    a.iter()
                        .zip(b)
                        .fold(0, |difference, (a, b)| difference | (a ^ b))
                        == 0
                })
            })
        })
    }

    /// xxh64 of the bytes.
    pub(crate) fn checksum(&self, seed: u64) -> u64 {
        self.with_words(|words| {
            // SAFETY: `words` is one readable page.
            unsafe { bindings::xxh64(words.as_ptr().cast(), core::mem::size_of_val(words), seed) }
        })
    }
}

impl Drop for Folio {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::sksm_folio_put(self.as_ptr()) };
    }
}

/// A reference to a folio whose lock is held.
///
/// # Invariants
///
/// The folio lock is held until drop.
#[repr(transparent)]
pub(crate) struct LockedFolio(Folio);

impl LockedFolio {
    /// Locks a folio that something else keeps in use during the call, without waiting.
    ///
    /// # Safety
    ///
    /// As for [`Folio::get`].
    pub(crate) unsafe fn try_lock(folio: NonNull<bindings::folio>) -> Option<Self> {
        // SAFETY: The folio is in use, as the caller promises.
        if !unsafe { bindings::sksm_folio_trylock(folio.as_ptr()) } {
            return None;
        }
        // INVARIANT: The lock was just taken.
        // SAFETY: The folio is in use, as the caller promises.
        Some(Self(unsafe { Folio::get(folio) }))
    }

    /// Views a folio that the caller has locked; neither unlocks nor puts.
    ///
    /// # Safety
    ///
    /// The caller holds lock and reference for as long as the result lives.
    pub(crate) unsafe fn borrow(folio: *mut bindings::folio) -> ManuallyDrop<Self> {
        // SAFETY: Callers pass folios, never NULL.
        let folio = unsafe { NonNull::new_unchecked(folio) };
        // INVARIANT: As the caller promises; ManuallyDrop keeps both in place.
        ManuallyDrop::new(Self(Folio(folio)))
    }

    /// Unlocks, keeps the reference.
    pub(crate) fn unlock(self) -> Folio {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the invariant the lock is ours.
        unsafe { bindings::folio_unlock(this.0.as_ptr()) };
        // SAFETY: `this` is not dropped, so the reference moves to the result.
        unsafe { core::ptr::read(&this.0) }
    }

    /// Sets `folio->mapping`, flag bits included.
    pub(crate) fn set_mapping(&self, mapping: usize) {
        // SAFETY: The folio lock guards `mapping` of anonymous folios.
        unsafe { bindings::sksm_folio_set_mapping(self.as_ptr(), mapping as *mut _) };
    }

    /// `folio->index` of an anonymous folio.
    pub(crate) fn index(&self) -> usize {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_index(self.as_ptr()) }
    }

    /// Tries to give up swap space; true when the folio is not in the swap cache afterwards.
    pub(crate) fn leave_swapcache(&self) -> bool {
        if self.in_swapcache() {
            // SAFETY: The folio is locked and in the swap cache.
            unsafe { bindings::folio_free_swap(self.as_ptr()) };
        }
        !self.in_swapcache()
    }

    /// Ends anonymous exclusivity; false when the page may be pinned.
    ///
    /// # Safety
    ///
    /// The page-table lock is held and the only page-table entry that maps an exclusive page is
    /// cleared.
    pub(crate) unsafe fn share(&self) -> bool {
        // SAFETY: The folio is anonymous and locked; the entry is cleared.
        unsafe {
            !bindings::sksm_folio_exclusive(self.as_ptr())
                || bindings::sksm_folio_share(self.as_ptr())
        }
    }

    /// Splits a large folio; true when it is order-0 afterwards. May sleep.
    pub(crate) fn split(&self) -> bool {
        // SAFETY: Locked and referenced, as splitting needs.
        !self.is_large() || unsafe { bindings::sksm_folio_split(self.as_ptr()) } == 0
    }
}

impl Deref for LockedFolio {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        &self.0
    }
}

impl Drop for LockedFolio {
    fn drop(&mut self) {
        // SAFETY: By the invariant the lock is ours; the reference goes after it.
        unsafe { bindings::folio_unlock(self.0.as_ptr()) };
    }
}
