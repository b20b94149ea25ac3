// SPDX-License-Identifier: GPL-2.0-only

//! `/sys/kernel/mm/sksm/`.

use core::sync::atomic::{AtomicBool, Ordering};
use kernel::bindings;
use kernel::c_str;
use kernel::error::to_result;
use kernel::ffi::c_char;
use kernel::prelude::*;

use super::domain::{self, Kind};
use super::index;
use super::release;
use super::stats;

/// Whether pages of different NUMA nodes merge.
pub(crate) static MERGE_ACROSS_NODES: AtomicBool = AtomicBool::new(true);

type Show = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *mut c_char,
) -> isize;
type Store = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *const c_char,
    usize,
) -> isize;

/// An attribute that lives in a static, as sysfs wants it.
#[repr(transparent)]
struct Attribute(core::cell::UnsafeCell<bindings::kobj_attribute>);

// SAFETY: Only sysfs uses it, under its own locks.
unsafe impl Sync for Attribute {}

impl Attribute {
    const fn new(name: &'static CStr, mode: u16, show: Show, store: Option<Store>) -> Self {
        // SAFETY: All-zero is a valid kobj_attribute.
        let mut attribute: bindings::kobj_attribute = unsafe { core::mem::zeroed() };
        attribute.attr.name = name.as_char_ptr();
        attribute.attr.mode = mode;
        attribute.show = Some(show);
        attribute.store = store;
        Self(core::cell::UnsafeCell::new(attribute))
    }
}

fn emit(buf: *mut c_char, value: usize) -> isize {
    // SAFETY: sysfs passes a page; the format matches the argument.
    unsafe { bindings::sysfs_emit(buf, c_str!("%lu\n").as_char_ptr(), value) as isize }
}

/// Reads an unsigned number, or says EINVAL.
///
/// # Safety
///
/// `buf` is a NUL-terminated string.
unsafe fn parse(buf: *const c_char) -> Result<u32> {
    let mut value = 0;
    // SAFETY: As the caller promises.
    to_result(unsafe { bindings::kstrtouint(buf, 10, &mut value) })?;
    Ok(value)
}

