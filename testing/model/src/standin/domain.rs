//! In place of the engine's `domain.rs`: a domain is a number of the mm.

use super::content::Secret;
use super::mm::{Mm, Vma};

#[derive(Clone, Copy)]
pub(crate) struct Domain(u64);

impl Domain {
    pub(crate) fn of(mm: &Mm, _remote: bool, _secret: &Secret) -> Option<Self> {
        // SAFETY: mms stay.
        Some(Self(unsafe { (*mm.as_ptr()).domain }))
    }

    pub(crate) fn word(self, nid: i32, _secret: &Secret) -> u64 {
        self.0 << 16 | ((nid + 1) as u64) << 8
    }
}

pub(crate) fn is_private(_vma: &Vma) -> bool {
    false
}
