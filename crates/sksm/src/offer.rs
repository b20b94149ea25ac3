/// The advice that asks `madvise(2)` or `process_madvise(2)` to merge. The only place where this number stands.
///
/// Another kernel may know another advice by this number. Who gives it by a call of his own asks [`support`](crate::support()) first.
pub const MADV_MERGE: i32 = 26;

/// What the running kernel offers for sharing equal pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Support {
    /// [`MADV_MERGE`]: pages are merged when the call returns.
    Merge = 1,
    /// Only KSM's `MADV_MERGEABLE`: a kernel thread may find and merge the pages some time later.
    Ksm = 2,
    /// Neither; always so on systems other than Linux.
    None = 3,
}

impl Support {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Support::Merge),
            2 => Some(Support::Ksm),
            3 => Some(Support::None),
            _ => None,
        }
    }
}
