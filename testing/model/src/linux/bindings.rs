//! `kernel::bindings`: what `glue.h` declares, and the parts of `struct folio` and others that it is
//! about.

#![allow(non_camel_case_types, non_upper_case_globals)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::offset_of;
use std::ptr::{null_mut, NonNull};
use std::thread::panicking;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, Ordering};

use crate::atomic::{Acquire, Atomic, Relaxed, Release};
use crate::lock::{PageLock, Shared, Spin};
use crate::mm;
use crate::planted::Planted;
use crate::world::{world, Bucket, Word, POISON, SLOTS};

// Index

#[repr(C)]
#[derive(Default)]
pub(crate) struct rhash_head {
    pub(crate) next: Atomic<usize>,
}

#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct sksm_key {
    pub(crate) hash: u64,
    pub(crate) domain: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct sksm_link {
    pub(crate) head: rhash_head,
    pub(crate) key: sksm_key,
}

#[repr(C)]
pub(crate) struct sksm_sleeper {
    pub(crate) link: sksm_link,
    pub(crate) older: *mut c_void,
    pub(crate) slot: usize,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct sksm_crowd {
    pub(crate) link: sksm_link,
    pub(crate) members: u64,
    /// An rcu_head, where a sleeper has its slot: pointers.
    pub(crate) rcu: [usize; 2],
}

pub(crate) const SKSM_SHARDS: u32 = 256;
pub(crate) const SKSM_NODE_BYTES: u32 = 96;
pub(crate) const SKSM_TABLE_ENTRIES: u32 = 512;
const ENOENT: c_int = -2;
const ENOMEM: c_int = -12;
const EEXIST: c_int = -17;
const EINVAL: c_int = -22;

pub(crate) unsafe fn sksm_index_init() -> c_int {
    0
}

/// # Safety
///
/// `link` is in the table or was, and RCU keeps it.
unsafe fn key_of(link: usize) -> sksm_key {
    world().heap.look(link);
    // SAFETY: As the caller promises.
    unsafe { (*(link as *const sksm_link)).key }
}

/// # Safety
///
/// As for [`key_of`].
unsafe fn next_of<'a>(link: usize) -> &'a Atomic<usize> {
    // SAFETY: As the caller promises.
    unsafe { &(*(link as *const sksm_link)).head.next }
}

/// As `READ_ONCE()`, of the word that sleepers have their slot in; no slot where a crowd stands.
///
/// # Safety
///
/// As for [`key_of`].
unsafe fn slot_of(link: usize) -> usize {
    let slot = link + offset_of!(sksm_sleeper, slot);
    // SAFETY: As the caller promises. Nodes have written the checker's word by now.
    let word = world().word(slot, || unsafe { *(slot as *const usize) });
    word.load(Ordering::Relaxed)
}

/// Whether a link is that of a node that sleeps, which a lookup in the index may come by.
///
/// # Safety
///
/// As for [`key_of`].
unsafe fn sleeps(link: usize) -> bool {
    // SAFETY: As the caller promises.
    world().any_asleep.get() && unsafe { slot_of(link) } & 1 == 1
}

/// As `rhashtable_lookup_fast()`, with a read section of its own.
fn lookup(bucket: &Bucket, found: impl Fn(usize) -> bool) -> *mut sksm_link {
    let rcu = &world().rcu;
    let nested = rcu.is_read();
    if !nested {
        rcu.read();
    }
    let link = loop {
        let mut link = bucket.head.load(Ordering::Acquire);
        while !Bucket::is_end(link) && !found(link) {
            // SAFETY: RCU keeps what a reader gets to.
            link = unsafe { next_of(link) }.load(Acquire);
        }
        if !Bucket::is_end(link) {
            break link as *mut sksm_link;
        }
        // A link on the way moved to another chain, and the lookup with it.
        if link == bucket.end || world().makes(Planted::AnyEnd) {
            break null_mut();
        }
    };
    if !nested {
        rcu.read_unlock();
    }
    link
}

/// Puts a link in front, unless what it stands for is there.
fn insert(bucket: &Bucket, new: usize, same: impl Fn(usize) -> bool) -> c_int {
    bucket.lock.with(|| {
        let first = bucket.head.load(Ordering::Relaxed);
        let mut other = first;
        while !Bucket::is_end(other) {
            if same(other) {
                return EEXIST;
            }
            // SAFETY: The lock of the bucket keeps what is in it.
            other = unsafe { next_of(other) }.load(Relaxed);
        }
        // Who still stands on the link from its time in the other table goes on from here. In the
        // kernel the bucket's lock orders this after what others have put in.
        // SAFETY: The engine's.
        unsafe { next_of(new) }.store(first, Release);
        bucket.head.store(new, Ordering::Release);
        0
    })
}

/// Finds a link, under the lock of its bucket, and stores `new` where it stands, or what follows.
fn replace_link(bucket: &Bucket, link: usize, new: Option<usize>) -> c_int {
    // SAFETY: The lock of the bucket keeps what is in it.
    unsafe {
        bucket.lock.with(|| {
            let mut previous = None;
            let mut at = bucket.head.load(Ordering::Relaxed);
            while !Bucket::is_end(at) && at != link {
                previous = Some(at);
                at = next_of(at).load(Relaxed);
            }
            if Bucket::is_end(at) {
                return ENOENT;
            }
            let next = next_of(link).load(Relaxed);
            let new = match new {
                Some(new) => {
                    next_of(new).store(next, Release);
                    new
                }
                None => next,
            };
            match previous {
                Some(previous) => next_of(previous).store(new, Release),
                None => bucket.head.store(new, Ordering::Release),
            }
            0
        })
    }
}

pub(crate) unsafe fn sksm_index_lookup(key: &sksm_key) -> *mut sksm_link {
    // SAFETY: RCU keeps what a reader gets to.
    lookup(world().bucket(key.hash), |link| unsafe {
        key_of(link) == *key && !sleeps(link)
    })
}

/// Does not ask whether the key is there.
pub(crate) unsafe fn sksm_index_insert(link: *mut sksm_link) -> c_int {
    let link = link as usize;
    // SAFETY: The engine's.
    let key = unsafe { key_of(link) };
    insert(world().bucket(key.hash), link, |_| false)
}

pub(crate) unsafe fn sksm_index_replace(old: *mut sksm_link, new: *mut sksm_link) -> c_int {
    let (old, new) = (old as usize, new as usize);
    // SAFETY: The engine's.
    let (hash, other) = unsafe { (key_of(old).hash, key_of(new).hash) };
    if hash != other {
        return EINVAL;
    }
    replace_link(world().bucket(hash), old, Some(new))
}

pub(crate) unsafe fn sksm_index_remove(link: *mut sksm_link) -> c_int {
    let link = link as usize;
    // SAFETY: The engine's.
    let key = unsafe { key_of(link) };
    let error = replace_link(world().bucket(key.hash), link, None);
    assert_eq!(error, 0, "what leaves the table is not in it");
    error
}

pub(crate) unsafe fn sksm_asleep_insert(sleeper: *mut sksm_sleeper) -> c_int {
    world().any_asleep.set(true);
    if world().sleepless {
        return ENOMEM;
    }
    let link = sleeper as usize;
    // SAFETY: The engine's, as what is in the chain.
    unsafe {
        let slot = slot_of(link);
        insert(&world().asleep, link, |other| slot_of(other) == slot)
    }
}

pub(crate) unsafe fn sksm_asleep_lookup(slot: usize) -> *mut sksm_sleeper {
    // SAFETY: RCU keeps what a reader gets to.
    lookup(&world().asleep, |link| unsafe { slot_of(link) == slot }).cast()
}

/// More than one also where it is one: then, too, all goes well, and scenarios need fewer processes.
pub(crate) unsafe fn sksm_slot_users(_entry: usize) -> c_int {
    2
}

pub(crate) unsafe fn sksm_asleep_remove(sleeper: *mut sksm_sleeper) {
    let error = replace_link(&world().asleep, sleeper as usize, None);
    assert_eq!(error, 0, "what leaves the table is not in it");
}

/// `kfree_rcu()`.
pub(crate) unsafe fn sksm_crowd_free(crowd: *mut sksm_crowd) {
    let me = loom::thread::current().id();
    world().doomed.borrow_mut().push((me, crowd as usize));
}

pub(crate) unsafe fn sksm_shard_lock(shard: u32) -> usize {
    world().shard(shard).lock();
    0
}

pub(crate) unsafe fn sksm_shard_unlock(shard: u32, _flags: usize) {
    if !panicking() {
        world().shard(shard).unlock();
    }
}

// Folios

pub(crate) const PAGE_MAPPING_ANON: u32 = 1;
pub(crate) const PAGE_MAPPING_KSM: u32 = 3;
pub(crate) const PAGE_MAPPING_SKSM: u32 = 4;
pub(crate) const PAGE_MAPPING_FLAGS: u32 = 3;
pub(crate) const NUMA_NO_NODE: i32 = -1;

/// A page's bytes.
pub(crate) type Words = [u64; 3];

/// A `struct folio` and its page, in use or not.
pub(crate) struct folio {
    pub(crate) refs: Word,
    pub(crate) mapcount: Word,
    pub(crate) mapping: Word,
    /// As `mm` has them.
    pub(crate) flags: Word,
    pub(crate) lock: PageLock,
    /// `PageAnonExclusive`: guarded by the lock of the page table of the one mapping.
    pub(crate) exclusive: Cell<bool>,
    pub(crate) index: Cell<usize>,
    pub(crate) nid: Cell<i32>,
    /// Its slot, while it is in the swap cache. Guarded by the folio lock.
    pub(crate) swap: Cell<usize>,
    words: UnsafeCell<Words>,
}

impl folio {
    pub(crate) fn new() -> Self {
        Self {
            refs: Word::new(0),
            mapcount: Word::new(0),
            mapping: Word::new(0),
            flags: Word::new(0),
            lock: PageLock::new(),
            exclusive: Cell::new(false),
            index: Cell::new(0),
            nid: Cell::new(0),
            swap: Cell::new(0),
            words: UnsafeCell::new(POISON),
        }
    }

