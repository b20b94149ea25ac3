//! The node of a merged page: publish, withdraw, free, migrate. After the kernel's `node.rs`.

use std::mem::ManuallyDrop;

use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::bug::Bug;
use crate::folio::{Folio, FolioId, LockedFolio, Mapping};
use crate::index::Key;
use crate::plain::Plain;
use crate::rmap::{Place, Rmap};
use crate::world::World;

/// Memory for a node. No two nodes share an id, so that whoever touches a freed one is found out.
pub(crate) type NodeId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unused,
    Live,
    Freed,
}

pub(crate) struct Node {
    state: Plain<State>,
    folio: AtomicUsize,
    /// Guarded by the folio lock.
    rmap: Plain<Option<Rmap>>,
    pending: AtomicU32,
}

impl Node {
    pub(crate) fn unused() -> Self {
        Self {
            state: Plain::new(State::Unused),
            folio: AtomicUsize::new(usize::MAX),
            rmap: Plain::new(None),
            pending: AtomicU32::new(0),
        }
    }

    /// The folio that was this node's when last seen.
    pub(crate) fn folio_hint(&self) -> FolioId {
        self.folio.load(Ordering::Acquire)
    }

    pub(crate) fn is_live(&self) -> bool {
        self.state.read(|state| *state == State::Live)
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
    }

    /// The places of the reverse map. The caller has the folio lock.
    #[track_caller]
    pub(crate) fn places(&self) -> Vec<Place> {
        self.rmap
            .read(|rmap| rmap.iter().flat_map(Rmap::places).collect())
    }
}

/// A merged page that is about to be mapped at a place its reverse map knows already.
pub(crate) struct Pending<'w>(Folio<'w>);

impl Pending<'_> {
    /// The page is mapped now: the mapping takes over the reference.
    pub(crate) fn mapped(self) -> FolioId {
        let this = ManuallyDrop::new(self);
        this.settle();
        this.0.id()
    }

    pub(crate) fn folio(&self) -> FolioId {
        self.0.id()
    }

    fn settle(&self) {
        // Memory failure takes the node in spite of the reference.
        let world = self.0.world();
        let _rcu = (!world.has(Bug::SettleWithoutRcu)).then(|| world.index.rcu_lock());
        if let Mapping::Node(node) = self.0.mapping() {
            let node = world.node(node);
            let before = node.pending.fetch_sub(1, Ordering::Release);
            assert_ne!(before, 0, "a place is settled that is not pending");
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.settle();
        }
    }
}

impl World {
    /// A node that somebody may look at.
    #[track_caller]
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        let node = &self.nodes[id];
        assert!(node.is_live(), "a freed node is touched");
        node
    }

    /// `Node::new()`: not yet in use.
    pub(crate) fn new_node(&self, folio: &LockedFolio<'_>, first: Place) -> NodeId {
        let id = self.next_node.fetch_add(1, Ordering::Relaxed);
        let node = &self.nodes[id];
        node.state.write(|state| *state = State::Live);
        node.rmap.write(|rmap| *rmap = Some(Rmap::new(first)));
        node.folio.store(folio.id(), Ordering::Relaxed);
        id
    }

    /// Frees a node; nobody may look at it any more.
    pub(crate) fn free_node(&self, id: NodeId) {
        let node = self.node(id);
        node.rmap.write(|rmap| *rmap = None);
        node.state.write(|state| *state = State::Freed);
    }

    /// `Node::owns()`.
    pub(crate) fn owns(&self, node: NodeId, folio: &Folio<'_>) -> bool {
        folio.mapping() == Mapping::Node(node)
    }

    /// `Node::of()`: the node of a locked folio.
    pub(crate) fn node_of(&self, folio: &LockedFolio<'_>) -> Option<NodeId> {
        match folio.mapping() {
            Mapping::Node(node) => Some(node),
            _ => None,
        }
    }

    /// `Node::add_place()`.
    pub(crate) fn add_place<'w>(&'w self, folio: LockedFolio<'w>, place: Place) -> Pending<'w> {
        let node = self.node_of(&folio).expect("only merged pages are found");
        let node = self.node(node);
        let settled = self.has(Bug::PruneIgnoresPending) || node.pending() == 0;
        if !self.has(Bug::PlaceNotEntered) {
            node.rmap.write(|rmap| {
                if let Some(rmap) = rmap {
                    rmap.push(place, &folio, settled);
                }
            });
        }
        node.pending.fetch_add(1, Ordering::Relaxed);
        Pending(folio.unlock())
    }

    /// `Node::publish()`.
    pub(crate) fn publish(&self, node: NodeId, key: Key, folio: &LockedFolio<'_>) {
        folio.set_mapping(Mapping::Node(node));
        self.index.insert(node, key, self.bug);
    }

    /// `Node::withdraw()`. The page table is locked and maps the folio once or more.
    pub(crate) fn withdraw(&self, id: FolioId, place: Place) -> bool {
        if self.frame(id).mapcount() > 1 {
            return false;
        }
        let folio = if self.has(Bug::WithdrawWaitsForLock) {
            Folio::get(self, id).lock()
        } else if let Some(folio) = LockedFolio::try_lock(self, id) {
            folio
        } else {
            return false;
        };
        let Some(node) = self.node_of(&folio) else {
            return false;
        };
        // The mapping's reference and ours.
        let frozen = match self.bug {
            Some(Bug::WithdrawIgnoresReferences) => false,
            Some(Bug::WithdrawWithoutFreeze) => {
                if folio.refs() != 2 {
                    return false;
                }
                false
            }
            _ => {
                if !folio.freeze(2) {
                    return false;
                }
                true
            }
        };
        folio.set_mapping(Mapping::Anon(place));
        if frozen {
            folio.unfreeze(2);
        }
        self.retire(node);
        true
    }

    /// `Node::folio_freed()`: the folio's last reference has gone, or it failed, and is locked.
    pub(crate) fn folio_freed(&self, id: FolioId) {
        let frame = self.frame(id);
        if let Mapping::Node(node) = frame.mapping() {
            frame.set_mapping(Mapping::Orphan);
            self.retire(node);
        }
    }

    /// `Node::migrate()`. Both folios are locked and name the node; nothing maps the old one.
    pub(crate) fn migrate_node(&self, new: &LockedFolio<'_>, old: &LockedFolio<'_>) {
        let Some(node) = self.node_of(old) else {
            return;
        };
        self.node(node).folio.store(new.id(), Ordering::Release);
        if !self.has(Bug::MigrateKeepsOldMapping) {
            old.set_mapping(Mapping::Orphan);
        }
    }

    fn retire(&self, node: NodeId) {
        self.index.remove(node);
        self.release_later(node);
    }
}
