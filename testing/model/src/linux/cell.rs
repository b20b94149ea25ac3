//! `core::cell`, of the same size, with the checker looking on.

use std::cell;

use crate::world::world;

/// What is written before others see it, and read by many: whoever asks for it must do so after
/// its box was made and before that is freed.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct UnsafeCell<T>(cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(cell::UnsafeCell::new(value))
    }

    #[track_caller]
    pub(crate) fn get(&self) -> *mut T {
        world().heap.look(self.0.get() as usize);
        self.0.get()
    }
}

/// What a lock guards: whoever asks for it must do so after all others who did.
#[repr(transparent)]
pub(crate) struct Guarded<T>(cell::UnsafeCell<T>);

impl<T> Guarded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(cell::UnsafeCell::new(value))
    }

    #[track_caller]
    pub(crate) fn get(&self) -> *mut T {
        world().heap.exclusive(self.0.get() as usize);
        self.0.get()
    }
}