    /// The bytes, by a process's load or a copy. They must be stable.
    #[track_caller]
    pub(crate) fn load(&self) -> Words {
        // SAFETY: The checker has seen that nobody writes.
        let words = self.words.with(|words| unsafe { *words });
        assert_ne!(words, POISON, "a freed page is read");
        words
    }

    #[track_caller]
    pub(crate) fn store(&self, words: Words) {
        // SAFETY: The checker has seen that nobody else reads or writes.
        self.words.with_mut(|old| unsafe { *old = words });
    }
}

pub(crate) unsafe fn sksm_folio_try_get(folio: *mut folio) -> bool {
    mm::folio_try_get(mm::of(folio))
}

pub(crate) unsafe fn sksm_folio_get(folio: *mut folio) {
    mm::folio_get(mm::of(folio));
}

pub(crate) unsafe fn sksm_folio_put(folio: *mut folio) {
    if !panicking() {
        mm::folio_put(mm::of(folio));
    }
}

pub(crate) struct folio_batch {
    pub(crate) nr: u8,
    pub(crate) folios: [*mut folio; 31],
}

impl Default for folio_batch {
    fn default() -> Self {
        Self {
            nr: 0,
            folios: [null_mut(); 31],
        }
    }
}

pub(crate) unsafe fn sksm_folio_batch_init(folios: *mut folio_batch) {
    // SAFETY: The engine's.
    unsafe { folios.write(folio_batch::default()) };
}

pub(crate) unsafe fn sksm_folio_batch_put(folios: *mut folio_batch, folio: *mut folio) {
    // SAFETY: The engine's.
    let batch = unsafe { &mut *folios };
    batch.folios[usize::from(batch.nr)] = folio;
    batch.nr += 1;
    if usize::from(batch.nr) == batch.folios.len() {
        // SAFETY: As above.
        unsafe { sksm_folio_batch_release(folios) };
    }
}

pub(crate) unsafe fn sksm_folio_batch_release(folios: *mut folio_batch) {
    if panicking() {
        return;
    }
    // SAFETY: The engine's.
    let batch = unsafe { &mut *folios };
    for folio in &batch.folios[..usize::from(batch.nr)] {
        mm::folio_put(mm::of(*folio));
    }
    batch.nr = 0;
}

pub(crate) unsafe fn sksm_folio_trylock(folio: *mut folio) -> bool {
    mm::of(folio).lock.try_lock()
}

pub(crate) unsafe fn sksm_folio_lock_killable(folio: *mut folio) -> c_int {
    mm::of(folio).lock.lock();
    0
}

pub(crate) unsafe fn folio_unlock(folio: *mut folio) {
    if !panicking() {
        mm::of(folio).lock.unlock();
    }
}

pub(crate) unsafe fn sksm_folio_is_plain(folio: *mut folio) -> bool {
    mm::is_plain(mm::of(folio))
}

pub(crate) unsafe fn sksm_folio_is_unmerged_anon(folio: *mut folio) -> bool {
    mm::is_unmerged_anon(mm::of(folio))
}

pub(crate) unsafe fn sksm_folio_is_large(_folio: *mut folio) -> bool {
    false
}

pub(crate) unsafe fn sksm_folio_in_swapcache(folio: *mut folio) -> bool {
    mm::in_swapcache(mm::of(folio))
}

pub(crate) unsafe fn sksm_folio_maybe_dma_pinned(_folio: *mut folio) -> bool {
    false
}

pub(crate) unsafe fn sksm_folio_mark_dirty(_folio: *mut folio) {}

pub(crate) unsafe fn sksm_folio_mapped(folio: *mut folio) -> bool {
    mm::mapcount(mm::of(folio)) > 0
}

pub(crate) unsafe fn sksm_folio_mapcount(folio: *mut folio) -> i32 {
    mm::mapcount(mm::of(folio)) as i32
}

pub(crate) unsafe fn sksm_folio_other_refs(folio: *mut folio) -> i32 {
    let folio = mm::of(folio);
    mm::refs(folio) as i32 - mm::mapcount(folio) as i32 - mm::in_swapcache(folio) as i32
}

pub(crate) unsafe fn sksm_folio_ref_freeze(folio: *mut folio, count: c_int) -> bool {
    mm::freeze(mm::of(folio), count as usize)
}

pub(crate) unsafe fn sksm_folio_ref_unfreeze(folio: *mut folio, count: c_int) {
    mm::of(folio).refs.store(count as usize, Ordering::Release);
}

pub(crate) unsafe fn sksm_folio_nid(folio: *mut folio) -> i32 {
    mm::of(folio).nid.get()
}

pub(crate) unsafe fn sksm_folio_mapping(folio: *mut folio) -> usize {
    mm::of(folio).mapping.load(Ordering::Acquire)
}

pub(crate) unsafe fn sksm_folio_set_mapping(folio: *mut folio, mapping: usize) {
    mm::of(folio).mapping.store(mapping, Ordering::Release);
}

pub(crate) unsafe fn sksm_folio_index(folio: *mut folio) -> usize {
    mm::of(folio).index.get()
}

pub(crate) unsafe fn sksm_folio_slot(folio: *mut folio) -> usize {
    mm::of(folio).swap.get()
}

/// Whoever locks a folio finds it read: reading does not fail.
pub(crate) unsafe fn sksm_folio_uptodate(_folio: *mut folio) -> bool {
    true
}

pub(crate) unsafe fn sksm_folio_set_index(folio: *mut folio, index: usize) {
    mm::of(folio).index.set(index);
}

pub(crate) unsafe fn sksm_folio_is_exclusive(folio: *mut folio) -> bool {
    mm::of(folio).exclusive.get()
}

/// `folio_try_share_anon_rmap_pte()`; pins are references here.
pub(crate) unsafe fn sksm_folio_share(folio: *mut folio) -> bool {
    let folio = mm::of(folio);
    if folio.exclusive.replace(false) {
        // Its smp_mb(): bytes are read after references.
        fence(Ordering::SeqCst);
    }
    true
}

pub(crate) unsafe fn sksm_folio_split(_folio: *mut folio) -> c_int {
    EINVAL
}

/// The bytes, which the checker sees being read now and when they are unmapped.
pub(crate) unsafe fn sksm_folio_map(folio: *mut folio) -> *mut c_void {
    let folio = mm::of(folio);
    folio.load();
    let words = Box::new((folio.load(), NonNull::from(folio)));
    Box::into_raw(words).cast()
}

pub(crate) unsafe fn sksm_folio_unmap(addr: *mut c_void) {
    // SAFETY: As mapped.
    let (words, folio) = *unsafe { Box::from_raw(addr.cast::<(Words, NonNull<folio>)>()) };
    // SAFETY: Folios stay.
    let now = unsafe { folio.as_ref() }.load();
    assert_eq!(words, now, "a page changes while it is looked at");
}

/// `folio_add_anon_rmap_pte()`, by a merge.
pub(crate) unsafe fn sksm_folio_add_rmap(
    folio: *mut folio,
    _vma: *mut vm_area_struct,
    _addr: usize,
) {
    let folio = mm::of(folio);
    // Candidates are on the first node.
    let allowed = world().across_nodes || folio.nid.get() == 0;
    assert!(allowed, "pages of two NUMA nodes merge");
    mm::add_mapping(folio);
}

/// `folio_remove_rmap_pte()`.
pub(crate) unsafe fn sksm_folio_remove_rmap(folio: *mut folio, _vma: *mut vm_area_struct) {
    mm::remove_mapping(mm::of(folio));
}

pub(crate) unsafe fn folio_free_swap(folio: *mut folio) -> bool {
    mm::folio_free_swap(mm::of(folio))
}

pub(crate) unsafe fn folio_move_anon_rmap(folio: *mut folio, vma: *mut vm_area_struct) {
    mm::folio_move_anon_rmap(mm::of(folio), vma);
}

pub(crate) unsafe fn sksm_folio_replacement(old: *mut folio, copy: *mut folio) -> *mut folio {
    mm::replacement(mm::of(old), mm::of(copy))
}

pub(crate) unsafe fn sksm_folio_replace_at(
    old: *mut folio,
    vma: *mut vm_area_struct,
    addr: usize,
    new: *mut folio,
) {
    // SAFETY: mms stay.
    mm::replace_at(mm::of(old), unsafe { &*(*vma).vm_mm }, addr, mm::of(new));
}

pub(crate) unsafe fn folio_add_lru(_folio: *mut folio) {}

pub(crate) unsafe fn sksm_drain_local_batches() {}

pub(crate) unsafe fn lru_add_drain_all() {}

/// A swap entry, of which the first bit is never set.
#[repr(C)]
pub(crate) struct swp_entry_t {
    pub(crate) val: usize,
}

// Page tables

/// An entry. The TLB is not modelled: loads and stores look at the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum pte_t {
    #[default]
    None,
    Mapped {
        folio: *mut folio,
        writable: bool,
        /// A merge redirected it: what the counts of saved pages are compared with.
        saved: bool,
    },
    Zero,
    /// A migration entry.
    Migrating {
        folio: *mut folio,
        saved: bool,
    },
    /// An entry of that slot of the swap.
    Swapped {
        entry: usize,
        saved: bool,
    },
    /// An entry for a page that has failed: who touches it dies.
    Failed,
}

