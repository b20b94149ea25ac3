use crate::Error;

/// What became of each range of a call that goes on after refusals. Of a range above 1 GiB each GiB counts by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Partial {
    /// The sum of the lengths of all ranges that were advised as a whole.
    pub advised: usize,
    /// Why others were not, each error with its range.
    pub refused: Vec<Error>,
}
