//! Merged pages by content, after the kernel's `index.rs`.
//!
//! All pages have the same key here, as if every checksum collided: bytes decide.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Mutex, MutexGuard, RwLock};

use crate::bug::Bug;
use crate::folio::{Folio, LockedFolio};
use crate::node::{NodeId, Pending};
use crate::rmap::Place;
use crate::world::World;

pub(crate) struct Index {
    /// The nodes of the one key. The lock is the bucket's, and each walk's first step.
    nodes: Mutex<Vec<NodeId>>,
    /// The one shard: `Shard`.
    publish: Mutex<()>,
    published: AtomicUsize,
    /// Read: an RCU read section. Write: a grace period.
    rcu: RwLock<()>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            nodes: Mutex::new(Vec::new()),
            publish: Mutex::new(()),
            published: AtomicUsize::new(0),
            rcu: RwLock::new(()),
        }
    }

    pub(crate) fn publish_lock(&self) -> MutexGuard<'_, ()> {
        self.publish.lock().unwrap()
    }

    pub(crate) fn published(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    pub(crate) fn insert(&self, node: NodeId) {
        self.nodes.lock().unwrap().push(node);
        self.published.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn remove(&self, node: NodeId) {
        self.nodes.lock().unwrap().retain(|other| *other != node);
    }

    pub(crate) fn synchronize_rcu(&self) {
        drop(self.rcu.write().unwrap());
    }

    /// What a walk over the nodes of the key sees: they may be gone from the index by the time the
    /// walk gets to them.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.nodes.lock().unwrap().clone()
    }
}

impl World {
    /// `lookup()`.
    fn lookup<'w>(&'w self, candidate: &LockedFolio<'w>) -> Option<Folio<'w>> {
        let _rcu = self.index.rcu.read().unwrap();
        for id in self.index.nodes() {
            let node = self.node(id);
            if let Some(folio) = Folio::try_get(self, node.folio_hint()) {
                if (self.has(Bug::FindWithoutRecheck) || self.owns(id, &folio))
                    && folio.same_bytes(candidate)
                {
                    return Some(folio);
                }
            }
        }
        None
    }

    /// `find()`.
    pub(crate) fn find<'w>(
        &'w self,
        candidate: &LockedFolio<'w>,
        place: Place,
    ) -> Option<Pending<'w>> {
        while let Some(folio) = self.lookup(candidate) {
            let folio = folio.lock();
            if self.node_of(&folio).is_some() {
                return self.add_place(folio, place);
            }
        }
        None
    }
}
