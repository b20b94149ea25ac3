// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel that the engine is built for has otherwise than others: Linux 6.12.

use core::ptr::drop_in_place;
use kernel::bindings;
use kernel::ffi::c_char;
use kernel::prelude::*;

pub(crate) use kernel::types::{ARef, AlwaysRefCounted};

/// The low bits of `folio->mapping`: of a KSM page, that it is SKSM's, and all that mm knows.
pub(crate) const MAPPING_KSM: usize = bindings::PAGE_MAPPING_KSM as usize;
pub(crate) const MAPPING_SKSM: usize = bindings::PAGE_MAPPING_SKSM as usize;
pub(crate) const MAPPING_FLAGS: usize = bindings::PAGE_MAPPING_FLAGS as usize;

/// A string as C takes it.
pub(crate) const fn as_ptr(text: &CStr) -> *const c_char {
    text.as_char_ptr()
}

/// A file of sysfs that has no name yet.
pub(crate) const fn attribute(
    show: Option<Show>,
    store: Option<Store>,
) -> bindings::kobj_attribute {
    bindings::kobj_attribute {
        show,
        store,
        // SAFETY: All-zero is a valid kobj_attribute.
        ..unsafe { core::mem::zeroed() }
    }
}

pub(crate) type Show = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *mut c_char,
) -> isize;
pub(crate) type Store = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *const c_char,
    usize,
) -> isize;

/// Drops all but the first elements; there are so many at least.
pub(crate) fn truncate<T>(vec: &mut KVVec<T>, len: usize) {
    let rest = &mut vec.as_mut_slice()[len..] as *mut [T];
    // SAFETY: The length becomes a smaller one, and what is behind it is dropped once, here.
    unsafe {
        vec.set_len(len);
        drop_in_place(rest);
    }
}

pub(crate) mod atomic {
    //! `kernel::sync::atomic` of later kernels, as far as it is used, made of core's atomics.

    use core::cell::UnsafeCell;
    use core::mem::transmute_copy;
    use core::sync::atomic::{self, Ordering as Order};
    use kernel::ffi::c_void;

    /// How an operation is ordered.
    pub(crate) trait Ordering {
        const ORDER: Order;
    }

    /// How a load may be ordered.
    pub(crate) trait AcquireOrRelaxed: Ordering {}

    /// How a store may be ordered.
    pub(crate) trait ReleaseOrRelaxed: Ordering {}

    pub(crate) struct Relaxed;
    pub(crate) struct Acquire;
    pub(crate) struct Release;
    /// For exchanges: as a full barrier before and after, which locked instructions of x86 are.
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
        const ORDER: Order = Order::SeqCst;
    }
    impl AcquireOrRelaxed for Relaxed {}
    impl AcquireOrRelaxed for Acquire {}
    impl ReleaseOrRelaxed for Relaxed {}
    impl ReleaseOrRelaxed for Release {}

    /// What core has an atomic of.
    pub(crate) trait AtomicImpl: Copy {
        type Core;

        fn load(at: &Self::Core, order: Order) -> Self;
        fn store(at: &Self::Core, value: Self, order: Order);
        fn swap(at: &Self::Core, value: Self, order: Order) -> Self;
        fn compare_exchange(
            at: &Self::Core,
            old: Self,
            new: Self,
            order: Order,
        ) -> Result<Self, Self>;
    }

    macro_rules! atomic_impl {
        ($($type:ty => $core:ty),* $(,)?) => {$(
            impl AtomicImpl for $type {
                type Core = $core;

                #[inline(always)]
                fn load(at: &$core, order: Order) -> Self {
                    at.load(order)
                }

                #[inline(always)]
                fn store(at: &$core, value: Self, order: Order) {
                    at.store(value, order);
                }

                #[inline(always)]
                fn swap(at: &$core, value: Self, order: Order) -> Self {
                    at.swap(value, order)
                }

                #[inline(always)]
                fn compare_exchange(
                    at: &$core,
                    old: Self,
                    new: Self,
                    order: Order,
                ) -> Result<Self, Self> {
                    at.compare_exchange(old, new, order, Order::Relaxed)
                }
            }
        )*};
    }
    atomic_impl!(
        i8 => atomic::AtomicI8,
        i16 => atomic::AtomicI16,
        i32 => atomic::AtomicI32,
        i64 => atomic::AtomicI64,
        *mut c_void => atomic::AtomicPtr<c_void>,
    );

    /// What an [`Atomic`] can be of.
    ///
    /// # Safety
    ///
    /// The type has the size and the alignment of `Repr`, and each of its values is one of that.
    pub(crate) unsafe trait AtomicType: Copy {
        type Repr: AtomicImpl;
    }

    macro_rules! atomic_type {
        ($($type:ty => $repr:ty),* $(,)?) => {$(
            // SAFETY: So it is.
            unsafe impl AtomicType for $type {
                type Repr = $repr;
            }
        )*};
    }
    atomic_type!(bool => i8, u32 => i32, usize => i64);

    // SAFETY: So it is.
    unsafe impl<T> AtomicType for *mut T {
        type Repr = *mut c_void;
    }

    /// A value that several tasks may read and change at a time.
    #[repr(transparent)]
    pub(crate) struct Atomic<T: AtomicType>(UnsafeCell<T>);

    // SAFETY: All accesses are atomic.
    unsafe impl<T: AtomicType> Sync for Atomic<T> {}

    impl<T: AtomicType> Atomic<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        fn core(&self) -> &<T::Repr as AtomicImpl>::Core {
            // SAFETY: Core's atomics have the size and, with 64 bits, the alignment of what they
            // are of, as has `T`.
            unsafe { &*self.0.get().cast() }
        }

        fn repr(value: T) -> T::Repr {
            // SAFETY: Each value of `T` is one of `Repr`.
            unsafe { transmute_copy(&value) }
        }

        fn value(repr: T::Repr) -> T {
            // SAFETY: Only values of `T` are stored.
            unsafe { transmute_copy(&repr) }
        }

        #[inline(always)]
        pub(crate) fn load<O: AcquireOrRelaxed>(&self, _: O) -> T {
            Self::value(T::Repr::load(self.core(), O::ORDER))
        }

        #[inline(always)]
        pub(crate) fn store<O: ReleaseOrRelaxed>(&self, value: T, _: O) {
            T::Repr::store(self.core(), Self::repr(value), O::ORDER);
        }

        #[inline(always)]
        pub(crate) fn xchg<O: Ordering>(&self, value: T, _: O) -> T {
            Self::value(T::Repr::swap(self.core(), Self::repr(value), O::ORDER))
        }

        /// The old value, which was not the one to be replaced if it is an error; nothing is
        /// ordered then.
        #[inline(always)]
        pub(crate) fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
            let (old, new) = (Self::repr(old), Self::repr(new));
            match T::Repr::compare_exchange(self.core(), old, new, O::ORDER) {
                Ok(old) => Ok(Self::value(old)),
                Err(old) => Err(Self::value(old)),
            }
        }
    }

    impl Atomic<usize> {
        #[inline(always)]
        pub(crate) fn fetch_add<O: Ordering>(&self, value: usize, _: O) -> usize {
            self.core().fetch_add(value as i64, O::ORDER) as usize
        }
    }
}

pub(crate) mod barrier {
    //! `kernel::sync::barrier` of later kernels, as far as it is used.

    use core::sync::atomic;

    pub(crate) use super::atomic::Full;

    #[inline(always)]
    pub(crate) fn smp_mb(_: Full) {
        atomic::fence(atomic::Ordering::SeqCst);
    }
}
