// SPDX-License-Identifier: GPL-2.0-only

//! Folios by reference, by lock, and with bytes that stay.

use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::{null_mut, NonNull};
use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::base::{ARef, AlwaysRefCounted};
use super::content::{self, Words};
use super::mm::{methods, Argument};

/// How to take a folio lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locking {
    /// Never waits.
    Try,
    /// Waits, and so may sleep; a fatal signal ends it.
    Wait,
}

/// A folio; order-0 unless said otherwise. A reference to it means that it is in use.
#[repr(transparent)]
pub(crate) struct Folio(Opaque<bindings::folio>);

// SAFETY: A folio is not freed before its last reference is put.
unsafe impl AlwaysRefCounted for Folio {
    fn inc_ref(&self) {
        self.get();
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives a reference away.
        unsafe { bindings::sksm_folio_put(obj.cast().as_ptr()) };
    }
}

impl Folio {
    /// A folio that somebody keeps in use.
    ///
    /// # Safety
    ///
    /// Somebody holds a reference for as long as the result is used.
    pub(crate) unsafe fn from_raw<'a>(folio: *mut bindings::folio) -> &'a Self {
        // SAFETY: `Self` is transparent, and the folio in use, as the caller promises.
        unsafe { &*folio.cast() }
    }

    /// Takes a reference if the folio is not being freed.
    ///
    /// # Safety
    ///
    /// `folio` points to a `struct folio`, in use or not.
    pub(crate) unsafe fn try_get(folio: *mut bindings::folio) -> Option<ARef<Self>> {
        let folio = NonNull::new(folio)?;
        // SAFETY: A conditional reference may be tried on any struct page. It is the result's.
        unsafe {
            bindings::sksm_folio_try_get(folio.as_ptr()).then(|| ARef::from_raw(folio.cast()))
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::folio {
        self.0.get()
    }

    /// Takes the folio lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<FolioGuard> {
        // INVARIANT: The lock was just taken.
        self.raw_try_lock().then(|| FolioGuard(self.into()))
    }

    /// Whether the engine wants such a folio at all: plain, anonymous, and not merged yet.
    pub(crate) fn is_candidate(&self) -> bool {
        self.is_unmerged_anon() && self.is_plain()
    }

    /// Whether references too many may be those of per-CPU batches of the LRU or of mlock, of which
    /// the page itself says nothing. Pins for DMA count differently.
    pub(crate) fn maybe_batched(&self) -> bool {
        !self.maybe_dma_pinned()
    }

    methods! {
        fn get() = sksm_folio_get;
        fn raw_try_lock() -> bool = sksm_folio_trylock;
        /// Not 0 if a fatal signal came first.
        fn raw_lock_killable() -> i32 = sksm_folio_lock_killable;
        /// `folio->mapping`, flag bits included.
        fn mapping() -> usize = sksm_folio_mapping;
        /// Whether the bytes can be read, and are all that there is to the page: neither device
        /// memory, nor poisoned, nor tagged.
        fn is_plain() -> bool = sksm_folio_is_plain;
        fn is_unmerged_anon() -> bool = sksm_folio_is_unmerged_anon;
        fn is_large() -> bool = sksm_folio_is_large;
        fn in_swapcache() -> bool = sksm_folio_in_swapcache;
        fn maybe_dma_pinned() -> bool = sksm_folio_maybe_dma_pinned;
        fn mapcount() -> i32 = sksm_folio_mapcount;
        /// References of neither mappings nor the swap cache.
        fn other_refs() -> i32 = sksm_folio_other_refs;
        fn nid() -> i32 = sksm_folio_nid;
        /// Whether the page is one mapping's own.
        fn is_exclusive() -> bool = sksm_folio_is_exclusive;
        /// Marks the folio dirty, so that reclaim writes it to swap rather than drops it.
        fn mark_dirty() = sksm_folio_mark_dirty;
    }

    /// The folio, whose bytes may be hashed and compared.
    ///
    /// # Safety
    ///
    /// For as long as the result is used, the folio is plain and nobody writes it: it is protected,
    /// or a merged page, which a reference keeps from being withdrawn.
    pub(crate) unsafe fn assume_stable(&self) -> StableFolio<'_> {
        // INVARIANT: As the caller promises.
        StableFolio(self)
    }
}

