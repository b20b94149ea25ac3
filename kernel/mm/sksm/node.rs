// SPDX-License-Identifier: GPL-2.0-only

//! The node of a merged page, and how it comes and goes.
//!
//! `folio->mapping` of a merged page points to its node, with the bits of a KSM page and one more
//! that says whose. A folio and a node belong together while that pointer stands. It is set and
//! changed under the folio lock, or when no reference is left.

use core::cell::UnsafeCell;
use core::mem::{forget, offset_of};
use core::ptr::{null_mut, NonNull};
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::rcu;

use super::base::atomic::{Acquire, Atomic, AtomicType, Full, Relaxed, Release};
use super::base::{self, ARef};
use super::folio::{Folio, FolioGuard, LockedFolio};
use super::gfp_account;
use super::index::{self, Guard, Key, Vacancy};
use super::mm::{self, Vma};
use super::release;
use super::rmap::{Entry, Pushed, Rmap};
use super::stats::{self, Process, Stat};

/// The low bits of `folio->mapping` of a merged page.
const TAG: usize = base::MAPPING_KSM | base::MAPPING_SKSM;

/// The low bits of `folio->mapping` of a KSM page that has no node any more.
const ORPHAN: usize = base::MAPPING_KSM;

/// A merged page that is about to be mapped at a place its reverse map knows already.
///
/// # Invariants
///
/// The folio has a node, which counts this as pending, until memory failure takes the node.
pub(crate) struct Pending(ARef<Folio>);

impl Pending {
    pub(crate) fn folio(&self) -> &Folio {
        &self.0
    }

    /// Whether the page went bad since it was found.
    pub(crate) fn went_bad(&self) -> bool {
        !self.0.is_plain()
    }

    /// The page is mapped in memory of `mm` now, in place of another: the mapping takes over the
    /// reference. The page table is locked still.
    pub(crate) fn mapped(self, mm: Process<'_>) {
        self.settle(Some(mm));
        // Neither put nor settled once more.
        forget(self);
    }

    /// The place is mapped, or will not be.
    fn settle(&self, mapped: Option<Process<'_>>) {
        let rcu = rcu::read_lock();
        // The reference keeps the folio from being withdrawn, migrated or freed. Memory failure may
        // have taken the node, though.
        if let Some(node) = Node::of(&self.0, &rcu) {
            if let Some(mm) = mapped {
                node.save(&self.0, mm);
            }
            let _ = node.pending.update(|old| old.checked_sub(1));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.settle(None);
    }
}

/// What a node needs its last word for.
union Last {
    /// While the node stands in the index by the hash of all bytes: the hash of the sample.
    sample: u64,
    /// Once it is retired: the link of the list of such nodes.
    retired: bindings::llist_node,
}

/// A counter in 16 bits, as a node is to be small. Who changes it sees what those did who changed
/// it before.
struct Counter(Atomic<Count>);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Count(u16);

// SAFETY: Of the size and the alignment of an `i16`, and any bits are valid for both.
unsafe impl AtomicType for Count {
    type Repr = i16;
}

impl Counter {
    const fn new(value: u16) -> Self {
        Self(Atomic::new(Count(value)))
    }

    fn get(&self) -> u16 {
        self.0.load(Acquire).0
    }

    /// Returns the old value.
    fn replace(&self, value: u16) -> u16 {
        self.0.xchg(Count(value), Full).0
    }

    /// Changes it to what `f` makes of it; an error if that is nothing. Either way the old value.
    fn update(&self, f: impl Fn(u16) -> Option<u16>) -> Result<u16, u16> {
        let mut old = self.0.load(Relaxed);
        loop {
            let new = f(old.0).ok_or(old.0)?;
            match self.0.cmpxchg(old, Count(new), Full) {
                Ok(_) => return Ok(old.0),
                Err(other) => old = other,
            }
        }
    }
}

/// A merged page's node. Freed only after an RCU grace period.
#[repr(C, align(8))]
pub(crate) struct Node {
    /// First, so that index and node share one address. The table writes its part; the key is
    /// written before others see the node.
    link: UnsafeCell<bindings::sksm_link>,
    /// The next older copy of the same content. Changed with the lock of the shard.
    pub(super) older: Atomic<*mut Node>,
    newer: Newer,
    folio: Atomic<*mut bindings::folio>,
    /// Guarded by the folio lock.
    rmap: UnsafeCell<Rmap>,
    last: UnsafeCell<Last>,
    /// Mappings that merges redirected here and that are still there: pages saved. Where forked
    /// mappings take part it may be less, never more, but for `swapped`.
    saved: Counter,
    /// So many of them became swap entries. Those that are dropped are not told, and others may
    /// take their place.
    swapped: Counter,
    /// Places in the reverse map where the page is about to be mapped. Rises under the folio lock.
    /// The references of a page do not tell: nobody can read them and its mappings at one moment.
    pending: Counter,
    /// The NUMA node that the folio must be on to be found, or `NUMA_NO_NODE`.
    nid: i16,
}

/// The next newer copy of the same content: NULL for the newest, the node itself when it is not in
/// the index. Changed with the lock of the shard. While the node sleeps, its slot (`asleep.rs`);
/// whoever looks something up in a table reads which of them it is.
pub(super) struct Newer(Atomic<*mut Node>);

impl Newer {
    pub(super) fn get(&self) -> *mut Node {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, newer: *mut Node) {
        self.0.store(newer, Relaxed);
    }