pub(crate) struct pmd_t;
pub(crate) type spinlock_t = Spin;

pub(crate) unsafe fn sksm_pmd_get_folio(
    _vma: *mut vm_area_struct,
    _pmd: *mut pmd_t,
    _addr: usize,
) -> *mut folio {
    null_mut()
}

pub(crate) unsafe fn sksm_pte_lock(
    mm: *mut mm_struct,
    _pmd: *mut pmd_t,
    addr: usize,
    ptl: &mut *mut spinlock_t,
) -> *mut pte_t {
    // SAFETY: mms stay.
    let mm = unsafe { &*mm };
    mm.table.lock();
    *ptl = (&raw const mm.table).cast_mut();
    // SAFETY: Within the table.
    unsafe { mm.ptes.get().cast::<pte_t>().add(mm::slot_of(addr)) }
}

pub(crate) unsafe fn sksm_pte_unlock(_pte: *mut pte_t, ptl: *mut spinlock_t) {
    if !panicking() {
        // SAFETY: mms stay.
        unsafe { (*ptl).unlock() };
    }
}

pub(crate) unsafe fn sksm_pte_next_folio(
    _vma: *mut vm_area_struct,
    _start: usize,
    first: *mut pte_t,
    slot: &mut usize,
    end: usize,
) -> *mut folio {
    while *slot < end {
        // SAFETY: The table is locked.
        if let pte_t::Mapped { folio, .. } = unsafe { *first.add(*slot) } {
            let kind = mm::of(folio).mapping.load(Ordering::Relaxed) & 3;
            if kind == PAGE_MAPPING_ANON as usize {
                return folio;
            }
        }
        *slot += 1;
    }
    null_mut()
}

