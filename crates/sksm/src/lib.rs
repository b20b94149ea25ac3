//! Merge equal memory pages at once.
//!
//! A kernel with SKSM offers one more advice to `madvise(2)`: [`MADV_MERGE`]. It says "these pages hold no secrets, are
//! written, and will stay as they are for a long time: share them now". When the call returns, every page of the range that
//! has a twin in the same merge domain shares one physical page with it. A later write is an ordinary copy-on-write fault.
//!
//! Merging never changes what memory contains, so every call here is safe. That the advice of the running kernel is this one, and
//! not another that has the same number elsewhere, [`support`](support()) makes sure of first:
//!
//! ```
//! let table = vec![7u64; 100_000];
//! match sksm::merge(&table) {
//!     Ok(()) => println!("shared with every process that built the same table"),
//!     Err(sksm::Error::Unsupported { instead, .. }) => println!("not on this kernel; it has: {instead:?}"),
//!     Err(error) => eprintln!("{error}"),
//! }
//! ```
//!
//! Do not merge secrets: the time that a merge or a write takes, pagemap, smaps and counters tell whether some other process of
//! the merge domain holds the same content. [`unmerge`] is the way back.
//!
//! A merge domain is the process's own memory cgroup and user unless the administrator has said more
//! (`/sys/kernel/mm/sksm/domain`, `memory.merge_domain` of control groups). A process that changed its effective or saved user
//! merges with none. That is no error of a call: the counter `pages_refused` of [`SystemStatistics`] tells of it.
//!
//! | for | there is |
//! | --- | --- |
//! | own data | [`merge`], [`merge_range`], [`merge_exact`] |
//! | code that is patched | [`Patch`] |
//! | what a process holds, by kind, file or address | [`Process`] |
//! | other processes | [`Process::open`], [`merge_remote_each`] |
//! | pages of one's own again | [`unmerge`], [`unmerge_range`], [`Process::unmerge_all`], [`unmerge_remote_each`] |
//! | kernels that have only KSM | [`advise_ksm`], [`advise_ksm_range`]: explicit, never done silently |
//! | what it brought | [`measure`], [`ProcessStatistics`], [`MergeStatistics`], [`SystemStatistics`] |
//!
//! Without the feature `std` the crate needs only `core` and libc; what needs memory or threads is then left out. The feature
//! `test-util` has `pretend_support`, for tests of what a program does on other kernels.
//!
//! Other systems than Linux and Android merge nothing: there [`support`](support()) is [`Support::None`], the calls for slices and
//! ranges are refused with [`Error::Unsupported`], and there are no calls for code and for other processes.

#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs)]
#![warn(clippy::missing_errors_doc, clippy::must_use_candidate)]
// What is public may grow without breaking programs, unless it says why it is whole.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]
// No panics: a program that only wanted to save memory shall not end by it.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod advise;
mod error;
mod kinds;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
mod merge;
#[cfg(feature = "std")]
mod merge_statistics;
mod offer;
mod os;
#[cfg(feature = "std")]
mod partial;
#[cfg(feature = "std")]
mod proc;
mod region;
#[cfg(feature = "std")]
mod statistics;
mod support;
#[cfg(feature = "std")]
mod system_statistics;
#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod test_pages;
mod unmerge;

pub use error::Error;
pub use kinds::{Kind, Kinds};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub use linux::public::*;
pub use merge::{advise_ksm, advise_ksm_range, merge, merge_exact, merge_range};
#[cfg(feature = "std")]
pub use merge_statistics::MergeStatistics;
pub use offer::{MADV_MERGE, Support};
#[cfg(feature = "std")]
pub use partial::Partial;
pub use region::Region;
#[cfg(feature = "std")]
pub use statistics::{Effect, ProcessStatistics, measure};
#[cfg(feature = "test-util")]
pub use support::pretend_support;
pub use support::{require, support};
#[cfg(feature = "std")]
pub use system_statistics::SystemStatistics;
pub use unmerge::{unmerge, unmerge_exact, unmerge_range};

/// The size of a page in bytes.
#[must_use]
pub fn page_size() -> usize {
    os::page_size()
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