    pub(super) fn replace(&self, newer: *mut Node) -> *mut Node {
        self.0.xchg(newer, Relaxed)
    }
}

// SAFETY: `rmap` is only reached with the folio lock; the other fields are atomic, constant once
// others see the node, or owned by table and release list.
unsafe impl Sync for Node {}

const _: () = assert!(size_of::<Node>() == bindings::SKSM_NODE_BYTES as usize);
const _: () = assert!(offset_of!(Node, newer) == offset_of!(bindings::sksm_sleeper, slot));

impl Node {
    /// A node that is not yet in use. May sleep.
    pub(crate) fn new(folio: &Folio, first: Entry, nid: i32) -> Result<KBox<Self>> {
        let node = KBox::new(
            Self {
                link: Default::default(),
                older: Atomic::new(null_mut()),
                newer: Newer(Atomic::new(null_mut())),
                folio: Atomic::new(folio.as_ptr()),
                rmap: UnsafeCell::new(Rmap::new(first)),
                last: UnsafeCell::new(Last { sample: 0 }),
                saved: Counter::new(0),
                swapped: Counter::new(0),
                pending: Counter::new(0),
                nid: nid as i16,
            },
            gfp_account(),
        )?;
        node.newer.set(node.as_ptr());
        Ok(node)
    }

    /// The node behind an index link.
    ///
    /// # Safety
    ///
    /// `link` came from the index, and RCU, the lock of the shard or the folio lock keeps the node.
    pub(crate) unsafe fn from_link<'a>(link: NonNull<bindings::sksm_link>) -> &'a Self {
        // SAFETY: `link` is the first field of a node that lives, as the caller promises.
        unsafe { link.cast::<Self>().as_ref() }
    }

    /// The index link of this node.
    pub(crate) fn link(&self) -> *mut bindings::sksm_link {
        self.link.get()
    }

    pub(super) fn as_ptr(&self) -> *mut Self {
        core::ptr::from_ref(self).cast_mut()
    }

    /// The next newer copy; the guard says whether it is of this node's shard.
    pub(super) fn newer(&self, guard: &Guard) -> &Newer {
        debug_assert!(guard.is_of(self.sample()));
        &self.newer
    }

    /// Where the slot of a sleeping node stands; and the node itself, once it is awake again.
    ///
    /// # Safety
    ///
    /// The node is not in the index, and nobody puts it in.
    pub(super) unsafe fn slot(&self) -> &Newer {
        &self.newer
    }

    fn tagged(&self) -> usize {
        self.as_ptr() as usize | TAG
    }

    /// What the node is found by.
    pub(crate) fn key(&self) -> Key {
        // SAFETY: The key does not change once others see the node.
        Key::from(unsafe { (*self.link.get()).key })
    }

    /// The hash of the sample. Not for retired nodes.
    pub(super) fn sample(&self) -> u64 {
        let key = self.key();
        if key.is_full() {
            // SAFETY: It does not change before the node is retired.
            unsafe { (*self.last.get()).sample }
        } else {
            key.hash()
        }
    }

    /// The link of the list of retired nodes.
    ///
    /// # Safety
    ///
    /// The node is retired and not freed yet.
    pub(super) unsafe fn retired(node: NonNull<Self>) -> *mut bindings::llist_node {
        // SAFETY: As the caller promises; the word has no other use any more.
        unsafe { &raw mut (*(*node.as_ptr()).last.get()).retired }
    }

    /// Undoes [`Node::retired`].
    ///
    /// # Safety
    ///
    /// `link` is the result of that.
    pub(super) unsafe fn from_retired(link: *mut bindings::llist_node) -> *mut Self {
        // SAFETY: The link is within a node.
        unsafe { link.byte_sub(offset_of!(Self, last)).cast() }
    }

