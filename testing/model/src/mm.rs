//! The parts of mm that meet merged pages: references, page tables, write faults, fork, unmapping,
//! swap, migration, memory failure and reclaim's look at references.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::ptr::{from_mut, null_mut};

use loom::sync::atomic::Ordering;

use crate::alloc::KBox;
use crate::bindings::{
    anon_vma, anon_vma_chain, folio, mm_struct, pte_t, rmap_walk_control, sksm_crowd, swp_entry_t,
    vm_area_struct, Words, PAGE_MAPPING_ANON, PAGE_MAPPING_KSM, PAGE_MAPPING_SKSM,
};
use crate::lock::{Shared, Spin};
use crate::page::PAGE_SHIFT;
use crate::planted::Planted;
use crate::world::{world, POISON, SLOTS};

/// Of [`folio::flags`].
const HWPOISON: u32 = 1;
const SWAPCACHE: u32 = 2;

const ANON: usize = PAGE_MAPPING_ANON as usize;
const KSM: usize = PAGE_MAPPING_KSM as usize;
const SKSM: usize = (PAGE_MAPPING_KSM | PAGE_MAPPING_SKSM) as usize;

pub(crate) fn of<'a>(folio: *mut folio) -> &'a folio {
    // SAFETY: Folios stay as long as the world.
    unsafe { &*folio }
}

fn ptr(folio: &folio) -> *mut folio {
    (&raw const *folio).cast_mut()
}

/// The number of an address's page.
pub(crate) fn slot_of(addr: usize) -> usize {
    addr >> PAGE_SHIFT
}

// struct folio

/// `folio_ref_count()`: atomic_read(), no barrier.
pub(crate) fn refs(folio: &folio) -> usize {
    folio.refs.load(Ordering::Relaxed)
}

pub(crate) fn mapcount(folio: &folio) -> usize {
    folio.mapcount.load(Ordering::Relaxed)
}

pub(crate) fn add_mapping(folio: &folio) {
    folio.mapcount.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn remove_mapping(folio: &folio) {
    let before = folio.mapcount.fetch_sub(1, Ordering::Relaxed);
    assert_ne!(before, 0, "a mapping is removed that is not there");
}

/// `folio_try_get()`: takes a reference if there is one.
pub(crate) fn folio_try_get(folio: &folio) -> bool {
    let more = |refs| (refs != 0).then_some(refs + 1);
    let got = folio
        .refs
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
    got.is_ok()
}

/// `folio_get()` of a folio that something else keeps in use.
pub(crate) fn folio_get(folio: &folio) {
    let before = folio.refs.fetch_add(1, Ordering::Relaxed);
    assert_ne!(before, 0, "a freed folio is referenced");
}

/// `folio_put()`, and `free_pages_prepare()` after the last one.
pub(crate) fn folio_put(folio: &folio) {
    let before = folio.refs.fetch_sub(1, Ordering::AcqRel);
    assert_ne!(before, 0, "a reference is put that is not there");
    if before == 1 {
        free(folio);
    }
}

fn free(folio: &folio) {
    assert_eq!(mapcount(folio), 0, "a mapped page is freed");
    if is_sksm(folio) {
        (world().engine.folio_free)(ptr(folio));
    }
    folio.mapping.store(0, Ordering::Relaxed);
    folio.store(POISON);
    let first = world().folios.as_ptr();
    // SAFETY: One of the world's.
    let at = unsafe { ptr(folio).cast_const().offset_from(first) } as usize;
    world().buddy.with(|| world().free.borrow_mut().push(at));
}

/// A fresh page with one reference, for that place.
fn alloc(words: Words, vma: &vm_area_struct, slot: usize) -> &'static folio {
    let at = world().buddy.with(|| world().free.borrow_mut().pop());
    let folio = &world().folios[at.expect("the model has too few folios")];
    folio.store(words);
    folio
        .mapping
        .store(vma.anon_vma as usize | ANON, Ordering::Relaxed);
    folio.index.set(slot);
    folio.nid.set(0);
    folio.exclusive.set(true);
    // The allocator's locks order the page's last life before this; here the release does.
    folio.refs.store(1, Ordering::Release);
    folio
}