impl Argument for &Folio {
    type Raw = *mut bindings::folio;

    fn raw(self) -> Self::Raw {
        self.as_ptr()
    }
}

impl Argument for Option<&Folio> {
    type Raw = *mut bindings::folio;

    fn raw(self) -> Self::Raw {
        self.map_or(null_mut(), Folio::as_ptr)
    }
}

/// A folio whose bytes stay as they are: the only thing that can be hashed or compared.
///
/// # Invariants
///
/// The folio can be mapped, and nobody writes it while this lives.
#[derive(Clone, Copy)]
pub(crate) struct StableFolio<'a>(&'a Folio);

impl StableFolio<'_> {
    /// Calls `f` with the page's bytes as words.
    pub(crate) fn with_words<R>(self, f: impl FnOnce(&Words) -> R) -> R {
        // SAFETY: By the invariant the folio can be mapped, and nobody writes it. Local mappings
        // are undone in reverse order, as calls return.
        unsafe {
            let addr = bindings::sksm_folio_map(self.0.as_ptr());
            let result = f(&*addr.cast::<Words>());
            bindings::sksm_folio_unmap(addr);
            result
        }
    }

    pub(crate) fn same_bytes(self, other: StableFolio<'_>) -> bool {
        self.with_words(|a| other.with_words(|b| content::equal(a, b)))
    }
}

/// A folio whose lock is held for as long as a reference to this lives.
#[repr(transparent)]
pub(crate) struct LockedFolio(Folio);

impl LockedFolio {
    /// A folio that the caller has locked.
    ///
    /// # Safety
    ///
    /// The caller holds lock and reference for as long as the result is used, and makes no other.
    pub(crate) unsafe fn from_raw<'a>(folio: *mut bindings::folio) -> &'a mut Self {
        // SAFETY: `Self` is transparent; locked and in use, as the caller promises.
        unsafe { &mut *folio.cast() }
    }

    methods! {
        /// `folio->index` of an anonymous folio.
        fn index() -> usize = sksm_folio_index;
        fn free_swap() -> bool = folio_free_swap;
        /// The swap slot of a folio in the swap cache.
        fn slot() -> usize = sksm_folio_slot;
        /// Whether its bytes have been read.
        fn is_uptodate() -> bool = sksm_folio_uptodate;
        fn raw_split() -> i32 = sksm_folio_split;
    }

    /// Sets `folio->mapping`, flag bits included.
    ///
    /// # Safety
    ///
    /// It names what keeps its place for as long as the folio has it: a node, an anon_vma that the
    /// folio had before, or nothing.
    pub(crate) unsafe fn set_mapping(&self, mapping: usize) {
        // SAFETY: The folio is locked; the caller answers for the mapping.
        unsafe { bindings::sksm_folio_set_mapping(self.as_ptr(), mapping) };
    }

    /// Puts a folio on an LRU list.
    ///
    /// # Safety
    ///
    /// It is new, and on no list.
    pub(crate) unsafe fn add_to_lru(&self) {
        // SAFETY: In use; it is on no list, as the caller promises.
        unsafe { bindings::folio_add_lru(self.as_ptr()) };
    }

    /// Tries to give up swap space; true when the folio is not in the swap cache afterwards.
    pub(crate) fn leave_swapcache(&self) -> bool {
        if !self.in_swapcache() {
            return true;
        }
        self.free_swap();
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
        unsafe { bindings::sksm_folio_share(self.as_ptr()) }
    }

    /// Splits a large folio; true when it is order-0 afterwards. May sleep.
    pub(crate) fn split(&self) -> bool {
        !self.is_large() || self.raw_split() == 0
    }
}

impl Deref for LockedFolio {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        &self.0
    }
}

