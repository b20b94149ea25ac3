// SPDX-License-Identifier: GPL-2.0-only

//! Merged pages by content: a resizable hash table keyed by domain, NUMA node and checksum.
//!
//! The checksum is of a sample, an eighth of the page: bytes are compared anyway, and seven eighths
//! of the cache lines of a page without a twin need not be read. Where many pages have the same
//! sample and differ elsewhere, further ones are found by a checksum of all bytes.

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

/// How many merged pages stand under the checksum of one sample. Those beyond are a crowd: they
/// stand under the checksum of all their bytes, so that nobody compares with all of them.
const FEW: usize = 2;

/// Where content of some samples is published: by one caller at a time.
#[pin_data]
pub(crate) struct Shard {
    #[pin]
    mutex: Mutex<()>,
    /// How many pages were published here. Who looked in vain before it rose has to look again.
    published: AtomicUsize,
    /// How many of the pages that stand in the table now are in crowds; several samples share one
    /// number. Rises before such a page is in the table, and falls after it has left.
    crowds: [AtomicU32; CROWDS],
}

/// The top bits of the checksum of a sample pick a shard and, in it, the number of its crowd. A
/// checksum of all bytes has those of the sample.
const SHARD_BITS: u32 = 8;
const CROWD_BITS: u32 = 6;
const SAMPLE_BITS: u32 = SHARD_BITS + CROWD_BITS;

/// Enough that two callers with different content rarely meet.
const SHARDS: usize = 1 << SHARD_BITS;
/// 64 KiB in all.
const CROWDS: usize = 1 << CROWD_BITS;

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
            crowds: [const { AtomicU32::new(0) }; CROWDS],
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

/// Where pages with this checksum are published; `None` when [`init`] failed.
fn shard(checksum: u64) -> Option<&'static Shard> {
    let shards = PUBLISH.load(Ordering::Acquire);
    // SAFETY: Either NULL, or set once by `init` and never freed.
    let shards = unsafe { shards.as_ref() }?;
    Some(&shards[(checksum >> (u64::BITS - SHARD_BITS)) as usize])
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
        let crowd = self.crowd(node.checksum());
        if node.is_full() {
            crowd.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: The node is in no table, and leaves it before it is freed.
        let inserted = to_result(unsafe { bindings::sksm_index_insert(table(), node.link()) });
        if inserted.is_ok() {
            self.published.fetch_add(1, Ordering::Release);
        } else if node.is_full() {
            crowd.fetch_sub(1, Ordering::Relaxed);
        }
        inserted
    }

    /// The number of pages in the crowd of a sample, and a few others.
    fn crowd(&self, checksum: u64) -> &AtomicU32 {
        &self.crowds[(checksum >> (u64::BITS - SAMPLE_BITS)) as usize % CROWDS]
    }
}

/// Takes a node out, if it is in. Any context.
pub(crate) fn remove(node: &Node) {
    // SAFETY: The node is valid; one that is not in the table is only not found.
    let removed = unsafe { bindings::sksm_index_remove(table(), node.link()) } == 0;
    if removed && node.is_full() {
        if let Some(shard) = shard(node.checksum()) {
            shard.crowd(node.checksum()).fetch_sub(1, Ordering::Release);
        }
    }
}

/// Whether the merged page takes one more mapping. Counts mappings, and not references: those of
/// callers that only look would make two of them turn each other away for ever.
fn has_room(node: &Node, folio: &Folio) -> bool {
    let taken = folio.mapcount().max(0) as u32 + node.pending().load(Ordering::Relaxed);
    taken < MAX_PAGE_SHARING.load(Ordering::Relaxed)
}

/// What a lookup under one key ended with.
enum Lookup {
    /// A merged page with the same bytes.
    Page(Folio),
    /// None, of so many.
    Nothing(usize),
}

