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
//! Without the feature `std` the crate needs only `core` and libc; [`merge_remote`] is then left out.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

mod error;
mod merge;
#[cfg(feature = "std")]
mod remote;
mod support;

pub use error::Error;
pub use merge::{merge, merge_exact, merge_range, page_size};
#[cfg(feature = "std")]
pub use remote::merge_remote;
pub use support::{Support, support};

/// The advice that asks `madvise(2)` or `process_madvise(2)` to merge. The only place where this number stands.
pub const MADV_MERGE: i32 = 26;
