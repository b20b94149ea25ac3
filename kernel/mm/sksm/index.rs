// SPDX-License-Identifier: GPL-2.0-only

//! Merged pages by content.
//!
//! A hash table has one entry for each content of a domain: the newest page with these bytes. Older
//! copies stand in a list behind it. There are some where the first has `max_page_sharing` users.
//!
//! The key is the hash of a sample, a sixteenth of a page or less: bytes are compared anyway, and
//! most cache lines of a page without a twin need not be read. Pages whose sample is another
//! content's stand under the hash of all bytes. While there are any, a [`Crowd`] stands in the
//! table under the hash of the sample, too.
//!
//! All that is published under one sample is so with the lock of one shard, which the hash of
//! the sample picks. Searches take no lock. Who publishes says how many pages the shard had
//! published before his search, and has to search again if there are more by now.

use core::iter::successors;
use core::ptr::{null_mut, NonNull};
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::rcu;

use super::base::atomic::{Acquire, Atomic, Relaxed, Release};
use super::base::ARef;
use super::content::Secret;
use super::folio::{Folio, FolioGuard, LockedFolio, Locking, StableFolio};
use super::gfp_account;
use super::node::{self, Joined, Node, Pending};
use super::rmap::Entry;
use super::stats::Stat;
use super::sysfs::MAX_PAGE_SHARING;

/// How many copies of a content a search looks at; they are newest first, and those have room.
const COPIES: usize = 8;
/// How often it starts again when a page changed under its hands.
const TURNS: usize = 4;

/// What a page is found by: the hash of its bytes, and a word for domain and NUMA node whose low
/// bits are the class.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    hash: u64,
    domain: u64,
}

/// The bits of [`Key::domain`] that tell what stands there.
pub(crate) const CLASS: u64 = 3;
/// A page, by its sample.
const SAMPLE: u64 = 0;
/// A page, by all of its bytes.
const FULL: u64 = 1;
/// A crowd, by its sample.
const CROWD: u64 = 2;

impl Key {
    fn new(hash: u64, domain: u64, class: u64) -> Self {
        Self {
            hash,
            domain: domain & !CLASS | class,
        }
    }

    pub(crate) fn hash(self) -> u64 {
        self.hash
    }

    /// Whether the hash is of all bytes.
    pub(crate) fn is_full(self) -> bool {
        self.domain & CLASS == FULL
    }
}

impl From<bindings::sksm_key> for Key {
    fn from(key: bindings::sksm_key) -> Self {
        Self {
            hash: key.hash,
            domain: key.domain,
        }
    }
}

impl From<Key> for bindings::sksm_key {
    fn from(key: Key) -> Self {
        Self {
            hash: key.hash,
            domain: key.domain,
        }
    }
}

/// Looks a key up.
///
/// # Safety
///
/// What is returned is used no longer than an RCU read section or the lock of the shard lasts in
/// which this is called.
unsafe fn get(key: Key) -> Option<NonNull<bindings::sksm_link>> {
    // SAFETY: The table is set up at boot.
    NonNull::new(unsafe { bindings::sksm_index_lookup(&key.into()) })
}

/// Where the contents of some samples are published.
struct Shard {
    /// How many pages were published here.
    published: Atomic<usize>,
}

/// Enough that two callers with different content rarely meet; `glue.c` has their locks.
const SHARDS: usize = bindings::SKSM_SHARDS as usize;

static SHARD: [Shard; SHARDS] = [const {
    Shard {
        published: Atomic::new(0),
    }
}; SHARDS];

/// The bits of a hash that do not pick the shard.
const WITHIN_SHARD: u64 = u64::MAX >> SHARDS.trailing_zeros();

fn shard_of(sample: u64) -> usize {
    (sample >> WITHIN_SHARD.count_ones()) as usize
}

/// How many pages were published in a sample's shard: all of them are found by a search that
/// begins now.
fn published(sample: u64) -> usize {
    // Pairs with the release in `Guard::publish`.
    SHARD[shard_of(sample)].published.load(Acquire)
}

/// The lock of a shard. Taken with interrupts off, also from the page-free path: for a few steps
/// at a time.
pub(crate) struct Guard {
    shard: usize,
    flags: usize,
}

impl Guard {
    fn lock(sample: u64) -> Self {
        let shard = shard_of(sample);
        // SAFETY: There are so many shards; unlocked by drop.
        let flags = unsafe { bindings::sksm_shard_lock(shard as u32) };
        Self { shard, flags }
    }

