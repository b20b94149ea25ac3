//! Folios by reference and by lock, after the kernel's `folio.rs`.

use std::mem::ManuallyDrop;
use std::ops::Deref;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};

use crate::node::NodeId;
use crate::plain::Plain;
use crate::rmap::Place;
use crate::world::World;

pub(crate) type FolioId = usize;

/// What a page's memory holds while nobody owns it.
pub(crate) const POISON: u8 = 0xdd;

/// `folio->mapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    None,
    Anon(Place),
    /// A KSM page without a node.
    Orphan,
    Node(NodeId),
}

impl Mapping {
    fn encode(self) -> usize {
        match self {
            Self::None => 0,
            Self::Anon(place) => place << 3 | 1,
            Self::Orphan => 3,
            Self::Node(node) => node << 3 | 7,
        }
    }

    fn decode(word: usize) -> Self {
        match word & 7 {
            0 => Self::None,
            1 => Self::Anon(word >> 3),
            3 => Self::Orphan,
            _ => Self::Node(word >> 3),
        }
    }
}

/// The folio lock: a bit that one tries to set, and a queue to wait in.
///
/// Not the checker's mutex: that one makes a thread that only tries wait.
pub(crate) struct PageLock {
    locked: Mutex<bool>,
    waiters: Condvar,
}

impl PageLock {
    fn new() -> Self {
        Self {
            locked: Mutex::new(false),
            waiters: Condvar::new(),
        }
    }

    fn try_lock(&self) -> bool {
        !std::mem::replace(&mut *self.locked.lock().unwrap(), true)
    }

    fn lock(&self) {
        let mut locked = self.locked.lock().unwrap();
        while *locked {
            locked = self.waiters.wait(locked).unwrap();
        }
        *locked = true;
    }

    fn unlock(&self) {
        *self.locked.lock().unwrap() = false;
        self.waiters.notify_all();
    }

    /// Waits until the lock is free, without taking it.
    pub(crate) fn wait(&self) {
        let mut locked = self.locked.lock().unwrap();
        while *locked {
            locked = self.waiters.wait(locked).unwrap();
        }
    }

    pub(crate) fn is_locked(&self) -> bool {
        *self.locked.lock().unwrap()
    }
}

/// A `struct folio` and its page, in use or not.
pub(crate) struct Frame {
    refs: AtomicUsize,
    mapcount: AtomicUsize,
    mapping: AtomicUsize,
    failed: AtomicBool,
    pub(crate) lock: PageLock,
    bytes: Plain<u8>,
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self {
            refs: AtomicUsize::new(0),
            mapcount: AtomicUsize::new(0),
            mapping: AtomicUsize::new(Mapping::None.encode()),
            failed: AtomicBool::new(false),
            lock: PageLock::new(),
            bytes: Plain::new(POISON),
        }
    }

    /// `smp_load_acquire(&folio->mapping)`.
    pub(crate) fn mapping(&self) -> Mapping {
        Mapping::decode(self.mapping.load(Ordering::Acquire))
    }

    /// `smp_store_release(&folio->mapping, ...)`. The caller has the lock, or nobody has a
    /// reference.
    pub(crate) fn set_mapping(&self, mapping: Mapping) {
        self.mapping.store(mapping.encode(), Ordering::Release);
    }

    pub(crate) fn is_merged(&self) -> bool {
        matches!(self.mapping(), Mapping::Node(_))
    }

    /// `folio_test_hwpoison()`.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// `TestSetPageHWPoison()`.
    pub(crate) fn set_failed(&self) -> bool {
        self.failed.swap(true, Ordering::AcqRel)
    }

    /// `folio_ref_count()`: atomic_read(), no barrier.
    pub(crate) fn refs(&self) -> usize {
        self.refs.load(Ordering::Relaxed)
    }

    pub(crate) fn mapcount(&self) -> usize {
        self.mapcount.load(Ordering::Relaxed)
    }

    /// `folio_add_anon_rmap_pte()`.
    pub(crate) fn add_mapping(&self) {
        self.mapcount.fetch_add(1, Ordering::Relaxed);
    }

    /// `folio_remove_rmap_pte()`.
    pub(crate) fn remove_mapping(&self) {
        let before = self.mapcount.fetch_sub(1, Ordering::Relaxed);
        assert_ne!(before, 0, "a mapping is removed that is not there");
    }

    /// `folio_ref_freeze()`.
    pub(crate) fn freeze(&self, count: usize) -> bool {
        self.refs
            .compare_exchange(count, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// `folio_ref_unfreeze()`.
    pub(crate) fn unfreeze(&self, count: usize) {
        self.refs.store(count, Ordering::Release);
    }

    /// The bytes, by a process's load or the engine's. They must be stable.
    #[track_caller]
    pub(crate) fn load(&self) -> u8 {
        let byte = self.bytes.read(|byte| *byte);
        assert_ne!(byte, POISON, "a freed page is read");
        byte
    }

    #[track_caller]
    pub(crate) fn store(&self, byte: u8) {
        self.bytes.write(|bytes| *bytes = byte);
    }
}

/// A reference to a folio.
pub(crate) struct Folio<'w> {
    world: &'w World,
    id: FolioId,
}

