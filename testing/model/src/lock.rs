//! Locks that are taken by one call and released by another, as the kernel's are.

use std::cell::RefCell;
use std::mem::transmute;
use std::thread::panicking;

use loom::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use loom::thread::{self, ThreadId};

/// A lock that one waits for: spinlocks, and what else is only locked.
pub(crate) struct Spin {
    // Before the mutex that it borrows.
    guard: RefCell<Option<MutexGuard<'static, ()>>>,
    mutex: Box<Mutex<()>>,
}

impl Spin {
    pub(crate) fn new() -> Self {
        Self {
            guard: RefCell::new(None),
            mutex: Box::new(Mutex::new(())),
        }
    }

    #[track_caller]
    pub(crate) fn lock(&self) {
        let guard = self.mutex.lock().unwrap();
        // SAFETY: The mutex is in a box, and dropped after the guard.
        let guard = unsafe { transmute::<MutexGuard<'_, ()>, MutexGuard<'static, ()>>(guard) };
        *self.guard.borrow_mut() = Some(guard);
    }

    pub(crate) fn unlock(&self) {
        if panicking() {
            return;
        }
        let guard = self.guard.borrow_mut().take();
        drop(guard.expect("a lock is released that nobody has"));
    }

    /// Calls `f` with the lock.
    #[track_caller]
    pub(crate) fn with<R>(&self, f: impl FnOnce() -> R) -> R {
        self.lock();
        let result = f();
        self.unlock();
        result
    }
}

/// A lock for reading and writing; readers may be many, each thread once.
pub(crate) struct Shared {
    readers: RefCell<Vec<(ThreadId, RwLockReadGuard<'static, ()>)>>,
    writer: RefCell<Option<RwLockWriteGuard<'static, ()>>>,
    lock: Box<RwLock<()>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            readers: RefCell::new(Vec::new()),
            writer: RefCell::new(None),
            lock: Box::new(RwLock::new(())),
        }
    }

    /// Whether this thread reads.
    pub(crate) fn is_read(&self) -> bool {
        let me = thread::current().id();
        self.readers.borrow().iter().any(|(id, _)| *id == me)
    }

    #[track_caller]
    pub(crate) fn read(&self) {
        let guard = self.lock.read().unwrap();
        // SAFETY: The lock is in a box, and dropped after the guard.
        let guard =
            unsafe { transmute::<RwLockReadGuard<'_, ()>, RwLockReadGuard<'static, ()>>(guard) };
        let me = thread::current().id();
        self.readers.borrow_mut().push((me, guard));
    }

    pub(crate) fn read_unlock(&self) {
        if panicking() {
            return;
        }
        let me = thread::current().id();
        let mut readers = self.readers.borrow_mut();
        let at = readers.iter().position(|(id, _)| *id == me);
        let guard = readers.swap_remove(at.expect("a lock is released that nobody has"));
        drop(readers);
        drop(guard);
    }

    #[track_caller]
    pub(crate) fn write(&self) {
        let guard = self.lock.write().unwrap();
        // SAFETY: As for readers.
        let guard =
            unsafe { transmute::<RwLockWriteGuard<'_, ()>, RwLockWriteGuard<'static, ()>>(guard) };
        *self.writer.borrow_mut() = Some(guard);
    }

    pub(crate) fn write_unlock(&self) {
        let guard = self.writer.borrow_mut().take();
        drop(guard);
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
    pub(crate) fn new() -> Self {
        Self {
            locked: Mutex::new(false),
            waiters: Condvar::new(),
        }
    }

    #[track_caller]
    pub(crate) fn try_lock(&self) -> bool {
        !std::mem::replace(&mut *self.locked.lock().unwrap(), true)
    }

    #[track_caller]
    pub(crate) fn lock(&self) {
        let mut locked = self.locked.lock().unwrap();
        while *locked {
            locked = self.waiters.wait(locked).unwrap();
        }
        *locked = true;
    }

    #[track_caller]
    pub(crate) fn unlock(&self) {
        if panicking() {
            return;
        }
        let was = std::mem::replace(&mut *self.locked.lock().unwrap(), false);
        assert!(was, "a folio is unlocked that is not locked");
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
