//! Stand-ins for what the engine imports of the kernel's crates and of `core`.

pub(crate) mod alloc;
pub(crate) mod atomic;
pub(crate) mod bindings;
pub(crate) mod cell;
pub(crate) mod error;
pub(crate) mod prelude;
pub(crate) mod sync;
pub(crate) mod types;

#[allow(non_camel_case_types)]
pub(crate) mod ffi {
    pub(crate) use std::ffi::c_int;
    /// As in the kernel's crate of that name.
    pub(crate) type c_ulong = usize;
}

pub(crate) mod page {
    pub(crate) const PAGE_SHIFT: usize = 12;
}

/// `kernel::pr_warn!`: what the engine warns of must not happen.
#[macro_export]
#[doc(hidden)]
macro_rules! pr_warn {
    ($($arg:tt)*) => {
        panic!($($arg)*)
    };
}

/// `kernel::pr_err!`.
#[macro_export]
#[doc(hidden)]
macro_rules! pr_err {
    ($($arg:tt)*) => {
        eprint!($($arg)*)
    };
}