    /// Whether `folio`, which is this node's, merges with pages of this key.
    pub(crate) fn suits(&self, key: Key, folio: &Folio) -> bool {
        let nid = i32::from(self.nid);
        self.key() == key && (nid == bindings::NUMA_NO_NODE || nid == folio.nid())
    }

    /// The folio that was this node's when last seen; may be free, or another's by now. NULL for a
    /// node that sleeps.
    pub(crate) fn folio_hint(&self) -> *mut bindings::folio {
        self.folio.load(Acquire)
    }

    /// Whether `folio` is this node's. Stays true while the caller holds the reference, unless the
    /// folio is being migrated: the folio lock decides that.
    pub(crate) fn owns(&self, folio: &Folio) -> bool {
        folio.mapping() == self.tagged()
    }

    fn from_mapping(mapping: usize) -> Option<NonNull<Self>> {
        if mapping & TAG != TAG {
            return None;
        }
        NonNull::new((mapping & !TAG) as *mut Self)
    }

    /// The node of a page, if it is a merged one.
    fn of<'a>(folio: &Folio, _rcu: &'a rcu::Guard) -> Option<&'a Self> {
        // SAFETY: RCU keeps a node that `mapping` named within the read section.
        Self::from_mapping(folio.mapping()).map(|node| unsafe { node.as_ref() })
    }

    /// A mapping was redirected here. It saves a page, unless no other mapping is left.
    fn save(&self, folio: &Folio, mm: Process<'_>) {
        if self.gain(folio) {
            mm.merged(1);
        } else {
            mm.published(1);
        }
    }

    /// Counts a saved mapping; false if only one mapping is there that is not counted yet.
    fn gain(&self, folio: &Folio) -> bool {
        let more = |old: u16| old.checked_add(1);
        let Ok(saved) = self.saved.update(more) else {
            // Saved, but more than are counted.
            return true;
        };
        Stat::Sharing.add(1);
        if saved == 0 {
            Stat::Shared.add(1);
        }
        // Who has taken a mapping away looks at `saved` afterwards, as this looks at the mappings:
        // the one or the other sees both.
        let left = folio.mapcount();
        left > i32::from(saved) + 1 || self.lose(false, left) == 0
    }

    /// A mapping has gone, perhaps one that was saved; `left` are still there. Returns how many
    /// fewer are counted.
    fn lose(&self, saved: bool, left: i32) -> u16 {
        let most = (left - 1).clamp(0, u16::MAX.into()) as u16;
        let less = |old: u16| old.saturating_sub(u16::from(saved)).min(most);
        let (Ok(old) | Err(old)) = self.saved.update(|old| Some(less(old)));
        Self::count_lost(old, less(old));
        old - less(old)
    }

    fn count_lost(old: u16, new: u16) {
        if old != new {
            Stat::Sharing.add((i32::from(new) - i32::from(old)) as isize);
            if new == 0 {
                Stat::Shared.add(-1);
            }
        }
    }

    /// See [`super::sksm_unmapped`].
    pub(crate) fn unmapped(folio: &Folio, mm: Process<'_>) {
        let saved = mm.unmapped();
        let rcu = rcu::read_lock();
        if let Some(node) = Self::of(folio, &rcu) {
            node.lose(saved, folio.mapcount());
        }
    }

    /// See [`super::sksm_swapped`].
    pub(crate) fn swapped(folio: &Folio, mm: Process<'_>) {
        let saved = mm.swapped();
        let rcu = rcu::read_lock();
        if let Some(node) = Self::of(folio, &rcu) {
            node.add_swapped(node.lose(saved, folio.mapcount()));
        }
    }

    fn add_swapped(&self, mappings: u16) {
        let more = |old: u16| Some(old.saturating_add(mappings));
        let _ = self.swapped.update(more);
    }

    /// See [`super::sksm_swapped_in`].
    pub(crate) fn swapped_in(folio: &Folio, mm: Process<'_>) {
        let counted = mm.swapped_in();
        let rcu = rcu::read_lock();
        let Some(node) = Self::of(folio, &rcu) else {
            return;
        };
        // No more is saved than was: mappings that fork made come back as well.
        let less = |old: u16| old.checked_sub(1);
        let was = node.swapped.update(less);
        let saved = was.is_ok() && node.gain(folio);
        if was.is_ok() && !saved {
            node.add_swapped(1);
        }
        if counted && saved {
            mm.merged(1);
        } else if counted {
            mm.published(1);
        }
    }

    /// Makes `folio` a merged page, in place, where the search ended; false when that place is not
    /// vacant any more. Every mapping of the folio is read-only.
    pub(crate) fn publish(
        node: KBox<Self>,
        vacancy: &Vacancy,
        folio: &LockedFolio,
        mm: Process<'_>,
    ) -> Result<bool> {
        let anon = folio.mapping();
        // SAFETY: Nobody else sees the node yet.
        unsafe {
            (*node.link.get()).key = vacancy.key().into();
            *node.last.get() = Last {
                sample: vacancy.sample(),
            };
        }
        // Before others may unmap the page.
        mm.published(1);
        // The pointer goes first: who finds the node checks that folio and node agree.
        // SAFETY: A node is released only once its folio has another mapping.
        unsafe { folio.set_mapping(node.tagged()) };
        // Clean anonymous pages without swap space are dropped by reclaim.
        folio.mark_dirty();
        let inserted = index::insert(&node, vacancy);
        // It is the folio's now, or was: who unmaps the page may have come by its node already.
        let node: &Self = KBox::leak(node);
        if !matches!(inserted, Ok(true)) {
            // SAFETY: It is what the folio had, whose anon_vma its mapping keeps.
            unsafe { folio.set_mapping(anon) };
            mm.published(-1);
            // SAFETY: In no index, and nothing points to it any more.
            unsafe { release::push(NonNull::from(node)) };
            return inserted;
        }
        Stat::Pages.add(1);
        Stat::Metadata.add(size_of::<Self>() as isize);
        Ok(true)
    }

    /// See [`super::sksm_withdraw`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn withdraw(folio: &Folio, vma: &Vma, addr: usize) -> bool {
        // Cheap looks first, as wp_can_reuse_anon_folio() does: most writes hit shared pages.
        if folio.mapcount() > 1 {
            return false;
        }
        if folio.other_refs() > 0 && folio.maybe_batched() {
            mm::drain_local_batches();
        }
        let Some(mut locked) = folio.try_lock() else {
            return false;
        };
        if !locked.leave_swapcache() {
            return false;
        }
        let Some(merged) = locked.merged() else {
            return false;
        };
        let node = merged.node;
        // The mapping's reference and ours. Frozen, so that whoever looks the folio up either has
        // made the freeze fail, or sees afterwards that it is no merged page any more.
        // SAFETY: Frozen, nobody else holds a reference; the VMA maps the page, so it has an
        // anon_vma. Then the folio does not point to the node any more.
        unsafe {
            if !bindings::sksm_folio_ref_freeze(folio.as_ptr(), 2) {
                return false;
            }
            bindings::sksm_folio_set_index(folio.as_ptr(), vma.pgoff(addr));
            bindings::folio_move_anon_rmap(folio.as_ptr(), vma.as_ptr());
            bindings::sksm_folio_ref_unfreeze(folio.as_ptr(), 2);
            node.leave_memory();
            Self::retire(NonNull::from(node));
        }
        stats::withdrawn();
        Process(vma.mm()).unmapped();
        vma.mm().trace_withdraw(addr, folio);
        true
    }

    /// See [`super::sksm_folio_free`].
    pub(crate) fn folio_freed(folio: &mut LockedFolio) {
        if let Some(merged) = folio.merged() {
            let node = merged.node;
            merged.abandon();
            node.leave_memory();
            // SAFETY: The folio pointed to the node, and does not any more.
            unsafe { Self::retire(NonNull::from(node)) };
        }
    }

    /// See [`super::sksm_migrate`].
    pub(crate) fn migrate(new: &LockedFolio, old: &mut LockedFolio) {
        let Some(MergedFolio { folio, node }) = old.merged() else {
            return;
        };
        // On another NUMA node it must not be found under the old one's key, and nobody can compare
        // bytes that are on a device.
        if !new.is_plain() || !node.suits(node.key(), new) {
            index::remove(node);
        }
        node.folio.store(new.as_ptr(), Release);
        // Readers that still have the old folio see under its lock that it is nobody's.
        // SAFETY: It names nothing.
        unsafe { folio.set_mapping(ORPHAN) };
    }

    /// Takes what is saved aside while the node's mappings go to another folio, one by one: no
    /// folio has all of them meanwhile. Nobody maps the page anew until [`Node::put_back`].
    pub(super) fn set_aside(&self) -> u16 {
        self.saved.replace(0)
    }

    /// Undoes [`Node::set_aside`], less what has gone meanwhile.
    pub(super) fn put_back(&self, saved: u16, folio: &Folio) {
        self.saved.replace(saved);
        self.lose(false, folio.mapcount());
    }

    /// Neither copies nor folio can be found by a node that sleeps: they may be freed.
    pub(super) fn forget_others(&self) {
        self.older.store(null_mut(), Release);
        self.folio.store(null_mut(), Release);
    }

    /// Makes the node that of `folio`, which has been read from swap and was never mapped.
    pub(super) fn enter_memory(&self, folio: &LockedFolio) {
        self.folio.store(folio.as_ptr(), Release);
        // SAFETY: A node is released only once its folio has another mapping.
        unsafe { folio.set_mapping(self.tagged()) };
        Stat::Pages.add(1);
    }

    /// Takes the node out of the index and the counts: its folio is no merged page any more.
    pub(super) fn leave_memory(&self) {
        index::remove(self);
        Self::count_lost(self.saved.replace(0), 0);
        Stat::Pages.add(-1);
    }

    /// Leaves a node to [`release`]. Any context.
    ///
    /// # Safety
    ///
    /// The node came from a `KBox`, has left memory, nobody finds it any more, and this is called
    /// once.
    pub(super) unsafe fn retire(node: NonNull<Self>) {
        // SAFETY: Freed by `release` only. Who retires the node has the reverse map for himself.
        let bytes = size_of::<Self>() + unsafe { (*node.as_ref().rmap.get()).bytes() };
        Stat::Metadata.add(-(bytes as isize));
        // SAFETY: Out of the index, and nobody else retires it.
        unsafe { release::push(node) };
    }
}

