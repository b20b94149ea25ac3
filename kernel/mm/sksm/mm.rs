// SPDX-License-Identifier: GPL-2.0-only

//! Address spaces and their mappings, and calls into mm that nobody can get wrong: each is wrapped
//! once, here or where its type is.

use core::ptr::{read_volatile, NonNull};
use kernel::bindings;
use kernel::types::Opaque;

use super::folio::Folio;

/// What is handed to a C function as it is, or as a pointer.
pub(crate) trait Argument {
    type Raw;

    fn raw(self) -> Self::Raw;
}

macro_rules! plain_arguments {
    ($($type:ty),*) => {$(
        impl Argument for $type {
            type Raw = Self;

            fn raw(self) -> Self {
                self
            }
        }
    )*};
}
plain_arguments!(i32, u32, isize, usize, bindings::pte_t);

impl<T> Argument for &mut T {
    type Raw = *mut T;

    fn raw(self) -> *mut T {
        self
    }
}

impl Argument for &Vma {
    type Raw = *mut bindings::vm_area_struct;

    fn raw(self) -> Self::Raw {
        self.as_ptr()
    }
}

/// Makes methods of C functions whose first argument is what `self` points to, and which ask for
/// nothing but that it and other arguments are in use.
macro_rules! methods {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $c:ident;
    )*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(&self, $($arg: $type),*) $(-> $result)? {
            // SAFETY: It is in use while there is a reference to it.
            unsafe { bindings::$c(self.as_ptr(), $(super::mm::Argument::raw($arg)),*) }
        }
    )*};
}
pub(crate) use methods;

/// Makes functions of C functions that may be called with any arguments in use.
macro_rules! functions {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $c:ident;
    )*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) $(-> $result)? {
            // SAFETY: It may be called with any arguments.
            unsafe { bindings::$c($(super::mm::Argument::raw($arg)),*) }
        }
    )*};
}
pub(crate) use functions;

functions! {
    /// Lets others run. May sleep.
    fn cond_resched() = sksm_cond_resched;
    /// The number of the CPU that this runs on, or ran on a moment ago.
    fn this_cpu() -> u32 = sksm_this_cpu;
    /// Whether the task is about to be killed.
    fn fatal_signal_pending() -> bool = sksm_fatal_signal_pending;
    /// Moves pages out of this CPU's batches of the LRU and of mlock, which hold references.
    fn drain_local_batches() = sksm_drain_local_batches;
    /// The same for all CPUs. Sleeps until work has run on each; no lock that such work takes is
    /// held.
    fn drain_all_batches() = lru_add_drain_all;
}

/// An address space. A reference to it means that it is not freed.
#[repr(transparent)]
pub(crate) struct Mm(Opaque<bindings::mm_struct>);

impl Mm {
    /// # Safety
    ///
    /// `mm` is valid for as long as the result is used.
    pub(crate) unsafe fn from_raw<'a>(mm: *mut bindings::mm_struct) -> &'a Self {
        // SAFETY: `Self` is transparent, and `mm` valid, as the caller promises.
        unsafe { &*mm.cast() }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::mm_struct {
        self.0.get()
    }

    methods! {
        /// Whether it is that of the current task.
        fn is_current() -> bool = sksm_is_current_mm;
        /// Whether others may look at it, see prctl(2).
        fn is_dumpable() -> bool = sksm_mm_dumpable;
        /// Whether others wait for mmap_lock.
        fn is_lock_contended() -> bool = sksm_mmap_lock_is_contended;
        /// Whether another CPU may have entries in its TLB that a page table has lost already.
        fn is_flush_pending() -> bool = sksm_tlb_flush_pending;
        /// Takes mmap_lock for read; not 0 if a fatal signal came first. Sleeps.
        fn read_lock_killable() -> i32 = sksm_mmap_read_lock_killable;
        /// Says that entries of these addresses will change, to secondary MMUs. May sleep.
        fn notifier_start(range: &mut bindings::mmu_notifier_range, from: usize, to: usize)
            = sksm_notifier_start;
        fn add_merged(mappings: isize) = sksm_mm_add_merged;
        fn add_published(pages: isize) = sksm_mm_add_published;
        fn take_merged() -> bool = sksm_mm_take_merged;
        fn take_published() -> bool = sksm_mm_take_published;
        fn add_swapped(mappings: isize) = sksm_mm_add_swapped;
        fn take_swapped() -> bool = sksm_mm_take_swapped;
        /// An anonymous page became a zero page that KSM counts.
        fn account_zero_page() = sksm_account_zero_page;
        fn trace_call(scanned: usize, merged: usize, published: usize, busy: usize)
            = sksm_trace_call;
        fn trace_busy(addr: usize) = sksm_trace_busy;
        fn trace_publish(addr: usize, folio: &Folio) = sksm_trace_publish;
        fn trace_withdraw(addr: usize, folio: &Folio) = sksm_trace_withdraw;
        /// A mapping was redirected to a merged page, or to the zero page.
        fn trace_merge(addr: usize, folio: Option<&Folio>) = sksm_trace_merge;
    }
}

/// What keeps the mappings that a call is over as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// mmap_lock, for read: all mappings.
    Mmap,
    /// The mapping's own, for read.
    Vma,
}

/// A mapping. A reference to it means that mmap_lock, its own lock or an anon_vma's keeps it.
#[repr(transparent)]
pub(crate) struct Vma(Opaque<bindings::vm_area_struct>);

impl Vma {
    /// # Safety
    ///
    /// `vma` is valid for as long as the result is used.
    pub(crate) unsafe fn from_raw<'a>(vma: *mut bindings::vm_area_struct) -> &'a Self {
        // SAFETY: `Self` is transparent, and `vma` valid, as the caller promises.
        unsafe { &*vma.cast() }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::vm_area_struct {
        self.0.get()
    }

    pub(crate) fn mm(&self) -> &Mm {
        // SAFETY: A VMA has an mm, which does not change, and outlives it.
        unsafe { Mm::from_raw((*self.as_ptr()).vm_mm) }
    }

    /// What names its anonymous pages, once it has had any.
    pub(crate) fn anon_vma(&self) -> Option<NonNull<bindings::anon_vma>> {
        // SAFETY: The VMA is valid. Volatile, as a page fault may set the pointer meanwhile, once.
        NonNull::new(unsafe { read_volatile(&raw const (*self.as_ptr()).anon_vma) })
    }

    methods! {
        fn start() -> usize = sksm_vma_start;
        fn end() -> usize = sksm_vma_end;
        fn flags() -> usize = sksm_vma_flags;
        /// Whether no file is behind it.
        fn is_anonymous() -> bool = sksm_vma_is_anonymous;
        /// The entry of a zero page that KSM counts, with an old one's bits of the mapping.
        fn zero_pte(old: bindings::pte_t) -> bindings::pte_t = sksm_pte_for_zero;
        /// Makes CPUs forget what they know of the entries of these addresses.
        fn flush_tlb(from: usize, to: usize) = sksm_flush_tlb;
        /// Whether KSM would take its pages.
        fn is_compatible() -> bool = vma_ksm_compatible;
        /// The page offset that anonymous reverse maps know an address by.
        fn pgoff(addr: usize) -> usize = sksm_vma_pgoff;
    }
}
