//! How many page frames merging would free.

use std::ops::Range;

use super::frames::Frames;
use super::page::{KIND_BITS, Page};
use super::repeated::Singles;
use super::report::Saving;

/// What was counted.
#[derive(Default)]
pub struct Counted {
    /// Where the processes of a domain share.
    pub within: Saving,
    /// Where others do, as the rules divide them.
    pub others: [Saving; OTHERS],
    /// Of `within`: by pages that hold nothing but zeros.
    pub zero: Saving,
    pub kinds: Vec<Saving>,
    pub processes: Vec<Saving>,
    /// Pages whose frames may be in use by others as well.
    pub maybe_shared: u64,
}

/// So many other ways to divide the processes are counted at once.
pub const OTHERS: usize = 2;

/// The domain of each process, numbered from 0; none of one that merges with nobody.
pub type Domains = Vec<Option<usize>>;

/// What there is to know about the pages.
pub struct Rules<'a> {
    pub domains: &'a Domains,
    /// Other ways to divide them, of which only the sums are told.
    pub others: [&'a Domains; OTHERS],
    /// How many mappings one merged page serves.
    pub most: u64,
    /// The hash of a page of zeros, which needs no frame once it is merged.
    pub zero: u64,
    /// Whether frames have numbers of the kernel's; else they have the addresses of the pages.
    pub tells_frames: bool,
    /// Who knows how often a frame is mapped.
    pub mappings: &'a Frames,
}

/// Counts sorted parts, on all processors, and pages that are known to have no twin.
pub fn count(parts: &[Vec<Page>], singles: &Singles, rules: &Rules<'_>) -> Counted {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pages: usize = parts.iter().map(Vec::len).sum();
    // Not for a few pages.
    let threads = threads.min(1 + pages / 10_000) as u64;
    let each = u64::MAX / threads;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let end = (number + 1 < threads).then(|| (number + 1) * each);
                scope.spawn(move || count_hashes(parts, number * each, end, rules))
            })
            .collect();
        let counted = workers.into_iter().filter_map(|worker| worker.join().ok());
        counted.fold(Counted::of_singles(singles, rules), Counted::and)
    })
}

/// Counts the pages whose hashes are in a range.
fn count_hashes(parts: &[Vec<Page>], start: u64, end: Option<u64>, rules: &Rules<'_>) -> Counted {
    let mut rest: Vec<&[Page]> = parts
        .iter()
        .map(|part| {
            let before = |limit: u64| part.partition_point(|page| page.hash < limit);
            let range: Range<usize> = before(start)..end.map_or(part.len(), before);
            part.get(range).unwrap_or_default()
        })
        .collect();
    let mut counter = Counter::new(rules);
    let mut group = Vec::new();
    let lowest = |parts: &[&[Page]]| {
        let first = parts.iter().filter_map(|part| part.first());
        first.map(|page| page.hash).min()
    };
    while let Some(hash) = lowest(&rest) {
        group.clear();
        for part in &mut rest {
            let len = part.iter().take_while(|page| page.hash == hash).count();
            let (equal, others) = part.split_at(len);
            *part = others;
            if len > 0 {
                group.push(equal);
            }
        }
        counter.add(hash, &group);
    }
    counter.counted
}

/// What equal pages of one domain come to.
#[derive(Clone, Default)]
struct Tally {
    mappings: u64,
    /// Frames that only these pages hold.
    frames: u64,
    /// Frames that others hold as well, which stay.
    kept: u64,
    /// The first process, its mappings, and how many of those are of frames that stay.
    first: (usize, u64, u64),
}

impl Tally {
    fn add(&mut self, mappings: u64, process: usize, kept: bool) {
        if self.mappings == 0 || process < self.first.0 {
            self.first = (process, 0, 0);
        }
        if process == self.first.0 {
            self.first.1 += 1;
            self.first.2 += u64::from(kept);
        }
        self.mappings += mappings;
        *(if kept {
            &mut self.kept
        } else {
            &mut self.frames
        }) += 1;
    }

    /// How many frames merging would free.
    fn saved(&self, zero: bool, most: u64) -> f64 {
        if zero || self.mappings == 0 {
            return self.frames as f64;
        }
        let copies = self.mappings.div_ceil(most);
        // The page that merges first becomes the copy, where it is. Of one process any may be the first.
        let (_, all, kept) = self.first;
        let in_kept = copies.min(self.kept) as f64 * kept as f64 / all as f64;
        (self.frames as f64 + in_kept - copies as f64).max(0.0)
    }
}

