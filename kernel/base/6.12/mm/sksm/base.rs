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

/// No caller has a VMA's lock only.
pub(crate) const PGWALK_VMA_LOCK: bindings::page_walk_lock = bindings::page_walk_lock_PGWALK_RDLOCK;

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
