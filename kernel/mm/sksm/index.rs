// SPDX-License-Identifier: GPL-2.0-only

//! Merged pages by content: a resizable hash table keyed by domain, NUMA node and checksum.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use kernel::bindings;
use kernel::error::to_result;
use kernel::init::pin_init_array_from_fn;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::lock::{mutex::MutexBackend, Guard};
use kernel::sync::Mutex;

use super::folio::{Folio, LockedFolio, Locking};
use super::node::{Key, Node, Pending};
use super::rcu::Rcu;
use super::rmap::Entry;

/// How many mappings a merged page takes, unless sysfs says otherwise; KSM's default.
pub(crate) static MAX_PAGE_SHARING: AtomicU32 = AtomicU32::new(256);

/// Where content of some checksums is published: by one caller at a time.
#[pin_data]
pub(crate) struct Shard {
    #[pin]
    mutex: Mutex<()>,
    /// How many pages were published here. Who looked in vain before it rose has to look again.
    published: AtomicUsize,
}

/// Enough that two callers with different content rarely meet.
const SHARDS: usize = 256;

type Shards = [Shard; SHARDS];

struct Table(UnsafeCell<MaybeUninit<bindings::rhltable>>);

// SAFETY: An rhltable does its own locking.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(MaybeUninit::zeroed()));
/// Seeds the checksums, so that nobody can prepare pages that collide.
static SEED: AtomicU64 = AtomicU64::new(0);
static PUBLISH: AtomicPtr<Shards> = AtomicPtr::new(core::ptr::null_mut());

/// Set up once, before anything else here is called.
pub(crate) fn init() -> Result {
    // SAFETY: No preconditions.
    SEED.store(unsafe { bindings::get_random_u64() }, Ordering::Relaxed);
    // SAFETY: Called once at boot; the table is zeroed.
    to_result(unsafe { bindings::sksm_index_init(table()) })?;
    let shard = |_| {
        pin_init!(Shard {
            mutex <- new_mutex!((), "sksm_publish"),
            published: AtomicUsize::new(0),
        })
    };
    let shards = KBox::pin_init(pin_init_array_from_fn(shard), GFP_KERNEL)?;
    // SAFETY: Never moved again: the box is leaked into a static.
    let shards = KBox::into_raw(unsafe { Pin::into_inner_unchecked(shards) });
    PUBLISH.store(shards, Ordering::Release);
    Ok(())
}

/// The seed of all checksums.
pub(crate) fn seed() -> u64 {
    SEED.load(Ordering::Relaxed)
}

fn table() -> *mut bindings::rhltable {
    TABLE.0.get().cast()
}

/// Where pages of this key are published; `None` when [`init`] failed.
pub(crate) fn shard(key: &Key) -> Option<&'static Shard> {
    let shards = PUBLISH.load(Ordering::Acquire);
    // SAFETY: Either NULL, or set once by `init` and never freed.
    let shards = unsafe { shards.as_ref() }?;
    Some(&shards[key.checksum as usize % SHARDS])
}

