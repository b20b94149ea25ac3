//! Everything that the threads of one execution share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::thread::panicking;

use loom::cell::UnsafeCell;
use loom::thread::ThreadId;

use crate::bindings::{
    anon_vma, anon_vma_chain, folio, mm_struct, sksm_key, sksm_link, Words, SKSM_NR_STATS,
};
use crate::engine::Engine;
use crate::lock::{Shared, Spin};
use crate::planted::Planted;
use crate::swap::Swap;

/// One of the checker's atomics.
pub(crate) type Word = loom::sync::atomic::AtomicUsize;

/// Pages of a process.
pub(crate) const SLOTS: usize = 2;

/// The checker wants to know of an object before threads meet there.
const LATE: &str = "the scenario has not said that the threads meet here";

/// What a page holds while nobody owns it.
pub(crate) const POISON: Words = [0xdead; 3];

thread_local! {
    /// All threads of an execution are the checker's and run on one thread of the process.
    static WORLD: Cell<*const World> = const { Cell::new(std::ptr::null()) };
}

/// The world of this execution.
pub(crate) fn world() -> &'static World {
    // SAFETY: Set for as long as the execution runs.
    unsafe { WORLD.get().as_ref() }.expect("no execution runs")
}

/// Whether this execution makes the mistake of that number.
pub(crate) fn planted(mistake: usize) -> bool {
    world().planted == Some(Planted::Engine(mistake))
}

/// Memory that the engine allocated, until the execution ends: nothing is used twice, so whoever
/// touches what was freed is found out.
#[derive(Default)]
pub(crate) struct Heap {
    boxes: RefCell<Vec<Allocation>>,
    guarded: RefCell<HashMap<usize, Box<UnsafeCell<()>>>>,
}

struct Allocation {
    start: usize,
    size: usize,
    freed: Cell<bool>,
    cell: Box<UnsafeCell<()>>,
    free: unsafe fn(usize),
}

impl Heap {
    pub(crate) fn allocated<T>(&self, ptr: NonNull<T>) {
        let cell = Box::new(UnsafeCell::new(()));
        cell.with_mut(|_| ());
        self.boxes.borrow_mut().push(Allocation {
            start: ptr.as_ptr() as usize,
            size: size_of::<T>(),
            freed: Cell::new(false),
            cell,
            // The value was dropped before.
            free: |start| {
                let memory = start as *mut std::mem::MaybeUninit<T>;
                // SAFETY: It came from a box of that size.
                drop(unsafe { Box::from_raw(memory) });
            },
        });
    }

    fn find<R>(&self, address: usize, f: impl FnOnce(&Allocation) -> R) -> Option<R> {
        let boxes = self.boxes.borrow();
        let found = boxes
            .iter()
            .find(|b| (b.start..b.start + b.size).contains(&address));
        found.map(f)
    }

    /// Somebody looks at what may be in a box; whether it is.
    #[track_caller]
    pub(crate) fn look(&self, address: usize) -> bool {
        if panicking() {
            return true;
        }
        let found = self.find(address, |found| {
            found.cell.with(|_| ());
            assert!(!found.freed.get(), "freed memory is touched");
        });
        found.is_some()
    }

    /// Somebody uses what a lock guards.
    #[track_caller]
    pub(crate) fn exclusive(&self, address: usize) {
        if panicking() {
            return;
        }
        self.look(address);
        let mut guarded = self.guarded.borrow_mut();
        let cell = guarded
            .entry(address)
            .or_insert_with(|| Box::new(UnsafeCell::new(())));
        cell.with_mut(|_| ());
    }

    #[track_caller]
    pub(crate) fn freed(&self, ptr: NonNull<()>) {
        let found = self.find(ptr.as_ptr() as usize, |found| {
            found.cell.with_mut(|_| ());
            assert!(!found.freed.replace(true), "memory is freed twice");
        });
        assert!(found.is_some(), "what is freed was never allocated");
    }