/// `folio_ref_freeze()`.
pub(crate) fn freeze(folio: &folio, count: usize) -> bool {
    folio
        .refs
        .compare_exchange(count, 0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

fn is(folio: &folio, bits: usize) -> bool {
    folio.mapping.load(Ordering::Relaxed) & bits == bits
}

/// `folio_test_sksm()`.
pub(crate) fn is_sksm(folio: &folio) -> bool {
    is(folio, SKSM)
}

fn flag(folio: &folio, flag: u32) -> bool {
    folio.flags.load(Ordering::Relaxed) as u32 & flag != 0
}

pub(crate) fn has_failed(folio: &folio) -> bool {
    flag(folio, HWPOISON)
}

pub(crate) fn in_swapcache(folio: &folio) -> bool {
    world().swap.used.get() && flag(folio, SWAPCACHE)
}

/// See `sksm_folio_is_plain()`.
pub(crate) fn is_plain(folio: &folio) -> bool {
    !(world().flags_change && has_failed(folio))
}

/// See `sksm_folio_is_unmerged_anon()`.
pub(crate) fn is_unmerged_anon(folio: &folio) -> bool {
    let mapping = folio.mapping.load(Ordering::Relaxed);
    mapping & ANON == ANON && mapping & KSM != KSM
}

pub(crate) fn folio_move_anon_rmap(folio: &folio, vma: *mut vm_area_struct) {
    // SAFETY: VMAs stay.
    let anon_vma = unsafe { (*vma).anon_vma };
    folio
        .mapping
        .store(anon_vma as usize | ANON, Ordering::Relaxed);
}

/// `folio_free_swap()`. The folio is locked.
pub(crate) fn folio_free_swap(folio: &folio) -> bool {
    if !in_swapcache(folio) {
        return false;
    }
    let count = &world().swap.slots[folio.swap.get()].count;
    // Nobody makes entries of it while there are none and the folio is locked.
    let free = world().swap.lock.with(|| count.get() == 0);
    if free {
        delete_from_swap_cache(folio);
    }
    free
}

/// `delete_from_swap_cache()`. The folio is locked.
fn delete_from_swap_cache(folio: &folio) {
    world().swap.give_up(folio.swap.get(), |slot| {
        slot.cached.set(null_mut());
        let flags = &folio.flags;
        flags.fetch_and(!(SWAPCACHE as usize), Ordering::AcqRel);
    });
    folio_put(folio);
}

/// `free_swap_cache()`, for who had a mapping.
fn free_swap_cache(folio: &folio) {
    if in_swapcache(folio) && mapcount(folio) == 0 && folio.lock.try_lock() {
        folio_free_swap(folio);
        folio.lock.unlock();
    }
}

/// One entry less of a slot; without any, the cache goes: `free_swap_and_cache()`.
fn swap_free(entry: usize) {
    let cached = world().swap.give_up(entry, |slot| {
        slot.count.set(slot.count.get() - 1);
        let cached = slot.cached.get();
        let last = slot.count.get() == 0 && !cached.is_null();
        (last && folio_try_get(of(cached))).then_some(cached)
    });
    if let Some(folio) = cached.map(of) {
        free_swap_cache(folio);
        folio_put(folio);
    }
}

// Page tables

pub(crate) fn maps(pte: pte_t, other: *mut folio) -> bool {
    matches!(pte, pte_t::Mapped { folio, .. } if folio == other)
}

/// The VMA as the engine and the walks have it.
fn raw(vma: &vm_area_struct) -> *mut vm_area_struct {
    (&raw const *vma).cast_mut()
}

/// A page of a process.
pub(crate) type Page = (usize, usize);

impl mm_struct {
    /// The process of that number, without pages, and in no tree.
    pub(crate) fn new(domain: u64) -> Self {
        Self {
            // Pointers that `Scenario::world` sets.
            vma: vm_area_struct {
                vm_mm: null_mut(),
                anon_vma: null_mut(),
            },
            table: Spin::new(),
            ptes: UnsafeCell::new([pte_t::None; SLOTS]),
            mmap_lock: Shared::new(),
            anon_lock: Box::new(Shared::new()),
            chains: RefCell::default(),
            domain,
            merged: Cell::new(0),
            published: Cell::new(0),
            swapped: Cell::new(0),
        }
    }

    /// Calls `f` with an entry, under the lock of the page table.
    pub(crate) fn with_pte<R>(&self, slot: usize, f: impl FnOnce(&mut pte_t) -> R) -> R {
        self.table.with(|| f(self.pte(slot)))
    }

    /// An entry; the table is locked.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn pte(&self, slot: usize) -> &mut pte_t {
        // SAFETY: The table is locked, and threads switch at the checker's operations only.
        unsafe { &mut (*self.ptes.get())[slot] }
    }
}

/// One VMA more in the tree, behind the others.
fn link(anon_vma: *mut anon_vma, vma: &mm_struct) {
    // SAFETY: They stay.
    let tree = unsafe { &*anon_vma };
    let chain = Box::into_raw(Box::new(anon_vma_chain {
        vma: raw(&vma.vma),
        next: Cell::new(null_mut()),
    }));
    world().chains.borrow_mut().push(chain);
    with_tree(tree, || {
        tree.tree.with_mut(|_| ());
        let mut last = &tree.first;
        while !last.get().is_null() {
            // SAFETY: They stay.
            last = unsafe { &(*last.get()).next };
        }
        last.set(chain);
        tree.refs.set(tree.refs.get() + 1);
    });
    vma.chains.borrow_mut().push(anon_vma);
}

/// Calls `f` with the lock of the tree, for writing.
fn with_tree(tree: &anon_vma, f: impl FnOnce()) {
    let lock = world().trees_change.then_some(tree.lock.get());
    // SAFETY: Locks stay.
    unsafe {
        lock.inspect(|lock| (**lock).write());
        f();
        lock.inspect(|lock| (**lock).write_unlock());
    }
}

/// `unlink_anon_vmas()`.
fn unlink(mm: &mm_struct) {
    for anon_vma in mm.chains.take() {
        // SAFETY: They stay.
        let tree = unsafe { &*anon_vma };
        with_tree(tree, || {
            tree.tree.with_mut(|_| ());
            let mut at = &tree.first;
            // SAFETY: They stay.
            unsafe {
                while (*at.get()).vma != raw(&mm.vma) {
                    at = &(*at.get()).next;
                }
                at.set((*at.get()).next.get());
            }
            tree.refs.set(tree.refs.get() - 1);
        });
    }
}

/// Starts a process that has such pages.
pub(crate) fn start(process: usize, pages: &[Words]) {
    let mm = &world().mms[process];
    link(mm.vma.anon_vma, mm);
    for (slot, words) in pages.iter().enumerate() {
        let folio = alloc(*words, &mm.vma, slot);
        add_mapping(folio);
        *mm.pte(slot) = pte_t::Mapped {
            folio: ptr(folio),
            writable: true,
            saved: false,
        };
    }
}

/// `dup_mm()`, of the parent's one VMA.
pub(crate) fn fork(parent: usize, child: usize) {
    let (parent, child) = (&world().mms[parent], &world().mms[child]);
    parent.mmap_lock.write();
    // SAFETY: They stay.
    let (tree, own) = unsafe { (&*parent.vma.anon_vma, &*child.vma.anon_vma) };
    own.lock.set(tree.lock.get());
    let trees = parent.chains.borrow().clone();
    for tree in trees {
        link(tree, child);
    }
    link(child.vma.anon_vma, child);
    child.table.lock();
    parent.table.lock();
    for slot in 0..SLOTS {
        let pte = parent.pte(slot);
        *child.pte(slot) = *pte;
        match pte {
            pte_t::Mapped {
                folio, writable, ..
            } => {
                let copied = of(*folio);
                folio_get(copied);
                add_mapping(copied);
                copied.exclusive.set(false);
                *writable = false;
                *child.pte(slot) = pte_t::Mapped {
                    folio: *folio,
                    writable: false,
                    saved: false,
                };
            }
            pte_t::Migrating { folio, .. } => {
                *child.pte(slot) = pte_t::Migrating {
                    folio: *folio,
                    saved: false,
                };
            }
            pte_t::Swapped { entry, .. } => {
                let swap = &world().swap;
                let count = &swap.slots[*entry].count;
                swap.lock.with(|| count.set(count.get() + 1));
                *child.pte(slot) = pte_t::Swapped {
                    entry: *entry,
                    saved: false,
                };
            }
            pte_t::None | pte_t::Zero | pte_t::Failed => {}
        }
    }
    parent.table.unlock();
    child.table.unlock();
    parent.mmap_lock.write_unlock();
}

/// `madvise(MADV_MERGE)` by one process, on pages from one to another.
pub(crate) fn merge(process: usize, from: usize, to: usize) {
    let mm = &world().mms[process];
    if world().trees_change {
        mm.mmap_lock.read();
    }
    let range = (from << PAGE_SHIFT, to << PAGE_SHIFT);
    (world().engine.merge)((&raw const *mm).cast_mut(), &[range]);
    if world().trees_change {
        mm.mmap_lock.read_unlock();
    }
    work();
}

/// What this thread left to others to do, and RCU callbacks.
pub(crate) fn work() {
    let me = loom::thread::current().id();
    let mine = |(thread, _): &(loom::thread::ThreadId, usize)| *thread == me;
    let scheduled = {
        let mut all = world().work.borrow_mut();
        let before = all.len();
        all.retain(|thread| *thread != me);
        all.len() < before
    };
    if scheduled {
        (world().engine.release)();
    }
    let doomed: Vec<_> = {
        let mut all = world().doomed.borrow_mut();
        let doomed = all.iter().copied().filter(mine).collect();
        all.retain(|crowd| !mine(crowd));
        doomed
    };
    if !doomed.is_empty() {
        // SAFETY: They left the table before; nobody else frees them.
        unsafe {
            crate::sync::rcu::synchronize_rcu();
            for (_, crowd) in doomed {
                drop(KBox::from_raw(crowd as *mut sksm_crowd));
            }
        }
    }
}

/// A load by a process; `None` when the page is unmapped.
pub(crate) fn read((process, slot): Page) -> Option<Words> {
    let mm = &world().mms[process];
    let words = loop {
        mm.table.lock();
        let pte = *mm.pte(slot);
        let words = match pte {
            pte_t::Mapped { folio, .. } => Some(of(folio).load()),
            pte_t::Zero => Some([0; 3]),
            _ => None,
        };
        mm.table.unlock();
        match pte {
            pte_t::Migrating { folio, .. } => of(folio).lock.wait(),
            pte_t::Swapped { .. } => swap_in(mm, slot, pte),
            _ => break words,
        }
    };
    work();
    words
}

/// A store by a process.
pub(crate) fn write((process, slot): Page, words: Words) {
    let mm = &world().mms[process];
    if let Some(folio) = make_writable(mm, slot) {
        folio.store(words);
        mm.table.unlock();
    }
    work();
}

/// A store by whoever got the page with `get_user_pages()`: without looking at the entry again.
pub(crate) fn write_pinned((process, slot): Page, words: Words) {
    let mm = &world().mms[process];
    if let Some(folio) = make_writable(mm, slot) {
        folio_get(folio);
        mm.table.unlock();
        folio.store(words);
        folio_put(folio);
    }
    work();
}

/// Write faults until the entry is writable; the page table is locked then. `None` when nothing is
/// mapped.
fn make_writable(mm: &mm_struct, slot: usize) -> Option<&'static folio> {
    loop {
        mm.table.lock();
        let pte = *mm.pte(slot);
        match pte {
            pte_t::None | pte_t::Failed => {
                mm.table.unlock();
                return None;
            }
            pte_t::Migrating { folio, .. } => {
                mm.table.unlock();
                of(folio).lock.wait();
            }
            pte_t::Swapped { .. } => {
                mm.table.unlock();
                swap_in(mm, slot, pte);
            }
            pte_t::Zero => {
                mm.table.unlock();
                copy_on_write(mm, slot, pte, None);
            }
            pte_t::Mapped {
                folio, writable, ..
            } => {
                let folio = of(folio);
                if writable || do_wp_page(mm, slot, folio) {
                    return Some(folio);
                }
                folio_get(folio);
                mm.table.unlock();
                copy_on_write(mm, slot, pte, Some(folio));
            }
        }
    }
}

