//! Builds kernels.
//!
//! `fetch` puts a `source` into the cache, `tree` lays the patches and the files of `kernel/` over it, `config` chooses its
//! settings, and `build` makes an image of it with the `toolchain`, in a directory of `objects`.

mod arch;
mod build;
pub mod checkpatch;
pub mod config;
mod coverage;
pub mod fetch;
pub mod objects;
pub mod source;
pub mod toolchain;
pub mod tree;

pub use arch::Arch;
pub use build::{Kernel, build, compiled, patched_source};
