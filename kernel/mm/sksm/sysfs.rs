// SPDX-License-Identifier: GPL-2.0-only

//! `/sys/kernel/mm/sksm/`.

use kernel::bindings;
use kernel::c_str;
use kernel::error::to_result;
use kernel::ffi::c_char;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

use super::base::atomic::{Atomic, Relaxed};
use super::base::{self, Show, Store};
use super::domain::{self, Root};
use super::stats::Stat;
use super::unmerge;

/// How many mappings a merged page takes, unless told otherwise; KSM's default.
pub(crate) static MAX_PAGE_SHARING: Atomic<u32> = Atomic::new(256);

/// Whether pages of different NUMA nodes merge.
pub(crate) static MERGE_ACROSS_NODES: Atomic<bool> = Atomic::new(true);

/// An attribute that lives in a static, as sysfs wants it.
#[repr(transparent)]
struct Attribute(core::cell::UnsafeCell<bindings::kobj_attribute>);

// SAFETY: Only sysfs uses it, under its own locks.
unsafe impl Sync for Attribute {}

impl Attribute {
    const fn new(name: &'static CStr, mode: u16, show: Option<Show>, store: Option<Store>) -> Self {
        let mut attribute = base::attribute(show, store);
        attribute.attr.name = base::as_ptr(name);
        attribute.attr.mode = mode;
        Self(core::cell::UnsafeCell::new(attribute))
    }
}

fn emit(buf: *mut c_char, value: isize) -> isize {
    // SAFETY: sysfs passes a page; the format matches the argument.
    unsafe { bindings::sysfs_emit(buf, base::as_ptr(c_str!("%ld\n")), value) as isize }
}

/// Shows a counter. A sum over CPUs that change meanwhile may be a little below zero.
fn emit_stat(buf: *mut c_char, stat: Stat) -> isize {
    emit(buf, stat.get().max(0))
}

/// Reads an unsigned number, or says EINVAL.
fn parse(text: &CStr) -> Result<u32> {
    let mut value = 0;
    // SAFETY: The text ends with a NUL.
    to_result(unsafe { bindings::kstrtouint(base::as_ptr(text), 10, &mut value) })?;
    Ok(value)
}

