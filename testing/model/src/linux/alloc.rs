//! `kernel::alloc`: boxes that the world knows of, so that whoever touches a freed one is found
//! out; and vectors that grow as the kernel's do.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut, Index, IndexMut};
use std::ptr::NonNull;
use std::thread::panicking;

use super::error::AllocError;
use crate::world::world;

#[derive(Clone, Copy)]
pub(crate) struct Flags;

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, _: Self) -> Self {
        self
    }
}

pub(crate) mod flags {
    use super::Flags;

    pub(crate) const GFP_KERNEL: Flags = Flags;
    pub(crate) const GFP_KERNEL_ACCOUNT: Flags = Flags;
    pub(crate) const __GFP_RETRY_MAYFAIL: Flags = Flags;
    pub(crate) const __GFP_NOWARN: Flags = Flags;
}

/// The memory stays until the execution has ended: see [`crate::world::Heap`].
pub(crate) struct KBox<T>(NonNull<T>);

impl<T> KBox<T> {
    pub(crate) fn new(value: T, _: Flags) -> Result<Self, AllocError> {
        let ptr = NonNull::from(Box::leak(Box::new(value)));
        world().heap.allocated(ptr);
        Ok(Self(ptr))
    }

    pub(crate) fn into_raw(me: Self) -> *mut T {
        ManuallyDrop::new(me).0.as_ptr()
    }

    pub(crate) fn leak<'a>(me: Self) -> &'a mut T {
        // SAFETY: The box was the caller's, and is nobody's any more.
        unsafe { &mut *Self::into_raw(me) }
    }

    /// # Safety
    ///
    /// `ptr` came from [`KBox::into_raw`].
    pub(crate) unsafe fn from_raw(ptr: *mut T) -> Self {
        Self(NonNull::new(ptr).expect("a box is never NULL"))
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The box is ours.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The box is ours.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for KBox<T> {
    fn drop(&mut self) {
        if panicking() {
            return;
        }
        world().heap.freed(self.0.cast());
        // SAFETY: Dropped once; the heap has seen that nobody looks at it, and keeps the memory.
        unsafe { self.0.drop_in_place() };
    }
}

pub(crate) struct KVVec<T>(Vec<T>);

impl<T> KVVec<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn reserve(&mut self, additional: usize, _: Flags) -> Result<(), AllocError> {
        let (len, capacity) = (self.0.len(), self.0.capacity());
        if capacity - len < additional {
            let capacity = (2 * capacity).max(len + additional);
            self.0.reserve_exact(capacity - len);
        }
        Ok(())
    }

    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub(crate) fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<T>] {
        self.0.spare_capacity_mut()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.0
    }

    /// # Safety
    ///
    /// As [`Vec::from_raw_parts`].
    pub(crate) unsafe fn from_raw_parts(ptr: *mut T, len: usize, capacity: usize) -> Self {
        // SAFETY: As the caller promises.
        Self(unsafe { Vec::from_raw_parts(ptr, len, capacity) })
    }

    pub(crate) fn into_raw_parts(self) -> (*mut T, usize, usize) {
        let mut vec = ManuallyDrop::new(self.0);
        (vec.as_mut_ptr(), vec.len(), vec.capacity())
    }
}

impl<T> Index<usize> for KVVec<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.0[at]
    }
}

impl<T> IndexMut<usize> for KVVec<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.0[at]
    }
}