/// `do_wp_page()`, without the copy.
fn do_wp_page(mm: &mm_struct, slot: usize, folio: &folio) -> bool {
    if !folio.exclusive.get() && !wp_can_reuse_anon_folio(folio, mm, slot) {
        return false;
    }
    folio.exclusive.set(true);
    *mm.pte(slot) = pte_t::Mapped {
        folio: ptr(folio),
        writable: true,
        saved: false,
    };
    true
}

fn wp_can_reuse_anon_folio(folio: &folio, mm: &mm_struct, slot: usize) -> bool {
    if is_sksm(folio) {
        return (world().engine.withdraw)(ptr(folio), raw(&mm.vma), slot << PAGE_SHIFT);
    }
    if is(folio, KSM) || refs(folio) > 1 + usize::from(in_swapcache(folio)) {
        return false;
    }
    if !folio.lock.try_lock() {
        return false;
    }
    if in_swapcache(folio) {
        folio_free_swap(folio);
    }
    let alone = !is(folio, KSM) && refs(folio) == 1;
    if alone {
        folio_move_anon_rmap(folio, raw(&mm.vma));
    }
    folio.lock.unlock();
    alone
}

/// `wp_page_copy()`: the page table was unlocked meanwhile. `old` is referenced.
fn copy_on_write(mm: &mm_struct, slot: usize, entry: pte_t, old: Option<&folio>) {
    let words = old.map_or([0; 3], folio::load);
    let copy = alloc(words, &mm.vma, slot);
    mm.table.lock();
    let same = *mm.pte(slot) == entry;
    if same {
        add_mapping(copy);
        *mm.pte(slot) = pte_t::Mapped {
            folio: ptr(copy),
            writable: true,
            saved: false,
        };
        if let Some(old) = old {
            remove_mapping(old);
            if is_sksm(old) {
                (world().engine.unmapped)(ptr(old), raw(&mm.vma));
            }
        }
    }
    mm.table.unlock();
    if !same {
        folio_put(copy);
    } else if let Some(old) = old {
        free_swap_cache(old);
        folio_put(old);
    }
    old.map(folio_put);
}