    /// Whether this is the lock of that sample's shard.
    pub(crate) fn is_of(&self, sample: u64) -> bool {
        self.shard == shard_of(sample)
    }

    /// Puts the newest node of its content into the table. `first` says that no other stands there.
    fn publish(&self, node: &Node, first: bool) -> Result {
        // SAFETY: The lock keeps the nodes of this shard in the index. The new one is in no table,
        // and leaves it before it is freed.
        unsafe {
            let older = if first { None } else { get(node.key()) };
            let older = older.map(|link| Node::from_link(link));
            node.older
                .store(older.map_or(null_mut(), Node::as_ptr), Relaxed);
            if let Some(older) = older {
                let replaced = to_result(bindings::sksm_index_replace(older.link(), node.link()));
                if replaced.is_err() {
                    // A node that sleeps, which a search came by: it is no copy of the index's.
                    node.older.store(null_mut(), Relaxed);
                    return replaced;
                }
                older.newer(self).set(node.as_ptr());
            } else {
                to_result(bindings::sksm_index_insert(node.link()))?;
            }
        }
        node.newer(self).set(null_mut());
        SHARD[self.shard].published.fetch_add(1, Release);
        Ok(())
    }

    /// Takes a node out, if it is in; true if it was.
    fn withdraw(&self, node: &Node) -> bool {
        let newer = node.newer(self).replace(node.as_ptr());
        if newer == node.as_ptr() {
            return false;
        }
        let older = node.older.load(Relaxed);
        // SAFETY: The lock keeps the nodes of this shard in the index. One without a newer copy is
        // the table's.
        unsafe {
            if let Some(newer) = newer.as_ref() {
                newer.older.store(older, Release);
            } else if let Some(older) = older.as_ref() {
                bindings::sksm_index_replace(node.link(), older.link());
            } else {
                bindings::sksm_index_remove(node.link());
            }
            if let Some(older) = older.as_ref() {
                older.newer(self).set(newer);
            }
        }
        true
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: Locked by `lock`.
        unsafe { bindings::sksm_shard_unlock(self.shard as u32, self.flags) };
    }
}

/// Stands for the pages whose sample is another content's: says that there are some.
///
/// # Invariants
///
/// It came from a `KBox`; it is in the table, and `members` is not zero, or it is nobody's.
struct Crowd(NonNull<bindings::sksm_crowd>);

impl Crowd {
    fn key(sample: u64, domain: u64) -> Key {
        Key::new(sample, domain, CROWD)
    }

    fn exists(sample: u64, domain: u64) -> bool {
        let _rcu = rcu::read_lock();
        // SAFETY: Used within the read section, and not followed.
        unsafe { get(Self::key(sample, domain)) }.is_some()
    }

    fn find(_guard: &Guard, sample: u64, domain: u64) -> Option<Self> {
        // SAFETY: The lock of the shard keeps it in the table.
        unsafe { get(Self::key(sample, domain)) }.map(|link| Self(link.cast()))
    }

    /// One more member; `new` stands for the crowd if it is the first. False without it.
    fn join(
        guard: &Guard,
        node: &Node,
        new: &mut Option<KBox<bindings::sksm_crowd>>,
    ) -> Result<bool> {
        let (sample, domain) = (node.sample(), node.key().domain);
        if let Some(crowd) = Self::find(guard, sample, domain) {
            // SAFETY: The lock of the shard guards the number.
            unsafe { (*crowd.0.as_ptr()).members += 1 };
            return Ok(true);
        }
        let Some(mut crowd) = new.take() else {
            return Ok(false);
        };
        crowd.link.key = Self::key(sample, domain).into();
        crowd.members = 1;
        let link = KBox::into_raw(crowd);
        // SAFETY: In no table, and freed a grace period after it has left this one.
        unsafe {
            if let Err(error) = to_result(bindings::sksm_index_insert(link.cast())) {
                // It never became visible.
                *new = Some(KBox::from_raw(link));
                return Err(error);
            }
        }
        Stat::Metadata.add(size_of::<bindings::sksm_crowd>() as isize);
        Ok(true)
    }

    /// One member less.
    fn leave(guard: &Guard, node: &Node) {
        let Some(crowd) = Self::find(guard, node.sample(), node.key().domain) else {
            return;
        };
        // SAFETY: The lock of the shard guards the number; who is last frees it, once.
        unsafe {
            let crowd = crowd.0.as_ptr();
            (*crowd).members -= 1;
            if (*crowd).members == 0 {
                bindings::sksm_index_remove(crowd.cast());
                bindings::sksm_crowd_free(crowd);
                Stat::Metadata.add(-(size_of::<bindings::sksm_crowd>() as isize));
            }
        }
    }
}

