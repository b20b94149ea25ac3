// SPDX-License-Identifier: GPL-2.0-only

//! The node of a merged page, and how it comes and goes.
//!
//! `folio->mapping` of a merged page points to its node, with the bits of a KSM page and one more
//! that says whose. A folio and a node belong together while that pointer stands. It is set and
//! changed under the folio lock, or when no reference is left.

use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kernel::bindings;
use kernel::prelude::*;

use super::folio::{Folio, LockedFolio};
use super::gfp_account;
use super::index::{self, Shard};
use super::rcu::Rcu;
use super::release;
use super::rmap::{Entry, Rmap};
use super::stats;

/// The low bits of `folio->mapping` of a merged page.
const TAG: usize = (bindings::PAGE_MAPPING_KSM | bindings::PAGE_MAPPING_SKSM) as usize;

/// The low bits of `folio->mapping` of a KSM page that has no node any more.
const ORPHAN: usize = bindings::PAGE_MAPPING_KSM as usize;

/// What the index sees of a node.
pub(crate) type Key = bindings::sksm_key;

/// A merged page that is about to be mapped at a place its reverse map knows already.
///
/// # Invariants
///
/// The folio has a node, which counts this as pending, until memory failure takes the node.
pub(crate) struct Pending(Folio);

impl Pending {
    pub(crate) fn as_ptr(&self) -> *mut bindings::folio {
        self.0.as_ptr()
    }

    /// Whether the page went bad since it was found.
    pub(crate) fn is_hwpoison(&self) -> bool {
        self.0.state().is_hwpoison()
    }

    /// The page is mapped now: the mapping takes over the reference.
    pub(crate) fn mapped(self) {
        let this = ManuallyDrop::new(self);
        this.settle();
    }

