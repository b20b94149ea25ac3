//! Which pages of processes have a twin that they can merge with: what `merge` takes, so that nothing is published for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sksm::{Error, Kinds, ProcessStatistics};

use super::count::Domains;
use super::page::{self, Spot};
use super::read::{self, How};
use super::subject::{Files, Subject};
use super::{huge_page, keep_large_blocks_apart, numbered, pagemap};
use crate::descriptors;
use crate::domain::{Domain, Mode, Owner};
use crate::{output, target};

/// Of one process.
#[derive(Default, Debug, PartialEq)]
pub struct Taken {
    /// By their numbers, in order.
    pub ranges: Vec<Range<u64>>,
    /// Huge pages that are split for them.
    pub split: u64,
    /// Huge pages that stay whole, as too few of their pages have a twin, and how many those were.
    pub whole: u64,
    pub spared_pages: u64,
}

/// Of a huge page at least so large a part is to have twins: 64 of its 512 pages.
const PART: u64 = 8;

/// Fails for those whose pages cannot be read.
pub fn readable(pid: u32) -> Result<(), Error> {
    Files::open(pid).map(|_files| ())
}

/// Looks at these processes, and again if they are to settle; and at what others have merged already.
pub fn find(chosen: &[u32], kinds: Kinds, settle: Option<u64>) -> BTreeMap<u32, Taken> {
    descriptors::raise();
    keep_large_blocks_apart();
    let mode = Mode::read().unwrap_or(Mode::Cgroup);
    let domain = |pid: &u32| Owner::of(*pid).ok()?.domain(mode).ok();
    let domains: BTreeSet<Domain> = chosen.iter().filter_map(domain).collect();
    let wanted = |pid: &u32| domain(pid).is_some_and(|one| domains.contains(&one));
    // What is not chosen is no twin before it is merged, and none at all where it cannot merge with what is. KSM's pages count, too, as
    // nothing tells them from SKSM's here.
    let merged = |pid: &u32| ProcessStatistics::of(*pid).is_ok_and(|all| all.ksm > 0);
    let own: BTreeSet<u32> = chosen.iter().copied().collect();
    let others = target::all().unwrap_or_default().into_iter();
    let others = others.filter(|pid| !own.contains(pid) && wanted(pid) && merged(pid));
    let pids: Vec<u32> = chosen.iter().copied().chain(others).collect();
    let how = How {
        kinds,
        again: false,
        spots: Some(chosen.len()),
    };
    let look = |doing| {
        let sizes = pids
            .iter()
            .map(|pid| target::bytes_of(*pid, target::PRIVATE));
        let bar = output::progress(doing, sizes.sum());
        let look = read::look(&pids, how, &bar);
        bar.finish_and_clear();
        (look.spots, look.subjects)
    };
    let (mut spots, mut subjects) = look("looking for twins");
    if let Some(settle) = settle {
        std::thread::sleep(Duration::from_secs(settle));
        let again = look("looking again");
        spots = unchanged(spots, again.0);
        subjects = again.1;
    }
    let domains = numbered(&subjects, mode);
    let huge: Vec<Option<Huge>> = subjects
        .iter()
        .map(|one| Some(Huge::of(one.as_ref()?)))
        .collect();
    let taken = take(spots, &domains, chosen.len(), &huge);
    chosen.iter().copied().zip(taken).collect()
}

fn unchanged(mut before: Vec<Spot>, mut after: Vec<Spot>) -> Vec<Spot> {
    let place = |spot: &Spot| (spot.process, spot.number);
    before.sort_unstable_by_key(place);
    after.sort_unstable_by_key(place);
    let mut before = before.into_iter().peekable();
    after.retain(|spot| {
        while before.next_if(|old| place(old) < place(spot)).is_some() {}
        before
            .peek()
            .is_some_and(|old| place(old) == place(spot) && old.hash == spot.hash)
    });
    after
}