fn stored(result: Result, len: usize) -> isize {
    match result {
        Ok(()) => len as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// Defines the attribute `$name` with what it shows, and for writable ones how it is stored.
macro_rules! attribute {
    ($name:ident, $static:ident, $value:expr) => {
        attribute!(@ $name, $static, 0o444, |buf| emit(buf, $value), None);
    };
    ($name:ident, $static:ident, $value:expr, $store:expr) => {
        attribute!(@ $name, $static, 0o644, $value, Some({
            /// # Safety
            ///
            /// Called by sysfs.
            unsafe extern "C" fn store(
                _: *mut bindings::kobject,
                _: *mut bindings::kobj_attribute,
                buf: *const c_char,
                len: usize,
            ) -> isize {
                let store: fn(*const c_char) -> Result = $store;
                stored(store(buf), len)
            }
            store
        }));
    };
    (@ $name:ident, $static:ident, $mode:expr, $show:expr, $store:expr) => {
        static $static: Attribute = {
            /// # Safety
            ///
            /// Called by sysfs.
            unsafe extern "C" fn show(
                _: *mut bindings::kobject,
                _: *mut bindings::kobj_attribute,
                buf: *mut c_char,
            ) -> isize {
                let show: fn(*mut c_char) -> isize = $show;
                show(buf)
            }
            Attribute::new(c_str!(stringify!($name)), $mode, show, $store)
        };
    };
}

attribute!(domain, DOMAIN, show_domain, store_domain);
attribute!(
    max_page_sharing,
    MAX_PAGE_SHARING,
    |buf| emit(
        buf,
        index::MAX_PAGE_SHARING.load(Ordering::Relaxed) as usize
    ),
    |buf| {
        // SAFETY: sysfs passes a NUL-terminated string.
        let value = unsafe { parse(buf)? };
        // As for KSM: a merged page with one mapping saves nothing.
        if value < 2 {
            return Err(EINVAL);
        }
        index::MAX_PAGE_SHARING.store(value, Ordering::Relaxed);
        Ok(())
    }
);
attribute!(
    merge_across_nodes,
    ACROSS_NODES,
    |buf| emit(buf, MERGE_ACROSS_NODES.load(Ordering::Relaxed) as usize),
    |buf| {
        // SAFETY: sysfs passes a NUL-terminated string.
        let value = unsafe { parse(buf)? };
        if value > 1 {
            return Err(EINVAL);
        }
        MERGE_ACROSS_NODES.store(value == 1, Ordering::Relaxed);
        Ok(())
    }
);
attribute!(pages_shared, PAGES_SHARED, index::census().shared);
attribute!(pages_sharing, PAGES_SHARING, index::census().sharing);
attribute!(pages_unshared, PAGES_UNSHARED, index::census().unshared);
attribute!(pages_zero, PAGES_ZERO, zero_pages());
attribute!(calls, CALLS, stats::CALLS.get());
attribute!(pages_scanned, PAGES_SCANNED, stats::SCANNED.get());
attribute!(pages_merged, PAGES_MERGED, stats::MERGED.get());
attribute!(pages_published, PAGES_PUBLISHED, stats::PUBLISHED.get());
attribute!(pages_withdrawn, PAGES_WITHDRAWN, stats::WITHDRAWN.get());
attribute!(pages_busy, PAGES_BUSY, stats::BUSY.get());
attribute!(bytes_metadata, BYTES_METADATA, {
    // What is retired is as good as free.
    release::flush();
    stats::METADATA.get()
});

/// Zero pages that SKSM or KSM placed, system-wide.
fn zero_pages() -> usize {
    // SAFETY: A static atomic of KSM's.
    unsafe { core::ptr::read_volatile(&raw const bindings::ksm_zero_pages.counter) as usize }
}

fn show_domain(buf: *mut c_char) -> isize {
    let mut len = 0;
    for (kind, name) in Kind::ALL.into_iter().zip(Kind::NAMES) {
        let (open, close) = if kind == domain::kind() {
            ("[", "]")
        } else {
            ("", "")
        };
        let last = kind == Kind::Global;
        for part in [open, name, close, if last { "\n" } else { " " }] {
            // SAFETY: sysfs passes a page, far more than the names take.
            unsafe {
                core::ptr::copy_nonoverlapping(part.as_ptr(), buf.add(len).cast(), part.len())
            };
            len += part.len();
        }
    }
    len as isize
}

fn store_domain(buf: *const c_char) -> Result {
    // SAFETY: sysfs passes a NUL-terminated string.
    let word = unsafe { CStr::from_char_ptr(buf) }.to_str()?.trim();
    let at = Kind::NAMES.iter().position(|name| *name == word);
    domain::set_kind(Kind::ALL[at.ok_or(EINVAL)?]);
    Ok(())
}

/// The attributes as sysfs takes them: NULL-terminated.
#[repr(transparent)]
struct Group<const N: usize>([*const Attribute; N]);

// SAFETY: Pointers to statics.
unsafe impl<const N: usize> Sync for Group<N> {}

static ATTRIBUTES: Group<15> = Group([
    &DOMAIN,
    &MAX_PAGE_SHARING,
    &ACROSS_NODES,
    &PAGES_SHARED,
    &PAGES_SHARING,
    &PAGES_UNSHARED,
    &PAGES_ZERO,
    &CALLS,
    &PAGES_SCANNED,
    &PAGES_MERGED,
    &PAGES_PUBLISHED,
    &PAGES_WITHDRAWN,
    &PAGES_BUSY,
    &BYTES_METADATA,
    core::ptr::null(),
]);

/// Creates the directory.
pub(crate) fn init() -> Result {
    // SAFETY: mm_kobj exists by now.
    let kobj = unsafe {
        bindings::kobject_create_and_add(c_str!("sksm").as_char_ptr(), bindings::mm_kobj)
    };
    if kobj.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: `Attribute` is a kobj_attribute, which starts with its attribute; all are static.
    to_result(unsafe { bindings::sysfs_create_files(kobj, ATTRIBUTES.0.as_ptr().cast()) })
}
