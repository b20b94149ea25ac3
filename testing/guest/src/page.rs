//! How large pages are, and what they are parts and multiples of.

/// Every kernel that SKSM runs on in the tests has pages of 4 KiB.
pub const PAGE: usize = 4096;
/// 64-bit words in a page.
pub const WORDS: usize = PAGE / 8;
/// What one page table maps: merging works in batches of that.
pub const TABLE: usize = 512 * PAGE;
