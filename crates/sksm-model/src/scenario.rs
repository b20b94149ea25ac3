//! What runs against what.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bug::Bug;
use crate::mm::{ProcessId, Pte};
use crate::world::World;

/// What one thread does. Each checks what its process reads at once.
#[derive(Clone, Copy, Debug)]
enum Act {
    Merge(ProcessId),
    Write(ProcessId, u8),
    /// A store through a reference to the page, as of O_DIRECT.
    WritePinned(ProcessId, u8),
    /// Exit, munmap or `MADV_DONTNEED`.
    Unmap(ProcessId),
    Migrate(ProcessId),
    /// The memory behind the page fails.
    Fail(ProcessId),
    /// Reclaim's look at references.
    Look(ProcessId),
}

/// Threads that start together, on processes with a page each.
pub struct Scenario {
    pub name: &'static str,
    /// What the processes' pages hold.
    bytes: &'static [u8],
    /// The last process is forked.
    forked: bool,
    /// Processes that merge before the threads start.
    merged: &'static [ProcessId],
    threads: &'static [&'static [Act]],
    /// `max_page_sharing`, where it matters.
    limit: Option<usize>,
    /// How many merged pages stand under the checksum of a sample; the kernel's `FEW`.
    few: usize,
    /// What the processes read in the end, unless their page has failed; `None`: unmapped.
    end: &'static [Option<u8>],
    /// How many merged pages there are in the end, if that is certain.
    nodes: Option<usize>,
    /// Thread switches that are explored beyond those that blocking forces; `None`: all.
    preemptions: Option<usize>,
}

use Act::{Fail, Look, Merge, Migrate, Unmap, Write, WritePinned};

pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two mergers, equal pages",
        bytes: &[7, 7],
        forked: false,
        merged: &[],
        threads: &[&[Merge(0)], &[Merge(1)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7)],
        nodes: Some(1),
        preemptions: None,
    },
    Scenario {
        name: "two mergers, equal checksums, other bytes",
        bytes: &[7, 8],
        forked: false,
        merged: &[],
        threads: &[&[Merge(0)], &[Merge(1)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(8)],
        nodes: Some(2),
        preemptions: None,
    },
    Scenario {
        name: "two mergers, a merged page with places to drop",
        bytes: &[7, 7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Merge(2)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7), Some(7)],
        nodes: Some(1),
        preemptions: Some(5),
    },
    Scenario {
        name: "two mergers, parent and child",
        bytes: &[7],
        forked: true,
        merged: &[],
        threads: &[&[Merge(0)], &[Merge(1)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7)],
        // Each may take the other's reference for a user's, and leave the page alone.
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "merger, write by the only user",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Write(0, 9)]],
        limit: None,
        few: 2,
        end: &[Some(9), Some(7)],
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "merger, exit of the only user",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Unmap(0)]],
        limit: None,
        few: 2,
        end: &[None, Some(7)],
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "merger, migration",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Migrate(0)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7)],
        nodes: None,
        preemptions: Some(5),
    },
    Scenario {
        name: "merger, write to the same page",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Write(1, 9)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(9)],
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "merger, write to the same page through a pin",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[WritePinned(1, 9)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(9)],
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "merger, unmapping of the same page",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Unmap(1)]],
        limit: None,
        few: 2,
        end: &[Some(7), None],
        nodes: Some(1),
        preemptions: None,
    },
    Scenario {
        name: "merger in the parent, write by the child",
        bytes: &[7],
        forked: true,
        merged: &[],
        threads: &[&[Merge(0)], &[Write(1, 9)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(9)],
        nodes: None,
        preemptions: None,
    },
    Scenario {
        name: "two writes to a merged page",
        bytes: &[7, 7],
        forked: false,
        merged: &[0, 1],
        threads: &[&[Write(0, 8)], &[Write(1, 9)]],
        limit: None,
        few: 2,
        end: &[Some(8), Some(9)],
        nodes: Some(0),
        preemptions: None,
    },
    Scenario {
        name: "write by the only user, migration",
        bytes: &[7],
        forked: false,
        merged: &[0],
        threads: &[&[Write(0, 9)], &[Migrate(0)]],
        limit: None,
        few: 2,
        end: &[Some(9)],
        nodes: Some(0),
        preemptions: Some(5),
    },
    Scenario {
        name: "two mergers, reclaim's look",
        bytes: &[7, 7],
        forked: false,
        merged: &[],
        threads: &[&[Merge(0), Merge(1)], &[Look(0)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7)],
        nodes: None,
        preemptions: Some(5),
    },
    Scenario {
        name: "merger, write by the only user, migration",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Write(0, 9)], &[Migrate(0)]],
        limit: None,
        few: 2,
        end: &[Some(9), Some(7)],
        nodes: None,
        preemptions: Some(2),
    },
    Scenario {
        name: "two mergers, exit of the only user",
        bytes: &[7, 7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Merge(2)], &[Unmap(0)]],
        limit: None,
        few: 2,
        end: &[None, Some(7), Some(7)],
        nodes: None,
        preemptions: Some(3),
    },
    Scenario {
        name: "two mergers, a merged page with room for one",
        bytes: &[7, 7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Merge(2)]],
        limit: Some(2),
        few: 2,
        end: &[Some(7), Some(7), Some(7)],
        nodes: Some(2),
        preemptions: Some(5),
    },
    Scenario {
        name: "two mergers, equal pages of a crowd",
        bytes: &[5, 7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Merge(2)]],
        limit: None,
        few: 1,
        end: &[Some(5), Some(7), Some(7)],
        nodes: Some(2),
        preemptions: Some(5),
    },
    Scenario {
        name: "merger, exit of the others with the same sample",
        bytes: &[5, 7, 7],
        forked: false,
        merged: &[0, 1],
        threads: &[&[Merge(2)], &[Unmap(0), Unmap(1)]],
        limit: None,
        few: 1,
        end: &[None, None, Some(7)],
        nodes: Some(1),
        preemptions: Some(5),
    },
    Scenario {
        name: "merger, memory failure",
        bytes: &[7, 7],
        forked: false,
        merged: &[0],
        threads: &[&[Merge(1)], &[Fail(0)]],
        limit: None,
        few: 2,
        end: &[Some(7), Some(7)],
        nodes: None,
        preemptions: Some(5),
    },
    Scenario {
        name: "write by the only user, memory failure",
        bytes: &[7],
        forked: false,
        merged: &[0],
        threads: &[&[Write(0, 9)], &[Fail(0)]],
        limit: None,
        few: 2,
        end: &[Some(9)],
        nodes: Some(0),
        preemptions: Some(5),
    },
];

