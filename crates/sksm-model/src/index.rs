//! Merged pages by content, after the kernel's `index.rs`.
//!
//! All pages have the same key here, as if every checksum collided: bytes decide.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::bug::Bug;
use crate::folio::{Folio, LockedFolio};
use crate::node::{Node, NodeId, Pending};
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

    /// An RCU read section.
    pub(crate) fn rcu_lock(&self) -> RwLockReadGuard<'_, ()> {
        self.rcu.read().unwrap()
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
    /// `has_room()`.
    fn has_room(&self, node: &Node, folio: &Folio<'_>) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let pending = match self.bug {
            Some(Bug::RoomIgnoresPending) => 0,
            _ => node.pending() as usize,
        };
        folio.mapcount() + pending < limit
    }

    /// `lookup()`.
    fn lookup<'w>(&'w self, candidate: &LockedFolio<'w>) -> Option<Folio<'w>> {
        let _rcu = self.index.rcu_lock();
        for id in self.index.nodes() {
            let node = self.node(id);
            if let Some(folio) = Folio::try_get(self, node.folio_hint()) {
                if (self.has(Bug::FindWithoutRecheck) || self.owns(id, &folio))
                    && self.has_room(node, &folio)
                    && !folio.has_failed()
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
            let room = |node| {
                self.has(Bug::RoomWithoutSecondLook) || self.has_room(self.node(node), &folio)
            };
            if self.node_of(&folio).is_some_and(room) && !folio.has_failed() {
                return self.add_place(folio, place);
            }
        }
        None
    }
}
