//! What only Linux can do. Android's kernel is Linux.

pub mod maps;
#[cfg(feature = "std")]
mod patch;
#[cfg(feature = "std")]
pub(crate) mod process;
#[cfg(feature = "std")]
mod remote;

/// What users of the crate see of it.
pub(crate) mod public {
    // For the preload object, which can allocate nothing; no part of the API.
    #[doc(hidden)]
    pub use super::maps;
    // Nothing, on other machines than its list has.
    #[allow(unused_imports)]
    #[cfg(feature = "std")]
    pub use super::patch::*;
    #[cfg(feature = "std")]
    pub use super::process::{Mapping, Process};
    #[cfg(feature = "std")]
    pub use super::remote::{merge_remote, merge_remote_each, unmerge_remote, unmerge_remote_each};
}