impl World {
    fn act(&self, act: Act) {
        match act {
            Merge(process) => self.merge(process),
            Write(process, byte) => {
                self.write(process, byte);
                self.expect(process, byte);
            }
            WritePinned(process, byte) => {
                self.write_pinned(process, byte);
                self.expect(process, byte);
            }
            Unmap(process) => self.unmap(process),
            Migrate(process) => self.migrate(process),
            Fail(process) => self.fail(process),
            Look(process) => self.look_at_references(process),
        }
    }

    #[track_caller]
    fn expect(&self, process: ProcessId, byte: impl Into<Option<u8>>) {
        let found = self.read(process);
        if found.is_none() && *self.pte(process) == Pte::Failed {
            return;
        }
        assert_eq!(found, byte.into(), "a process reads what it did not write");
    }
}

impl Scenario {
    /// Explores the interleavings and returns their number. Panics at the first that goes wrong.
    pub fn explore(&'static self, bug: Option<Bug>) -> usize {
        let executions = Arc::new(AtomicUsize::new(0));
        let count = executions.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = self.preemptions;
        builder.max_branches = 10_000;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            self.run(bug);
        });
        executions.load(Ordering::Relaxed)
    }

    fn run(&'static self, bug: Option<Bug>) {
        let mut world = World::new(bug, self.limit, self.few, self.bytes);
        if self.forked {
            world.fork();
        }
        for process in self.merged {
            world.merge(*process);
        }
        let world = Arc::new(world);
        let spawn = |acts: &'static [Act]| {
            let world = world.clone();
            loom::thread::spawn(move || acts.iter().for_each(|act| world.act(*act)))
        };
        let threads: Vec<_> = self.threads[1..].iter().map(|acts| spawn(acts)).collect();
        self.threads[0].iter().for_each(|act| world.act(*act));
        for thread in threads {
            thread.join().expect("the checker has stopped it");
        }
        world.check();
        for (process, byte) in self.end.iter().enumerate() {
            world.expect(process, *byte);
        }
        if let Some(nodes) = self.nodes {
            let found = world.index.len();
            assert_eq!(found, nodes, "there are more or fewer merged pages");
        }
        world.exit_all();
    }
}

/// The scenario of that name.
pub fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap_or_else(|| panic!("there is no scenario {name:?}"))
}