    fn settle(&self) {
        let _rcu = Rcu::lock();
        // The reference keeps the folio from being withdrawn, migrated or freed. Memory failure may
        // have taken the node, though.
        if let Some(node) = Node::from_mapping(self.0.mapping()) {
            // SAFETY: RCU keeps a node that `mapping` named within the read section.
            let pending = unsafe { node.as_ref() }.pending();
            pending.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A merged page's node. Freed only after an RCU grace period.
#[repr(C, align(8))]
pub(crate) struct Node {
    /// First, so that index and node share one address. The index writes its part, and `pending`
    /// is atomic; the rest never changes.
    link: UnsafeCell<bindings::sksm_link>,
    folio: AtomicPtr<bindings::folio>,
    /// Guarded by the folio lock.
    rmap: UnsafeCell<Rmap>,
    /// Links retired nodes; owned by [`release`] once the node is retired.
    pub(crate) retired: UnsafeCell<bindings::llist_node>,
}

// SAFETY: `rmap` is only reached with the folio lock; the other fields are atomic, constant, or
// owned by index and release list.
unsafe impl Sync for Node {}

impl Node {
    /// A node that is not yet in use. May sleep.
    pub(crate) fn new(folio: &Folio, first: Entry) -> Result<KBox<Self>> {
        // Before the allocation: when it fails, the value is dropped, and that counts.
        stats::METADATA.add(size_of::<Self>());
        let node = KBox::new(
            Self {
                link: Default::default(),
                folio: AtomicPtr::new(folio.as_ptr()),
                rmap: UnsafeCell::new(Rmap::new(first)),
                retired: Default::default(),
            },
            gfp_account(),
        )?;
        Ok(node)
    }

    /// The node behind an index link.
    ///
    /// # Safety
    ///
    /// `link` came from the index, and RCU or the folio lock keeps the node.
    pub(crate) unsafe fn from_link<'a>(link: NonNull<bindings::sksm_link>) -> &'a Self {
        // SAFETY: `link` is the first field of a node that lives, as the caller promises.
        unsafe { link.cast::<Self>().as_ref() }
    }

    /// The index link of this node.
    pub(crate) fn link(&self) -> *mut bindings::sksm_link {
        self.link.get()
    }

    fn tagged(&self) -> usize {
        core::ptr::from_ref(self) as usize | TAG
    }

    /// Whether the key has the checksum of all bytes.
    pub(crate) fn is_full(&self) -> bool {
        // SAFETY: This part of the link never changes.
        unsafe { (*self.link.get()).key.full != 0 }
    }

    /// The checksum in the key.
    pub(crate) fn checksum(&self) -> u64 {
        // SAFETY: This part of the link never changes.
        unsafe { (*self.link.get()).key.checksum }
    }

    /// The NUMA node that the pages of this node must be on, or `NUMA_NO_NODE`.
    fn nid(&self) -> i32 {
        // SAFETY: This part of the link never changes.
        i32::from(unsafe { (*self.link.get()).key.nid })
    }

    /// Whether `folio`, which is this node's, merges with pages of this key.
    pub(crate) fn suits(&self, key: &Key, folio: &Folio) -> bool {
        let own = self.link.get();
        // SAFETY: These parts of the link never change.
        let same = unsafe {
            (*own).key.checksum == key.checksum
                && (*own).key.full == key.full
                && (*own).key.domain == key.domain
                && (*own).key.kind == key.kind
        };
        let here = |nid| nid == bindings::NUMA_NO_NODE || nid == folio.nid();
        same && self.nid() == i32::from(key.nid) && here(self.nid())
    }

    /// The folio that was this node's when last seen; may be free, or another's by now.
    pub(crate) fn folio_hint(&self) -> *mut bindings::folio {
        self.folio.load(Ordering::Acquire)
    }

    /// Whether `folio` is this node's. Stays true while the caller holds the reference, unless the
    /// folio is being migrated: the folio lock decides that.
    pub(crate) fn owns(&self, folio: &Folio) -> bool {
        folio.mapping() == self.tagged()
    }

    /// The node of a locked folio.
    pub(crate) fn of(folio: &LockedFolio) -> Option<&Self> {
        // SAFETY: The folio lock keeps `mapping`, and with it the node.
        Self::from_mapping(folio.mapping()).map(|node| unsafe { node.as_ref() })
    }

    fn from_mapping(mapping: usize) -> Option<NonNull<Self>> {
        if mapping & TAG != TAG {
            return None;
        }
        NonNull::new((mapping & !TAG) as *mut Self)
    }

    /// The reverse map; `folio` is this node's and locked.
    pub(crate) fn rmap(&self, folio: &LockedFolio) -> &Rmap {
        debug_assert!(self.owns(folio));
        // SAFETY: The folio lock guards the reverse map.
        unsafe { &*self.rmap.get() }
    }

    /// Places in the reverse map where the page is about to be mapped. Rises under the folio lock.
    pub(crate) fn pending(&self) -> &AtomicU32 {
        // SAFETY: In a node the field is only reached through here.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.link.get()).key.pending) }
    }

    /// Adds a place to the reverse map, where the caller will map the merged page `folio`. May
    /// sleep.
    pub(crate) fn add_place(folio: LockedFolio, entry: Entry) -> Result<Pending> {
        let node = Self::of(&folio).ok_or(EINVAL)?;
        let settled = node.pending().load(Ordering::Acquire) == 0;
        // SAFETY: The folio lock guards the reverse map, and no other borrow lives here.
        unsafe { &mut *node.rmap.get() }.push(entry, &folio, settled)?;
        node.pending().fetch_add(1, Ordering::Relaxed);
        // INVARIANT: Counted just now.
        Ok(Pending(folio.unlock()))
    }

    /// Makes `folio` a merged page that is found by `key`, in place. The caller holds the lock of
    /// the key's shard, and every mapping of the folio is read-only.
    pub(crate) fn publish(
        mut node: KBox<Self>,
        key: Key,
        folio: &LockedFolio,
        shard: &Shard,
    ) -> Result {
        let anon = folio.mapping();
        node.link.get_mut().key = key;
        let node = KBox::into_raw(node);
        // SAFETY: The node is ours until it is in the index, and the folio's afterwards.
        let this = unsafe { &*node };
        // The pointer goes first: who finds the node checks that folio and node agree.
        folio.set_mapping(this.tagged());
        // Clean anonymous pages without swap space are dropped by reclaim.
        folio.mark_dirty();
        if let Err(error) = shard.insert(this) {
            folio.set_mapping(anon);
            // SAFETY: The node never became visible; it came from a KBox above.
            drop(unsafe { KBox::from_raw(node) });
            return Err(error);
        }
        Ok(())
    }

    /// See [`super::sksm_withdraw`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn withdraw(
        folio: *mut bindings::folio,
        vma: *mut bindings::vm_area_struct,
        addr: usize,
    ) -> bool {
        let Some(nonnull) = NonNull::new(folio) else {
            return false;
        };
        // Cheap looks first, as wp_can_reuse_anon_folio() does: most writes hit shared pages.
        // SAFETY: The mapping holds a reference while the page table is locked, and the view is not
        // used longer.
        let seen = unsafe { Folio::borrow(nonnull) };
        if seen.mapcount() > 1 {
            return false;
        }
        if seen.other_refs() > 0 && seen.maybe_batched() {
            // SAFETY: Drains the local batches, without sleeping.
            unsafe { bindings::lru_add_drain() };
        }
        // SAFETY: As above.
        let Some(locked) = (unsafe { LockedFolio::try_lock(nonnull) }) else {
            return false;
        };
        if !locked.leave_swapcache() {
            return false;
        }
        let Some(node) = Node::of(&locked) else {
            return false;
        };
        // The mapping's reference and ours. Frozen, so that whoever looks the folio up either has
        // made the freeze fail, or sees afterwards that it is no merged page any more.
        // SAFETY: The folio is in use.
        if !unsafe { bindings::sksm_folio_ref_freeze(folio, 2) } {
            return false;
        }
        // SAFETY: Nobody else holds a reference; the VMA maps the page, so it has an anon_vma.
        unsafe {
            bindings::sksm_folio_set_index(folio, bindings::sksm_vma_pgoff(vma, addr));
            bindings::folio_move_anon_rmap(folio, vma);
            bindings::sksm_folio_ref_unfreeze(folio, 2);
        }
        // SAFETY: The folio does not point to the node any more.
        unsafe { Self::retire(node) };
        stats::WITHDRAWN.add(1);
        // SAFETY: Only prints its arguments.
        unsafe { bindings::sksm_trace_withdraw((*vma).vm_mm, addr, folio) };
        true
    }

    /// See [`super::sksm_folio_free`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn folio_freed(folio: *mut bindings::folio) {
        // SAFETY: The folio is the caller's, alone or locked.
        let mapping = unsafe { bindings::sksm_folio_mapping(folio) } as usize;
        if let Some(node) = Self::from_mapping(mapping) {
            // SAFETY: As above. The free path expects an anonymous page here.
            unsafe { bindings::sksm_folio_set_mapping(folio, ORPHAN as *mut _) };
            // SAFETY: The folio pointed to the node, and does not any more.
            unsafe { Self::retire(node.as_ref()) };
        }
    }

    /// See [`super::sksm_migrate`].
    pub(crate) fn migrate(new: &LockedFolio, old: &LockedFolio) {
        let Some(node) = Node::of(old) else { return };
        node.folio.store(new.as_ptr(), Ordering::Release);
        // Readers that still have the old folio see under its lock that it is nobody's.
        old.set_mapping(ORPHAN);
        // On another node of memory it must not be found under the old one's key.
        if node.nid() != bindings::NUMA_NO_NODE && node.nid() != new.nid() {
            index::remove(node);
        }
    }

    /// Takes a node out of the index and leaves it to [`release`]. Any context.
    ///
    /// # Safety
    ///
    /// No folio points to the node any more, and this is called once.
    unsafe fn retire(node: &Self) {
        index::remove(node);
        // SAFETY: Out of the index, and nobody else retires it.
        unsafe { release::push(node) };
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        stats::METADATA.sub(size_of::<Self>());
    }
}