impl<'w> Folio<'w> {
    /// A fresh page with one reference.
    pub(crate) fn alloc(world: &'w World, byte: u8, mapping: Mapping) -> Self {
        let id = world
            .free_folios
            .lock()
            .unwrap()
            .pop()
            .expect("the model has too few folios");
        let frame = world.frame(id);
        frame.store(byte);
        frame.set_mapping(mapping);
        // The allocator's locks order the page's last life before this; here the release does.
        frame.unfreeze(1);
        Self { world, id }
    }

    /// `folio_try_get()`: takes a reference if there is one.
    pub(crate) fn try_get(world: &'w World, id: FolioId) -> Option<Self> {
        world
            .frame(id)
            .refs
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |refs| {
                (refs != 0).then_some(refs + 1)
            })
            .ok()?;
        Some(Self { world, id })
    }

    /// `folio_get()` of a folio that something else keeps in use.
    pub(crate) fn get(world: &'w World, id: FolioId) -> Self {
        let before = world.frame(id).refs.fetch_add(1, Ordering::Relaxed);
        assert_ne!(before, 0, "a freed folio is referenced");
        Self { world, id }
    }

    /// Takes over a reference, a mapping's for example.
    pub(crate) fn from_raw(world: &'w World, id: FolioId) -> Self {
        Self { world, id }
    }

    /// Gives the reference to a mapping.
    pub(crate) fn into_raw(self) -> FolioId {
        ManuallyDrop::new(self).id
    }

    pub(crate) fn lock(self) -> LockedFolio<'w> {
        self.lock.lock();
        LockedFolio(ManuallyDrop::new(self))
    }

    pub(crate) fn id(&self) -> FolioId {
        self.id
    }

    pub(crate) fn world(&self) -> &'w World {
        self.world
    }

    pub(crate) fn same_bytes(&self, other: &Folio<'_>) -> bool {
        self.load() == other.load()
    }
}

impl Deref for Folio<'_> {
    type Target = Frame;

    fn deref(&self) -> &Frame {
        self.world.frame(self.id)
    }
}

impl Drop for Folio<'_> {
    /// `folio_put()`, and `free_pages_prepare()` after the last one.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let before = self.refs.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(before, 0, "a reference is put that is not there");
        if before == 1 {
            assert_eq!(self.mapcount(), 0, "a mapped page is freed");
            self.world.folio_freed(self.id);
            self.set_mapping(Mapping::None);
            self.store(POISON);
            self.world.free_folios.lock().unwrap().push(self.id);
        }
    }
}

/// A reference to a folio whose lock is held.
pub(crate) struct LockedFolio<'w>(ManuallyDrop<Folio<'w>>);

impl<'w> LockedFolio<'w> {
    /// `folio_trylock()`, then a reference; something else keeps the folio in use meanwhile.
    pub(crate) fn try_lock(world: &'w World, id: FolioId) -> Option<Self> {
        if !world.frame(id).lock.try_lock() {
            return None;
        }
        Some(Self(ManuallyDrop::new(Folio::get(world, id))))
    }

    /// Unlocks, keeps the reference.
    pub(crate) fn unlock(self) -> Folio<'w> {
        self.0.lock.unlock();
        let this = ManuallyDrop::new(self);
        Folio::from_raw(this.0.world, this.0.id)
    }
}

impl<'w> Deref for LockedFolio<'w> {
    type Target = Folio<'w>;

    fn deref(&self) -> &Folio<'w> {
        &self.0
    }
}

impl Drop for LockedFolio<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.0.lock.unlock();
        drop(Folio::from_raw(self.0.world, self.0.id));
    }
}
