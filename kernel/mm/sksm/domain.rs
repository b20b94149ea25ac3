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
    /// User and user namespace, or the cgroup's serial number.
    pub(crate) id: u64,
}

impl Domain {
    /// The domain that memory of `mm` belongs to; `None` when its owner has gone.
    ///
    /// # Safety
    ///
    /// `mm` is valid.
    pub(crate) unsafe fn of(mm: *mut bindings::mm_struct) -> Option<Self> {
        let kind = kind();
        let id = match kind {
            Kind::User => {
                let (mut uid, mut user_ns) = (0, 0);
                // SAFETY: `mm` is valid, as the caller promises.
                if !unsafe { bindings::sksm_mm_owner(mm, &mut uid, &mut user_ns) } {
                    return None;
                }
                u64::from(uid) << 32 | u64::from(user_ns)
            }
            // SAFETY: As above.
            Kind::Cgroup => unsafe { bindings::sksm_mm_cgroup(mm) },
            Kind::Global => 0,
        };
        Some(Self { kind, id })
    }
}
