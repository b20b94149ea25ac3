//! One page in sixteen, sampled before all others: how many have a twin tells how to read the rest of a process.

use std::ops::Range;

use super::page::Page;

/// In pages. Of each stride one block is looked at: few calls, and still spread over all of the memory.
const BLOCK: u64 = 16;
const STRIDE: u64 = 256;

/// The first page that is looked at of a stride: at random, as what is equal often has equal places, too.
fn first(process: usize, stride: u64) -> u64 {
    // One multiplication would keep distances.
    let mut mixed = (stride ^ (process as u64) << 44).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    stride * STRIDE + (mixed >> 32) % (STRIDE / BLOCK) * BLOCK
}

/// Whether the page of this number is one.
pub fn has(process: usize, number: u64) -> bool {
    let first = first(process, number / STRIDE);
    (first..first + BLOCK).contains(&number)
}

/// All that are in this range of numbers.
pub fn blocks(process: usize, numbers: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let strides = numbers.start / STRIDE..numbers.end.div_ceil(STRIDE);
    strides
        .map(move |stride| first(process, stride))
        .map(move |first| first.max(numbers.start)..(first + BLOCK).min(numbers.end))
        .filter(|block| !block.is_empty())
}

/// Which share of the pages of each process has the sample of another page, by the pages that were looked at: all but those of
/// zeros. A page that has one twin meets it here once in sixteen times; in larger groups that says too much, at worst six times,
/// which only means that more is read at once.
pub fn repeated(mut probed: Vec<Page>, zero: u64, processes: usize) -> Vec<f32> {
    probed.sort_unstable();
    let mut counts = vec![(0u64, 0u64); processes];
    for group in probed.chunk_by(|a, b| a.hash == b.hash) {
        if group[0].hash == zero {
            continue;
        }
        let weight = match group.len() {
            1 => 0,
            2 => STRIDE / BLOCK,
            _ => 1,
        };
        for page in group {
            let (all, repeated) = &mut counts[page.process()];
            *all += 1;
            *repeated += weight;
        }
    }
    let share = |(all, repeated)| repeated as f32 / u64::max(all, 1) as f32;
    counts
        .into_iter()
        .map(share)
        .map(|share: f32| share.min(1.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_are_the_pages_that_it_has() {
        let numbers = 1000..50_123;
        let listed: Vec<u64> = blocks(3, numbers.clone()).flatten().collect();
        let had: Vec<u64> = numbers.clone().filter(|number| has(3, *number)).collect();
        assert_eq!(listed, had);
        let share = had.len() as f64 / numbers.count() as f64;
        assert!((share - 1.0 / 16.0).abs() < 0.001, "{share}");
    }

    /// Twins at the same places of their blocks, or of two processes, are not all met.
    #[test]
    fn blocks_are_at_random_places() {
        let places = |process, from| {
            blocks(process, from..from + 100 * STRIDE)
                .map(move |block| block.start - from)
                .collect::<Vec<_>>()
        };
        let all = [places(0, 0), places(1, 0), places(0, 512 * STRIDE)];
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let same = all[a].iter().zip(&all[b]).filter(|(a, b)| a == b).count();
            assert!(same < 25, "{same} of 100");
        }
    }

    fn share(pages: u64, content: impl Fn(u64) -> u64) -> f32 {
        let spread = |number: u64| (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let probed = (0..pages).filter(|number| has(0, *number));
        let page = |number| Page::new(spread(content(number)), 0, 0, 0);
        repeated(probed.map(page).collect(), 0, 1)[0]
    }

    #[test]
    fn shares_are_told_from_the_probe() {
        const PAGES: u64 = 1 << 18;
        assert_eq!(share(PAGES, |number| number), 0.0);
        assert_eq!(share(PAGES, |_| 7), 1.0);
        // A half is the twin of the other, and an eighth of another.
        let twins = |most| {
            move |number| {
                if number < most {
                    number + PAGES / 2
                } else {
                    number
                }
            }
        };
        assert!(share(PAGES, twins(PAGES / 2)) > 0.6);
        let quarter = share(PAGES, twins(PAGES / 8));
        assert!((0.1..0.33).contains(&quarter), "{quarter}");
        assert!(repeated(vec![Page::new(9, 0, 0, 0); 9], 9, 1)[0] == 0.0);
    }
}