pub(crate) unsafe fn sksm_pte_clear_if(
    _vma: *mut vm_area_struct,
    _addr: usize,
    ptep: *mut pte_t,
    folio: *mut folio,
    old: &mut pte_t,
) -> bool {
    // SAFETY: The table is locked.
    let pte = unsafe { &mut *ptep };
    if !mm::maps(*pte, folio) {
        return false;
    }
    *old = std::mem::take(pte);
    true
}

pub(crate) unsafe fn sksm_pte_set(_mm: *mut mm_struct, _addr: usize, ptep: *mut pte_t, pte: pte_t) {
    // SAFETY: The table is locked.
    unsafe { *ptep = pte };
}

pub(crate) unsafe fn sksm_pte_write(pte: pte_t) -> bool {
    matches!(pte, pte_t::Mapped { writable: true, .. })
}

pub(crate) unsafe fn sksm_pte_dirty(_pte: pte_t) -> bool {
    false
}

pub(crate) unsafe fn sksm_pte_clean_readonly(mut pte: pte_t) -> pte_t {
    if let pte_t::Mapped { writable, .. } = &mut pte {
        *writable = false;
    }
    pte
}

pub(crate) unsafe fn sksm_pte_for_folio(
    folio: *mut folio,
    _vma: *mut vm_area_struct,
    _old: pte_t,
) -> pte_t {
    pte_t::Mapped {
        folio,
        writable: false,
        saved: true,
    }
}

