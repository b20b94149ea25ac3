//! `core::sync::atomic`, of the same size: what is inside is the first value only. The checker's
//! atomics, which are larger and live for one execution, stand in the world, by address.

use std::cell::UnsafeCell;

pub(crate) use loom::sync::atomic::Ordering;

use crate::world::{world, Word};

macro_rules! atomic {
    ($name:ident $(<$param:ident>)?, $type:ty, $inner:ty) => {
        #[repr(transparent)]
        pub(crate) struct $name$(<$param>)?(UnsafeCell<$inner>);

        // SAFETY: The first value is only read.
        unsafe impl$(<$param>)? Sync for $name$(<$param>)? {}

        #[allow(dead_code)]
        impl$(<$param>)? $name$(<$param>)? {
            pub(crate) const fn new(value: $type) -> Self {
                Self(UnsafeCell::new(value))
            }

            #[track_caller]
            fn word(&self) -> &Word {
                // SAFETY: Never written.
                world().word(self.0.get() as usize, || unsafe { *self.0.get() } as usize)
            }

            /// Makes the checker's atomic, by the thread that makes this one.
            #[track_caller]
            pub(crate) fn begin(&self) {
                self.word();
            }

            pub(crate) fn as_ptr(&self) -> *mut $type {
                self.0.get()
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $type {
                self.word().load(order) as $type
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $type, order: Ordering) {
                self.word().store(value as usize, order);
            }

            #[track_caller]
            pub(crate) fn swap(&self, value: $type, order: Ordering) -> $type {
                self.word().swap(value as usize, order) as $type
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                old: $type,
                new: $type,
                yes: Ordering,
                no: Ordering,
            ) -> Result<$type, $type> {
                self.word()
                    .compare_exchange(old as usize, new as usize, yes, no)
                    .map(|old| old as $type)
                    .map_err(|old| old as $type)
            }

            #[track_caller]
            pub(crate) fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut f: impl FnMut($type) -> Option<$type>,
            ) -> Result<$type, $type> {
                self.word()
                    .fetch_update(set, fetch, |old| f(old as $type).map(|new| new as usize))
                    .map(|old| old as $type)
                    .map_err(|old| old as $type)
            }
        }
    };
}

atomic!(AtomicUsize, usize, usize);
atomic!(AtomicU32, u32, u32);
atomic!(AtomicU16, u16, u16);
atomic!(AtomicPtr<T>, *mut T, *mut T);

macro_rules! number {
    ($name:ident, $type:ty) => {
        #[allow(dead_code)]
        impl $name {
            #[track_caller]
            pub(crate) fn fetch_add(&self, value: $type, order: Ordering) -> $type {
                self.word().fetch_add(value as usize, order) as $type
            }

            #[track_caller]
            pub(crate) fn fetch_sub(&self, value: $type, order: Ordering) -> $type {
                self.word().fetch_sub(value as usize, order) as $type
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(0)
            }
        }
    };
}

number!(AtomicUsize, usize);
number!(AtomicU32, u32);
number!(AtomicU16, u16);
