//! Builds kernels.
//!
//! An `Origin` says which `base`, and whose tree of it. `fetch` puts that `source` into the cache, Debian's out of a `package`, `tree` lays the patches and the files of `kernel/` over it, `config` chooses its
//! settings, and `build` makes an image of it with the `toolchain`, in a directory of `objects`.

mod arch;
mod base;
mod build;
pub mod checkpatch;
pub mod config;
mod coverage;
pub mod fetch;
pub mod objects;
mod origin;
mod package;
pub mod source;
pub mod toolchain;
pub mod tree;

pub use arch::Arch;
pub use base::Base;
pub use build::{
    Kernel, Pages, build, built, compile_engine, compiled, objects_of, patched_source,
};
pub use origin::Origin;
pub use package::{Download, Package};