/// A locked folio and its node: the only way to the reverse map.
pub(crate) struct MergedFolio<'a> {
    folio: &'a mut LockedFolio,
    node: &'a Node,
}

impl LockedFolio {
    /// The folio as a merged page, if it is one.
    pub(crate) fn merged(&mut self) -> Option<MergedFolio<'_>> {
        let node = Node::from_mapping(self.mapping())?;
        // SAFETY: The folio lock keeps `mapping`, and with it the node.
        let node = unsafe { node.as_ref() };
        Some(MergedFolio { folio: self, node })
    }
}

impl<'a> MergedFolio<'a> {
    pub(crate) fn folio(&self) -> &LockedFolio {
        self.folio
    }

    /// Whether somebody is about to map the page.
    pub(super) fn is_awaited(&self) -> bool {
        self.node.pending.get() != 0
    }

    pub(super) fn node(&self) -> &'a Node {
        self.node
    }

    /// The folio is to be freed, without the node.
    pub(super) fn abandon(self) {
        // What frees the page expects an anonymous one.
        // SAFETY: It names nothing.
        unsafe { self.folio.set_mapping(ORPHAN) };
    }

    pub(crate) fn rmap(&self) -> &Rmap {
        // SAFETY: The folio lock guards the reverse map, and `self` is the one way to it.
        unsafe { &*self.node.rmap.get() }
    }

    /// Enters a place, where the caller will map the page, unless it has users enough. May sleep.
    fn add_place(&mut self, entry: impl FnOnce() -> Entry, most: usize) -> Result<Pushed> {
        let pending = self.node.pending.get();
        let users = self.folio.mapcount().max(0) as usize + usize::from(pending);
        if users >= most || pending == u16::MAX {
            return Ok(Pushed::Full);
        }
        // SAFETY: As in `rmap`, and `self` is borrowed mutably.
        let rmap = unsafe { &mut *self.node.rmap.get() };
        // Twice as many as mappings: when all are looked at, half can be dropped as a rule.
        let pushed = rmap.push(entry(), self.folio, pending == 0, 2 * most + 64)?;
        if pushed == Pushed::Yes {
            let _ = self.node.pending.update(|old| old.checked_add(1));
        }
        Ok(pushed)
    }
}

/// Makes `folio` a page that the caller may map at a place, if it still belongs to `key`.
pub(crate) fn join(
    mut folio: FolioGuard,
    key: Key,
    entry: impl FnOnce() -> Entry,
    most: usize,
) -> Result<Joined> {
    let plain = folio.is_plain();
    let Some(mut merged) = folio.merged() else {
        return Ok(Joined::Gone);
    };
    if !plain || !merged.node.suits(key, merged.folio) {
        return Ok(Joined::Gone);
    }
    match merged.add_place(entry, most)? {
        // INVARIANT: Counted just now.
        Pushed::Yes => return Ok(Joined::Yes(Pending(folio.unlock()))),
        Pushed::Full => {}
        Pushed::Closed => index::remove(merged.node),
    }
    Ok(Joined::Full)
}

/// What became of the attempt to use a merged page.
pub(crate) enum Joined {
    Yes(Pending),
    /// It takes no more users.
    Full,
    /// It is another page by now.
    Gone,
}
