//! Merged pages by content, after the kernel's `index.rs`.
//!
//! All pages have the same keys here, as if every checksum collided, that of a sample and that of all
//! bytes: bytes decide.

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::bug::Bug;
use crate::folio::{Folio, LockedFolio};
use crate::node::{Node, NodeId, Pending};
use crate::rmap::Place;
use crate::world::World;

/// Which checksum a node stands under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Sample,
    Full,
}

/// What a search ended with.
pub(crate) enum Found<'w> {
    Page(Pending<'w>),
    /// Nothing, and the key to publish by.
    Nothing(Key),
}

pub(crate) struct Index {
    /// The nodes of the one sample. The lock is the bucket's, and each walk's first step.
    few: Mutex<Vec<NodeId>>,
    /// The nodes beyond those, under the checksum of all bytes.
    crowd: Mutex<Vec<NodeId>>,
    /// `Shard::crowds`: how many those are.
    crowds: AtomicUsize,
    /// The one shard: `Shard`.
    publish: Mutex<()>,
    published: AtomicUsize,
    /// Read: an RCU read section. Write: a grace period.
    rcu: RwLock<()>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            few: Mutex::new(Vec::new()),
            crowd: Mutex::new(Vec::new()),
            crowds: AtomicUsize::new(0),
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

    /// `Shard::insert()`.
    pub(crate) fn insert(&self, node: NodeId, key: Key, bug: Option<Bug>) {
        let rises = |when| key == Key::Full && (bug == Some(Bug::CrowdRisesLate)) == when;
        if rises(false) {
            self.crowds.fetch_add(1, Ordering::Relaxed);
        }
        self.by(key).lock().unwrap().push(node);
        self.published.fetch_add(1, Ordering::Release);
        if rises(true) {
            self.crowds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `remove()`.
    pub(crate) fn remove(&self, node: NodeId) {
        for key in [Key::Sample, Key::Full] {
            let mut nodes = self.by(key).lock().unwrap();
            let before = nodes.len();
            nodes.retain(|other| *other != node);
            if nodes.len() < before && key == Key::Full {
                self.crowds.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn by(&self, key: Key) -> &Mutex<Vec<NodeId>> {
        match key {
            Key::Sample => &self.few,
            Key::Full => &self.crowd,
        }
    }

    /// An RCU read section.
    pub(crate) fn rcu_lock(&self) -> RwLockReadGuard<'_, ()> {
        self.rcu.read().unwrap()
    }

    pub(crate) fn synchronize_rcu(&self) {
        drop(self.rcu.write().unwrap());
    }

    /// What a walk over the nodes of a key sees: they may be gone from the index by the time the
    /// walk gets to them.
    fn nodes(&self, key: Key) -> Vec<NodeId> {
        self.by(key).lock().unwrap().clone()
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        let crowd = self.nodes(Key::Full).len();
        assert_eq!(
            crowd,
            self.crowds.load(Ordering::Relaxed),
            "a crowd is miscounted"
        );
        self.nodes(Key::Sample).len() + crowd
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

    /// `lookup()`: a page, or how many were looked at.
    fn lookup<'w>(&'w self, key: Key, candidate: &LockedFolio<'w>) -> Result<Folio<'w>, usize> {
        let _rcu = self.index.rcu_lock();
        let nodes = self.index.nodes(key);
        for id in &nodes {
            let node = self.node(*id);
            if let Some(folio) = Folio::try_get(self, node.folio_hint()) {
                if (self.has(Bug::FindWithoutRecheck) || self.owns(*id, &folio))
                    && self.has_room(node, &folio)
                    && !folio.has_failed()
                    && folio.same_bytes(candidate)
                {
                    return Ok(folio);
                }
            }
        }
        Err(nodes.len())
    }

    /// `Search::find()`.
    pub(crate) fn find<'w>(&'w self, candidate: &LockedFolio<'w>, place: Place) -> Found<'w> {
        let seen = match self.find_by(Key::Sample, candidate, place) {
            Ok(page) => return Found::Page(page),
            Err(seen) => seen,
        };
        if self.index.crowds.load(Ordering::Acquire) > 0 {
            if let Ok(page) = self.find_by(Key::Full, candidate, place) {
                return Found::Page(page);
            }
        }
        Found::Nothing(if seen < self.few {
            Key::Sample
        } else {
            Key::Full
        })
    }

    /// `Search::find_by()`: a page, or how many were looked at last.
    fn find_by<'w>(
        &'w self,
        key: Key,
        candidate: &LockedFolio<'w>,
        place: Place,
    ) -> Result<Pending<'w>, usize> {
        loop {
            let folio = self.lookup(key, candidate)?.lock();
            let room = |node| {
                self.has(Bug::RoomWithoutSecondLook) || self.has_room(self.node(node), &folio)
            };
            if self.node_of(&folio).is_some_and(room) && !folio.has_failed() {
                return Ok(self.add_place(folio, place));
            }
        }
    }
}
