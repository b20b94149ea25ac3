//! What must hold when no thread runs.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::bindings::{
    folio, mm_struct, pte_t, sksm_crowd, sksm_key, vm_area_struct, Words, SKSM_STAT_ASLEEP,
    SKSM_STAT_METADATA, SKSM_STAT_PAGES, SKSM_STAT_RESCUED, SKSM_STAT_SHARED, SKSM_STAT_SHARING,
    SKSM_STAT_SWAPPED_IN,
};
use crate::mm::{self, Page};
use crate::scenario::Scenario;
use crate::world::{world, SLOTS};

const CLASS: u64 = 3;
const FULL: u64 = 1;
const CROWD: u64 = 2;

/// All pages of all processes, and their entries.
fn ptes() -> Vec<(Page, pte_t)> {
    let mut all = Vec::new();
    for (process, mm) in world().mms.iter().enumerate() {
        for slot in 0..SLOTS {
            all.push(((process, slot), mm.with_pte(slot, |pte| *pte)));
        }
    }
    all
}

fn stat(stat: u32) -> isize {
    world().stats[stat as usize].get()
}

/// The nodes that the index finds, with their key's domain, list by list.
fn index() -> Vec<(u64, Vec<usize>)> {
    world().rcu.read();
    let mut lists = Vec::new();
    let mut crowds = BTreeMap::new();
    let mut keys = HashSet::new();
    for (link, key) in world().links() {
        let new = keys.insert((key.hash, key.domain));
        assert!(new, "a key stands in the table twice");
        if key.domain & CLASS == CROWD {
            // SAFETY: What has that key is a crowd.
            let members = unsafe { link.cast::<sksm_crowd>().as_ref().members };
            crowds.insert((key.hash, key.domain & !CLASS), members);
            continue;
        }
        let mut nodes = Vec::new();
        let mut node = (world().engine.node_of_link)(link);
        while node != 0 {
            assert!(!nodes.contains(&node), "a list of copies is a circle");
            nodes.push(node);
            node = (world().engine.node_older)(node);
        }
        lists.push((key.domain, nodes));
    }
    world().rcu.read_unlock();
    let mut members = BTreeMap::new();
    for (domain, nodes) in &lists {
        if domain & CLASS == FULL {
            for node in nodes {
                let sample = (world().engine.node_sample)(*node);
                *members.entry((sample, domain & !CLASS)).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(crowds, members, "a crowd is miscounted");
    lists
}

/// The node of a merged page.
fn node_of(folio: &folio) -> Option<usize> {
    let mapping = folio.mapping.load(loom::sync::atomic::Ordering::Acquire);
    mm::is_sksm(folio).then_some(mapping & !7)
}

/// The nodes that sleep.
fn sleepers() -> Vec<usize> {
    let links = world().sleepers();
    links.into_iter().map(world().engine.node_of_link).collect()
}

/// The nodes of merged pages.
fn awake() -> Vec<usize> {
    world().folios.iter().filter_map(node_of).collect()
}

/// Every swap entry of a page that sleeps has a place; and what else is said of it is so.
fn check_sleepers(ptes: &[(Page, pte_t)]) {
    let (sleepers, awake) = (sleepers(), awake());
    for node in &sleepers {
        assert!(!awake.contains(node), "a page is awake and asleep");
        let mut older = (world().engine.node_older)(*node);
        while older != 0 {
            older = (world().engine.node_older)(older);
        }
        let pending = (world().engine.node_pending)(*node);
        assert_eq!(pending, 0, "a mapping is said to come that does not");
        let word = (world().engine.node_slot)(*node);
        assert_eq!(word & 1, 1, "a node sleeps nowhere");
        let entry = word >> 1;
        let slot = &world().swap.slots[entry];
        let used = slot.count.get() > 0 || !slot.cached.get().is_null();
        assert!(used, "a node sleeps under a slot that is free");
        let mut known = Vec::new();
        (world().engine.node_places)(*node, &mut |vma: *mut vm_area_struct, addr| {
            // SAFETY: mms stay.
            let mm = unsafe { (*vma).vm_mm }.cast_const();
            let same = |other: &mm_struct| std::ptr::eq(other, mm);
            let process = world().mms.iter().position(same);
            known.push((process.expect("one of the world's"), mm::slot_of(addr)));
        });
        for (page, pte) in ptes {
            let needed = matches!(pte, pte_t::Swapped { entry: e, .. } if *e == entry);
            let found = known.contains(page);
            assert!(!needed || found, "a mapping is missing in the reverse map");
        }
    }
    let count = stat(SKSM_STAT_ASLEEP);
    assert_eq!(
        count,
        sleepers.len() as isize,
        "sleeping pages are miscounted"
    );
    let nodes = sleepers.iter().chain(&awake);
    let bytes: usize = nodes.map(|node| (world().engine.node_bytes)(*node)).sum();
    let crowd = |(_, key): &(_, sksm_key)| key.domain & CLASS == CROWD;
    let crowds = world().links().into_iter().filter(crowd).count();
    assert_eq!(
        stat(SKSM_STAT_METADATA),
        (bytes + crowds * size_of::<sksm_crowd>()) as isize,
        "memory is miscounted"
    );
    let saved = |node: &usize| (world().engine.node_saved)(*node) as isize;
    let sharing: isize = awake.iter().map(saved).sum();
    assert_eq!(
        stat(SKSM_STAT_SHARING),
        sharing,
        "saved pages are not those of the nodes"
    );
}

impl Scenario {
    /// Checks everything, and how many nodes and saved pages there are if the scenario knows.
    pub(crate) fn check(&self) {
        mm::work();
        let ptes = ptes();
        for folio in &world().folios {
            self.check_folio(folio, &ptes);
        }
        check_sleepers(&ptes);
        let lists = index();
        let mut contents: HashMap<(u64, Words), usize> = HashMap::new();
        for (domain, nodes) in &lists {
            let word = |node: &usize| mm::of((world().engine.node_folio)(*node)).load();
            for node in nodes {
                let folio = mm::of((world().engine.node_folio)(*node));
                assert_eq!(
                    node_of(folio),
                    Some(*node),
                    "a node in the index has no page"
                );
                // Those of another content with the same hash are taken for copies, too.
                let content = |node: &usize| match (domain & CLASS == FULL, word(node)) {
                    (true, [sample, more, _]) => [sample << 61, more, 0],
                    (false, words) => words,
                };
                assert_eq!(content(node), content(&nodes[0]), "copies differ");
                let nid = (domain >> 8 & 255) as i32 - 1;
                assert!(
                    nid < 0 || nid == folio.nid.get(),
                    "a node is on another NUMA node"
                );
                let allowed = |process: usize| world().mms[process].domain == domain >> 16;
                for ((process, _), pte) in &ptes {
                    let maps = mm::maps(*pte, (&raw const *folio).cast_mut());
                    assert!(!maps || allowed(*process), "domains meet");
                }
            }
            let before = contents.insert((*domain, word(&nodes[0])), nodes.len());
            assert!(before.is_none(), "a content has two lists");
        }
        if let Some(nodes) = self.nodes {
            let found: usize = lists.iter().map(|(_, nodes)| nodes.len()).sum();
            assert_eq!(found, nodes, "there are more or fewer merged pages");
        }
    }

    fn check_folio(&self, folio: &folio, ptes: &[(Page, pte_t)]) {
        let ptr = (&raw const *folio).cast_mut();
        let swap = &world().swap;
        let entry = swap.of(ptr);
        let is_mapped = |pte: &pte_t| mm::maps(*pte, ptr);
        let is_swapped =
            |pte: &pte_t| matches!(pte, pte_t::Swapped { entry: e, .. } if Some(*e) == entry);
        let mappers = ptes.iter().filter(|(_, pte)| is_mapped(pte)).count();
        assert!(!folio.lock.is_locked(), "a folio stays locked");
        assert_eq!(mm::mapcount(folio), mappers, "mappings are miscounted");
        let failed = mm::has_failed(folio);
        assert!(!failed || mappers == 0, "a page that has failed is mapped");
        let references = mappers + usize::from(failed) + usize::from(entry.is_some());
        assert_eq!(mm::refs(folio), references, "references are miscounted");
        let Some(node) = node_of(folio) else { return };
        assert_eq!(
            (world().engine.node_folio)(node),
            ptr,
            "the node points elsewhere"
        );
        let pending = (world().engine.node_pending)(node);
        assert_eq!(pending, 0, "a mapping is said to come that does not");
        let saved = (world().engine.node_saved)(node) as usize;
        let bound = mappers.saturating_sub(1);
        assert!(
            self.untold || saved <= bound,
            "a page is said to save more than its mappings but one"
        );
        let forks = world().mms.len() > self.processes();
        let many = mappers > self.limit as usize;
        assert!(forks || !many, "a page has too many mappings");
        let mut known = Vec::new();
        mm::walk_places(folio, |process, slot| known.push((process, slot)));
        for (page, pte) in ptes {
            let needed = is_mapped(pte) || is_swapped(pte);
            let found = known.contains(page);
            assert!(!needed || found, "a mapping is missing in the reverse map");
        }
    }

    /// Checks what is said to be saved.
    pub(crate) fn check_stats(&self) {
        if self.untold {
            return;
        }
        let ptes = ptes();
        let saved = |pte: &pte_t| match pte {
            pte_t::Mapped { folio, saved, .. } => *saved && mm::is_sksm(mm::of(*folio)),
            // Which mappings come back as saved ones is not known.
            pte_t::Swapped { entry, saved } => {
                let cached = world().swap.slots[*entry].cached.get();
                *saved && !cached.is_null() && mm::is_sksm(mm::of(cached))
            }
            _ => false,
        };
        let all = ptes.iter().filter(|(_, pte)| saved(pte)).count() as isize;
        let sharing = stat(SKSM_STAT_SHARING);
        assert!(
            (0..=all).contains(&sharing),
            "too many pages are said to be saved"
        );
        if let Some(expected) = self.sharing {
            assert_eq!(sharing, expected, "saved pages are miscounted");
        }
        if let Some(expected) = self.rescued {
            let rescued = stat(SKSM_STAT_RESCUED);
            assert_eq!(rescued, expected, "rescued pages are miscounted");
        }
        let pages = world().folios.iter().filter(|f| mm::is_sksm(f));
        let pages = pages.count() as isize;
        assert_eq!(stat(SKSM_STAT_PAGES), pages, "merged pages are miscounted");
        let shared = stat(SKSM_STAT_SHARED);
        let most = pages.min(sharing);
        assert!((0..=most).contains(&shared), "shared pages are miscounted");
        assert_eq!(shared == 0, sharing == 0, "shared pages are miscounted");
        let back = stat(SKSM_STAT_SWAPPED_IN) > 0;
        for (process, mm) in world().mms.iter().enumerate() {
            let own = |((p, _), pte): &&(Page, pte_t)| *p == process && saved(pte);
            let merged = ptes.iter().filter(own).count() as isize;
            let mapped = |((p, _), pte): &&(Page, pte_t)| {
                *p == process
                    && matches!(pte, pte_t::Mapped { folio, .. } if mm::is_sksm(mm::of(*folio)))
            };
            let mapped = ptes.iter().filter(mapped).count() as isize;
            // Which of a process's mappings are counted is not known.
            let most = if back { mapped } else { merged };
            assert!(
                mm.merged.get() <= most,
                "a process is said to save too much"
            );
            let counted = mm.merged.get() + mm.published.get();
            assert!(
                counted <= mapped,
                "a process is said to have published too much"
            );
        }
    }

    /// All processes exit, and nothing may be left.
    pub(crate) fn exit_all(&self) {
        for process in 0..world().mms.len() {
            mm::exit(process);
        }
        mm::reclaim_caches();
        assert_eq!(world().links(), [], "the index is not empty");
        assert_eq!(world().sleepers(), [], "a page sleeps for ever");
        assert_eq!(
            world().heap.left(),
            0,
            "memory of the engine is never freed"
        );
        for tree in &world().anon_vmas {
            assert_eq!(tree.refs.get(), 0, "an anon_vma is never freed");
        }
        let failed = world().folios.iter().filter(|f| mm::has_failed(f)).count();
        let free = world().free.borrow().len();
        assert_eq!(
            free + failed,
            world().folios.len(),
            "a folio is never freed"
        );
        for counter in [
            SKSM_STAT_PAGES,
            SKSM_STAT_ASLEEP,
            SKSM_STAT_SHARED,
            SKSM_STAT_SHARING,
            SKSM_STAT_METADATA,
        ] {
            assert_eq!(
                stat(counter),
                0,
                "the statistic {counter} is not zero in the end"
            );
        }
        for mm in world().mms.iter().filter(|_| !self.untold) {
            let left = (mm.merged.get(), mm.published.get());
            assert_eq!(
                left,
                (0, 0),
                "a process's statistics are not zero in the end"
            );
        }
    }
}