/// Where a process has huge pages.
struct Huge {
    /// So many pages are one.
    pages: u64,
    /// By numbers of pages, in order.
    ranges: Vec<Range<u64>>,
}

impl Huge {
    /// Where the kernel does not tell, any block of this size may be one.
    fn of(subject: &Arc<Subject>) -> Self {
        let page = sksm::page_size() as u64;
        let pages = huge_page() / page;
        let mut ranges = Vec::new();
        let files = subject.files().ok();
        for mapping in &subject.mappings {
            let range = mapping.region.start as u64..mapping.region.end() as u64;
            if range.end - range.start < huge_page() {
                continue;
            }
            let pagemap = files.as_ref().map(|files| &files.pagemap);
            let found = pagemap.and_then(|pagemap| pagemap::huge_pages(pagemap, range.clone()));
            let found = found.unwrap_or_else(|| vec![range]);
            ranges.extend(
                found
                    .into_iter()
                    .map(|range| range.start / page..range.end / page),
            );
        }
        Huge { pages, ranges }
    }

    /// The number of the huge page that this page is in.
    fn block(&self, number: u64) -> Option<u64> {
        let block = number / self.pages;
        let (start, end) = (block * self.pages, (block + 1) * self.pages);
        let at = self.ranges.partition_point(|range| range.end <= number);
        let range = self.ranges.get(at)?;
        (range.start <= start && end <= range.end).then_some(block)
    }
}

