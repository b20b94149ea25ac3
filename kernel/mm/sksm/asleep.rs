// SPDX-License-Identifier: GPL-2.0-only

//! Merged pages that are in swap space only.
//!
//! Reclaim frees the folio of a merged page whose users are swap entries by then. Its node sleeps
//! under the swap slot, with its reverse map. Whoever reads the slot again wakes it before any
//! entry becomes a mapping: the folio that was read becomes the merged page, and all users get it.
//!
//! The bytes are the merged page's still: mm writes a slot from the one folio that is in the swap
//! cache for it, and while other entries are there, no folio is written in place. And every entry
//! has its place in the reverse map: none is dropped from it while there may be entries, and they
//! travel as mappings do.
//!
//! A page that fails while its slot has the bytes sleeps as well.
//!
//! What happens to one slot happens in turn. A node falls asleep while its folio is in the swap
//! cache, locked; wakes under the lock of a folio that is; and is forgotten when the slot has
//! neither entries nor folio. So whoever does one of these has the sleeping node for himself.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::rcu;

use super::folio::LockedFolio;
use super::index;
use super::node::Node;
use super::stats::Stat;

/// A swap slot, as a word that is no pointer.
#[derive(Clone, Copy)]
pub(crate) struct Slot(usize);

impl Slot {
    /// The slot of a swap entry, whose highest bit is never set.
    pub(crate) fn new(entry: usize) -> Self {
        Self(entry << 1 | 1)
    }

    /// How many swap entries it has, about: 0, 1 or more.
    fn users(self) -> i32 {
        // SAFETY: The caller keeps the slot in use.
        unsafe { bindings::sksm_slot_users(self.0 >> 1) }
    }

    /// The node that sleeps here.
    fn node<'a>(self, _rcu: &'a rcu::Guard) -> Option<&'a Node> {
        // SAFETY: The table is set up at boot; RCU keeps what is found.
        unsafe {
            let sleeper = NonNull::new(bindings::sksm_asleep_lookup(self.0))?;
            Some(Node::from_link(sleeper.cast()))
        }
    }

    /// Puts a node to sleep here; fails where one sleeps already, or the table cannot take it.
    ///
    /// # Safety
    ///
    /// The node is not in the index, and the caller has it for himself.
    unsafe fn enter(self, node: &Node) -> Result {
        // SAFETY: As the caller promises.
        let slot = unsafe { node.slot() };
        slot.set(self.0 as *mut Node);
        // SAFETY: In neither table, and taken out of this one before it is freed.
        let entered = to_result(unsafe { bindings::sksm_asleep_insert(node.link().cast()) });
        if entered.is_err() {
            slot.set(node.as_ptr());
        }
        entered
    }
}

/// Ends a node's sleep.
///
/// # Safety
///
/// It sleeps, and the caller has it for himself.
unsafe fn rouse(node: &Node) {
    // SAFETY: As the caller promises: in this table, and not in the index.
    unsafe {
        bindings::sksm_asleep_remove(node.link().cast());
        node.slot().set(node.as_ptr());
    }
    Stat::Asleep.add(-1);
}

/// See [`super::sksm_folio_sleep`].
pub(crate) fn sleep(folio: &mut LockedFolio, slot: Slot) {
    let Some(merged) = folio.merged() else {
        return;
    };
    // Who waits for a page that failed counts on its node; and one user has nobody to share with.
    // The node goes with the folio then.
    if merged.is_awaited() || slot.users() < 2 {
        return;
    }
    let node = merged.node();
    merged.abandon();
    node.leave_memory();
    // Searches that go astray may come by for as long as it sleeps, and find nothing to follow.
    node.forget_others();
    // SAFETY: Out of the index; and the folio, which nobody maps or will map, does not point to
    // the node any more.
    if unsafe { slot.enter(node) }.is_ok() {
        Stat::Asleep.add(1);
    } else {
        // Users read a page each.
        // SAFETY: As above.
        unsafe { Node::retire(NonNull::from(node)) };
    }
}

/// See [`super::__sksm_folio_wake`].
pub(crate) fn wake(folio: &mut LockedFolio) {
    if !folio.in_swapcache() || !folio.is_plain() || !folio.is_uptodate() {
        return;
    }
    let rcu = rcu::read_lock();
    let Some(node) = Slot::new(folio.slot()).node(&rcu) else {
        return;
    };
    // SAFETY: The folio is locked and in the swap cache.
    unsafe { rouse(node) };
    node.enter_memory(folio);
    drop(rcu);
    // The folio keeps the node now.
    if let Some(merged) = folio.merged() {
        index::restore(merged.node(), merged.folio());
    }
}

/// See [`super::__sksm_slot_freed`].
pub(crate) fn forget(slot: Slot) {
    let rcu = rcu::read_lock();
    if let Some(node) = slot.node(&rcu) {
        // SAFETY: The slot has neither entries nor folio. The node left memory when it fell asleep.
        unsafe {
            rouse(node);
            Node::retire(NonNull::from(node));
        }
    }
}

/// See [`super::__sksm_slot_asleep`].
pub(crate) fn is_asleep(slot: Slot) -> bool {
    slot.node(&rcu::read_lock()).is_some()
}
