//! The calls that `sksm-profile` makes, one after the other, and `cargo xtask profile` counts the kernel's instructions of.

/// Calls of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub name: &'static str,
    pub what: What,
    /// Made one after the other.
    pub calls: usize,
    /// Of each.
    pub pages: usize,
}

/// What is found in the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// What nobody has published.
    New,
    /// What is published.
    Duplicate,
    Zeros,
    /// What the call before has merged.
    Merged,
}

const fn case(name: &'static str, what: What, calls: usize, pages: usize) -> Case {
    Case {
        name,
        what,
        calls,
        pages,
    }
}

/// Half a page table at once, and page by page. Of each case one call counts, which took neither most nor least.
pub const CASES: [Case; 6] = [
    case("publish", What::New, 3, 256),
    case("duplicate", What::Duplicate, 3, 256),
    case("again", What::Merged, 3, 256),
    case("zeros", What::Zeros, 3, 256),
    case("publish one", What::New, 64, 1),
    case("merge one", What::Duplicate, 64, 1),
];

/// Symbols come first, as `/proc/kallsyms` has them; then this, in a line of its own.
pub const READY: &str = "ready";
/// The last line.
pub const DONE: &str = "done";