fn stored(result: Result, len: usize) -> isize {
    match result {
        Ok(()) => len as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// Defines the attribute `$name`: a counter, or with what it shows and how it is stored.
macro_rules! attribute {
    ($name:ident, $static:ident, Stat::$stat:ident) => {
        attribute!($name, $static, |buf| emit_stat(buf, Stat::$stat));
    };
    ($name:ident, $static:ident, $show:expr) => {
        attribute!(@ $name, $static, 0o444, Some(attribute!(show $show)), None);
    };
    ($name:ident, $static:ident, $show:expr, $store:expr) => {
        attribute!(
            @ $name, $static, 0o644,
            Some(attribute!(show $show)), Some(attribute!(store $store))
        );
    };
    (write $name:ident, $static:ident, $store:expr) => {
        attribute!(@ $name, $static, 0o200, None, Some(attribute!(store $store)));
    };
    (show $show:expr) => {{
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
        show
    }};
    (store $store:expr) => {{
        /// # Safety
        ///
        /// Called by sysfs.
        unsafe extern "C" fn store(
            _: *mut bindings::kobject,
            _: *mut bindings::kobj_attribute,
            buf: *const c_char,
            len: usize,
        ) -> isize {
            let store: fn(&CStr) -> Result = $store;
            // SAFETY: sysfs passes a NUL-terminated string.
            stored(store(unsafe { CStr::from_char_ptr(buf) }), len)
        }
        store
    }};
    (@ $name:ident, $static:ident, $mode:expr, $show:expr, $store:expr) => {
        static $static: Attribute = Attribute::new(c_str!(stringify!($name)), $mode, $show, $store);
    };
}

attribute!(domain, DOMAIN, show_domain, store_domain);
attribute!(
    max_page_sharing,
    MAX_SHARING,
    |buf| emit(buf, MAX_PAGE_SHARING.load(Relaxed) as isize),
    |text| {
        let value = parse(text)?;
        // As for KSM: a merged page with one mapping saves nothing. What is larger than any number
        // of mappings would only overflow.
        if !(2..=i32::MAX as u32 / 4).contains(&value) {
            return Err(EINVAL);
        }
        MAX_PAGE_SHARING.store(value, Relaxed);
        Ok(())
    }
);
attribute!(
    merge_across_nodes,
    ACROSS_NODES,
    |buf| emit(buf, MERGE_ACROSS_NODES.load(Relaxed) as isize),
    |text| {
        let value = parse(text)?;
        if value > 1 {
            return Err(EINVAL);
        }
        MERGE_ACROSS_NODES.store(value == 1, Relaxed);
        Ok(())
    }
);
attribute!(write unmerge, UNMERGE, |text| {
    if parse(text)? != 1 {
        return Err(EINVAL);
    }
    unmerge::all()
});
attribute!(advice, ADVICE, |buf| emit(
    buf,
    bindings::MADV_MERGE as isize
));
attribute!(pages_shared, PAGES_SHARED, Stat::Shared);
attribute!(pages_sharing, PAGES_SHARING, Stat::Sharing);
attribute!(pages_unshared, PAGES_UNSHARED, |buf| emit(
    buf,
    (Stat::Pages.get() - Stat::Shared.get()).max(0)
));
attribute!(pages_zero, PAGES_ZERO, |buf| emit(buf, zero_pages()));
attribute!(calls, CALLS, Stat::Calls);
attribute!(pages_scanned, PAGES_SCANNED, Stat::Scanned);
attribute!(pages_merged, PAGES_MERGED, Stat::Merged);
attribute!(pages_published, PAGES_PUBLISHED, Stat::Published);
attribute!(pages_withdrawn, PAGES_WITHDRAWN, Stat::Withdrawn);
attribute!(pages_busy, PAGES_BUSY, Stat::Busy);
attribute!(pages_refused, PAGES_REFUSED, Stat::Refused);
attribute!(pages_swapped, PAGES_SWAPPED, Stat::Swapped);
attribute!(pages_swapped_in, PAGES_SWAPPED_IN, Stat::SwappedIn);
attribute!(pages_asleep, PAGES_ASLEEP, Stat::Asleep);
attribute!(pages_rescued, PAGES_RESCUED, Stat::Rescued);
attribute!(bytes_metadata, BYTES_METADATA, Stat::Metadata);
attribute!(general_profit, GENERAL_PROFIT, |buf| {
    let pages = Stat::Sharing.get().max(0) + zero_pages();
    emit(buf, pages * PAGE_SIZE as isize - Stat::Metadata.get())
});

/// Zero pages that SKSM or KSM placed, system-wide.
fn zero_pages() -> isize {
    // SAFETY: A static atomic of KSM's.
    let pages = unsafe { core::ptr::read_volatile(&raw const bindings::ksm_zero_pages.counter) };
    (pages as isize).max(0)
}

fn show_domain(buf: *mut c_char) -> isize {
    let mut len = 0;
    for (root, name) in Root::ALL.into_iter().zip(Root::NAMES) {
        let format = match (root == domain::root(), root == Root::None) {
            (false, false) => c_str!("%.*s "),
            (true, false) => c_str!("[%.*s] "),
            (false, true) => c_str!("%.*s\n"),
            (true, true) => c_str!("[%.*s]\n"),
        };
        // SAFETY: sysfs passes a page; the format takes a length and so many characters.
        len += unsafe {
            bindings::sysfs_emit_at(
                buf,
                len,
                base::as_ptr(format),
                name.len() as i32,
                name.as_ptr(),
            )
        };
    }
    len as isize
}

fn store_domain(text: &CStr) -> Result {
    let word = text.to_str()?.trim();
    let at = Root::NAMES.iter().position(|name| *name == word);
    domain::set_root(Root::ALL[at.ok_or(EINVAL)?])
}

/// The attributes as sysfs takes them: NULL-terminated.
#[repr(transparent)]
struct Group<const N: usize>([*const Attribute; N]);

// SAFETY: Pointers to statics.
unsafe impl<const N: usize> Sync for Group<N> {}

static ATTRIBUTES: Group<23> = Group([
    &ADVICE,
    &DOMAIN,
    &MAX_SHARING,
    &ACROSS_NODES,
    &UNMERGE,
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
    &PAGES_REFUSED,
    &PAGES_SWAPPED,
    &PAGES_SWAPPED_IN,
    &PAGES_ASLEEP,
    &PAGES_RESCUED,
    &BYTES_METADATA,
    &GENERAL_PROFIT,
    core::ptr::null(),
]);

/// Creates the directory.
pub(crate) fn init() -> Result {
    // SAFETY: mm_kobj exists by now.
    let kobj = unsafe {
        bindings::kobject_create_and_add(base::as_ptr(c_str!("sksm")), bindings::mm_kobj)
    };
    if kobj.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: `Attribute` is a kobj_attribute, which starts with its attribute; all are static.
    to_result(unsafe { bindings::sysfs_create_files(kobj, ATTRIBUTES.0.as_ptr().cast()) })
}
