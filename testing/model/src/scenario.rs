//! What runs against what.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::bindings::{anon_vma, mm_struct, pte_t, Words};
use crate::engine::{ENGINE, MISTAKEN};
use crate::mm::{self, Page};
use crate::planted::Planted;
use crate::world::{world, World};

/// What one thread does. Each checks what its process reads at once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// All pages of a process.
    Merge(usize),
    Write(Page, u64),
    /// A store through a reference to the page, as of O_DIRECT.
    WritePinned(Page, u64),
    Read(Page, u64),
    /// munmap or `MADV_DONTNEED`.
    Unmap(Page),
    Exit(usize),
    /// Parent and child.
    Fork(usize, usize),
    /// To a NUMA node.
    Migrate(Page, i32),
    /// The memory behind the page fails.
    Fail(Page),
    SwapOut(Page),
    /// `KSM_RUN_UNMERGE` is set, or cleared.
    Unmerge(bool),
    /// Reclaim's look at references.
    Look(Page),
}

use Act::{
    Exit, Fail, Fork, Look, Merge, Migrate, Read, SwapOut, Unmap, Unmerge, Write, WritePinned,
};

/// Threads that start together, on processes with a page or two each.
pub struct Scenario {
    pub name: &'static str,
    /// What the processes' pages hold. The first digit is a page's sample, the second what its full
    /// hash is of; samples that differ by 8 share a shard.
    pages: &'static [&'static [u64]],
    /// The processes' domains, if not all the same.
    domains: &'static [u64],
    /// Processes that are forked later on.
    children: usize,
    /// What happens before the threads start.
    before: &'static [Act],
    threads: &'static [&'static [Act]],
    /// `max_page_sharing`.
    pub(crate) limit: u32,
    /// How many places reverse maps take, where it matters.
    places: Option<usize>,
    across_nodes: bool,
    /// All hashes share one chain of the index.
    one_chain: bool,
    /// The table of what sleeps cannot take a page.
    sleepless: bool,
    /// What the processes read in the end, unless their page has failed; `None`: unmapped.
    end: &'static [(Page, Option<u64>)],
    /// How many merged pages are found in the end, if that is certain.
    pub(crate) nodes: Option<usize>,
    /// How many pages are counted as saved in the end, if that is certain.
    pub(crate) sharing: Option<isize>,
    /// How many failed pages were replaced, if that is certain.
    pub(crate) rescued: Option<isize>,
    /// Mm takes a mapping away without a word: see `README.md`. Then counts may be too high.
    pub(crate) untold: bool,
    /// Thread switches that are explored beyond those that blocking forces; `None`: all.
    pub preemptions: Option<usize>,
}

const PLAIN: Scenario = Scenario {
    name: "",
    pages: &[],
    domains: &[],
    children: 0,
    before: &[],
    threads: &[],
    limit: 256,
    places: None,
    across_nodes: true,
    one_chain: false,
    sleepless: false,
    end: &[],
    nodes: None,
    sharing: None,
    rescued: None,
    untold: false,
    preemptions: None,
};

pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two mergers, equal pages",
        pages: &[&[0x777], &[0x777]],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, equal samples, other bytes",
        pages: &[&[0x711], &[0x722]],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[((0, 0), Some(0x711)), ((1, 0), Some(0x722))],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, equal pages of a crowd",
        pages: &[&[0x711], &[0x722], &[0x722]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Merge(2)]],
        end: &[
            ((0, 0), Some(0x711)),
            ((1, 0), Some(0x722)),
            ((2, 0), Some(0x722)),
        ],
        nodes: Some(2),
        sharing: Some(1),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "two mergers, equal hashes, other bytes",
        pages: &[&[0x711], &[0x722], &[0x723]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Merge(2)]],
        end: &[
            ((0, 0), Some(0x711)),
            ((1, 0), Some(0x722)),
            ((2, 0), Some(0x723)),
        ],
        nodes: Some(3),
        sharing: Some(0),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger, exit of a page with the same hash and another sample",
        pages: &[&[0x711], &[0x722], &[0xf11], &[0xf22]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Unmap((1, 0))]],
        end: &[
            ((0, 0), Some(0x711)),
            ((1, 0), None),
            ((2, 0), Some(0xf11)),
            ((3, 0), Some(0xf22)),
        ],
        nodes: Some(3),
        sharing: Some(0),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "exits of pages of two shards",
        pages: &[&[0x711], &[0x722], &[0x611], &[0x622]],
        before: &[Merge(0), Merge(1), Merge(2), Merge(3)],
        threads: &[&[Unmap((1, 0))], &[Unmap((3, 0))]],
        end: &[
            ((0, 0), Some(0x711)),
            ((1, 0), None),
            ((2, 0), Some(0x611)),
            ((3, 0), None),
        ],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, others with the same sample leave",
        pages: &[&[0x711], &[0x722], &[0x733]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Merge(2)], &[Unmap((1, 0))]],
        end: &[((0, 0), Some(0x711)), ((1, 0), None), ((2, 0), Some(0x733))],
        nodes: Some(2),
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "merger, exit of the others with the same sample",
        pages: &[&[0x711], &[0x722], &[0x722]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Merge(2)], &[Unmap((0, 0)), Unmap((1, 0))]],
        end: &[((0, 0), None), ((1, 0), None), ((2, 0), Some(0x722))],
        nodes: Some(1),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "two mergers of a crowd, the first with the sample leaves",
        pages: &[&[0x711], &[0x722], &[0x722]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Unmap((0, 0)), Merge(2)]],
        end: &[((0, 0), None), ((1, 0), Some(0x722)), ((2, 0), Some(0x722))],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, migration of another with the sample",
        pages: &[&[0x711], &[0x722]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Migrate((0, 0), 0)]],
        end: &[((0, 0), Some(0x711)), ((1, 0), Some(0x722))],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, a merged page with places to drop",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2), Unmap((2, 0))],
        threads: &[&[Merge(3)], &[Merge(4)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), None),
            ((3, 0), Some(0x777)),
            ((4, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(3),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "two mergers, parent and child",
        pages: &[&[0x777]],
        children: 1,
        before: &[Fork(0, 1)],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, exit of a child of the one",
        pages: &[&[0x777], &[0x777]],
        children: 1,
        before: &[Fork(0, 2)],
        threads: &[&[Merge(0)], &[Merge(1)], &[Exit(2)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777)), ((2, 0), None)],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, write by the only user",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Write((0, 0), 0x999)]],
        end: &[((0, 0), Some(0x999)), ((1, 0), Some(0x777))],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger, exit of the only user",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Unmap((0, 0))]],
        end: &[((0, 0), None), ((1, 0), Some(0x777))],
        preemptions: Some(6),
        ..PLAIN
    },
    Scenario {
        name: "merger that writes, exit of the only user",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1), Write((1, 0), 0x999)], &[Unmap((0, 0))]],
        end: &[((0, 0), None), ((1, 0), Some(0x999))],
        nodes: Some(0),
        sharing: Some(0),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "exit of the publisher, reclaim's look",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Unmap((0, 0))], &[Look((1, 0))]],
        end: &[((0, 0), None), ((1, 0), Some(0x777))],
        nodes: Some(1),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, migration",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Migrate((0, 0), 0)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, migration to another node",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Migrate((0, 0), 1)]],
        across_nodes: false,
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, write to the same page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Write((1, 0), 0x999)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x999))],
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, write to the same page through a pin",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[WritePinned((1, 0), 0x999)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x999))],
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, unmapping of the same page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Unmap((1, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None)],
        nodes: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "publisher, unmapping of the same page",
        pages: &[&[0x777]],
        threads: &[&[Merge(0)], &[Unmap((0, 0))]],
        end: &[((0, 0), None)],
        nodes: Some(0),
        untold: true,
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "publisher, write to the same page",
        pages: &[&[0x777]],
        threads: &[&[Merge(0)], &[Write((0, 0), 0x999)]],
        end: &[((0, 0), Some(0x999))],
        untold: true,
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger in the parent, write by the child",
        pages: &[&[0x777]],
        children: 1,
        before: &[Fork(0, 1)],
        threads: &[&[Merge(0)], &[Write((1, 0), 0x999)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x999))],
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two writes to a merged page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Write((0, 0), 0x888)], &[Write((1, 0), 0x999)]],
        end: &[((0, 0), Some(0x888)), ((1, 0), Some(0x999))],
        nodes: Some(0),
        sharing: Some(0),
        preemptions: Some(6),
        ..PLAIN
    },
    Scenario {
        name: "write by the only user, migration",
        pages: &[&[0x777]],
        before: &[Merge(0)],
        threads: &[&[Write((0, 0), 0x999)], &[Migrate((0, 0), 0)]],
        end: &[((0, 0), Some(0x999))],
        nodes: Some(0),
        preemptions: Some(6),
        ..PLAIN
    },
    Scenario {
        name: "two mergers, reclaim's look",
        pages: &[&[0x777], &[0x777]],
        threads: &[&[Merge(0), Merge(1)], &[Look((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "merger, write by the only user, migration",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Write((0, 0), 0x999)], &[Migrate((0, 0), 0)]],
        end: &[((0, 0), Some(0x999)), ((1, 0), Some(0x777))],
        preemptions: Some(2),
        ..PLAIN
    },
    Scenario {
        name: "two mergers, exit of the only user",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Merge(2)], &[Unmap((0, 0))]],
        end: &[((0, 0), None), ((1, 0), Some(0x777)), ((2, 0), Some(0x777))],
        preemptions: Some(2),
        ..PLAIN
    },
    Scenario {
        name: "two mergers, a merged page with room for one",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Merge(2)]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(2),
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "two batches, the same pages in other order",
        pages: &[&[0x777, 0x888], &[0x888, 0x777]],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((0, 1), Some(0x888)),
            ((1, 0), Some(0x888)),
            ((1, 1), Some(0x777)),
        ],
        nodes: Some(2),
        sharing: Some(2),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "two batches, all pages equal",
        pages: &[&[0x777, 0x777], &[0x777, 0x777]],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((0, 1), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((1, 1), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(3),
        preemptions: Some(2),
        ..PLAIN
    },
    Scenario {
        name: "batch, writes to its pages",
        pages: &[&[0x777], &[0x777, 0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Write((1, 0), 0x999), Write((0, 0), 0x888)]],
        end: &[
            ((0, 0), Some(0x888)),
            ((1, 0), Some(0x999)),
            ((1, 1), Some(0x777)),
        ],
        untold: true,
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, fork",
        pages: &[&[0x777], &[0x777]],
        children: 1,
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Fork(0, 2)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "fork of a mapper, migration",
        pages: &[&[0x777], &[0x777]],
        children: 1,
        before: &[Merge(0), Merge(1)],
        threads: &[&[Fork(1, 2)], &[Migrate((0, 0), 0)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "exit of a mapper, migration",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Exit(0)], &[Migrate((1, 0), 0)]],
        end: &[((0, 0), None), ((1, 0), Some(0x777))],
        nodes: Some(1),
        untold: true,
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "exit of a mapper, migration and a write",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Exit(0)], &[Migrate((1, 0), 0), Write((1, 0), 0x999)]],
        end: &[((0, 0), None), ((1, 0), Some(0x999))],
        untold: true,
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger after swap-in, swap-in by another",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777), Merge(0)], &[Read((1, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[SwapOut((0, 0))]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim and use",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Merge(2)], &[SwapOut((0, 0)), Read((1, 0), 0x777)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        preemptions: Some(2),
        ..PLAIN
    },
    Scenario {
        name: "write, reclaim",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Write((1, 0), 0x999)], &[SwapOut((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x999))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim of its own page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[SwapOut((1, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "unmapping, reclaim",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Unmap((1, 0))], &[SwapOut((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None)],
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "two swap-ins of a sleeping page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Read((1, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "two swap-ins of parent and child",
        pages: &[&[0x777]],
        children: 1,
        before: &[Merge(0), Fork(0, 1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Read((1, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        nodes: Some(1),
        sharing: Some(0),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "swap-in, exit of another with the slot",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Exit(1)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None)],
        nodes: Some(1),
        sharing: Some(0),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "two exits with the slot",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Unmap((0, 0))], &[Unmap((1, 0))]],
        end: &[((0, 0), None), ((1, 0), None)],
        nodes: Some(0),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "swap-in, merger",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Merge(2)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger into a page that woke, swap-in",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        // The reverse map is full, of places of swap entries mostly.
        before: &[
            Merge(0),
            Merge(1),
            Merge(2),
            SwapOut((0, 0)),
            Read((0, 0), 0x777),
        ],
        threads: &[&[Merge(3)], &[Read((1, 0), 0x777)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(3),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "two swap-ins, reclaim",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[
            &[Read((0, 0), 0x777)],
            &[Read((1, 0), 0x777)],
            &[SwapOut((0, 0))],
        ],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        sharing: Some(1),
        preemptions: Some(2),
        ..PLAIN
    },
    Scenario {
        name: "swap-in, fork",
        pages: &[&[0x777], &[0x777]],
        children: 1,
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777), Read((1, 0), 0x777)], &[Fork(0, 2)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim of the only user",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[SwapOut((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim and exit of the only user",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[SwapOut((0, 0)), Unmap((0, 0))]],
        end: &[((0, 0), None), ((1, 0), Some(0x777))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "swap-in, reclaim of the page that woke",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0)), Read((0, 0), 0x777)],
        threads: &[&[SwapOut((0, 0))], &[Read((1, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        sharing: Some(1),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "swap-in, write to another with the slot",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Write((1, 0), 0x999)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x999))],
        sharing: Some(0),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, reclaim in another domain",
        pages: &[&[0x777], &[0x777], &[0x777]],
        domains: &[1, 2, 2],
        // The first domain's is in front.
        before: &[Merge(1), Merge(0)],
        threads: &[&[Merge(2)], &[SwapOut((0, 0))]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "swap-ins of two pages that sleep",
        pages: &[&[0x777], &[0x888]],
        before: &[Merge(0), Merge(1), SwapOut((1, 0)), SwapOut((0, 0))],
        threads: &[&[Read((0, 0), 0x777)], &[Read((1, 0), 0x888)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x888))],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger that strays to a copy that sleeps, reclaim in another domain",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777], &[0x777]],
        domains: &[1, 2, 2, 2, 2],
        // Of two copies the newer sleeps, and the older one has gone.
        before: &[
            Merge(1),
            Merge(2),
            Merge(3),
            SwapOut((3, 0)),
            Unmap((1, 0)),
            Unmap((2, 0)),
            Merge(0),
        ],
        threads: &[&[Merge(4)], &[SwapOut((0, 0))]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
            ((4, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger of a copy that strays to a copy that sleeps",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x888], &[0x777]],
        // The full copy is in the index, behind the other content; the other copy sleeps.
        before: &[Merge(0), Merge(1), Merge(2), SwapOut((2, 0)), Merge(3)],
        threads: &[&[Merge(4)], &[SwapOut((3, 0))]],
        limit: 2,
        one_chain: true,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x888)),
            ((4, 0), Some(0x777)),
        ],
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger that strays to a page that wakes",
        // The sought 0x666 stands behind 0x888, which falls asleep, and before the full copy.
        pages: &[&[0x777], &[0x777], &[0x777], &[0x666], &[0x888], &[0x666]],
        before: &[
            Merge(0),
            Merge(1),
            Merge(2),
            SwapOut((2, 0)),
            Merge(3),
            Merge(4),
        ],
        threads: &[&[Merge(5)], &[SwapOut((4, 0)), Read((2, 0), 0x777)]],
        limit: 2,
        one_chain: true,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x666)),
            ((4, 0), Some(0x888)),
            ((5, 0), Some(0x666)),
        ],
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two swap-ins of parent and child, a merged entry has gone",
        pages: &[&[0x777], &[0x777]],
        children: 1,
        before: &[
            Merge(0),
            Merge(1),
            SwapOut((0, 0)),
            Unmap((1, 0)),
            Fork(0, 2),
        ],
        threads: &[&[Read((0, 0), 0x777)], &[Read((2, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None), ((2, 0), Some(0x777))],
        nodes: Some(1),
        untold: true,
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "swap-in where another content stands, merger",
        pages: &[&[0x711], &[0x722], &[0x711]],
        before: &[Merge(0), SwapOut((0, 0)), Merge(1)],
        threads: &[&[Read((0, 0), 0x711)], &[Merge(2)]],
        end: &[
            ((0, 0), Some(0x711)),
            ((1, 0), Some(0x722)),
            ((2, 0), Some(0x711)),
        ],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger of a page that was read apart, swap-in beside it",
        pages: &[&[0x777], &[0x777]],
        before: &[
            Merge(0),
            Merge(1),
            SwapOut((0, 0)),
            Unmerge(true),
            Read((0, 0), 0x777),
            Unmerge(false),
        ],
        threads: &[&[Merge(0), SwapOut((0, 0))], &[Read((1, 0), 0x777)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger of a page that did not sleep, swap-in beside it",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0)), Read((0, 0), 0x777)],
        threads: &[&[Merge(0), SwapOut((0, 0))], &[Read((1, 0), 0x777)]],
        sleepless: true,
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        untold: true,
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "unmapping, migration",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Unmap((1, 0))], &[Migrate((0, 0), 0)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None)],
        nodes: Some(1),
        untold: true,
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, two domains",
        pages: &[&[0x777], &[0x777]],
        domains: &[1, 2],
        threads: &[&[Merge(0)], &[Merge(1)]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        nodes: Some(2),
        sharing: Some(0),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, write in another domain",
        pages: &[&[0x777], &[0x777]],
        domains: &[1, 2],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Write((0, 0), 0x999)]],
        end: &[((0, 0), Some(0x999)), ((1, 0), Some(0x777))],
        nodes: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "merger, the only copy with room leaves",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Unmap((2, 0))]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), None),
            ((3, 0), Some(0x777)),
        ],
        nodes: Some(2),
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "merger, an older copy leaves",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Unmap((0, 0)), Unmap((1, 0))]],
        limit: 2,
        end: &[
            ((0, 0), None),
            ((1, 0), None),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "the newest of three copies and the one behind it leave",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[
            Merge(0),
            Merge(1),
            Merge(2),
            Merge(3),
            Merge(4),
            Unmap((2, 0)),
        ],
        threads: &[&[Unmap((4, 0))], &[Unmap((3, 0))]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), None),
            ((3, 0), None),
            ((4, 0), None),
        ],
        nodes: Some(1),
        sharing: Some(1),
        preemptions: None,
        ..PLAIN
    },
    Scenario {
        name: "two mergers, a reverse map without room",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Merge(4)]],
        limit: 8,
        places: Some(2),
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
            ((4, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, exits, a reverse map without room",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Unmap((0, 0)), Unmap((1, 0)), Unmap((2, 0))]],
        limit: 4,
        places: Some(2),
        end: &[
            ((0, 0), None),
            ((1, 0), None),
            ((2, 0), None),
            ((3, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger of a copy, the first copy leaves",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Merge(2)], &[Unmap((0, 0)), Unmap((1, 0))]],
        limit: 2,
        end: &[((0, 0), None), ((1, 0), None), ((2, 0), Some(0x777))],
        nodes: Some(1),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "two mergers of a copy",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Merge(2)], &[Merge(3)]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        nodes: Some(2),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger, exit of the process with the first place",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Exit(0)]],
        end: &[((0, 0), None), ((1, 0), Some(0x777))],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger in the parent, fork of the child",
        pages: &[&[0x777]],
        children: 2,
        before: &[Fork(0, 1)],
        threads: &[&[Merge(0)], &[Fork(1, 2), Write((2, 0), 0x999)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x999)),
        ],
        sharing: Some(0),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, failure of its own page",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Fail((1, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "unmapping, memory failure",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Unmap((1, 0))], &[Fail((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), None)],
        nodes: Some(0),
        sharing: Some(0),
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "memory failure, another copy leaves",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Fail((0, 0))], &[Unmap((2, 0))]],
        limit: 2,
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777)), ((2, 0), None)],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "memory failure, another copy is written",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Fail((0, 0))], &[Write((2, 0), 0x999)]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x999)),
        ],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger, memory failure of a copy",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Fail((2, 0))]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "merger, memory failure of the other copy",
        pages: &[&[0x777], &[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), Merge(2)],
        threads: &[&[Merge(3)], &[Fail((0, 0))]],
        limit: 2,
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
            ((3, 0), Some(0x777)),
        ],
        rescued: Some(1),
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "swap-in, memory failure of the page that woke",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0)), Read((0, 0), 0x777)],
        threads: &[&[Read((1, 0), 0x777)], &[Fail((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        sharing: Some(1),
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "merger, memory failure of the page that woke",
        pages: &[&[0x777], &[0x777], &[0x777]],
        before: &[Merge(0), Merge(1), SwapOut((0, 0)), Read((0, 0), 0x777)],
        threads: &[&[Merge(2)], &[Fail((0, 0))]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        preemptions: Some(3),
        ..PLAIN
    },
    Scenario {
        name: "migration, memory failure",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0), Merge(1)],
        threads: &[&[Migrate((0, 0), 0)], &[Fail((1, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "three mergers",
        pages: &[&[0x777], &[0x777], &[0x777]],
        threads: &[&[Merge(0)], &[Merge(1)], &[Merge(2)]],
        end: &[
            ((0, 0), Some(0x777)),
            ((1, 0), Some(0x777)),
            ((2, 0), Some(0x777)),
        ],
        nodes: Some(1),
        sharing: Some(2),
        preemptions: Some(1),
        ..PLAIN
    },
    Scenario {
        name: "merger, memory failure",
        pages: &[&[0x777], &[0x777]],
        before: &[Merge(0)],
        threads: &[&[Merge(1)], &[Fail((0, 0))]],
        end: &[((0, 0), Some(0x777)), ((1, 0), Some(0x777))],
        preemptions: Some(4),
        ..PLAIN
    },
    Scenario {
        name: "write by the only user, memory failure",
        pages: &[&[0x777]],
        before: &[Merge(0)],
        threads: &[&[Write((0, 0), 0x999)], &[Fail((0, 0))]],
        end: &[((0, 0), Some(0x999))],
        nodes: Some(0),
        preemptions: Some(5),
        ..PLAIN
    },
    Scenario {
        name: "merger of zeros, write",
        pages: &[&[0x000]],
        threads: &[&[Merge(0)], &[Write((0, 0), 0x999)]],
        end: &[((0, 0), Some(0x999))],
        preemptions: Some(5),
        ..PLAIN
    },
];

fn words(page: u64) -> Words {
    [page >> 8 & 15, page >> 4 & 15, page & 15]
}

impl Act {
    fn run(self) {
        match self {
            Merge(process) => mm::merge(process, 0, crate::world::SLOTS),
            Write(page, value) => {
                mm::write(page, words(value));
                expect(page, Some(value));
            }
            WritePinned(page, value) => {
                mm::write_pinned(page, words(value));
                expect(page, Some(value));
            }
            Read(page, value) => expect(page, Some(value)),
            Unmap(page) => mm::unmap(page),
            Exit(process) => mm::exit(process),
            Fork(parent, child) => mm::fork(parent, child),
            Migrate(page, nid) => mm::migrate(page, nid),
            Fail(page) => mm::fail(page),
            SwapOut(page) => mm::swap_out(page),
            Unmerge(unmerges) => world().unmerges.set(unmerges),
            Look(page) => mm::look_at_references(page),
        }
    }
}

#[track_caller]
fn expect(page: Page, value: Option<u64>) {
    let found = mm::read(page);
    let failed = || world().mms[page.0].with_pte(page.1, |pte| *pte == pte_t::Failed);
    if found.is_none() && failed() {
        return;
    }
    assert_eq!(
        found,
        value.map(words),
        "a process reads what it did not write"
    );
}

impl Scenario {
    /// Explores the interleavings and returns their number. Panics at the first that goes wrong.
    pub fn explore(&'static self, planted: Option<Planted>) -> usize {
        self.explore_within(planted, self.preemptions)
    }

    /// The same, with another bound of thread switches.
    pub fn explore_within(
        &'static self,
        planted: Option<Planted>,
        preemptions: Option<usize>,
    ) -> usize {
        let executions = Arc::new(AtomicUsize::new(0));
        let count = executions.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.max_branches = 10_000;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            self.run(planted);
        });
        executions.load(Ordering::Relaxed)
    }

    /// Those that are not forked.
    pub(crate) fn processes(&self) -> usize {
        self.pages.len()
    }

    fn acts(&self) -> impl Iterator<Item = Act> {
        let threads = self.threads.iter().copied().flatten();
        self.before.iter().chain(threads).copied()
    }

    /// The world before anything has happened.
    fn world(&self, planted: Option<Planted>) -> World {
        let engine = match planted {
            Some(Planted::Engine(_)) => &MISTAKEN,
            _ => &ENGINE,
        };
        let pages: usize = self.pages.iter().map(|pages| pages.len()).sum();
        // Room for a copy of each page and for one migration.
        let mut world = World::new(engine, planted, 2 * (pages + self.children) + 1);
        world.limit = self.limit;
        world.places = self.places;
        world.across_nodes = self.across_nodes;
        world.one_chain = self.one_chain;
        world.sleepless = self.sleepless;
        let mut acts = self.acts();
        world.trees_change = acts.any(|act| matches!(act, Fork(..) | Exit(..)));
        let swaps = self.acts().any(|act| matches!(act, SwapOut(..)));
        world.swap.used.set(swaps);
        world.flags_change = swaps || self.acts().any(|act| matches!(act, Fail(..)));
        let processes = self.pages.len() + self.children;
        world.mms = (0..processes)
            .map(|process| mm_struct::new(self.domains.get(process).copied().unwrap_or(0)))
            .collect();
        world.anon_vmas = world
            .mms
            .iter()
            .map(|mm| anon_vma {
                lock: Cell::new(&raw const *mm.anon_lock),
                refs: Cell::new(0),
                first: Cell::new(null_mut()),
                tree: loom::cell::UnsafeCell::new(()),
            })
            .collect();
        for (mm, tree) in world.mms.iter_mut().zip(&world.anon_vmas) {
            mm.vma.vm_mm = &raw mut *mm;
            mm.vma.anon_vma = (&raw const *tree).cast_mut();
        }
        world
    }

    /// Tells the checker where threads may meet.
    fn announce(&self, planted: Option<Planted>) {
        let written = self.acts().filter_map(|act| match act {
            Write(_, value) | WritePinned(_, value) => Some(value),
            _ => None,
        });
        let all = self.pages.iter().copied().flatten().copied();
        for value in all.chain(written) {
            let [sample, more, _] = words(value);
            let shard = sample << 61;
            let hashes = [shard | sample, shard | more << 8];
            (world().engine.begin)(&hashes[..1]);
            for hash in hashes {
                world().bucket(hash);
            }
            if planted.is_some() {
                world().bucket(more << 8);
            }
        }
    }

    fn run(&'static self, planted: Option<Planted>) {
        self.world(planted).begin();
        self.announce(planted);
        for (process, pages) in self.pages.iter().enumerate() {
            let pages: Vec<_> = pages.iter().copied().map(words).collect();
            mm::start(process, &pages);
        }
        self.before.iter().for_each(|act| act.run());
        world().running.set(true);
        let spawn = |acts: &'static [Act]| {
            loom::thread::spawn(move || acts.iter().for_each(|act| act.run()))
        };
        let threads: Vec<_> = self.threads[1..].iter().map(|acts| spawn(acts)).collect();
        self.threads[0].iter().for_each(|act| act.run());
        for thread in threads {
            thread.join().expect("the checker has stopped it");
        }
        let read = || {
            self.end
                .iter()
                .for_each(|(page, value)| expect(*page, *value))
        };
        // That brings back what is swapped.
        if !world().swap.used.get() {
            read();
        }
        self.check();
        read();
        self.check_stats();
        self.exit_all();
        World::end();
    }
}

/// The scenario of that name.
pub fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| panic!("there is no scenario {name:?}"))
}
