//! What becomes of each page of a segment, a byte a page.

use core::ops::Range;

/// Pages that stay what they are whatever happens: not mapped as code should be, or with a breakpoint in them.
pub const FIXED: u8 = 255;
/// Copies of this process's own, which nobody has published.
pub const OWN: u8 = 254;
/// As the file has them.
pub const FILE: u8 = 0;
/// The others are the numbers of files in the store, from 1.
pub const STORED: core::ops::RangeInclusive<u8> = 1..=253;

/// Pages that follow each other and have the same label: a mapping each.
pub fn runs(labels: &[u8]) -> impl Iterator<Item = (u8, Range<usize>)> {
    let mut start = 0;
    core::iter::from_fn(move || {
        let label = *labels.get(start)?;
        let rest = labels.get(start..).unwrap_or_default();
        let len = rest.iter().take_while(|other| **other == label).count();
        let run = start..start + len;
        start = run.end;
        Some((label, run))
    })
}

/// Has at most `limit` mappings, where that can be: the shortest runs become part of what this process publishes, whoever else has
/// them already. What has nothing beside it that it could become one mapping with stays. Whether something has changed.
pub fn reduce(labels: &mut [u8], limit: usize) -> bool {
    let mut changed = false;
    let mut longest = 1;
    while runs(labels).count() > limit && longest <= labels.len() {
        let mut start = 0;
        let mut before = FIXED;
        loop {
            let next = runs(labels.get(start..).unwrap_or_default()).next();
            let Some((label, run)) = next else {
                break;
            };
            let whole = start + run.start..start + run.end;
            start = whole.end;
            let after = labels.get(start).copied().unwrap_or(FIXED);
            let joins = before != FIXED || after != FIXED;
            before = label;
            if label != OWN && label != FIXED && run.len() <= longest && joins {
                labels.get_mut(whole).unwrap_or_default().fill(OWN);
                changed = true;
            }
        }
        longest *= 2;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole() {
        let labels = [OWN, OWN, FILE, 1, 1, 1];
        let all: Vec<_> = runs(&labels).collect();
        assert_eq!(all, [(OWN, 0..2), (FILE, 2..3), (1, 3..6)]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn the_shortest_go_first() {
        let mut labels = [[FILE; 4], [1; 4], [FILE, 1, FILE, 1]].concat();
        assert!(!reduce(&mut labels, 6));
        assert!(reduce(&mut labels, 5));
        assert_eq!(labels, [[FILE; 4], [1; 4], [OWN; 4]].concat());
        assert!(reduce(&mut labels, 2));
        assert_eq!(labels, [OWN; 12]);
    }

    #[test]
    fn what_is_fixed_stays() {
        let mut labels: Vec<u8> = [FIXED, FILE].repeat(20);
        assert!(!reduce(&mut labels, 16));
        assert_eq!(labels, [FIXED, FILE].repeat(20));
        // Nor does anything join them.
        let mut labels = [FIXED, FILE, OWN].repeat(20);
        assert!(reduce(&mut labels, 16));
        assert_eq!(labels, [FIXED, OWN, OWN].repeat(20));
    }
}
