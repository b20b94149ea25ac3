// SPDX-License-Identifier: GPL-2.0-only

//! Folios by reference and by lock.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use kernel::bindings;

/// Words of 8 bytes in a page, and in a line of the cache.
const WORDS: usize = kernel::page::PAGE_SIZE / 8;
const LINE: usize = 8;
/// Words that are looked at before the question whether to go on.
const STRIDE: usize = 16;

/// Lines in a sample, and how far they are apart: with pages of 4 KiB the first line and the last,
/// each at another place of its 512 bytes.
const SAMPLE_LINES: usize = 8;
const SAMPLE_STRIDE: usize = WORDS / LINE / SAMPLE_LINES + 1;

/// How to take a folio lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locking {
    /// Never waits.
    Try,
    /// Waits, and so may sleep.
    Wait,
}

/// What kind of folio something is, or was when somebody looked.
#[derive(Clone, Copy)]
pub(crate) struct State(u32);

impl State {
    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Whether the engine wants such a folio at all: anonymous, not merged yet, plain memory, sane.
    pub(crate) fn is_candidate(self) -> bool {
        let unwanted = bindings::SKSM_FOLIO_KSM
            | bindings::SKSM_FOLIO_ZONE_DEVICE
            | bindings::SKSM_FOLIO_HWPOISON;
        self.has(bindings::SKSM_FOLIO_ANON) && !self.has(unwanted)
    }

    pub(crate) fn is_large(self) -> bool {
        self.has(bindings::SKSM_FOLIO_LARGE)
    }

    pub(crate) fn is_hwpoison(self) -> bool {
        self.has(bindings::SKSM_FOLIO_HWPOISON)
    }

    pub(crate) fn in_swapcache(self) -> bool {
        self.has(bindings::SKSM_FOLIO_SWAPCACHE)
    }
}

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

    /// Takes the folio lock in one of the two ways; `None` when it was to be tried, and is taken.
    pub(crate) fn lock_by(self, locking: Locking) -> Option<LockedFolio> {
        if locking == Locking::Wait {
            return Some(self.lock());
        }
        // SAFETY: The folio is in use.
        let locked = unsafe { bindings::sksm_folio_trylock(self.as_ptr()) };
        // INVARIANT: The lock was just taken.
        locked.then(|| LockedFolio(self))
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::folio {
        self.0.as_ptr()
    }

    /// `folio->mapping`, flag bits included.
    pub(crate) fn mapping(&self) -> usize {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_mapping(self.as_ptr()) as usize }
    }

    /// What kind of folio it is, now.
    pub(crate) fn state(&self) -> State {
        // SAFETY: The folio is in use.
        State(unsafe { bindings::sksm_folio_state(self.as_ptr()) })
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

    /// References of neither mappings nor the swap cache.
    pub(crate) fn other_refs(&self) -> i32 {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_other_refs(self.as_ptr()) }
    }

    pub(crate) fn nid(&self) -> i32 {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_nid(self.as_ptr()) }
    }

    /// Marks the folio dirty, so that reclaim writes it to swap rather than drops it.
    pub(crate) fn mark_dirty(&self) {
        // SAFETY: The folio is in use.
        unsafe { bindings::sksm_folio_mark_dirty(self.as_ptr()) };
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

    pub(crate) fn same_bytes(&self, other: &Folio) -> bool {
        self.with_words(|a| {
            other.with_words(|b| {
                let mut strides = a.chunks_exact(STRIDE).zip(b.chunks_exact(STRIDE));
                strides.all(|(a, b)| {
                    let words = a.iter().zip(b);
                    words.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
                })
            })
        })
    }

    /// xxh64 of a sample of the bytes; `None` when all bytes are zero.
    pub(crate) fn sample_checksum(&self, seed: u64) -> Option<u64> {
        self.with_words(|words| {
            // The first line settles it for most pages.
            if is_zero(&words[..LINE]) && words.chunks_exact(STRIDE).all(is_zero) {
                return None;
            }
            let mut sample = [0; SAMPLE_LINES * LINE];
            let lines = words.chunks_exact(LINE).step_by(SAMPLE_STRIDE);
            for (to, from) in sample.chunks_exact_mut(LINE).zip(lines) {
                to.copy_from_slice(from);
            }
            Some(xxh64(&sample, seed))
        })
    }

    /// xxh64 of all bytes.
    pub(crate) fn checksum(&self, seed: u64) -> u64 {
        self.with_words(|words| xxh64(words, seed))
    }
}

fn is_zero(words: &[u64]) -> bool {
    words.iter().fold(0, |sum, word| sum | word) == 0
}

fn xxh64(words: &[u64], seed: u64) -> u64 {
    // SAFETY: The words are readable.
    unsafe { bindings::xxh64(words.as_ptr().cast(), size_of_val(words), seed) }
}

impl Drop for Folio {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::sksm_folio_put(self.as_ptr()) };
    }
}

/// Puts folios many at a time, which costs less when they are freed by it.
pub(crate) struct Puts(bindings::folio_batch);

impl Puts {
    pub(crate) fn new() -> Self {
        Self(bindings::folio_batch::default())
    }

    /// Puts the folio, by the end of this batch at the latest.
    pub(crate) fn add(&mut self, folio: Folio) {
        let folio = ManuallyDrop::new(folio);
        self.0.folios[usize::from(self.0.nr)] = folio.as_ptr();
        self.0.nr += 1;
        if usize::from(self.0.nr) == self.0.folios.len() {
            self.put();
        }
    }

    fn put(&mut self) {
        // SAFETY: The batch owns the references of its folios. Empty afterwards.
        unsafe { bindings::sksm_folios_put(&mut self.0) };
    }
}

impl Drop for Puts {
    fn drop(&mut self) {
        if self.0.nr > 0 {
            self.put();
        }
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
        if !self.state().in_swapcache() {
            return true;
        }
        // SAFETY: The folio is locked and in the swap cache.
        unsafe { bindings::folio_free_swap(self.as_ptr()) };
        !self.state().in_swapcache()
    }

    /// Ends anonymous exclusivity; false when the page may be pinned.
    ///
    /// # Safety
    ///
    /// The page-table lock is held and the only page-table entry that maps an exclusive page is
    /// cleared.
    pub(crate) unsafe fn share(&self) -> bool {
        // SAFETY: The folio is anonymous and locked; the entry is cleared.
        unsafe { bindings::sksm_folio_share(self.as_ptr()) }
    }

    /// Splits a large folio; true when it is order-0 afterwards. May sleep.
    pub(crate) fn split(&self) -> bool {
        // SAFETY: Locked and referenced, as splitting needs.
        !self.state().is_large() || unsafe { bindings::sksm_folio_split(self.as_ptr()) } == 0
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