/// A place in the index where a search found nothing.
pub(crate) struct Vacancy {
    key: Key,
    sample: u64,
    published: usize,
    /// Nothing at all stands there, as long as nothing is published.
    first: bool,
}

impl Vacancy {
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// The hash of the sample, which picks the shard.
    pub(crate) fn sample(&self) -> u64 {
        self.sample
    }
}

/// Adds a node whose key and sample are those of the vacancy; false when the index has changed
/// there since, so that it has to be searched again. The folio lock is held. May sleep.
pub(crate) fn insert(node: &Node, vacancy: &Vacancy) -> Result<bool> {
    let full = vacancy.key.is_full();
    let mut crowd = None;
    if full && !Crowd::exists(vacancy.sample, vacancy.key.domain) {
        crowd = Some(KBox::new(bindings::sksm_crowd::default(), gfp_account())?);
    }
    let guard = Guard::lock(vacancy.sample);
    if SHARD[guard.shard].published.load(Relaxed) != vacancy.published {
        return Ok(false);
    }
    // It may have gone since.
    if full && !Crowd::join(&guard, node, &mut crowd)? {
        return Ok(false);
    }
    let published = guard.publish(node, vacancy.first);
    if published.is_err() && full {
        Crowd::leave(&guard, node);
    }
    drop(guard);
    published.map(|()| true)
}

/// Takes a node out, if it is in. Any context.
pub(crate) fn remove(node: &Node) {
    let guard = Guard::lock(node.sample());
    if guard.withdraw(node) && node.key().is_full() {
        Crowd::leave(&guard, node);
    }
}

/// Puts the node of a page that was read from swap back where it stood, if nothing stands there by
/// now. The folio lock is held. May sleep.
///
/// Not among copies: a search that stood on the node while it slept goes on from its place, and
/// would miss what comes before that. A new entry of the table is the first of its chain.
pub(crate) fn restore(node: &Node, folio: &LockedFolio) {
    let key = node.key();
    let Ok(secret) = Secret::get() else { return };
    if !node.suits(key, folio) {
        return;
    }
    let search = Search {
        // SAFETY: A merged page, and plain; the lock keeps it from being withdrawn.
        candidate: unsafe { folio.assume_stable() },
        secret,
        domain: key.domain & !CLASS,
        sample: node.sample(),
        most: MAX_PAGE_SHARING.load(Relaxed) as usize,
    };
    for _ in 0..TURNS {
        let published = published(search.sample);
        let (at, lookup) = search.look();
        if at != key || !matches!(lookup, Lookup::Nothing) {
            return;
        }
        let vacancy = Vacancy {
            key,
            sample: search.sample,
            published,
            first: true,
        };
        if !matches!(insert(node, &vacancy), Ok(false)) {
            return;
        }
    }
}

/// Another page with the same bytes as a node's page, whose folio lock is held.
pub(crate) fn copy_of(node: &Node) -> Option<ARef<Folio>> {
    // Those have the same hash, and nobody can compare with a page that failed.
    if node.key().is_full() {
        return None;
    }
    let _rcu = rcu::read_lock();
    let mut copies = [None; COPIES];
    {
        let guard = Guard::lock(node.sample());
        let newer = node.newer(&guard).get();
        // What is not in the index may have others in its place.
        if newer == node.as_ptr() {
            return None;
        }
        // SAFETY: The lock keeps the nodes of this shard in the index.
        let as_node = |node: *mut Node| unsafe { node.cast_const().as_ref() };
        let newer = successors(as_node(newer), |node| as_node(node.newer(&guard).get()));
        let older = |node: &Node| as_node(node.older.load(Relaxed));
        let older = successors(older(node), |node| older(node));
        for (place, copy) in copies.iter_mut().zip(Iterator::chain(older, newer)) {
            *place = Some(copy);
        }
    }
    // Without the lock: to put the last reference takes it. RCU keeps the nodes.
    copies.into_iter().flatten().find_map(|copy| {
        // SAFETY: A node's folio is a struct page, free or not.
        let folio = unsafe { Folio::try_get(copy.folio_hint()) }?;
        (copy.owns(&folio) && folio.is_plain()).then_some(folio)
    })
}

