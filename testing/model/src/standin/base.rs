//! In place of the engine's `base.rs`, of which each kernel has its own.

use kernel::bindings;
use kernel::prelude::*;

pub(crate) use kernel::sync::{atomic, barrier};
pub(crate) use kernel::types::{ARef, AlwaysRefCounted};

pub(crate) const MAPPING_KSM: usize = bindings::PAGE_MAPPING_KSM as usize;
pub(crate) const MAPPING_SKSM: usize = bindings::PAGE_MAPPING_SKSM as usize;
pub(crate) const MAPPING_FLAGS: usize = bindings::PAGE_MAPPING_FLAGS as usize;

pub(crate) fn truncate<T>(vec: &mut KVVec<T>, len: usize) {
    vec.truncate(len);
}
