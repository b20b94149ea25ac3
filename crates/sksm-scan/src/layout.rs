//! Where a process's pages are, in blocks.

use std::collections::BTreeMap;

use crate::{BLOCK, Range};

/// The parts of ranges that are in each block, by the block's number.
pub fn blocks(ranges: &[Range]) -> BTreeMap<u64, Vec<std::ops::Range<u64>>> {
    let mut blocks: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let block = start / BLOCK;
            let end = range.end.min((block + 1) * BLOCK);
            blocks.entry(block).or_default().push(start..end);
            start = end;
        }
    }
    blocks
}

/// Whether something has come to these pages, or gone, since the layout was another one.
pub fn changed(before: &[Range], after: &[Range], pages: &std::ops::Range<u64>) -> bool {
    let within = |ranges: &[Range]| {
        let first = ranges.partition_point(|range| range.end <= pages.start);
        ranges
            .get(first)
            .filter(|range| range.start < pages.end)
            .copied()
    };
    within(before) != within(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::single_range_in_vec_init)]
    fn ranges_are_cut_into_blocks() {
        let range = |start, end| Range {
            start,
            end,
            present: 0,
        };
        let cut = blocks(&[range(500, 520), range(600, 700), range(1024, 1536)]);
        let right = [
            (0, vec![500..512]),
            (1, vec![512..520, 600..700]),
            (2, vec![1024..1536]),
        ];
        assert!(cut.into_iter().eq(right));
    }

    #[test]
    fn what_has_come_or_gone_shows() {
        let range = |start, end, present| Range {
            start,
            end,
            present,
        };
        let before = [range(0, 10, 3), range(20, 40, 5)];
        let after = [range(0, 10, 3), range(20, 40, 6), range(50, 60, 1)];
        assert!(!changed(&before, &after, &(0..10)));
        assert!(changed(&before, &after, &(20..30)) && changed(&before, &after, &(30..40)));
        assert!(changed(&before, &after, &(50..60)));
    }
}