pub(crate) unsafe fn sksm_pte_for_zero(_vma: *mut vm_area_struct, _old: pte_t) -> pte_t {
    pte_t::Zero
}

pub(crate) unsafe fn sksm_pte_adopt_zero(
    _vma: *mut vm_area_struct,
    _addr: usize,
    _ptep: *mut pte_t,
) -> bool {
    false
}

pub(crate) unsafe fn sksm_flush_tlb(_vma: *mut vm_area_struct, _start: usize, _end: usize) {}

pub(crate) unsafe fn sksm_tlb_flush_pending(_mm: *mut mm_struct) -> bool {
    false
}

#[derive(Default)]
pub(crate) struct mmu_notifier_range;

pub(crate) unsafe fn sksm_notifier_start(
    _mm: *mut mm_struct,
    _range: *mut mmu_notifier_range,
    _start: usize,
    _end: usize,
) {
}

pub(crate) unsafe fn sksm_notifier_end(_range: *mut mmu_notifier_range) {}

pub(crate) unsafe fn sksm_account_zero_page(_mm: *mut mm_struct) {}

#[derive(Default)]
pub(crate) struct sksm_call {
    _state: [usize; 15],
}

/// One page table for all addresses.
pub(crate) unsafe fn sksm_find_pmd(
    _mm: *mut mm_struct,
    _addr: usize,
    end: usize,
    next: &mut usize,
) -> *mut pmd_t {
    *next = end;
    NonNull::dangling().as_ptr()
}

