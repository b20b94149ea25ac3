//! `kernel::sync::atomic`, of the same size: what is inside is the first value only. The checker's
//! atomics, which are larger and live for one execution, stand in the world, by address.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::transmute_copy;

use loom::sync::atomic::Ordering as Order;

use crate::world::{world, Word};

/// How an operation is ordered.
pub(crate) trait Ordering {
    const ORDER: Order;
}

pub(crate) trait AcquireOrRelaxed: Ordering {}
pub(crate) trait ReleaseOrRelaxed: Ordering {}

pub(crate) struct Relaxed;
pub(crate) struct Acquire;
pub(crate) struct Release;
/// Less than the kernel's: no barrier for what stands around the operation.
pub(crate) struct Full;

impl Ordering for Relaxed {
    const ORDER: Order = Order::Relaxed;
}
impl Ordering for Acquire {
    const ORDER: Order = Order::Acquire;
}
impl Ordering for Release {
    const ORDER: Order = Order::Release;
}
impl Ordering for Full {
    const ORDER: Order = Order::AcqRel;
}
impl AcquireOrRelaxed for Relaxed {}
impl AcquireOrRelaxed for Acquire {}
impl ReleaseOrRelaxed for Relaxed {}
impl ReleaseOrRelaxed for Release {}

pub(crate) trait AtomicImpl: Copy {
    fn word(self) -> usize;
    fn of_word(word: usize) -> Self;
}

macro_rules! atomic_impl {
    ($($type:ty),*) => {$(
        impl AtomicImpl for $type {
            fn word(self) -> usize {
                self as usize
            }

            fn of_word(word: usize) -> Self {
                word as $type
            }
        }
    )*};
}
atomic_impl!(i16, i64, *mut c_void);

/// # Safety
///
/// As in the kernel's crate.
pub(crate) unsafe trait AtomicType: Copy {
    type Repr: AtomicImpl;
}

// SAFETY: Of one size and alignment, and any bits are valid for both.
unsafe impl AtomicType for usize {
    type Repr = i64;
}

// SAFETY: As above.
unsafe impl<T> AtomicType for *mut T {
    type Repr = *mut c_void;
}

#[repr(transparent)]
pub(crate) struct Atomic<T: AtomicType>(UnsafeCell<T>);

// SAFETY: The first value is only read.
unsafe impl<T: AtomicType> Sync for Atomic<T> {}

impl<T: AtomicType> Atomic<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    fn to_word(value: T) -> usize {
        // SAFETY: Each value of `T` is one of `Repr`.
        unsafe { transmute_copy::<T, T::Repr>(&value) }.word()
    }

    fn of_word(word: usize) -> T {
        // SAFETY: The word was made of a value of `T`.
        unsafe { transmute_copy(&T::Repr::of_word(word)) }
    }

    #[track_caller]
    fn word(&self) -> &Word {
        // SAFETY: Never written.
        let first = || Self::to_word(unsafe { *self.0.get() });
        world().word(self.0.get() as usize, first)
    }

    /// Makes the checker's atomic, by the thread that makes this one.
    #[track_caller]
    pub(crate) fn begin(&self) {
        self.word();
    }

    #[track_caller]
    pub(crate) fn load<O: AcquireOrRelaxed>(&self, _: O) -> T {
        Self::of_word(self.word().load(O::ORDER))
    }

    #[track_caller]
    pub(crate) fn store<O: ReleaseOrRelaxed>(&self, value: T, _: O) {
        self.word().store(Self::to_word(value), O::ORDER);
    }

    #[track_caller]
    pub(crate) fn xchg<O: Ordering>(&self, value: T, _: O) -> T {
        Self::of_word(self.word().swap(Self::to_word(value), O::ORDER))
    }

    #[track_caller]
    pub(crate) fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
        let (old, new) = (Self::to_word(old), Self::to_word(new));
        self.word()
            .compare_exchange(old, new, O::ORDER, Order::Relaxed)
            .map(Self::of_word)
            .map_err(Self::of_word)
    }
}

impl Atomic<usize> {
    #[track_caller]
    pub(crate) fn fetch_add<O: Ordering>(&self, value: usize, _: O) -> usize {
        self.word().fetch_add(value, O::ORDER)
    }
}

impl Default for Atomic<usize> {
    fn default() -> Self {
        Self::new(0)
    }
}
