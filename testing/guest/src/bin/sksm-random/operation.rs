//! What a process may do to its memory, and how often.

/// Named in reports as here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    MapAnonymous,
    MapFile,
    /// A file that others punch and write all the time: every page of it is written at once, and then must stay so.
    MapChanging,
    Unmap,
    Fill,
    Patch,
    Merge,
    MergeAll,
    MergeChild,
    Drop,
    Free,
    PageOut,
    Move,
    Protect,
    Mergeable,
    Unmergeable,
    Huge,
    Collapse,
    Lock,
    Unlock,
    Fork,
    // With `--stress` only.
    /// A merge whose allocations fail at random.
    MergeFaulty,
    /// PR_SET_MEMORY_MERGE, on or off.
    MergeAny,
    Cold,
    WillNeed,
    Populate,
    /// Writes through /proc/self/mem, also where the process itself may not write.
    Poke,
    /// Forks a child that merges and executes another program.
    Exec,
    /// A device writes into pages.
    DirectRead,
    /// A device reads pages.
    DirectWrite,
    /// Puts pages into a pipe.
    Splice,
    /// Reads them from it, any number of operations later.
    Unsplice,
    /// Registers pages as a buffer of an io_uring.
    RingRegister,
    /// A device writes into registered pages.
    RingRead,
    /// Moves pages between NUMA nodes.
    MovePages,
    /// Takes a page's frame out of use.
    SoftOffline,
    ClearSoftDirty,
    /// Parts a child's pages while the child works on them.
    UnmergeChild,
}

use Operation::*;

/// Each operation in the order above: its share in an ordinary run and in a stress run.
pub const ALL: [(Operation, u32, u32); 38] = [
    (MapAnonymous, 5, 5),
    (MapFile, 4, 4),
    (MapChanging, 4, 5),
    (Unmap, 4, 3),
    (Fill, 24, 24),
    (Patch, 24, 20),
    (Merge, 20, 20),
    (MergeAll, 3, 2),
    (MergeChild, 2, 3),
    (Drop, 4, 4),
    (Free, 2, 2),
    (PageOut, 3, 3),
    (Move, 5, 5),
    (Protect, 5, 4),
    (Mergeable, 2, 2),
    (Unmergeable, 2, 2),
    (Huge, 2, 2),
    (Collapse, 1, 2),
    (Lock, 1, 1),
    (Unlock, 2, 2),
    (Fork, 1, 2),
    (MergeFaulty, 0, 4),
    (MergeAny, 0, 1),
    (Cold, 0, 2),
    (WillNeed, 0, 1),
    (Populate, 0, 1),
    (Poke, 0, 3),
    (Exec, 0, 2),
    (DirectRead, 0, 3),
    (DirectWrite, 0, 3),
    (Splice, 0, 2),
    (Unsplice, 0, 2),
    (RingRegister, 0, 2),
    (RingRead, 0, 3),
    (MovePages, 0, 2),
    (SoftOffline, 0, 2),
    (ClearSoftDirty, 0, 1),
    (UnmergeChild, 0, 2),
];

/// The operation that a number below [`total`] stands for.
pub fn pick(mut number: u32, stress: bool) -> Operation {
    for (operation, ordinary, stressed) in ALL {
        let weight = if stress { stressed } else { ordinary };
        if number < weight {
            return operation;
        }
        number -= weight;
    }
    unreachable!("less than the sum of all weights")
}

pub fn total(stress: bool) -> u32 {
    let weight = |(_, ordinary, stressed)| if stress { stressed } else { ordinary };
    ALL.into_iter().map(weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_stands_in_its_place() {
        for (index, (operation, _, stressed)) in ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            assert!(stressed > 0, "{operation:?} never comes up");
        }
    }

    #[test]
    fn shares_are_as_the_weights() {
        for (stress, operation, wanted) in [(false, Poke, 0), (true, Poke, 3), (false, Fill, 24)] {
            let found = (0..total(stress)).filter(|number| pick(*number, stress) == operation);
            assert_eq!(found.count(), wanted);
        }
    }
}