// Reverse mapping

/// A tree of VMAs, which has a fork's or an exit's hands in it only with the lock.
pub(crate) struct anon_vma {
    /// Of the whole family.
    pub(crate) lock: Cell<*const Shared>,
    /// References; each VMA in the tree has one.
    pub(crate) refs: Cell<usize>,
    pub(crate) first: Cell<*mut anon_vma_chain>,
    /// Tells the checker who looks at the tree, and who changes it.
    pub(crate) tree: UnsafeCell<()>,
}

pub(crate) struct anon_vma_chain {
    pub(crate) vma: *mut vm_area_struct,
    pub(crate) next: Cell<*mut anon_vma_chain>,
}

fn tree<'a>(anon_vma: *mut anon_vma) -> &'a anon_vma {
    // SAFETY: They stay.
    let tree = unsafe { &*anon_vma };
    assert_ne!(tree.refs.get(), 0, "a freed anon_vma is touched");
    tree
}

pub(crate) unsafe fn sksm_anon_vma_get(anon_vma: *mut anon_vma) -> *mut anon_vma {
    let refs = &tree(anon_vma).refs;
    refs.set(refs.get() + 1);
    anon_vma
}

pub(crate) unsafe fn sksm_anon_vma_put(anon_vma: *mut anon_vma) {
    if !panicking() {
        let refs = &tree(anon_vma).refs;
        refs.set(refs.get() - 1);
    }
}

/// Readers only wait for writers, who are short: never contended, then.
pub(crate) unsafe fn sksm_anon_vma_trylock(anon_vma: *mut anon_vma) -> bool {
    let lock = tree(anon_vma).lock.get();
    if world().trees_change {
        // SAFETY: Locks stay.
        unsafe { (*lock).read() };
    }
    true
}

pub(crate) unsafe fn sksm_anon_vma_lock(anon_vma: *mut anon_vma) {
    // SAFETY: As there.
    unsafe { sksm_anon_vma_trylock(anon_vma) };
}

pub(crate) unsafe fn sksm_anon_vma_unlock(anon_vma: *mut anon_vma) {
    let lock = tree(anon_vma).lock.get();
    if world().trees_change {
        // SAFETY: Locks stay.
        unsafe { (*lock).read_unlock() };
    }
}

/// All VMAs have all offsets.
pub(crate) unsafe fn sksm_anon_vma_first(
    anon_vma: *mut anon_vma,
    _pgoff: usize,
) -> *mut anon_vma_chain {
    let tree = tree(anon_vma);
    tree.tree.with(|_| ());
    tree.first.get()
}

pub(crate) unsafe fn sksm_anon_vma_next(
    chain: *mut anon_vma_chain,
    _pgoff: usize,
) -> *mut anon_vma_chain {
    // SAFETY: Chains stay.
    unsafe { (*chain).next.get() }
}

pub(crate) unsafe fn sksm_vma_address(_vma: *mut vm_area_struct, pgoff: usize) -> usize {
    pgoff << crate::page::PAGE_SHIFT
}

pub(crate) unsafe fn sksm_vma_pgoff(_vma: *mut vm_area_struct, addr: usize) -> usize {
    addr >> crate::page::PAGE_SHIFT
}

