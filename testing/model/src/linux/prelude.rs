//! `kernel::prelude`.

pub(crate) use super::alloc::flags::{GFP_KERNEL, GFP_KERNEL_ACCOUNT};
pub(crate) use super::alloc::{KBox, KVVec};
pub(crate) use super::error::{code::*, Error, Result};
pub(crate) use crate::{pr_err, pr_warn};