impl Shard {
    /// Makes the caller the only one to publish here. May sleep.
    pub(crate) fn lock(&self) -> Guard<'_, (), MutexBackend> {
        self.mutex.lock()
    }

    /// How many pages were published: all of them are found by a lookup that begins now.
    pub(crate) fn published(&self) -> usize {
        // Pairs with the release below.
        self.published.load(Ordering::Acquire)
    }

    /// Adds a node. The caller has the lock.
    pub(crate) fn insert(&self, node: &Node) -> Result {
        // SAFETY: The node is in no table, and leaves it before it is freed.
        to_result(unsafe { bindings::sksm_index_insert(table(), node.link()) })?;
        self.published.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

/// Takes a node out, if it is in. Any context.
pub(crate) fn remove(node: &Node) {
    // SAFETY: The node is valid; one that is not in the table is only not found.
    unsafe { bindings::sksm_index_remove(table(), node.link()) };
}

/// Whether the merged page takes one more mapping. Counts mappings, and not references: those of
/// callers that only look would make two of them turn each other away for ever.
fn has_room(node: &Node, folio: &Folio) -> bool {
    let taken = folio.mapcount().max(0) as u32 + node.pending().load(Ordering::Relaxed);
    taken < MAX_PAGE_SHARING.load(Ordering::Relaxed)
}

/// A merged page with the bytes of `candidate`, which must be write-protected.
fn lookup(key: &Key, candidate: &LockedFolio) -> Option<Folio> {
    let _rcu = Rcu::lock();
    // SAFETY: The table is set up; RCU keeps what it returns.
    let mut next = NonNull::new(unsafe { bindings::sksm_index_lookup(table(), key) });
    while let Some(link) = next {
        // SAFETY: RCU keeps the node.
        let node = unsafe { Node::from_link(link) };
        // SAFETY: A node's folio is a struct page, free or not.
        if let Some(folio) = unsafe { Folio::try_get(node.folio_hint()) } {
            if node.owns(&folio)
                && has_room(node, &folio)
                && !folio.state().is_hwpoison()
                && folio.same_bytes(candidate)
            {
                return Some(folio);
            }
        }
        // SAFETY: RCU keeps the list of equal keys.
        next = NonNull::new(unsafe { bindings::sksm_index_next(link.as_ptr()) });
    }
    None
}

/// What a search ended with.
pub(crate) enum Found {
    /// The merged page, which has the place in its reverse map.
    Page(Pending),
    /// No merged page that is equal and has room.
    Nothing,
    /// One that somebody else has locked.
    Contended,
}

/// Finds the merged page for `candidate` and enters `entry` as a place where it will be mapped.
/// May sleep.
///
/// The reference in the result keeps the page from being withdrawn, so its bytes stay.
pub(crate) fn find(
    key: &Key,
    candidate: &LockedFolio,
    locking: Locking,
    entry: impl Fn() -> Entry,
) -> Result<Found> {
    // A page that changed between lookup and lock was withdrawn, migrated or filled up, and the
    // index said so before the lock was free: every turn sees a newer state.
    while let Some(folio) = lookup(key, candidate) {
        let Some(folio) = folio.lock_by(locking) else {
            return Ok(Found::Contended);
        };
        if Node::of(&folio).is_some_and(|node| node.suits(key, &folio) && has_room(node, &folio))
            && !folio.state().is_hwpoison()
        {
            return Node::add_place(folio, entry()).map(Found::Page);
        }
        drop(folio);
        // SAFETY: Folio locks may be held while sleeping.
        unsafe { bindings::sksm_cond_resched() };
    }
    Ok(Found::Nothing)
}

/// Merged pages, by how they are mapped now.
#[derive(Default)]
pub(crate) struct Census {
    /// Merged pages with more than one mapping.
    pub(crate) shared: usize,
    /// Mappings beyond the first of those.
    pub(crate) sharing: usize,
    /// Merged pages with at most one mapping.
    pub(crate) unshared: usize,
}

impl Census {
    fn add(&mut self, mapcount: usize) {
        if mapcount > 1 {
            self.shared += 1;
            self.sharing += mapcount - 1;
        } else {
            self.unshared += 1;
        }
    }
}

/// Counts the merged pages. Takes time proportional to their number; may sleep.
pub(crate) fn census() -> Census {
    loop {
        // A walk during a resize misses nodes or sees them twice. Each resize ends by itself.
        // SAFETY: The table is set up.
        unsafe { bindings::flush_work(&mut (*table()).ht.run_work) };
        if let Some(census) = try_census() {
            return census;
        }
    }
}

/// `None` when the table is resized meanwhile.
fn try_census() -> Option<Census> {
    let mut census = Census::default();
    let mut iter = MaybeUninit::<bindings::rhashtable_iter>::zeroed();
    let iter = iter.as_mut_ptr();
    // SAFETY: The table is set up and `iter` stays in place. Between start and stop RCU keeps the
    // nodes; the walk is stopped before rescheduling.
    unsafe {
        bindings::sksm_index_walk_enter(table(), iter);
        let mut seen = 0usize;
        'walk: while bindings::rhashtable_walk_start_check(iter) == 0 {
            loop {
                let link = bindings::rhashtable_walk_next(iter);
                if link.is_null() {
                    bindings::rhashtable_walk_stop(iter);
                    bindings::rhashtable_walk_exit(iter);
                    return Some(census);
                }
                if kernel::error::from_err_ptr(link).is_err() {
                    break 'walk;
                }
                let node = Node::from_link(NonNull::new_unchecked(link.cast()));
                if let Some(folio) = Folio::try_get(node.folio_hint()) {
                    if node.owns(&folio) {
                        census.add(folio.mapcount().max(0) as usize);
                    }
                }
                seen += 1;
                if seen % 1024 == 0 {
                    break;
                }
            }
            bindings::rhashtable_walk_stop(iter);
            bindings::sksm_cond_resched();
        }
        bindings::rhashtable_walk_stop(iter);
        bindings::rhashtable_walk_exit(iter);
    }
    None
}