pub(crate) unsafe fn sksm_mapped_at(
    folio: *mut folio,
    vma: *mut vm_area_struct,
    addr: usize,
) -> bool {
    // SAFETY: mms stay.
    let mm = unsafe { &*(*vma).vm_mm };
    mm.with_pte(mm::slot_of(addr), |pte| mm::maps(*pte, folio))
}

pub(crate) struct list_head;

pub(crate) unsafe fn sksm_collect_procs(
    _folio: *mut folio,
    _vma: *mut vm_area_struct,
    _addr: usize,
    _to_kill: *mut list_head,
    _force_early: c_int,
) {
}

type RmapOne =
    unsafe extern "C-unwind" fn(*mut folio, *mut vm_area_struct, usize, *mut c_void) -> bool;

pub(crate) struct rmap_walk_control {
    pub(crate) arg: *mut c_void,
    pub(crate) try_lock: bool,
    pub(crate) contended: bool,
    pub(crate) rmap_one: Option<RmapOne>,
    pub(crate) done: Option<unsafe extern "C-unwind" fn(*mut folio) -> c_int>,
    pub(crate) invalid_vma:
        Option<unsafe extern "C-unwind" fn(*mut vm_area_struct, *mut c_void) -> bool>,
}

impl Default for rmap_walk_control {
    fn default() -> Self {
        Self {
            arg: null_mut(),
            try_lock: false,
            contended: false,
            rmap_one: None,
            done: None,
            invalid_vma: None,
        }
    }
}

// VMAs and processes

pub(crate) struct vm_area_struct {
    pub(crate) vm_mm: *mut mm_struct,
    pub(crate) anon_vma: *mut anon_vma,
}

pub(crate) struct mm_struct {
    pub(crate) vma: vm_area_struct,
    pub(crate) table: Spin,
    pub(crate) ptes: std::cell::UnsafeCell<[pte_t; SLOTS]>,
    pub(crate) mmap_lock: Shared,
    /// Of the anon_vma that is this process's own.
    pub(crate) anon_lock: Box<Shared>,
    /// Where its VMA stands.
    pub(crate) chains: std::cell::RefCell<Vec<*mut anon_vma>>,
    pub(crate) domain: u64,
    pub(crate) merged: Cell<isize>,
    pub(crate) published: Cell<isize>,
    pub(crate) swapped: Cell<isize>,
}

pub(crate) unsafe fn vma_ksm_compatible(_vma: *mut vm_area_struct) -> bool {
    true
}

pub(crate) unsafe fn sksm_vma_is_anonymous(_vma: *mut vm_area_struct) -> bool {
    true
}

pub(crate) unsafe fn sksm_vma_start(_vma: *mut vm_area_struct) -> usize {
    0
}

pub(crate) unsafe fn sksm_vma_end(_vma: *mut vm_area_struct) -> usize {
    SLOTS << crate::page::PAGE_SHIFT
}

pub(crate) unsafe fn sksm_vma_flags(_vma: *mut vm_area_struct) -> usize {
    0
}

pub(crate) unsafe fn sksm_mm_dumpable(_mm: *mut mm_struct) -> bool {
    true
}

pub(crate) unsafe fn sksm_mmap_read_lock_killable(mm: *mut mm_struct) -> c_int {
    // SAFETY: mms stay.
    unsafe { (*mm).mmap_lock.read() };
    0
}

pub(crate) unsafe fn sksm_is_current_mm(_mm: *mut mm_struct) -> bool {
    true
}

pub(crate) unsafe fn sksm_mmap_lock_is_contended(_mm: *mut mm_struct) -> bool {
    false
}

pub(crate) unsafe fn sksm_fatal_signal_pending() -> bool {
    false
}

/// All calls of the model's are over a few pages, and begin at the first.
pub(crate) unsafe fn sksm_this_cpu() -> u32 {
    0
}

pub(crate) unsafe fn sksm_cond_resched() {}

// Counters: per CPU, and read when no thread runs.