/// Processes as they are divided into domains, and what the pages that are being counted come to in each.
struct Division<'a> {
    domains: &'a [Option<usize>],
    tallies: Vec<Tally>,
    touched: Vec<usize>,
}

impl<'a> Division<'a> {
    fn new(domains: &'a [Option<usize>]) -> Self {
        let all = domains.iter().flatten().max().map_or(0, |last| last + 1);
        Division {
            domains,
            tallies: vec![Tally::default(); all],
            touched: Vec::new(),
        }
    }

    /// Adds the pages of one frame.
    fn tally(&mut self, pages: &[Page], kept: bool) {
        if let [page] = pages {
            if let Some(domain) = self.domains[page.process()] {
                self.add(domain, 1, page.process(), kept);
            }
            return;
        }
        for share in self.shares(pages) {
            let kept = kept || share.mappings < pages.len() as u64;
            self.add(share.domain, share.mappings, share.first_process, kept);
        }
    }

    fn add(&mut self, domain: usize, mappings: u64, process: usize, kept: bool) {
        let tally = &mut self.tallies[domain];
        if tally.mappings == 0 {
            self.touched.push(domain);
        }
        tally.add(mappings, process, kept);
    }

    fn saved(&self, zero: bool, most: u64) -> f64 {
        let tallies = self.touched.iter().map(|domain| &self.tallies[*domain]);
        tallies.map(|tally| tally.saved(zero, most)).sum()
    }

    fn clear(&mut self) {
        for domain in self.touched.drain(..) {
            self.tallies[domain] = Tally::default();
        }
    }

    fn shares(&self, pages: &[Page]) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        for page in pages {
            let Some(domain) = self.domains[page.process()] else {
                continue;
            };
            match shares.iter_mut().find(|share| share.domain == domain) {
                Some(share) => share.mappings += 1,
                None => shares.push(Share {
                    domain,
                    first_process: page.process(),
                    mappings: 1,
                }),
            }
        }
        shares
    }
}

/// Of the mappings of one frame those of one domain.
struct Share {
    domain: usize,
    first_process: usize,
    mappings: u64,
}

struct Counter<'a> {
    rules: &'a Rules<'a>,
    counted: Counted,
    within: Division<'a>,
    others: [Division<'a>; OTHERS],
}

impl<'a> Counter<'a> {
    fn new(rules: &'a Rules<'a>) -> Self {
        Counter {
            rules,
            counted: Counted::new(rules),
            within: Division::new(rules.domains),
            others: rules.others.map(|domains| Division::new(domains)),
        }
    }

    /// Adds equal pages, given as parts in order. They are walked twice and not copied: there may be very many.
    fn add(&mut self, hash: u64, group: &[&[Page]]) {
        let zero = hash == self.rules.zero;
        if let [[page]] = group {
            return self.add_single(*page, zero);
        }
        // Of one frame nothing is saved, whoever has it, unless it is of zeros. Most that a fork left in common is so.
        let ask = zero || !one_frame(group);
        let (mut mapped_pages, mut frames) = (0, 0);
        each_frame(group, |pages| {
            let kept = ask && self.kept(pages);
            mapped_pages += pages.len() as u64;
            frames += 1;
            self.within.tally(pages, kept);
            for division in &mut self.others {
                division.tally(pages, kept);
            }
        });
        for (sum, division) in self.counted.others.iter_mut().zip(&mut self.others) {
            sum.add(Saving {
                mapped_pages,
                pages: f64::from(frames),
                saved_pages: division.saved(zero, self.rules.most),
            });
            division.clear();
        }
        each_frame(group, |pages| self.share_out(pages, zero));
        self.within.clear();
    }

    /// As most pages are.
    fn add_single(&mut self, page: Page, zero: bool) {
        let saved = zero && !self.kept(&[page]);
        let saving = |domains: &[Option<usize>]| Saving {
            mapped_pages: 1,
            pages: 1.0,
            saved_pages: f64::from(u8::from(saved && domains[page.process()].is_some())),
        };
        for (sum, domains) in self.counted.others.iter_mut().zip(self.rules.others) {
            sum.add(saving(domains));
        }
        self.add_to_all(page, saving(self.rules.domains), zero);
    }

