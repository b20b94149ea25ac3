//! Everything that the threads share.

use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;

use crate::bug::Bug;
use crate::folio::{Folio, FolioId, Frame, Mapping};
use crate::index::Index;
use crate::mm::{ProcessId, Pte};
use crate::node::{Node, NodeId};
use crate::rmap::Place;

/// Nodes that one execution may make.
const NODES: usize = 6;

/// Memory, processes and the engine.
pub struct World {
    pub(crate) bug: Option<Bug>,
    /// `max_page_sharing`.
    pub(crate) limit: Option<usize>,
    /// `FEW`.
    pub(crate) few: usize,
    folios: Vec<Frame>,
    pub(crate) free_folios: Mutex<Vec<FolioId>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) next_node: AtomicUsize,
    pub(crate) index: Index,
    pub(crate) retired: Mutex<Vec<NodeId>>,
    pub(crate) page_tables: Vec<Mutex<Pte>>,
    /// Which processes have a VMA in the tree of each anon_vma. A process's own has its number.
    anon_vmas: Vec<Vec<ProcessId>>,
}

impl World {
    /// One process for each of `bytes`, each with a page of its own that holds the byte.
    pub(crate) fn new(bug: Option<Bug>, limit: Option<usize>, few: usize, bytes: &[u8]) -> Self {
        // Room for a copy of each page and for one migration.
        let folios = 2 * bytes.len() + 1;
        let mut world = Self {
            bug,
            limit,
            few,
            folios: (0..folios).map(|_| Frame::new()).collect(),
            free_folios: Mutex::new((0..folios).collect()),
            nodes: (0..NODES).map(|_| Node::unused()).collect(),
            next_node: AtomicUsize::new(0),
            index: Index::new(),
            retired: Mutex::new(Vec::new()),
            page_tables: Vec::new(),
            anon_vmas: Vec::new(),
        };
        for (process, byte) in bytes.iter().enumerate() {
            world.anon_vmas.push(vec![process]);
            let folio = Folio::alloc(&world, *byte, Mapping::Anon(process));
            folio.add_mapping();
            let entry = Pte::Mapped {
                folio: folio.into_raw(),
                writable: true,
            };
            world.page_tables.push(Mutex::new(entry));
        }
        world
    }

    /// Forks the last process.
    pub(crate) fn fork(&mut self) {
        let (parent, child) = (self.page_tables.len() - 1, self.page_tables.len());
        let entry = {
            let mut pte = self.pte(parent);
            let Pte::Mapped { folio, .. } = *pte else {
                panic!("the parent has no page");
            };
            *pte = Pte::read_only(Folio::get(self, folio).into_raw());
            self.frame(folio).add_mapping();
            *pte
        };
        self.anon_vmas[parent].push(child);
        self.anon_vmas.push(vec![child]);
        self.page_tables.push(Mutex::new(entry));
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn frame(&self, id: FolioId) -> &Frame {
        &self.folios[id]
    }

    /// The place of a process's page: its VMA's own anon_vma.
    pub(crate) fn place_of(&self, process: ProcessId) -> Place {
        process
    }

    /// The processes with a VMA at this place.
    pub(crate) fn processes_at(&self, place: Place) -> impl Iterator<Item = ProcessId> + '_ {
        self.anon_vmas[place].iter().copied()
    }

    /// What must hold when no thread runs.
    pub(crate) fn check(&self) {
        self.release();
        for id in 0..self.folios.len() {
            self.check_folio(id);
        }
        for node in self.nodes.iter().filter(|node| node.is_live()) {
            assert_eq!(node.pending(), 0, "a place stays pending");
        }
    }

    fn check_folio(&self, id: FolioId) {
        let frame = self.frame(id);
        let mappers: Vec<ProcessId> = (0..self.page_tables.len())
            .filter(|process| self.pte(*process).maps(id))
            .collect();
        assert!(!frame.lock.is_locked(), "a folio stays locked");
        assert_eq!(frame.mapcount(), mappers.len(), "mappings are miscounted");
        let mut references = mappers.len();
        if frame.has_failed() {
            assert_eq!(mappers, [], "a page that has failed is mapped");
            // Memory failure's own.
            references += 1;
        }
        assert_eq!(frame.refs(), references, "references are miscounted");
        if let Mapping::Node(node) = frame.mapping() {
            let node = self.node(node);
            assert_eq!(node.folio_hint(), id, "the node points elsewhere");
            let limit = self.limit.unwrap_or(usize::MAX);
            assert!(mappers.len() <= limit, "a page has too many mappings");
            for process in mappers {
                let known = node
                    .places()
                    .into_iter()
                    .any(|place| self.processes_at(place).any(|other| other == process));
                assert!(known, "a mapping is missing in the reverse map");
            }
        }
    }

    /// All processes exit, and nothing may be left.
    pub(crate) fn exit_all(&self) {
        for process in 0..self.page_tables.len() {
            self.unmap(process);
        }
        self.check();
        assert_eq!(self.index.len(), 0, "the index is not empty");
        assert!(
            self.nodes.iter().all(|node| !node.is_live()),
            "a node is never freed"
        );
        let failed = self.folios.iter().filter(|frame| frame.has_failed());
        assert_eq!(
            self.free_folios.lock().unwrap().len() + failed.count(),
            self.folios.len(),
            "a folio is never freed"
        );
    }
}
