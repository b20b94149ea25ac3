// SPDX-License-Identifier: GPL-2.0-only

//! Frees retired nodes: later, in process context, after an RCU grace period.
//!
//! Pages are freed in any context, but dropping an anon_vma may sleep, and a reader of the index
//! may still look at the node.

use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::bindings;
use kernel::prelude::*;

use super::node::Node;

/// Retired nodes, newest first.
static RETIRED: AtomicPtr<bindings::llist_node> = AtomicPtr::new(core::ptr::null_mut());

/// Hands a node over. Any context.
///
/// # Safety
///
/// The node came from a `KBox`, is in no index, and is handed over once.
pub(crate) unsafe fn push(node: &Node) {
    let link = node.retired.get();
    // SAFETY: `RETIRED` has the layout of an llist_head, and `link` is on no list.
    if unsafe { bindings::llist_add_batch(link, link, RETIRED.as_ptr().cast()) } {
        // SAFETY: Queues a static work item.
        unsafe { bindings::sksm_schedule_release() };
    }
}

/// Frees what was handed over by now. Sleeps.
pub(crate) fn run() {
    let mut link = RETIRED.swap(core::ptr::null_mut(), Ordering::Acquire);
    if link.is_null() {
        return;
    }
    // SAFETY: Process context.
    unsafe { bindings::synchronize_rcu() };
    while !link.is_null() {
        // SAFETY: The list links nodes by their `retired` field, and is ours alone now.
        unsafe {
            let node = kernel::container_of!(link, Node, retired).cast_mut();
            link = (*link).next;
            drop(KBox::from_raw(node));
            bindings::sksm_cond_resched();
        }
    }
}

/// Waits until everything that was handed over is freed. Sleeps.
pub(crate) fn flush() {
    // SAFETY: Waits for a static work item.
    unsafe { bindings::sksm_flush_release() };
}
