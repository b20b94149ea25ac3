//! Frees retired nodes, after the kernel's `release.rs`.

use std::mem::take;

use crate::bug::Bug;
use crate::node::NodeId;
use crate::world::World;

impl World {
    /// `release::push()`.
    pub(crate) fn release_later(&self, node: NodeId) {
        self.retired.lock().unwrap().push(node);
    }

    /// `release::run()`, the work item. Here whoever retired a node runs it soon, holding nothing.
    pub(crate) fn release(&self) {
        let retired = take(&mut *self.retired.lock().unwrap());
        if retired.is_empty() {
            return;
        }
        if !self.has(Bug::FreeWithoutGracePeriod) {
            self.index.synchronize_rcu();
        }
        for node in retired {
            self.free_node(node);
        }
    }
}
