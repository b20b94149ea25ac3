//! `kernel::types`.

use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr::NonNull;

#[repr(transparent)]
pub(crate) struct Opaque<T>(UnsafeCell<MaybeUninit<T>>);

impl<T> Opaque<T> {
    pub(crate) const fn get(&self) -> *mut T {
        self.0.get().cast()
    }
}

/// # Safety
///
/// As in the kernel's crate.
pub(crate) unsafe trait AlwaysRefCounted {
    fn inc_ref(&self);

    /// # Safety
    ///
    /// The caller gives a reference away.
    unsafe fn dec_ref(obj: NonNull<Self>);
}

pub(crate) struct ARef<T: AlwaysRefCounted>(NonNull<T>);

impl<T: AlwaysRefCounted> ARef<T> {
    /// # Safety
    ///
    /// The caller gives a reference away.
    pub(crate) unsafe fn from_raw(ptr: NonNull<T>) -> Self {
        Self(ptr)
    }

    pub(crate) fn into_raw(me: Self) -> NonNull<T> {
        ManuallyDrop::new(me).0
    }
}

impl<T: AlwaysRefCounted> Deref for ARef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: There is a reference.
        unsafe { self.0.as_ref() }
    }
}

impl<T: AlwaysRefCounted> From<&T> for ARef<T> {
    fn from(referenced: &T) -> Self {
        referenced.inc_ref();
        Self(NonNull::from(referenced))
    }
}

impl<T: AlwaysRefCounted> Drop for ARef<T> {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { T::dec_ref(self.0) };
    }
}
