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
    // For a fuzzer only.
    /// A merge or its undoing of which one allocation fails: the first, the second, and so on.
    FailNth,
    /// Another process that shares the memory merges, parts, or becomes another program.
    CloneVm,
    /// Advice that says how pages will be used.
    Hint,
    /// What a child is to inherit in place of pages: zeros, or nothing.
    Inherit,
    /// As [`Move`], leaving new pages where they were.
    MoveLeaving,
    /// Pages come from a handler of faults.
    Supply,
    /// A handler of faults moves pages.
    Carry,
    /// Write protection that the kernel takes away itself.
    Track,
    /// The control group gives memory back.
    Reclaim,
    SwapOff,
    /// Goes into another control group.
    Enter,
    /// Says with whom a control group may share.
    Mark,
    /// Changes a setting of the engine.
    Setting,
    /// Lets ksmd work for a moment, or undo what it did.
    Ksmd,
    /// Becomes another user.
    SetUser,
    /// Goes into namespaces of its own.
    Unshare,
    /// Changes pages of a file that may be mapped.
    ChangeFile,
    /// Lets the frame of a page fail, and drops the page.
    Poison,
    /// Compares everything.
    Compare,
}

use Operation::*;

/// What a process is to do, which decides how often it does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    Ordinary,
    /// Everything that many processes can do at once.
    Stress,
    /// Everything that one family can do while nobody else does anything.
    Fuzz,
}

/// Each operation in the order above: its share in an ordinary run, in a stress run, and in a fuzzer's inputs.
pub const ALL: [(Operation, [usize; 3]); 57] = [
    (MapAnonymous, [5, 5, 6]),
    (MapFile, [4, 4, 3]),
    (MapChanging, [4, 5, 3]),
    (Unmap, [4, 3, 3]),
    (Fill, [24, 24, 16]),
    (Patch, [24, 20, 12]),
    (Merge, [20, 20, 30]),
    (MergeAll, [3, 2, 6]),
    (MergeChild, [2, 3, 3]),
    (Drop, [4, 4, 4]),
    (Free, [2, 2, 3]),
    (PageOut, [3, 3, 6]),
    (Move, [5, 5, 5]),
    (Protect, [5, 4, 4]),
    (Mergeable, [2, 2, 3]),
    (Unmergeable, [2, 2, 12]),
    (Huge, [2, 2, 3]),
    (Collapse, [1, 2, 3]),
    (Lock, [1, 1, 2]),
    (Unlock, [2, 2, 1]),
    (Fork, [1, 2, 6]),
    (MergeFaulty, [0, 4, 0]),
    (MergeAny, [0, 1, 2]),
    (Cold, [0, 2, 1]),
    (WillNeed, [0, 1, 2]),
    (Populate, [0, 1, 2]),
    (Poke, [0, 3, 3]),
    (Exec, [0, 2, 2]),
    (DirectRead, [0, 3, 3]),
    (DirectWrite, [0, 3, 2]),
    (Splice, [0, 2, 3]),
    (Unsplice, [0, 2, 2]),
    (RingRegister, [0, 2, 2]),
    (RingRead, [0, 3, 2]),
    (MovePages, [0, 2, 3]),
    (SoftOffline, [0, 2, 2]),
    (ClearSoftDirty, [0, 1, 1]),
    (UnmergeChild, [0, 2, 3]),
    (FailNth, [0, 0, 6]),
    (CloneVm, [0, 0, 4]),
    (Hint, [0, 0, 3]),
    (Inherit, [0, 0, 2]),
    (MoveLeaving, [0, 0, 3]),
    (Supply, [0, 0, 3]),
    (Carry, [0, 0, 3]),
    (Track, [0, 0, 3]),
    (Reclaim, [0, 0, 3]),
    (SwapOff, [0, 0, 1]),
    (Enter, [0, 0, 3]),
    (Mark, [0, 0, 4]),
    (Setting, [0, 0, 6]),
    (Ksmd, [0, 0, 3]),
    (SetUser, [0, 0, 2]),
    (Unshare, [0, 0, 2]),
    (ChangeFile, [0, 0, 2]),
    (Poison, [0, 0, 3]),
    (Compare, [0, 0, 1]),
];

/// The operation that a number below [`total`] stands for.
pub fn pick(mut number: usize, mix: Mix) -> Operation {
    for (operation, weights) in ALL {
        let weight = weights[mix as usize];
        if number < weight {
            return operation;
        }
        number -= weight;
    }
    unreachable!("less than the sum of all weights")
}

pub fn total(mix: Mix) -> usize {
    ALL.iter().map(|(_, weights)| weights[mix as usize]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_stands_in_its_place() {
        for (index, (operation, weights)) in ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            assert!(
                weights[1..].iter().any(|weight| *weight > 0),
                "{operation:?} never comes up"
            );
        }
    }

    #[test]
    fn shares_are_as_the_weights() {
        for (mix, operation, wanted) in [
            (Mix::Ordinary, Poke, 0),
            (Mix::Stress, Poke, 3),
            (Mix::Ordinary, Fill, 24),
            (Mix::Fuzz, Unmergeable, 12),
        ] {
            let found = (0..total(mix)).filter(|number| pick(*number, mix) == operation);
            assert_eq!(found.count(), wanted);
        }
    }

    #[test]
    fn an_input_says_in_one_byte_what_to_do() {
        assert!(total(Mix::Fuzz) <= 256);
    }
}