/// `zap_pte_range()`: munmap or `MADV_DONTNEED`.
pub(crate) fn unmap((process, slot): Page) {
    let mm = &world().mms[process];
    mm.table.lock();
    let pte = std::mem::take(mm.pte(slot));
    let told = |folio: *mut folio| (world().engine.unmapped)(folio, raw(&mm.vma));
    match pte {
        pte_t::Mapped { folio, .. } => {
            let merged = is_sksm(of(folio));
            remove_mapping(of(folio));
            if merged {
                told(folio);
            }
        }
        pte_t::Migrating { folio, .. } if is_sksm(of(folio)) => told(folio),
        pte_t::Swapped { entry, .. } => swap_free(entry),
        _ => {}
    }
    mm.table.unlock();
    if let pte_t::Mapped { folio, .. } = pte {
        free_swap_cache(of(folio));
        folio_put(of(folio));
    }
    work();
}

/// `exit_mmap()`.
pub(crate) fn exit(process: usize) {
    for slot in 0..SLOTS {
        unmap((process, slot));
    }
    unlink(&world().mms[process]);
}

/// Takes a reference of the folio that a process maps, as whoever isolates pages does.
fn isolate((process, slot): Page) -> Option<&'static folio> {
    let mm = &world().mms[process];
    mm.with_pte(slot, |pte| match *pte {
        pte_t::Mapped { folio, .. } => {
            folio_get(of(folio));
            Some(of(folio))
        }
        // Pages of the swap cache are on the LRU's lists as well.
        pte_t::Swapped { entry, .. } => cached(entry),
        _ => None,
    })
}

