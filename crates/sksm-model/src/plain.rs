use loom::cell::UnsafeCell;

/// Memory without atomics: the checker fails when two accesses are not ordered.
pub(crate) struct Plain<T>(UnsafeCell<T>);

// SAFETY: The checker runs one thread at a time, and panics on overlapping or unordered accesses.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T> Plain<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[track_caller]
    pub(crate) fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        // SAFETY: The checker has seen that nobody writes.
        self.0.with(|value| f(unsafe { &*value }))
    }

    #[track_caller]
    pub(crate) fn write<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: The checker has seen that nobody else reads or writes.
        self.0.with_mut(|value| f(unsafe { &mut *value }))
    }
}