/// Looks for a merged page with the bytes of `candidate`, which must be write-protected.
fn lookup(key: &Key, candidate: &LockedFolio) -> Lookup {
    let _rcu = Rcu::lock();
    let mut seen = 0;
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
                return Lookup::Page(folio);
            }
        }
        seen += 1;
        // SAFETY: RCU keeps the list of equal keys.
        next = NonNull::new(unsafe { bindings::sksm_index_next(link.as_ptr()) });
    }
    Lookup::Nothing(seen)
}

/// What a search ended with.
pub(crate) enum Found {
    /// The merged page, which has the place in its reverse map.
    Page(Pending),
    /// No merged page that is equal and has room, of so many that were looked at last.
    Nothing(usize),
    /// One that somebody else has locked.
    Contended,
}

/// The search for a merged page that is equal to a candidate, which is write-protected.
pub(crate) struct Search<'a> {
    candidate: &'a LockedFolio,
    /// Where such pages are published.
    pub(crate) shard: &'static Shard,
    sample: Key,
    /// With the checksum of all bytes, once that is needed.
    full: Option<Key>,
    seed: u64,
    /// Whether there are so many pages with this sample that one more would stand under `full`.
    crowded: bool,
}

impl<'a> Search<'a> {
    /// `sample` has the checksum of the candidate's sample. `None` when [`init`] failed.
    pub(crate) fn new(candidate: &'a LockedFolio, sample: Key, seed: u64) -> Option<Self> {
        Some(Self {
            candidate,
            shard: shard(sample.checksum)?,
            sample,
            full: None,
            seed,
            crowded: false,
        })
    }

    /// Finds the merged page and enters `entry` as a place where it will be mapped. May sleep.
    ///
    /// The reference in the result keeps the page from being withdrawn, so its bytes stay.
    pub(crate) fn find(&mut self, locking: Locking, entry: impl Fn() -> Entry) -> Result<Found> {
        let found = self.find_by(&self.sample, locking, &entry)?;
        let Found::Nothing(seen) = found else {
            return Ok(found);
        };
        self.crowded = seen >= FEW;
        // It rose before such a page was published: who has to find the page sees the number.
        let crowd = self.shard.crowd(self.sample.checksum);
        if crowd.load(Ordering::Acquire) == 0 {
            return Ok(found);
        }
        let full = self.full();
        self.find_by(&full, locking, &entry)
    }

    /// What to publish the candidate by, after it was searched in vain.
    pub(crate) fn key(&mut self) -> Key {
        if self.crowded {
            self.full()
        } else {
            self.sample
        }
    }

    fn full(&mut self) -> Key {
        let (candidate, seed, sample) = (self.candidate, self.seed, self.sample);
        *self.full.get_or_insert_with(|| {
            let low = u64::MAX >> SAMPLE_BITS;
            Key {
                checksum: sample.checksum & !low | candidate.checksum(seed) & low,
                full: 1,
                ..sample
            }
        })
    }

    /// As `find`, under one key.
    fn find_by(&self, key: &Key, locking: Locking, entry: impl Fn() -> Entry) -> Result<Found> {
        // A page that changed between lookup and lock was withdrawn, migrated or filled up, and the
        // index said so before the lock was free: every turn sees a newer state.
        loop {
            let folio = match lookup(key, self.candidate) {
                Lookup::Page(folio) => folio,
                Lookup::Nothing(seen) => return Ok(Found::Nothing(seen)),
            };
            let Some(folio) = folio.lock_by(locking) else {
                return Ok(Found::Contended);
            };
            let fits = |node: &Node| node.suits(key, &folio) && has_room(node, &folio);
            if Node::of(&folio).is_some_and(fits) && !folio.state().is_hwpoison() {
                return Node::add_place(folio, entry()).map(Found::Page);
            }
            drop(folio);
            // SAFETY: Folio locks may be held while sleeping.
            unsafe { bindings::sksm_cond_resched() };
        }
    }
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