    /// Says whose the frame is and what of it is saved, in equal parts.
    fn share_out(&mut self, pages: &[Page], zero: bool) {
        let all = pages.len() as u64;
        let part = |saved_pages| Saving {
            mapped_pages: 1,
            pages: 1.0 / all as f64,
            saved_pages,
        };
        for share in self.within.shares(pages) {
            let tally = &self.within.tallies[share.domain];
            let kept =
                share.mappings < all || tally.frames == 0 || tally.kept > 0 && self.kept(pages);
            let saved = match kept {
                true => 0.0,
                false => tally.saved(zero, self.rules.most) / tally.frames as f64,
            };
            let own = |page: &&Page| self.rules.domains[page.process()] == Some(share.domain);
            for page in pages.iter().filter(own) {
                self.add_to_all(*page, part(saved / share.mappings as f64), zero);
            }
        }
        let apart = |page: &&Page| self.rules.domains[page.process()].is_none();
        for page in pages.iter().filter(apart) {
            self.add_to_all(*page, part(0.0), zero);
        }
    }

    /// All sums but those of other divisions.
    fn add_to_all(&mut self, page: Page, saving: Saving, zero: bool) {
        self.counted.within.add(saving);
        if zero {
            self.counted.zero.add(saving);
        }
        self.counted.kinds[page.kind()].add(saving);
        self.counted.processes[page.process()].add(saving);
        self.counted.maybe_shared += u64::from(page.frame() != 0 && !self.rules.tells_frames);
    }

    /// Whether somebody else holds the frame of these pages.
    fn kept(&self, pages: &[Page]) -> bool {
        let frame = pages.first().map_or(0, |page| page.frame());
        let mappings = || self.rules.mappings.of(frame);
        frame != 0
            && self.rules.tells_frames
            && mappings().is_some_and(|all| all > pages.len() as u64)
    }
}

fn one_frame(group: &[&[Page]]) -> bool {
    let mut ends = (group.iter()).flat_map(|part| part.first().into_iter().chain(part.last()));
    let first = ends.next().map_or(0, |page| page.frame());
    first != 0 && ends.all(|page| page.frame() == first)
}

/// Shows the pages of each frame together, in the order of their processes.
fn each_frame(group: &[&[Page]], mut see: impl FnMut(&[Page])) {
    let mut shared = Vec::new();
    for part in group {
        let (own, others) = part.split_at(part.partition_point(|page| page.frame() == 0));
        own.iter().for_each(|page| see(std::slice::from_ref(page)));
        if !others.is_empty() {
            shared.push(others);
        }
    }
    let mut pages = Vec::new();
    let lowest = |parts: &[&[Page]]| {
        let first = parts.iter().filter_map(|part| part.first());
        first.map(|page| page.frame()).min()
    };
    while let Some(frame) = lowest(&shared) {
        pages.clear();
        for part in &mut shared {
            let (same, others) = part.split_at(part.partition_point(|page| page.frame() == frame));
            pages.extend_from_slice(same);
            *part = others;
        }
        pages.sort_unstable();
        see(&pages);
    }
}

impl Counted {
    fn new(rules: &Rules<'_>) -> Self {
        Counted {
            kinds: vec![Saving::default(); 1 << KIND_BITS],
            processes: vec![Saving::default(); rules.domains.len()],
            ..Counted::default()
        }
    }

    fn of_singles(singles: &Singles, rules: &Rules<'_>) -> Self {
        let mut counted = Counted::new(rules);
        for (process, kinds) in singles.iter().enumerate() {
            for (kind, pages) in kinds.iter().enumerate() {
                let saving = Saving {
                    mapped_pages: *pages,
                    pages: *pages as f64,
                    saved_pages: 0.0,
                };
                counted.within.add(saving);
                counted.others.iter_mut().for_each(|sum| sum.add(saving));
                counted.kinds[kind].add(saving);
                counted.processes[process].add(saving);
            }
        }
        counted
    }

    fn and(mut self, more: Counted) -> Self {
        self.within.add(more.within);
        for (sum, more) in self.others.iter_mut().zip(more.others) {
            sum.add(more);
        }
        self.zero.add(more.zero);
        self.maybe_shared += more.maybe_shared;
        for (sum, more) in self.kinds.iter_mut().zip(more.kinds) {
            sum.add(more);
        }
        for (sum, more) in self.processes.iter_mut().zip(more.processes) {
            sum.add(more);
        }
        self
    }
}