/// What a lookup under one key ended with.
enum Lookup {
    /// A merged page with the same bytes and, it seems, with room.
    Page(ARef<Folio>),
    /// No page at all.
    Nothing,
    /// Pages with the same bytes, none of them with room.
    Full,
    /// A page with other bytes, as far as can be told.
    Unequal,
}

/// Looks for a merged page with the bytes of `candidate`.
fn lookup(key: Key, candidate: StableFolio<'_>, most: usize) -> Lookup {
    let _rcu = rcu::read_lock();
    // SAFETY: RCU keeps the nodes.
    let mut next = unsafe { get(key).map(|link| Node::from_link(link)) };
    if next.is_none() {
        return Lookup::Nothing;
    }
    let mut equal = None;
    for _ in 0..COPIES {
        let Some(node) = next else { break };
        // SAFETY: A node's folio is a struct page, free or not.
        if let Some(folio) = unsafe { Folio::try_get(node.folio_hint()) } {
            // What stands in one list is equal: pages without room need not be compared.
            let room = (folio.mapcount().max(0) as usize) < most;
            if node.owns(&folio) && folio.is_plain() && (room || equal.is_none()) {
                // SAFETY: The reference was there before the look at the mapping, so nobody
                // withdraws the page; and device memory is passed over.
                let bytes = unsafe { folio.assume_stable() };
                let same = bytes.same_bytes(candidate);
                if same && room {
                    return Lookup::Page(folio);
                }
                equal = Some(same);
                if !same {
                    break;
                }
            }
        }
        // SAFETY: RCU keeps the nodes.
        next = unsafe { node.older.load(Acquire).as_ref() };
    }
    // Pages that are all on their way out may be anything.
    match equal {
        Some(true) => Lookup::Full,
        Some(false) | None => Lookup::Unequal,
    }
}

/// What a search ended with.
pub(crate) enum Found {
    /// The merged page, which has the place in its reverse map.
    Page(Pending),
    /// None that is equal and has room.
    Vacant(Vacancy),
    /// One that somebody else is at work on.
    Contended,
}

/// The search for a merged page that is equal to a candidate.
pub(crate) struct Search<'a> {
    pub(crate) candidate: StableFolio<'a>,
    pub(crate) secret: &'static Secret,
    /// The word for domain and NUMA node, without the bits of [`CLASS`].
    pub(crate) domain: u64,
    /// The hash of the sample in this domain.
    pub(crate) sample: u64,
    /// How many users a merged page may have.
    pub(crate) most: usize,
}

impl Search<'_> {
    /// Finds the merged page and enters `place` as one where it will be mapped. May sleep; a fatal
    /// signal ends it.
    ///
    /// The reference in the result keeps the page from being withdrawn, so its bytes stay.
    pub(crate) fn find(&self, locking: Locking, place: impl Fn() -> Entry) -> Result<Found> {
        // A page that changed between lookup and lock was withdrawn or migrated, or left the index:
        // the next turn sees a newer state.
        for _ in 0..TURNS {
            let published = published(self.sample);
            let (key, lookup) = self.look();
            let first = matches!(lookup, Lookup::Nothing);
            if let Lookup::Page(folio) = lookup {
                let Some(folio) = FolioGuard::lock(folio, locking)? else {
                    return Ok(Found::Contended);
                };
                match node::join(folio, key, &place, self.most)? {
                    Joined::Yes(page) => return Ok(Found::Page(page)),
                    Joined::Full => {}
                    Joined::Gone => continue,
                }
            }
            return Ok(Found::Vacant(Vacancy {
                key,
                sample: self.sample,
                published,
                first,
            }));
        }
        Ok(Found::Contended)
    }

    /// Looks under the key that the page would have, and says which that is.
    fn look(&self) -> (Key, Lookup) {
        let key = Key::new(self.sample, self.domain, SAMPLE);
        let lookup = lookup(key, self.candidate, self.most);
        let crowded = match lookup {
            Lookup::Page(_) | Lookup::Full => false,
            Lookup::Nothing => Crowd::exists(self.sample, self.domain),
            Lookup::Unequal => true,
        };
        if !crowded {
            return (key, lookup);
        }
        let hash = self
            .candidate
            .with_words(|words| self.secret.hash(words, self.domain));
        // What stands under one key is all of one shard.
        let hash = self.sample & !WITHIN_SHARD | hash & WITHIN_SHARD;
        let key = Key::new(hash, self.domain, FULL);
        (key, self::lookup(key, self.candidate, self.most))
    }
}
