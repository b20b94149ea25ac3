//! Patched code and frozen data, once in memory for all processes of a user, on any Linux kernel.
//!
//! Pages that a program has patched are its own copies, and equal ones in other processes are other copies. A kernel with SKSM merges
//! them (crate `sksm`). Without one, this crate has all processes map one file in memory instead: `/dev/shm/sksm-UID`, or the directory
//! that `SKSM_STORE_DIR` names.
//!
//! It is another engine, with other promises, and never stands in for `MADV_MERGE` by itself:
//!
//! | | `MADV_MERGE` | the store |
//! | --- | --- | --- |
//! | what is shared | any private anonymous page | code of loaded objects, and data that is handed over as frozen |
//! | who shares | the merge domain | processes of one user that see the same directory |
//! | trust | the kernel compares bytes, and copies before a write | bytes are compared before they are mapped; whoever may write files as this user may change them later, as he may write to the process's memory |
//! | heaps | yes | no: after `MADV_DONTNEED` such a page has its bytes again rather than zeros, and allocators rely on zeros |
//!
#![cfg_attr(
    feature = "std",
    doc = "```no_run
# fn main() -> Result<(), Box<dyn std::error::Error>> {
use sksm_store::{Object, Store};

let store = Store::open()?;
// Before there are threads: the pages of libc's code that this process has patched.
let shared = store.share_text(Object::Named(\"libc.so.6\"))?;
println!(\"{} pages are shared\", shared.pages);

// Read-only from now on, and in memory once for all processes that freeze the same.
let weights = store.freeze(vec![0.5f32; 100_000_000]).map_err(|kept| kept.error)?;
assert_eq!(weights[7], 0.5);
# Ok(())
# }
```"
)]
//!
//! Whatever goes wrong, the program keeps its own pages, and [`Error`] says what to do.
//!
//! Without the feature `std` nothing allocates, and what needs memory is left out.

#![cfg_attr(not(feature = "std"), no_std)]
#![cfg(any(target_os = "linux", target_os = "android"))]
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

mod error;
#[cfg(feature = "std")]
mod frozen;
mod name;
#[cfg(feature = "std")]
mod open;
#[cfg(feature = "std")]
mod patch;
#[doc(hidden)]
pub mod size;
mod store;
mod sys;
mod text;
#[cfg(feature = "std")]
mod usage;

pub use error::{Error, Fault};
#[cfg(feature = "std")]
pub use frozen::{Frozen, Kept};
#[cfg(feature = "std")]
pub use patch::{FinishAndShare, Unshared};
pub use store::{Held, Store};
pub use text::{Object, Shared};
#[cfg(feature = "std")]
pub use usage::{Entry, Usage, User};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
