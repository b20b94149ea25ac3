// SPDX-License-Identifier: GPL-2.0-only

//! Merge domains: who may share a page with whom.
//!
//! The time that a merge or a write takes tells whether somebody else holds the same bytes. So
//! pages merge within one domain only; the domain is part of the index key.

use core::sync::atomic::{AtomicU8, Ordering};
use kernel::bindings;

/// What separates domains.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The real user and user namespace of the process whose memory it is.
    User,
    /// Its memory cgroup.
    Cgroup,
    /// Nothing.
    Global,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::User, Self::Cgroup, Self::Global];
    /// Their names in sysfs, in the order of `ALL`.
    pub(crate) const NAMES: [&'static str; 3] = ["user", "cgroup", "global"];
}

static KIND: AtomicU8 = AtomicU8::new(Kind::User as u8);

/// What separates domains from now on.
pub(crate) fn kind() -> Kind {
    Kind::ALL[usize::from(KIND.load(Ordering::Relaxed))]
}

/// Changes what separates domains; pages that are merged already stay so.
pub(crate) fn set_kind(kind: Kind) {
    KIND.store(kind as u8, Ordering::Relaxed);
}

/// One merge domain.
#[derive(Clone, Copy)]
pub(crate) struct Domain {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) uid: u32,
}

impl Domain {
    /// The domain that memory of `mm` belongs to; `None` when its owner has gone.
    ///
    /// # Safety
    ///
    /// `mm` is valid.
    pub(crate) unsafe fn of(mm: *mut bindings::mm_struct) -> Option<Self> {
        let kind = kind();
        let (mut id, mut uid) = (0, 0);
        match kind {
            // SAFETY: `mm` is valid, as the caller promises.
            Kind::User => unsafe { bindings::sksm_mm_owner(mm, &mut uid, &mut id) },
            Kind::Cgroup => {
                // SAFETY: As above.
                id = unsafe { bindings::sksm_mm_cgroup(mm) };
                true
            }
            Kind::Global => true,
        }
        .then_some(Self { kind, id, uid })
    }
}