    /// How many boxes are not freed.
    pub(crate) fn left(&self) -> usize {
        self.boxes
            .borrow()
            .iter()
            .filter(|b| !b.freed.get())
            .count()
    }
}

/// A chain of an rhashtable: the index has one for each hash, all slots share one.
pub(crate) struct Bucket {
    pub(crate) head: Word,
    pub(crate) lock: Spin,
    /// What stands behind the last link: of this chain only, and no address.
    pub(crate) end: usize,
}

impl Bucket {
    fn new(number: usize) -> Self {
        let end = number << 1 | 1;
        Self {
            head: Word::new(end),
            lock: Spin::new(),
            end,
        }
    }

    /// Whether a chain ends there, this one or another.
    pub(crate) fn is_end(link: usize) -> bool {
        link & 1 == 1
    }

    /// All links. No thread runs.
    fn links(&self) -> Vec<NonNull<sksm_link>> {
        let mut links = Vec::new();
        let mut next = self.head.load(loom::sync::atomic::Ordering::Acquire);
        while !Self::is_end(next) {
            world().heap.look(next);
            let link = NonNull::new(next as *mut sksm_link).expect("a chain ends with its mark");
            assert!(!links.contains(&link), "a chain is a circle");
            links.push(link);
            // SAFETY: What is in the table lives.
            let head = unsafe { &(*link.as_ptr()).head };
            next = head.next.load(crate::atomic::Acquire);
        }
        assert_eq!(next, self.end, "a chain ends as another");
        links
    }
}

/// Memory, processes and what the engine asks the kernel to keep.
pub(crate) struct World {
    pub(crate) engine: &'static Engine,
    pub(crate) planted: Option<Planted>,
    /// `max_page_sharing`.
    pub(crate) limit: u32,
    /// How many places a reverse map takes, if not as many as the engine says.
    pub(crate) places: Option<usize>,
    pub(crate) across_nodes: bool,
    /// All hashes share one chain of the index.
    pub(crate) one_chain: bool,
    /// `sksm_asleep_insert()` fails.
    pub(crate) sleepless: bool,
    /// `KSM_RUN_UNMERGE`.
    pub(crate) unmerges: Cell<bool>,
    /// Whether pages fail or are swapped.
    pub(crate) flags_change: bool,
    /// Whether VMAs come and go: only then does a lock of an anon_vma or mmap_lock matter.
    pub(crate) trees_change: bool,
    /// Whether the threads have started.
    pub(crate) running: Cell<bool>,
    words: RefCell<HashMap<usize, Box<Word>>>,
    pub(crate) heap: Heap,
    pub(crate) folios: Vec<folio>,
    pub(crate) free: RefCell<Vec<usize>>,
    pub(crate) buddy: Spin,
    pub(crate) anon_vmas: Vec<anon_vma>,
    pub(crate) mms: Vec<mm_struct>,
    pub(crate) chains: RefCell<Vec<*mut anon_vma_chain>>,
    buckets: RefCell<BTreeMap<u64, Box<Bucket>>>,
    /// The nodes that sleep.
    pub(crate) asleep: Bucket,
    /// `sksm_any_asleep`, which mm's locks order as well as what it stands for.
    pub(crate) any_asleep: Cell<bool>,
    shards: RefCell<HashMap<u32, Box<Spin>>>,
    pub(crate) rcu: Shared,
    /// What waits for a grace period: crowds, by who frees them.
    pub(crate) doomed: RefCell<Vec<(ThreadId, usize)>>,
    /// The first of the retired nodes.
    pub(crate) retired: Word,
    /// Who has to run the work item.
    pub(crate) work: RefCell<Vec<ThreadId>>,
    pub(crate) stats: [Cell<isize>; SKSM_NR_STATS as usize],
    pub(crate) swap: Swap,
}

