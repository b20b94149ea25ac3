// SPDX-License-Identifier: GPL-2.0-only

//! Frees retired nodes: later, in process context, after an RCU grace period.
//!
//! Pages are freed in any context, but dropping an anon_vma may sleep, and a reader of the index
//! may still look at the node.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::rcu;

use super::mm;
use super::node::Node;

/// Hands a node over. Any context.
///
/// # Safety
///
/// The node came from a `KBox`, is in no index, and is handed over once.
pub(crate) unsafe fn push(node: NonNull<Node>) {
    // SAFETY: The node lives until the work item has run, and its link is on no list.
    unsafe { bindings::sksm_retire(Node::retired(node)) }
}

/// Frees the nodes of a list, which may be empty. Sleeps.
///
/// # Safety
///
/// They were handed over, and the list is the caller's alone.
pub(crate) unsafe fn run(mut link: *mut bindings::llist_node) {
    if link.is_null() {
        return;
    }
    rcu::synchronize_rcu();
    while !link.is_null() {
        // SAFETY: The list links nodes by what `Node::retired` names, and is ours, as the caller
        // promises.
        unsafe {
            let node = Node::from_retired(link);
            link = (*link).next;
            drop(KBox::from_raw(node));
            mm::cond_resched();
        }
    }
}
