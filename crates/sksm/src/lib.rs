//! Merge equal memory pages at once.
//!
//! A kernel with SKSM offers one more advice to `madvise(2)`: [`MADV_MERGE`]. It says "these pages hold no secrets, are
//! written, and will stay as they are for a long time: share them now". When the call returns, every page of the range that
//! has a twin in the same merge domain shares one physical page with it. A later write is an ordinary copy-on-write fault.
//!
//! Merging never changes what memory contains, so every call here is safe:
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
//! Do not merge secrets: the time that a merge or a write takes tells whether some other process of the merge domain holds the
//! same content.
//!
//! | for | there is |
//! | --- | --- |
//! | own data | [`merge`], [`merge_range`], [`merge_exact`] |
//! | code that is patched | [`Patch`] |
//! | what a process holds, by kind, file or address | [`Process`] |
//! | other processes | [`Process::open`], [`merge_remote_each`] |
//! | kernels that have only KSM | [`advise_ksm`], [`advise_ksm_range`]: explicit, never done silently |
//! | what it brought | [`measure`], [`ProcessStatistics`], [`SystemStatistics`] |
//!
//! Without the feature `std` the crate needs only `core` and libc; what needs memory or threads is then left out.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]
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

mod error;
mod kinds;
pub mod maps;
mod merge;
#[cfg(all(
    feature = "std",
    any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
))]
mod patch;
#[cfg(feature = "std")]
mod process;
mod region;
#[cfg(feature = "std")]
mod remote;
#[cfg(feature = "std")]
mod statistics;
mod support;
#[cfg(test)]
mod test_pages;

pub use error::Error;
pub use kinds::{Kind, Kinds};
pub use merge::{advise_ksm, advise_ksm_range, merge, merge_exact, merge_range, page_size};
#[cfg(all(
    feature = "std",
    any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
))]
pub use patch::Patch;
#[cfg(feature = "std")]
pub use process::{Mapping, Process};
pub use region::Region;
#[cfg(feature = "std")]
pub use remote::{Partial, merge_remote, merge_remote_each};
#[cfg(feature = "std")]
pub use statistics::{Effect, ProcessStatistics, SystemStatistics, measure};
pub use support::{Support, pretend_support, support};

/// The advice that asks `madvise(2)` or `process_madvise(2)` to merge. The only place where this number stands.
pub const MADV_MERGE: i32 = 26;