/// What is taken of the first so many processes.
fn take(
    mut spots: Vec<Spot>,
    domains: &Domains,
    chosen: usize,
    huge: &[Option<Huge>],
) -> Vec<Taken> {
    let mut taken: Vec<Taken> = (0..chosen).map(|_| Taken::default()).collect();
    let domain = |spot: &Spot| domains.get(spot.process as usize).copied().flatten();
    spots.retain(|spot| domain(spot).is_some());
    spots.sort_unstable_by_key(|spot| (domain(spot), spot.hash, spot.frame));
    let zero = page::hash_of_zeros();
    // Whose twin stays in its huge page has none any more: so until nothing changes.
    loop {
        let mut with_twin = Vec::with_capacity(spots.len());
        for group in spots.chunk_by(|a, b| (domain(a), a.hash) == (domain(b), b.hash)) {
            let of_frame = |a: &Spot, b: &Spot| a.frame != 0 && a.frame == b.frame;
            let frames = group.chunk_by(of_frame).count();
            let wanted = |spot: &&Spot| frames > 1 || spot.hash == zero && !spot.of_file;
            with_twin.extend(group.iter().filter(wanted).copied());
        }
        spots = with_twin;
        let mut counts: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        let block = |spot: &Spot| {
            let mine = (spot.process as usize) < chosen;
            let huge = huge.get(spot.process as usize)?.as_ref().filter(|_| mine)?;
            Some(((spot.process, huge.block(spot.number)?), huge.pages))
        };
        for (block, _) in spots.iter().filter_map(block) {
            *counts.entry(block).or_default() += 1;
        }
        let before = spots.len();
        spots.retain(|spot| {
            block(spot).is_none_or(|(block, pages)| {
                counts
                    .get(&block)
                    .is_some_and(|count| count * PART >= pages)
            })
        });
        for ((process, _), count) in counts {
            let (Some(taken), Some(Some(huge))) =
                (taken.get_mut(process as usize), huge.get(process as usize))
            else {
                continue;
            };
            let stays = count * PART < huge.pages;
            if stays {
                taken.whole += 1;
                taken.spared_pages += count;
            } else if spots.len() == before {
                // The last time.
                taken.split += 1;
            }
        }
        if spots.len() == before {
            break;
        }
    }
    spots.sort_unstable_by_key(|spot| (spot.process, spot.number));
    for spot in spots {
        let Some(taken) = taken.get_mut(spot.process as usize) else {
            continue;
        };
        match taken.ranges.last_mut() {
            Some(last) if last.end == spot.number => last.end += 1,
            _ => taken.ranges.push(spot.number..spot.number + 1),
        }
    }
    taken
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn spot(process: u32, number: u64, hash: u64) -> Spot {
        Spot {
            hash,
            number,
            frame: 0,
            process,
            of_file: false,
        }
    }

    fn ranges(taken: &[Taken]) -> Vec<Vec<Range<u64>>> {
        taken.iter().map(|taken| taken.ranges.clone()).collect()
    }

    #[test]
    fn pages_with_twins_are_taken() {
        let none = [const { None }; 4];
        let domains = vec![Some(0), Some(0), Some(1), None];
        let spots = vec![
            spot(0, 10, 1),
            spot(0, 11, 2),
            spot(0, 12, 1),
            spot(1, 30, 2),
            spot(1, 31, 3),
            // Of another domain, and of none.
            spot(2, 40, 3),
            spot(3, 50, 3),
        ];
        let taken = take(spots, &domains, 4, &none);
        assert_eq!(ranges(&taken), [vec![10..13], vec![30..31], vec![], vec![]]);
        // Of another process that is not chosen, but merged already.
        let taken = take(vec![spot(0, 10, 1), spot(1, 30, 1)], &domains, 1, &none);
        assert_eq!(ranges(&taken), [vec![10..11]]);
    }

    #[test]
    fn what_a_fork_shares_has_no_twin() {
        let domains = vec![Some(0), Some(0)];
        let mut spots = vec![spot(0, 10, 1), spot(1, 10, 1)];
        spots.iter_mut().for_each(|spot| spot.frame = 5);
        let none = [const { None }; 2];
        assert_eq!(
            ranges(&take(spots.clone(), &domains, 2, &none)),
            [vec![], vec![]]
        );
        // But with a copy of it.
        spots.push(spot(1, 99, 1));
        assert_eq!(
            ranges(&take(spots, &domains, 2, &none)),
            [vec![10..11], vec![10..11, 99..100]]
        );
    }

    #[test]
    fn zeros_need_no_twin_but_in_files() {
        let zero = page::hash_of_zeros();
        let mut spots = [spot(0, 1, zero), spot(0, 3, zero)];
        assert_eq!(
            ranges(&take(spots[..1].to_vec(), &vec![Some(0)], 1, &[None])),
            [vec![1..2]]
        );
        spots[0].of_file = true;
        let taken = take(spots[..1].to_vec(), &vec![Some(0)], 1, &[None]);
        assert_eq!(ranges(&taken), [vec![]]);
    }

    #[test]
    fn huge_pages_are_split_for_many_twins_only() {
        let huge = || Huge {
            pages: 512,
            ranges: vec![512..2048],
        };
        // 64 in the first, 63 in the second; and all of their twins in small pages of the other process.
        let numbers = (512..576).chain(1024..1087);
        let spots: Vec<Spot> = numbers
            .flat_map(|number| [spot(0, number, number), spot(1, number * 2, number)])
            .collect();
        let huge = [Some(huge()), None];
        let taken = take(spots, &vec![Some(0), Some(0)], 2, &huge);
        assert_eq!(taken[0].ranges, [512..576]);
        assert_eq!(
            (taken[0].split, taken[0].whole, taken[0].spared_pages),
            (1, 1, 63)
        );
        // Their twins have none then.
        let pages: u64 = taken[1]
            .ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        assert_eq!(pages, 64);
    }

    #[test]
    fn what_changed_is_left_out() {
        let before = vec![spot(0, 1, 7), spot(0, 2, 8), spot(1, 1, 9)];
        let after = vec![spot(1, 1, 9), spot(0, 1, 7), spot(0, 2, 99), spot(0, 3, 7)];
        assert_eq!(unchanged(before, after), [spot(0, 1, 7), spot(1, 1, 9)]);
    }
}
