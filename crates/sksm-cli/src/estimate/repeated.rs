//! Which of the pages that were sampled may have a twin: those whose samples are repeated.

use super::page::{KIND_BITS, Page};

/// How many pages of each process have none, by their kinds.
pub type Singles = Vec<[u64; 1 << KIND_BITS]>;

/// As much of a sample's key as is kept of a page that was read in full. Where two have it by chance, one page more is read.
pub fn short(key: u64) -> u32 {
    (key >> 32) as u32
}

/// Leaves only pages in these parts that may have a twin: among them, or among the pages that were read in full and have these
/// keys, or a page of zeros, which needs none.
pub fn leave(
    parts: &mut [Vec<Page>],
    keys: &mut [Vec<u32>],
    zero: u64,
    processes: usize,
) -> Singles {
    std::thread::scope(|scope| {
        for part in parts.iter_mut() {
            scope.spawn(|| part.sort_unstable());
        }
        for keys in keys.iter_mut() {
            scope.spawn(|| keys.sort_unstable());
        }
    });
    let pages: usize = parts.iter().map(Vec::len).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Not for a few pages.
    let threads = threads.min(1 + pages / 10_000) as u32;
    let each = u32::MAX / threads;
    let mut singles = vec![[0; 1 << KIND_BITS]; processes];
    std::thread::scope(|scope| {
        let mut parts: Vec<&mut [Page]> = parts.iter_mut().map(|part| &mut part[..]).collect();
        let mut keys: Vec<&[u32]> = keys.iter().map(|keys| &keys[..]).collect();
        let mut workers = Vec::new();
        for number in 1..=threads {
            let ends = |key: u32| number < threads && key >= number * each;
            let first = parts.iter_mut().map(|part| {
                let len = part.partition_point(|page| !ends(short(page.hash)));
                let (first, rest) = std::mem::take(part).split_at_mut(len);
                *part = rest;
                first
            });
            let first: Vec<&mut [Page]> = first.collect();
            let first_keys = keys.iter_mut().map(|keys| {
                let (first, rest) = keys.split_at(keys.partition_point(|key| !ends(*key)));
                *keys = rest;
                first
            });
            let first_keys: Vec<&[u32]> = first_keys.collect();
            workers.push(scope.spawn(move || take_singles(first, first_keys, zero, processes)));
        }
        for more in workers.into_iter().filter_map(|worker| worker.join().ok()) {
            for (sum, more) in singles.iter_mut().zip(more) {
                (sum.iter_mut().zip(more)).for_each(|(sum, more)| *sum += more);
            }
        }
    });
    std::thread::scope(|scope| {
        for part in parts {
            scope.spawn(|| {
                part.retain(|page| *page != Page::GONE);
                part.shrink_to_fit();
            });
        }
    });
    singles
}

/// Counts the pages whose samples nothing else has, and leaves nothing in their places.
fn take_singles(
    mut parts: Vec<&mut [Page]>,
    mut keys: Vec<&[u32]>,
    zero: u64,
    processes: usize,
) -> Singles {
    let mut singles = vec![[0; 1 << KIND_BITS]; processes];
    let lowest = |parts: &[&mut [Page]]| {
        let first = parts.iter().filter_map(|part| part.first());
        first.map(|page| page.hash).min()
    };
    while let Some(key) = lowest(&parts) {
        let (mut equal, mut last) = (0, None);
        for part in &mut parts {
            let len = part.iter().take_while(|page| page.hash == key).count();
            if len > 0 {
                let (group, rest) = std::mem::take(part).split_at_mut(len);
                *part = rest;
                equal += len;
                last = group.first_mut();
            }
        }
        let read = is_among(&mut keys, short(key));
        if let (1, false, Some(page)) = (equal, read || key == zero, last) {
            singles[page.process()][page.kind()] += 1;
            *page = Page::GONE;
        }
    }
    singles
}

/// Whether one of these has the key; lower ones are left behind.
fn is_among(keys: &mut [&[u32]], key: u32) -> bool {
    let mut found = false;
    for keys in keys {
        let lower = keys.iter().take_while(|other| **other < key).count();
        *keys = &keys[lower..];
        found |= keys.first() == Some(&key);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: u64 = 77 << 32;

    fn left(parts: &[&[Page]], keys: &[&[u32]]) -> (Vec<Page>, Singles) {
        let mut parts: Vec<Vec<Page>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut keys: Vec<Vec<u32>> = keys.iter().map(|keys| keys.to_vec()).collect();
        let singles = leave(&mut parts, &mut keys, ZERO, 2);
        let mut pages = parts.concat();
        pages.sort_unstable();
        (pages, singles)
    }

    fn page(key: u64, number: u64, process: u32) -> Page {
        Page::sampled(key, number, process, 4).unwrap()
    }

    #[test]
    fn what_is_repeated_is_left() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|key| key << 32);
        let (first, second) = (
            [page(b, 5, 0), page(a, 6, 0)],
            [page(a, 7, 1), page(c, 8, 1)],
        );
        let (pages, singles) = left(&[&first, &second], &[]);
        assert_eq!(pages, [page(a, 6, 0), page(a, 7, 1)]);
        assert_eq!((singles[0][4], singles[1][4]), (1, 1));
        // Twice in one part; and a page that was read in full has the sample.
        let part = [page(b, 5, 0), page(b, 6, 0), page(c, 1, 1), page(d, 2, 1)];
        let (pages, singles) = left(&[&part, &[]], &[&[9, 3], &[3, 1]]);
        assert_eq!(pages, part[..3]);
        assert_eq!((singles[0][4], singles[1][4]), (0, 1));
        // Zeros need no twin.
        let zeros = [page(ZERO, 5, 0)];
        assert_eq!(left(&[&zeros], &[]).0, zeros);
    }

    /// However the keys are divided among processors.
    #[test]
    fn many_are_divided_among_processors() {
        let spread = |number: u64| (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pages: Vec<Page> = (0..90_000)
            .map(|number| page(spread(number % 50_000), number, number as u32 % 2))
            .collect();
        let keys: Vec<u32> = (40_000..41_000)
            .map(|number| short(spread(number)))
            .collect();
        let (pages, singles) = left(&[&pages[..1000], &pages[1000..]], &[&keys]);
        let right = |page: &Page| page.number() % 50_000 < 41_000;
        assert!(pages.len() < 81_010 && pages.iter().filter(|page| right(page)).count() == 81_000);
        let counted = singles[0][4] + singles[1][4];
        assert_eq!(counted as usize, 90_000 - pages.len());
    }
}