impl World {
    pub(crate) fn new(engine: &'static Engine, planted: Option<Planted>, frames: usize) -> Self {
        Self {
            engine,
            planted,
            limit: 256,
            places: None,
            across_nodes: true,
            one_chain: false,
            sleepless: false,
            unmerges: Cell::new(false),
            flags_change: false,
            trees_change: false,
            running: Cell::new(false),
            words: RefCell::default(),
            heap: Heap::default(),
            folios: (0..frames).map(|_| folio::new()).collect(),
            free: RefCell::new((0..frames).rev().collect()),
            buddy: Spin::new(),
            anon_vmas: Vec::new(),
            mms: Vec::new(),
            chains: RefCell::default(),
            buckets: RefCell::default(),
            asleep: Bucket::new(0),
            any_asleep: Cell::new(false),
            shards: RefCell::default(),
            rcu: Shared::new(),
            doomed: RefCell::default(),
            retired: Word::new(0),
            work: RefCell::default(),
            stats: std::array::from_fn(|_| Cell::new(0)),
            swap: Swap::new(),
        }
    }

    /// Makes it this execution's. It stays until [`World::end`]; after a failure it is leaked, as
    /// nothing in it may be touched outside of the checker.
    pub(crate) fn begin(self) {
        WORLD.set(Box::into_raw(Box::new(self)));
    }

    /// The execution is over, and nothing was found.
    pub(crate) fn end() {
        let world = WORLD.replace(std::ptr::null()).cast_mut();
        // SAFETY: It came from `begin`, and the execution's other threads have ended.
        let world = unsafe { Box::from_raw(world) };
        for allocation in world.heap.boxes.borrow().iter() {
            // SAFETY: Nobody has it any more.
            unsafe { (allocation.free)(allocation.start) };
        }
        for chain in world.chains.take() {
            // SAFETY: As above.
            drop(unsafe { Box::from_raw(chain) });
        }
    }

    pub(crate) fn makes(&self, mistake: Planted) -> bool {
        self.planted == Some(mistake)
    }

    /// The checker's atomic for one of the engine's.
    #[track_caller]
    pub(crate) fn word(&self, address: usize, first: impl FnOnce() -> usize) -> &Word {
        let boxed = self.heap.look(address);
        let mut words = self.words.borrow_mut();
        let word = words.entry(address).or_insert_with(|| {
            assert!(boxed || !self.running.get(), "{LATE}");
            Box::new(Word::new(first()))
        });
        let word: *const Word = &**word;
        // SAFETY: In a box that stays as long as the world.
        unsafe { &*word }
    }

    pub(crate) fn bucket(&self, hash: u64) -> &Bucket {
        let hash = if self.one_chain { 0 } else { hash };
        let mut buckets = self.buckets.borrow_mut();
        let number = buckets.len() + 1;
        let bucket: *const Bucket = &**buckets.entry(hash).or_insert_with(|| {
            assert!(!self.running.get(), "{LATE}");
            Box::new(Bucket::new(number))
        });
        // SAFETY: In a box that stays as long as the world.
        unsafe { &*bucket }
    }

    pub(crate) fn shard(&self, shard: u32) -> &Spin {
        let mut shards = self.shards.borrow_mut();
        let lock: *const Spin = &**shards.entry(shard).or_insert_with(|| {
            assert!(!self.running.get(), "{LATE}");
            Box::new(Spin::new())
        });
        // SAFETY: As above.
        unsafe { &*lock }
    }

    /// All links in the index. No thread runs.
    pub(crate) fn links(&self) -> Vec<(NonNull<sksm_link>, sksm_key)> {
        let buckets = self.buckets.borrow();
        let links = buckets.values().flat_map(|bucket| bucket.links());
        // SAFETY: What is in the table lives.
        let with_key = |link: NonNull<sksm_link>| (link, unsafe { (*link.as_ptr()).key });
        links.map(with_key).collect()
    }

    /// The nodes that sleep. No thread runs.
    pub(crate) fn sleepers(&self) -> Vec<NonNull<sksm_link>> {
        self.asleep.links()
    }
}
