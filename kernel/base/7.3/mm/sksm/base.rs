// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel that the engine is built for has otherwise than others: Linux 7.3.

use kernel::bindings;
use kernel::ffi::c_char;
use kernel::prelude::*;

pub(crate) use kernel::sync::aref::{ARef, AlwaysRefCounted};
pub(crate) use kernel::sync::{atomic, barrier};

/// The low bits of `folio->mapping`: of a KSM page, that it is SKSM's, and all that mm knows.
pub(crate) const MAPPING_KSM: usize = bindings::FOLIO_MAPPING_KSM as usize;
pub(crate) const MAPPING_SKSM: usize = bindings::FOLIO_MAPPING_SKSM as usize;
pub(crate) const MAPPING_FLAGS: usize = bindings::FOLIO_MAPPING_FLAGS as usize;

/// A string as C takes it.
pub(crate) const fn as_ptr(text: &CStr) -> *const c_char {
    text.as_ptr().cast()
}

/// A file of sysfs that has no name yet.
pub(crate) const fn attribute(
    show: Option<Show>,
    store: Option<Store>,
) -> bindings::kobj_attribute {
    // SAFETY: All-zero is a valid kobj_attribute.
    let mut attribute: bindings::kobj_attribute = unsafe { core::mem::zeroed() };
    attribute.__bindgen_anon_1.show = show;
    attribute.__bindgen_anon_2.store = store;
    attribute
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
    vec.truncate(len);
}