pub(crate) const SKSM_STAT_CALLS: u32 = 0;
pub(crate) const SKSM_STAT_SCANNED: u32 = 1;
pub(crate) const SKSM_STAT_MERGED: u32 = 2;
pub(crate) const SKSM_STAT_PUBLISHED: u32 = 3;
pub(crate) const SKSM_STAT_WITHDRAWN: u32 = 4;
pub(crate) const SKSM_STAT_BUSY: u32 = 5;
pub(crate) const SKSM_STAT_REFUSED: u32 = 6;
pub(crate) const SKSM_STAT_SWAPPED: u32 = 7;
pub(crate) const SKSM_STAT_SWAPPED_IN: u32 = 8;
pub(crate) const SKSM_STAT_RESCUED: u32 = 9;
pub(crate) const SKSM_STAT_PAGES: u32 = 10;
pub(crate) const SKSM_STAT_ASLEEP: u32 = 11;
pub(crate) const SKSM_STAT_SHARED: u32 = 12;
pub(crate) const SKSM_STAT_SHARING: u32 = 13;
pub(crate) const SKSM_STAT_METADATA: u32 = 14;
pub(crate) const SKSM_NR_STATS: u32 = 15;

pub(crate) unsafe fn sksm_stat_add(stat: u32, count: isize) {
    let stat = &world().stats[stat as usize];
    stat.set(stat.get() + count);
}

pub(crate) unsafe fn sksm_stat_read(stat: u32) -> isize {
    world().stats[stat as usize].get()
}

pub(crate) unsafe fn sksm_mm_add_merged(mm: *mut mm_struct, mappings: isize) {
    // SAFETY: mms stay.
    let merged = unsafe { &(*mm).merged };
    merged.set(merged.get() + mappings);
}

pub(crate) unsafe fn sksm_mm_add_published(mm: *mut mm_struct, pages: isize) {
    // SAFETY: mms stay.
    let published = unsafe { &(*mm).published };
    published.set(published.get() + pages);
}

fn take(count: &Cell<isize>) -> bool {
    let some = count.get() > 0;
    if some {
        count.set(count.get() - 1);
    }
    some
}

pub(crate) unsafe fn sksm_mm_take_merged(mm: *mut mm_struct) -> bool {
    // SAFETY: mms stay.
    take(unsafe { &(*mm).merged })
}

pub(crate) unsafe fn sksm_mm_take_published(mm: *mut mm_struct) -> bool {
    // SAFETY: mms stay.
    take(unsafe { &(*mm).published })
}

pub(crate) unsafe fn sksm_mm_add_swapped(mm: *mut mm_struct, mappings: isize) {
    // SAFETY: mms stay.
    let swapped = unsafe { &(*mm).swapped };
    swapped.set(swapped.get() + mappings);
}

pub(crate) unsafe fn sksm_mm_take_swapped(mm: *mut mm_struct) -> bool {
    // SAFETY: mms stay.
    take(unsafe { &(*mm).swapped })
}

pub(crate) type vm_event_item = u32;
pub(crate) const vm_event_item_SKSM_MERGE: u32 = 0;
pub(crate) const vm_event_item_SKSM_PUBLISH: u32 = 1;
pub(crate) const vm_event_item_SKSM_WITHDRAW: u32 = 2;
pub(crate) const vm_event_item_SKSM_BUSY: u32 = 3;

pub(crate) unsafe fn sksm_count(_event: vm_event_item, _pages: usize) {}

pub(crate) unsafe fn sksm_trace_call(
    _mm: *mut mm_struct,
    _scanned: usize,
    _merged: usize,
    _published: usize,
    _busy: usize,
) {
}

pub(crate) unsafe fn sksm_trace_merge(_mm: *mut mm_struct, _addr: usize, _folio: *mut folio) {}

pub(crate) unsafe fn sksm_trace_publish(_mm: *mut mm_struct, _addr: usize, _folio: *mut folio) {}

pub(crate) unsafe fn sksm_trace_withdraw(_mm: *mut mm_struct, _addr: usize, _folio: *mut folio) {}

pub(crate) unsafe fn sksm_trace_busy(_mm: *mut mm_struct, _addr: usize) {}

// Deferred release

#[derive(Clone, Copy)]
pub(crate) struct llist_node {
    pub(crate) next: *mut llist_node,
}

pub(crate) unsafe fn sksm_release_init() {}

/// One list for all, as on one CPU: there threads meet most. Who found it empty releases what is in it then, at the end of what he
/// is at.
pub(crate) unsafe fn sksm_retire(node: *mut llist_node) {
    let head = &world().retired;
    let mut old = head.load(Ordering::Relaxed);
    loop {
        // SAFETY: The node is the caller's.
        unsafe { (*node).next = old as *mut llist_node };
        match head.compare_exchange(old, node as usize, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => old = now,
        }
    }
    if old == 0 {
        let me = loom::thread::current().id();
        world().work.borrow_mut().push(me);
    }
}

/// What the work item does.
pub(crate) fn take_retired() -> *mut llist_node {
    world().retired.swap(0, Ordering::SeqCst) as *mut llist_node
}