/// The lock of a folio, and a reference to it.
///
/// # Invariants
///
/// The folio lock is held until drop.
pub(crate) struct FolioGuard(ARef<Folio>);

impl FolioGuard {
    /// # Safety
    ///
    /// The folio is locked and referenced, and both are the result's.
    pub(crate) unsafe fn from_raw(folio: NonNull<bindings::folio>) -> Self {
        // INVARIANT: As the caller promises.
        // SAFETY: As the caller promises.
        Self(unsafe { ARef::from_raw(folio.cast()) })
    }

    /// Takes the folio lock in one of the two ways; `None` when it was to be tried, and is taken.
    pub(crate) fn lock(folio: ARef<Folio>, locking: Locking) -> Result<Option<Self>> {
        let locked = match locking {
            Locking::Try => folio.raw_try_lock(),
            Locking::Wait if folio.raw_lock_killable() == 0 => true,
            Locking::Wait => return Err(EINTR),
        };
        // INVARIANT: The lock was just taken.
        Ok(locked.then(|| Self(folio)))
    }

    /// Unlocks, keeps the reference.
    pub(crate) fn unlock(self) -> ARef<Folio> {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the invariant the lock is ours.
        unsafe { bindings::folio_unlock(this.as_ptr()) };
        // SAFETY: `this` is not dropped, so the reference moves to the result.
        unsafe { core::ptr::read(&this.0) }
    }
}

impl Deref for FolioGuard {
    type Target = LockedFolio;

    fn deref(&self) -> &LockedFolio {
        // SAFETY: `LockedFolio` is transparent, and the lock is ours while `self` lives.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

impl DerefMut for FolioGuard {
    fn deref_mut(&mut self) -> &mut LockedFolio {
        // SAFETY: As above; the one guard of the lock is borrowed mutably.
        unsafe { LockedFolio::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for FolioGuard {
    fn drop(&mut self) {
        // SAFETY: By the invariant the lock is ours; the reference goes after it.
        unsafe { bindings::folio_unlock(self.0.as_ptr()) };
    }
}

/// A locked folio that nobody writes: not exclusive, and read-only wherever it is mapped. A write
/// fault cannot take it back without the lock, and copies it.
///
/// # Invariants
///
/// So it is, and it is plain, while this lives.
pub(crate) struct ProtectedFolio(FolioGuard);

impl ProtectedFolio {
    /// # Safety
    ///
    /// The invariant holds.
    pub(crate) unsafe fn new(folio: FolioGuard) -> Self {
        // INVARIANT: As the caller promises.
        Self(folio)
    }

    pub(crate) fn bytes(&self) -> StableFolio<'_> {
        // SAFETY: By the invariant.
        unsafe { self.assume_stable() }
    }

    pub(crate) fn into_guard(self) -> FolioGuard {
        self.0
    }
}

impl Deref for ProtectedFolio {
    type Target = FolioGuard;

    fn deref(&self) -> &FolioGuard {
        &self.0
    }
}

/// Puts folios many at a time, which costs less when they are freed by it.
///
/// # Invariants
///
/// The batch is set up, and owns the references of its folios.
pub(crate) struct Puts(MaybeUninit<bindings::folio_batch>);

impl Puts {
    pub(crate) fn new() -> Self {
        let mut batch = MaybeUninit::uninit();
        // SAFETY: It is to be set up. What has no folio yet is not written.
        unsafe { bindings::sksm_folio_batch_init(batch.as_mut_ptr()) };
        // INVARIANT: Just now, and there are none.
        Self(batch)
    }

    /// Puts the folio, by the end of this batch at the latest.
    pub(crate) fn add(&mut self, folio: ARef<Folio>) {
        let folio = ARef::into_raw(folio).cast().as_ptr();
        // SAFETY: The reference is the batch's from here on.
        unsafe { bindings::sksm_folio_batch_put(self.0.as_mut_ptr(), folio) };
    }
}

impl Drop for Puts {
    fn drop(&mut self) {
        // SAFETY: By the invariant.
        unsafe { bindings::sksm_folio_batch_release(self.0.as_mut_ptr()) };
    }
}
