use std::time::Duration;

/// What the scanner did for one process, or for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Ledger {
    /// Pages that are known: present when they were looked at last.
    pub pages: u64,
    /// Of them, what was merged by the scanner and has not come apart since, as far as it has been seen.
    pub merged: u64,
    /// Pages that were looked at, read or not, each time counted.
    pub looked: u64,
    /// Pages of which a sample was read, each time counted.
    pub sampled: u64,
    /// Pages that were read in full.
    pub read: u64,
    /// Pages that were merged, each time counted.
    pub merges: u64,
    /// Merged pages that were found apart within a minute.
    pub came_apart: u64,
    /// Huge pages that were split.
    pub split: u64,
    /// CPU time.
    pub cpu: Duration,
}

impl Ledger {
    /// Adds another.
    pub fn add(&mut self, other: &Ledger) {
        self.pages += other.pages;
        self.merged += other.merged;
        self.looked += other.looked;
        self.sampled += other.sampled;
        self.read += other.read;
        self.merges += other.merges;
        self.came_apart += other.came_apart;
        self.split += other.split;
        self.cpu += other.cpu;
    }
}
