use std::time::Duration;

use crate::Known;

/// A process that may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Its number while it runs one program: never another's, not even after its end or `execve(2)`.
    pub id: u64,
    /// Only processes with the same number here merge with each other.
    pub domain: u64,
}

impl Found {
    /// The process of this number, in this domain.
    #[must_use]
    pub const fn new(id: u64, domain: u64) -> Self {
        Found { id, domain }
    }
}

/// Pages of a process that are next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Range {
    /// Numbers of pages: addresses divided by the page size.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// About how many of them are there. Where that changes, something new is to be seen.
    pub present: u64,
}

impl Range {
    /// The pages from `start` to the one before `end`, of which `present` are there.
    #[must_use]
    pub const fn new(start: u64, end: u64, present: u64) -> Self {
        Range {
            start,
            end,
            present,
        }
    }
}

/// A page that is there, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// The process's alone, with this sample.
    Own(u32),
    /// Several processes have it, and it was not read: what was merged is still merged.
    Merged,
    /// Several processes have it, since a fork for instance, and it has this sample.
    Shared(u32),
    /// As it was at the last look, and nobody wrote to it since: it was not read. Only for pages that are [known](crate::Known).
    Unchanged,
    /// The process's alone, with this sample, and written since the last look, there or elsewhere in the page.
    Written(u32),
    /// Swapped out.
    Swapped,
}

/// What a look has found of a range as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whole {
    /// Pages, which were shown.
    Pages,
    /// One huge page, whose parts were shown.
    HugePage,
    /// All as it was: the pages that are [known](crate::Known) are there and no others, nobody wrote to one since the last look, and
    /// those that were shared still are. Nothing was shown.
    Unchanged,
}

/// A page that was read in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The key of its sample.
    pub sample: u32,
    /// The hash of all of it.
    pub hash: u128,
    /// The same for two pages that are one already; none for one that is its process's alone.
    pub frame: Option<u64>,
    /// Whether it is all zeros, and in anonymous memory: it needs no twin then.
    pub zero: bool,
}

impl Content {
    /// A page that is its process's alone, and needs a twin; the other fields can be set.
    #[must_use]
    pub const fn new(sample: u32, hash: u128) -> Self {
        Content {
            sample,
            hash,
            frame: None,
            zero: false,
        }
    }
}

/// What a merge did; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Merged {
    /// Pages that share another's memory since, zero pages included.
    pub shared: u64,
    /// Pages that are ready to be shared.
    pub published: u64,
}

#[cfg(target_os = "linux")]
impl Merged {
    /// What the counts of a process say of the time between two looks at them. What has come apart meanwhile is not told apart.
    #[must_use]
    pub fn between(before: &sksm::MergeStatistics, after: &sksm::MergeStatistics) -> Self {
        let grown = |of: fn(&sksm::MergeStatistics) -> Option<i64>| {
            let grown = of(after).unwrap_or(0) - of(before).unwrap_or(0);
            u64::try_from(grown).unwrap_or(0)
        };
        Merged {
            shared: grown(|all| all.merged_pages) + grown(|all| all.zero_pages),
            published: grown(|all| all.published_pages),
        }
    }
}

/// The process has ended, runs another program, or cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "it is written as it is named")]
pub struct Gone;

/// What the scanner looks at and acts on.
pub trait World {
    /// The time, by a clock that never goes back.
    fn now(&self) -> Duration;

    /// CPU time that was taken so far, by all of it.
    fn cpu(&self) -> Duration;

    /// Shows the processes that may be looked at now.
    fn processes(&mut self, see: &mut dyn FnMut(Found));

    /// Shows the pages of a process that may be merged, in order. Where hardly anything is there, ranges with something in them are
    /// enough.
    ///
    /// # Errors
    ///
    /// Where the process has gone.
    fn layout(&mut self, id: u64, see: &mut dyn FnMut(Range)) -> Result<(), Gone>;

    /// Shows those pages of a range that are there, by their numbers and in order, and tells what they are as a whole. What is
    /// known of them tells which need not be read. The range is within one block of [`BLOCK`](crate::BLOCK) pages.
    ///
    /// # Errors
    ///
    /// Where the process has gone.
    fn look(
        &mut self,
        id: u64,
        pages: std::ops::Range<u64>,
        known: &Known,
        see: &mut dyn FnMut(u64, Seen),
    ) -> Result<Whole, Gone>;

    /// Reads these pages in full, in the order of their numbers; shows nothing of those that are not there any more.
    ///
    /// # Errors
    ///
    /// Where the process has gone.
    fn read(
        &mut self,
        id: u64,
        pages: &[u64],
        see: &mut dyn FnMut(u64, Content),
    ) -> Result<(), Gone>;

    /// Merges these ranges of page numbers.
    ///
    /// # Errors
    ///
    /// Where the process has gone.
    fn merge(&mut self, id: u64, pages: &[std::ops::Range<u64>]) -> Result<Merged, Gone>;

    /// The sample of a page of zeros.
    fn zero(&self) -> u32;

    /// A page of this sample has become ready to be merged.
    fn ready(&mut self, _id: u64, _sample: u32) {}

    /// Whether a page of this sample is to be merged without a twin that the scanner itself has seen: another scanner may have
    /// one, for instance. It is asked often.
    fn needs_no_twin(&self, _id: u64, _sample: u32) -> bool {
        false
    }
}