impl Saving {
    pub fn add(&mut self, more: Saving) {
        self.mapped_pages += more.mapped_pages;
        self.pages += more.pages;
        self.saved_pages += more.saved_pages;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: u64 = 77;

    /// Two processes of one domain, one of another, and one of none.
    fn apart() -> Domains {
        vec![Some(0), Some(0), Some(1), None]
    }

    /// All that merge in one.
    fn together() -> Domains {
        vec![Some(0), Some(0), Some(0), None]
    }

    /// Nothing merges.
    fn never() -> Domains {
        vec![None; 4]
    }

    fn page(hash: u64, frame: u64, process: u32) -> Page {
        Page::new(hash, frame, process, 4)
    }

    fn counted(pages: &[Page], most: u64, mappings: &Frames) -> Counted {
        // In one part and in several.
        let mut whole = pages.to_vec();
        whole.sort_unstable();
        let mut parts = vec![Vec::new(); 3];
        for (number, page) in pages.iter().enumerate() {
            parts[number % 3].push(*page);
        }
        parts.iter_mut().for_each(|part| part.sort_unstable());
        let (apart, together, never) = (apart(), together(), never());
        let rules = Rules {
            domains: &apart,
            others: [&together, &never],
            most,
            zero: ZERO,
            tells_frames: true,
            mappings,
        };
        let (counted, other) = (
            count(&[whole], &Singles::new(), &rules),
            count(&parts, &Singles::new(), &rules),
        );
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert_eq!(counted.others, other.others);
        // The frames are the same, whoever shares.
        let [across, none] = counted.others;
        assert!(near(across.pages, counted.within.pages) && none.saved_pages == 0.0);
        assert_eq!(
            (none.mapped_pages, none.pages),
            (across.mapped_pages, across.pages)
        );
        assert!(near(counted.within.saved_pages, other.within.saved_pages));
        let sum = |savings: &[Saving]| savings.iter().map(|one| one.saved_pages).sum();
        assert!(near(sum(&counted.kinds), counted.within.saved_pages));
        assert!(near(sum(&counted.processes), counted.within.saved_pages));
        counted
    }

    /// Mappings, frames, and frames saved.
    fn figures(saving: Saving) -> (u64, f64, f64) {
        let rounded = |pages: f64| (pages * 1e6).round() / 1e6;
        (
            saving.mapped_pages,
            rounded(saving.pages),
            rounded(saving.saved_pages),
        )
    }

    fn within(pages: &[Page], most: u64) -> (u64, f64, f64) {
        figures(counted(pages, most, &Frames::unknown()).within)
    }

    #[test]
    fn equal_pages_leave_one() {
        let pages = [page(1, 0, 0), page(1, 0, 0), page(1, 0, 1), page(2, 0, 1)];
        assert_eq!(within(&pages, 256), (4, 4.0, 2.0));
    }

    #[test]
    fn users_are_apart() {
        let pages = [page(1, 0, 0), page(1, 0, 2)];
        let counted = counted(&pages, 256, &Frames::unknown());
        assert_eq!(figures(counted.within), (2, 2.0, 0.0));
        assert_eq!(figures(counted.others[0]), (2, 2.0, 1.0));
    }

    #[test]
    fn who_is_in_no_domain_saves_nothing() {
        // Not even pages of zeros.
        let pages = [page(1, 0, 3), page(1, 0, 3), page(ZERO, 0, 3)];
        assert_eq!(within(&pages, 256), (3, 3.0, 0.0));
        assert_eq!(
            within(&[page(ZERO, 0, 3), page(ZERO, 0, 3)], 256),
            (2, 2.0, 0.0)
        );
        // What it has in common with others stays.
        let pages = [page(1, 10, 0), page(1, 10, 3), page(1, 0, 1)];
        assert_eq!(within(&pages, 256), (3, 2.0, 1.0));
        let pages = [page(ZERO, 10, 0), page(ZERO, 10, 3), page(ZERO, 0, 1)];
        assert_eq!(within(&pages, 256), (3, 2.0, 1.0));
    }

    #[test]
    fn what_is_shared_already_is_not_saved_again() {
        let pages = [page(1, 10, 0), page(1, 10, 1), page(1, 0, 0)];
        assert_eq!(within(&pages, 256), (3, 2.0, 1.0));
    }

    #[test]
    fn zeros_need_no_frame() {
        assert_eq!(within(&[page(ZERO, 0, 0)], 256), (1, 1.0, 1.0));
        let pages = [page(ZERO, 0, 0), page(ZERO, 0, 1), page(5, 0, 1)];
        let counted = counted(&pages, 256, &Frames::unknown());
        assert_eq!(figures(counted.within), (3, 3.0, 2.0));
        assert_eq!(figures(counted.zero), (2, 2.0, 2.0));
    }

    #[test]
    fn one_copy_serves_so_many_mappings() {
        let pages = vec![page(1, 0, 0); 10];
        assert_eq!(within(&pages, 4), (10, 10.0, 7.0));
        // A frame that has more already stays as it is.
        let mut shared = vec![page(1, 9, 0); 10];
        shared.push(page(1, 0, 0));
        assert_eq!(within(&shared, 4), (11, 2.0, 0.0));
    }

    /// Since a fork, for instance, by a process that is not looked at.
    #[test]
    fn a_frame_that_others_hold_stays() {
        // Frame 10 has one mapping more than was seen.
        let others = || Frames::pretended([(10, 2), (11, 2)].into());
        let alone = [page(1, 10, 0)];
        let saved = |pages: &[Page]| figures(counted(pages, 256, &others()).within);
        assert_eq!(saved(&alone), (1, 1.0, 0.0));
        // The page that merges first becomes the copy.
        assert_eq!(saved(&[page(1, 10, 0), page(1, 0, 1)]), (2, 2.0, 1.0));
        assert_eq!(saved(&[page(1, 0, 0), page(1, 10, 1)]), (2, 2.0, 0.0));
        // Which of one process that is depends on addresses.
        assert_eq!(saved(&[page(1, 0, 0), page(1, 10, 0)]), (2, 2.0, 0.5));
        assert_eq!(saved(&[page(ZERO, 10, 0), page(ZERO, 0, 1)]), (2, 2.0, 1.0));
        // All its mappings are here.
        assert_eq!(
            saved(&[page(1, 10, 0), page(1, 10, 1), page(1, 0, 0)]),
            (3, 2.0, 1.0)
        );
        // Other users are others as well.
        let pages = [page(1, 11, 0), page(1, 11, 2), page(1, 0, 2)];
        let counted = counted(&pages, 256, &others());
        assert_eq!(figures(counted.within), (3, 2.0, 0.5));
        assert_eq!(figures(counted.others[0]), (3, 2.0, 1.0));
    }

    #[test]
    fn singles_are_counted_where_they_belong() {
        let (apart, together) = (apart(), together());
        let rules = Rules {
            domains: &apart,
            others: [&together, &together],
            most: 256,
            zero: ZERO,
            tells_frames: false,
            mappings: &Frames::unknown(),
        };
        let mut singles = vec![[0; 8]; 4];
        (singles[0][1], singles[2][1], singles[2][4]) = (5, 7, 9);
        let pages = vec![page(1, 0, 0), page(1, 0, 1)];
        let counted = count(&[pages], &singles, &rules);
        assert_eq!(figures(counted.within), (23, 23.0, 1.0));
        assert_eq!(figures(counted.others[0]), (23, 23.0, 1.0));
        assert_eq!(figures(counted.kinds[1]), (12, 12.0, 0.0));
        assert_eq!(figures(counted.kinds[4]), (11, 11.0, 1.0));
        let processes = counted.processes.into_iter().map(figures);
        let right = [(6, 6.0, 0.5), (1, 1.0, 0.5), (16, 16.0, 0.0), (0, 0.0, 0.0)];
        assert!(processes.eq(right) && counted.maybe_shared == 0);
    }

    /// However the hashes are divided among processors.
    #[test]
    fn many_pages_are_counted_by_all_processors() {
        let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pages: Vec<Page> = (0..100_000)
            .map(|number| page(spread(number % 40_000), 0, number as u32 % 2))
            .collect();
        assert_eq!(within(&pages, 256), (100_000, 100_000.0, 60_000.0));
    }
}