/// `filemap_get_folio()`, of the swap cache.
fn cached(entry: usize) -> Option<&'static folio> {
    let swap = &world().swap;
    swap.lock.with(|| {
        let cached = swap.slots[entry].cached.get();
        (!cached.is_null() && folio_try_get(of(cached))).then(|| of(cached))
    })
}

/// `rmap_walk()`: calls `f` with every entry where the folio may be mapped.
pub(crate) fn walk(folio: &folio, mut f: impl FnMut(&mm_struct, &mut pte_t)) {
    type Each<'a> = &'a mut dyn FnMut(*mut vm_area_struct, usize);

    unsafe extern "C-unwind" fn one(
        _folio: *mut folio,
        vma: *mut vm_area_struct,
        addr: usize,
        arg: *mut std::ffi::c_void,
    ) -> bool {
        // SAFETY: The argument of the walk below.
        unsafe { (*arg.cast::<Each<'_>>())(vma, addr) };
        true
    }

    let mut each = |vma: *mut vm_area_struct, addr: usize| {
        // SAFETY: mms stay.
        let mm = unsafe { &*(*vma).vm_mm };
        mm.with_pte(slot_of(addr), |pte| f(mm, pte));
    };
    let mut each: Each<'_> = &mut each;
    let mapping = folio.mapping.load(Ordering::Acquire);
    if mapping & SKSM == SKSM {
        let mut rwc = rmap_walk_control {
            arg: from_mut(&mut each).cast(),
            rmap_one: Some(one),
            ..Default::default()
        };
        (world().engine.rmap_walk)(ptr(folio), &mut rwc);
    } else if mapping & KSM == ANON {
        // SAFETY: The folio is mapped, which keeps its anon_vma.
        unsafe {
            let anon_vma = (mapping & !KSM) as *mut anon_vma;
            crate::bindings::sksm_anon_vma_lock(anon_vma);
            let mut chain = (*anon_vma).first.get();
            while !chain.is_null() {
                each((*chain).vma, folio.index.get() << PAGE_SHIFT);
                chain = (*chain).next.get();
            }
            crate::bindings::sksm_anon_vma_unlock(anon_vma);
        }
    }
}

/// The places that a walk looks at.
pub(crate) fn walk_places(folio: &folio, mut f: impl FnMut(usize, usize)) {
    let number = |mm: &mm_struct| {
        let same = |other: &mm_struct| std::ptr::eq(other, mm);
        world()
            .mms
            .iter()
            .position(same)
            .expect("one of the world's")
    };
    let all: Vec<_> = (0..world().mms.len())
        .flat_map(|process| (0..SLOTS).map(move |slot| (process, slot)))
        .collect();
    walk(folio, |mm, pte| {
        let process = number(mm);
        for &(_, slot) in all.iter().filter(|(p, _)| *p == process) {
            if std::ptr::eq(pte, &raw const *mm.pte(slot)) {
                f(process, slot);
            }
        }
    });
}

/// Moves the merged page of a process to another folio, perhaps of another NUMA node:
/// `migrate_pages()`.
pub(crate) fn migrate(page: Page, nid: i32) {
    if let Some(old) = isolate(page) {
        old.lock.lock();
        if is_sksm(old) && !in_swapcache(old) {
            let vma = &world().mms[page.0].vma;
            let new = alloc(POISON, vma, page.1);
            new.lock.lock();
            new.nid.set(nid);
            new.mapping.store(0, Ordering::Relaxed);
            new.exclusive.set(false);
            walk(old, |_, pte| match *pte {
                pte_t::Mapped { folio, saved, .. } if folio == ptr(old) => {
                    *pte = pte_t::Migrating { folio, saved };
                    remove_mapping(old);
                    folio_put(old);
                }
                _ => {}
            });
            // Only the isolating reference is left. A lookup may take one right after.
            let moves = mapcount(old) == 0 && refs(old) == 1;
            if moves {
                new.store(old.load());
                let mapping = old.mapping.load(Ordering::Relaxed);
                new.mapping.store(mapping, Ordering::Release);
                (world().engine.migrate)(ptr(new), ptr(old));
            }
            let target = if moves { new } else { old };
            walk(target, |_, pte| match *pte {
                pte_t::Migrating { folio, saved } if folio == ptr(old) => {
                    folio_get(target);
                    add_mapping(target);
                    *pte = pte_t::Mapped {
                        folio: ptr(target),
                        writable: false,
                        saved,
                    };
                }
                _ => {}
            });
            new.lock.unlock();
            folio_put(new);
        }
        old.lock.unlock();
        folio_put(old);
    }
    work();
}

/// A new page, locked, with the bytes of `copy` and the mapping of `old`.
pub(crate) fn replacement(old: &folio, copy: &folio) -> *mut folio {
    let new = alloc(copy.load(), &world().mms[0].vma, 0);
    new.lock.lock();
    new.exclusive.set(false);
    let mapping = old.mapping.load(Ordering::Relaxed);
    new.mapping.store(mapping, Ordering::Relaxed);
    ptr(new)
}

/// Maps `new` in place of `old`, if that is mapped there.
pub(crate) fn replace_at(old: &folio, mm: &mm_struct, addr: usize, new: &folio) {
    mm.with_pte(slot_of(addr), |pte| match *pte {
        pte_t::Mapped { folio, saved, .. } if folio == ptr(old) => {
            folio_get(new);
            add_mapping(new);
            *pte = pte_t::Mapped {
                folio: ptr(new),
                writable: false,
                saved,
            };
            remove_mapping(old);
            folio_put(old);
        }
        _ => {}
    });
}

/// The page of a process fails: `memory_failure()` down to `delete_from_lru_cache()`.
pub(crate) fn fail((process, slot): Page) {
    let mm = &world().mms[process];
    let failed = mm.with_pte(slot, |pte| match *pte {
        pte_t::Mapped { folio, .. } => {
            let folio = of(folio);
            // Marked first.
            let poison = HWPOISON as usize;
            let before = folio.flags.fetch_or(poison, Ordering::AcqRel);
            (before & poison == 0).then(|| {
                folio_get(folio);
                folio
            })
        }
        _ => None,
    });
    if let Some(folio) = failed {
        folio.lock.lock();
        let mapped = mapcount(folio) > 0;
        let rescued = mapped && is_sksm(folio) && (world().engine.rescue)(ptr(folio));
        if mapped && !rescued {
            unmap_poisoned(folio);
        }
        // me_swapcache_clean()
        if in_swapcache(folio) {
            let entry = folio.swap.get();
            let words = world().swap.slots[entry].words.get();
            assert_ne!(words, POISON, "the scenario loses what swap has not got");
            if is_sksm(folio) {
                (world().engine.folio_sleep)(ptr(folio), swp_entry_t { val: entry });
            }
            delete_from_swap_cache(folio);
        }
        if is_sksm(folio) && !world().makes(Planted::FailureKeepsNode) {
            (world().engine.folio_free)(ptr(folio));
        }
        // The reference stays: the page is never used again.
        folio.lock.unlock();
    }
    work();
}

/// `unmap_poisoned_folio()`.
fn unmap_poisoned(folio: &folio) {
    if in_swapcache(folio) {
        try_to_unmap(folio);
        return;
    }
    walk(folio, |mm, pte| {
        if maps(*pte, ptr(folio)) {
            *pte = pte_t::Failed;
            remove_mapping(folio);
            if is_sksm(folio) {
                (world().engine.unmapped)(ptr(folio), raw(&mm.vma));
            }
            folio_put(folio);
        }
    });
}

/// `folio_referenced()` as reclaim's: a walk over the reverse map of an isolated folio.
pub(crate) fn look_at_references(page: Page) {
    if let Some(folio) = isolate(page) {
        if is(folio, KSM) {
            if folio.lock.try_lock() {
                walk(folio, |_, _| {});
                folio.lock.unlock();
            }
        } else if world().makes(Planted::WalkWithoutLock) {
            walk(folio, |_, _| {});
        }
        folio_put(folio);
    }
    work();
}

/// Reclaims the page of a process: `shrink_folio_list()` on it alone.
pub(crate) fn swap_out(page: Page) {
    if let Some(folio) = isolate(page) {
        if folio.lock.try_lock() {
            if is(folio, ANON) && !in_swapcache(folio) {
                add_to_swap(folio);
            }
            if in_swapcache(folio) {
                try_to_unmap(folio);
            }
            let unmapped = mapcount(folio) == 0;
            // Writing unlocks it for a while.
            let locked = !unmapped || pageout(folio);
            let gone = locked && unmapped && in_swapcache(folio) && remove_from_swap_cache(folio);
            if locked {
                folio.lock.unlock();
            }
            if gone {
                free(folio);
                work();
                return;
            }
        }
        free_swap_cache(folio);
        folio_put(folio);
    }
    work();
}

/// A folio that is locked goes into the swap cache.
fn add_to_swap(folio: &folio) {
    let swap = &world().swap;
    swap.lock.with(|| {
        folio_get(folio);
        folio.swap.set(swap.take(ptr(folio)));
        let flag = SWAPCACHE as usize;
        folio.flags.fetch_or(flag, Ordering::AcqRel);
    });
}

/// Mappings become swap entries.
fn try_to_unmap(folio: &folio) {
    let swap = &world().swap;
    let entry = folio.swap.get();
    let count = &swap.slots[entry].count;
    walk(folio, |mm, pte| match *pte {
        pte_t::Mapped {
            folio: mapped,
            saved,
            ..
        } if mapped == ptr(folio) => {
            swap.lock.with(|| count.set(count.get() + 1));
            *pte = pte_t::Swapped { entry, saved };
            folio.exclusive.set(false);
            remove_mapping(folio);
            if is_sksm(folio) {
                (world().engine.swapped)(ptr(folio), raw(&mm.vma));
            }
            folio_put(folio);
        }
        _ => {}
    });
}

/// `pageout()`, with `swap_writepage()`: writes a folio that was not written yet; unlocks it
/// meanwhile. True if it is locked then.
fn pageout(folio: &folio) -> bool {
    let swap = &world().swap;
    if !in_swapcache(folio) || swap.slots[folio.swap.get()].words.get() != POISON {
        return true;
    }
    if !folio_free_swap(folio) {
        swap.slots[folio.swap.get()].words.set(folio.load());
    }
    folio.lock.unlock();
    folio.lock.try_lock()
}

/// `__remove_mapping()`, with `put_swap_folio()`: true if the folio is nobody's.
fn remove_from_swap_cache(folio: &folio) -> bool {
    let swap = &world().swap;
    let entry = folio.swap.get();
    swap.give_up(entry, |slot| {
        // The cache's reference and ours; and it was written.
        let frozen = slot.words.get() != POISON && freeze(folio, 2);
        if frozen {
            assert_eq!(
                slot.words.get(),
                folio.load(),
                "a page differs from its swap slot"
            );
            if is_sksm(folio) {
                (world().engine.folio_sleep)(ptr(folio), swp_entry_t { val: entry });
            }
            slot.cached.set(null_mut());
            folio.flags.store(0, Ordering::Relaxed);
        }
        frozen
    })
}

/// `do_swap_page()`. What is read goes through the swap cache.
fn swap_in(mm: &mm_struct, slot: usize, pte: pte_t) {
    let pte_t::Swapped { entry, .. } = pte else {
        return;
    };
    let Some(folio) = cached(entry).or_else(|| read_swap_cache(entry, &mm.vma)) else {
        return;
    };
    folio.lock.lock();
    let still = in_swapcache(folio) && folio.swap.get() == entry;
    if still {
        swap_in_cached(mm, slot, pte, folio);
    }
    folio.lock.unlock();
    folio_put(folio);
}

/// `read_swap_cache_async()`: reads a slot that has entries into a folio of the swap cache.
fn read_swap_cache(entry: usize, vma: &vm_area_struct) -> Option<&'static folio> {
    let swap = &world().swap;
    let held = &swap.slots[entry];
    let new = alloc(POISON, vma, 0);
    new.mapping.store(0, Ordering::Relaxed);
    new.exclusive.set(false);
    new.lock.lock();
    let ours = swap.lock.with(|| {
        let ours = held.cached.get().is_null() && held.count.get() > 0;
        if ours {
            folio_get(new);
            new.swap.set(entry);
            let flags = SWAPCACHE as usize;
            new.flags.store(flags, Ordering::Release);
            held.cached.set(ptr(new));
        }
        ours
    });
    if ours {
        // Whoever comes first when it is unlocked goes on with it.
        new.store(held.words.get());
    }
    new.lock.unlock();
    if !ours {
        folio_put(new);
    }
    ours.then_some(new)
}

/// Maps a page of the swap cache, or a copy. It is locked, and referenced.
fn swap_in_cached(mm: &mm_struct, slot: usize, pte: pte_t, folio: &folio) {
    let target = ksm_might_need_to_copy(folio, mm, slot);
    mm.table.lock();
    let same = *mm.pte(slot) == pte;
    if let (true, pte_t::Swapped { entry, saved }) = (same, pte) {
        let count = &world().swap.slots[entry].count;
        world().swap.lock.with(|| count.set(count.get() - 1));
        // folio_add_new_anon_rmap(), of a page that is not exclusive.
        if !is(target, ANON) {
            let root = root(mm.vma.anon_vma);
            target
                .mapping
                .store(root as usize | ANON, Ordering::Relaxed);
            target.index.set(slot);
        }
        add_mapping(target);
        let merged = is_sksm(target);
        if merged {
            (world().engine.swapped_in)(ptr(target), raw(&mm.vma));
        }
        *mm.pte(slot) = pte_t::Mapped {
            folio: ptr(target),
            writable: false,
            saved: merged && saved,
        };
    }
    mm.table.unlock();
    if !same {
        folio_put(target);
    }
}

/// The folio that is to be mapped, with a reference for it.
fn ksm_might_need_to_copy<'a>(folio: &'a folio, mm: &mm_struct, slot: usize) -> &'a folio {
    let unmerges = world().unmerges.get();
    if !is(folio, ANON) && world().any_asleep.get() {
        (world().engine.folio_wake)(ptr(folio));
    }
    let mapping = folio.mapping.load(Ordering::Relaxed);
    let own = |anon_vma: &*mut anon_vma| *anon_vma as usize | ANON == mapping;
    let as_it_is = if is(folio, KSM) {
        is_sksm(folio) && !unmerges
    } else {
        mapping == 0 || (folio.index.get() == slot && mm.chains.borrow().iter().any(own))
    };
    if as_it_is {
        folio_get(folio);
        folio
    } else {
        alloc(folio.load(), &mm.vma, slot)
    }
}

/// `anon_vma->root`.
fn root(anon_vma: *mut anon_vma) -> *mut anon_vma {
    // SAFETY: They stay.
    let lock = unsafe { (*anon_vma).lock.get() };
    let first = |mm: &&mm_struct| std::ptr::eq(&raw const *mm.anon_lock, lock);
    let first = world()
        .mms
        .iter()
        .find(first)
        .expect("a family has a first");
    first.vma.anon_vma
}

/// What reclaim does in the end with caches that nobody needs.
pub(crate) fn reclaim_caches() {
    let swap = &world().swap;
    for slot in &swap.slots {
        let cached = slot.cached.get();
        if slot.count.get() == 0 && !cached.is_null() {
            folio_get(of(cached));
            free_swap_cache(of(cached));
            folio_put(of(cached));
        }
    }
    work();
}
