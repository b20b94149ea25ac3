// SPDX-License-Identifier: GPL-2.0-only

//! RCU read sections.

use kernel::bindings;

/// An RCU read section.
pub(crate) struct Rcu;

impl Rcu {
    pub(crate) fn lock() -> Self {
        // SAFETY: Ended by drop.
        unsafe { bindings::sksm_rcu_read_lock() };
        Self
    }
}

impl Drop for Rcu {
    fn drop(&mut self) {
        // SAFETY: Begun by `lock`.
        unsafe { bindings::sksm_rcu_read_unlock() };
    }
}
