//! The policy, under a made-up clock, with made-up processes.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sksm_scan::{
    Content, Found, Gone, Known, Merged, Range, Scanner, Seen, Settings, Whole, World,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// 0: zeros. Contents of equal low halves have the same sample.
    content: u64,
    /// The sample that was seen last, since when each look has seen it, and when the page was read in full.
    seen: Option<u32>,
    since: Duration,
    read: Duration,
    merged: bool,
    /// Since the last look.
    written: bool,
}

impl Page {
    fn sample(self) -> u32 {
        self.content as u32
    }

    fn look(&mut self, now: Duration) {
        if self.seen.replace(self.sample()) != Some(self.sample()) {
            self.since = now;
        }
    }
}

#[derive(Default)]
struct Process {
    domain: u64,
    pages: BTreeMap<u64, Page>,
    /// Blocks that are one huge page.
    huge: Vec<u64>,
}

/// What pieces of work cost, as measured under emulation.
const LOOK: Duration = Duration::from_nanos(320);
const READ: Duration = Duration::from_micros(2);
const MERGE: Duration = Duration::from_micros(20);

struct MadeUp {
    now: Duration,
    cpu: Duration,
    processes: BTreeMap<u64, Process>,
    stable: Duration,
    looked: u64,
    merges: u64,
    /// When CPU time was taken, and how much.
    log: Vec<(Duration, Duration)>,
    /// Whether it knows what was written, and which samples need no twin; and what it was told is ready.
    tracks: bool,
    needs_no_twin: fn(u32) -> bool,
    told: Vec<u32>,
    /// The process of the last pieces of work.
    worked_on: Vec<u64>,
    /// What it takes to list the processes.
    list: Duration,
}

impl MadeUp {
    fn new(stable: Duration) -> Self {
        MadeUp {
            stable,
            now: Duration::ZERO,
            cpu: Duration::ZERO,
            processes: BTreeMap::new(),
            looked: 0,
            merges: 0,
            log: Vec::new(),
            tracks: false,
            needs_no_twin: |_| false,
            told: Vec::new(),
            worked_on: Vec::new(),
            list: Duration::ZERO,
        }
    }

    fn take(&mut self, time: Duration) {
        self.now += time;
        self.cpu += time;
        self.log.push((self.now, time));
    }

    fn write(&mut self, id: u64, page: u64, content: u64) {
        let process = self.processes.entry(id).or_default();
        let page = process.pages.entry(page).or_default();
        page.content = content;
        page.merged = false;
        page.written = true;
    }

    /// Works until that time; then nothing has to wait.
    fn run(&mut self, scanner: &mut Scanner, until: Duration) {
        while self.now < until {
            let before = self.now;
            match scanner.step(self).wait() {
                // Something takes time in any case.
                None if self.now == before => self.take(Duration::from_nanos(100)),
                None => {}
                Some(wait) => {
                    assert!(!wait.is_zero());
                    self.now = (self.now + wait).min(until);
                }
            }
        }
    }

    fn merged(&self) -> usize {
        let pages = self
            .processes
            .values()
            .flat_map(|process| process.pages.values());
        pages.filter(|page| page.merged).count()
    }

    fn most_in_a_minute(&self) -> Duration {
        let (mut sum, mut most, mut first) = (Duration::ZERO, Duration::ZERO, 0);
        for (at, piece) in &self.log {
            sum += *piece;
            while self.log[first].0 + MINUTE < *at {
                sum -= self.log[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }
}

impl World for MadeUp {
    fn now(&self) -> Duration {
        self.now
    }

    fn cpu(&self) -> Duration {
        self.cpu
    }

    fn processes(&mut self, see: &mut dyn FnMut(Found)) {
        self.take(self.list);
        for (id, process) in &self.processes {
            see(Found::new(*id, process.domain));
        }
    }

    fn layout(&mut self, id: u64, see: &mut dyn FnMut(Range)) -> Result<(), Gone> {
        let process = self.processes.get(&id).ok_or(Gone)?;
        if let (Some((first, _)), Some((last, _))) = (
            process.pages.first_key_value(),
            process.pages.last_key_value(),
        ) {
            see(Range::new(*first, *last + 1, process.pages.len() as u64));
        }
        Ok(())
    }

    fn look(
        &mut self,
        id: u64,
        pages: std::ops::Range<u64>,
        known: &Known,
        see: &mut dyn FnMut(u64, Seen),
    ) -> Result<Whole, Gone> {
        let block = pages.start / sksm_scan::BLOCK;
        assert_eq!(block, (pages.end - 1) / sksm_scan::BLOCK);
        let now = self.now;
        let process = self.processes.get_mut(&id).ok_or(Gone)?;
        let mut all = Vec::new();
        for (number, page) in process.pages.range_mut(pages.clone()) {
            page.look(now);
            let written = std::mem::take(&mut page.written);
            let seen = match page.merged {
                true if known.merged(*number) => Seen::Merged,
                true => Seen::Shared(page.sample()),
                false if !self.tracks || !known.has(*number) => Seen::Own(page.sample()),
                false if written => Seen::Written(page.sample()),
                false => Seen::Unchanged,
            };
            all.push((*number, seen));
        }
        let huge = process.huge.contains(&block);
        let count = all.len() as u32;
        self.looked += u64::from(count);
        self.worked_on.push(id);
        let as_it_was = |(_, seen): &(u64, Seen)| matches!(seen, Seen::Merged | Seen::Unchanged);
        let known = pages.filter(|number| known.has(*number)).count();
        let unchanged = self.tracks && !huge && all.iter().all(as_it_was) && known == all.len();
        self.take(LOOK * count);
        if unchanged {
            return Ok(Whole::Unchanged);
        }
        all.into_iter().for_each(|(number, seen)| see(number, seen));
        Ok(match huge {
            true => Whole::HugePage,
            false => Whole::Pages,
        })
    }

    fn read(
        &mut self,
        id: u64,
        pages: &[u64],
        see: &mut dyn FnMut(u64, Content),
    ) -> Result<(), Gone> {
        let now = self.now;
        self.take(READ * pages.len() as u32);
        let process = self.processes.get_mut(&id).ok_or(Gone)?;
        for number in pages {
            let Some(page) = process.pages.get_mut(number) else {
                continue;
            };
            page.look(now);
            page.read = now;
            let mut content = Content::new(page.sample(), page.content.into());
            content.frame = page.merged.then_some(page.content);
            content.zero = page.content == 0;
            see(*number, content);
        }
        Ok(())
    }

    fn merge(&mut self, id: u64, pages: &[std::ops::Range<u64>]) -> Result<Merged, Gone> {
        let numbers: Vec<u64> = pages.iter().cloned().flatten().collect();
        self.take(MERGE * numbers.len() as u32);
        let (now, stable) = (self.now, self.stable);
        let process = self.processes.get_mut(&id).ok_or(Gone)?;
        let mut done = Merged::default();
        for number in numbers {
            let Some(page) = process.pages.get_mut(&number) else {
                continue;
            };
            assert!(
                page.seen.is_some() && page.since + stable <= page.read,
                "page {number} is as it is since {:?}, and is merged at {now:?}",
                page.since
            );
            page.merged = true;
            process
                .huge
                .retain(|block| *block != number / sksm_scan::BLOCK);
            done.shared += 1;
            self.merges += 1;
        }
        Ok(done)
    }

    fn zero(&self) -> u32 {
        0
    }

    fn ready(&mut self, _: u64, sample: u32) {
        self.told.push(sample);
    }

    fn needs_no_twin(&self, _: u64, sample: u32) -> bool {
        (self.needs_no_twin)(sample)
    }
}

fn settings(stable: Duration, cpu: Option<f64>) -> Settings {
    let mut settings = Settings::default();
    settings.stable = stable;
    settings.cpu = cpu;
    settings
}

/// Pages that are not merged although another of their domain is the same.
fn left_out(world: &MadeUp) -> usize {
    let all = || {
        world
            .processes
            .values()
            .flat_map(|one| one.pages.values().map(|page| (one.domain, *page)))
    };
    let mut counts: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    all().for_each(|(domain, page)| *counts.entry((domain, page.content)).or_default() += 1);
    let worth =
        |(domain, page): &(u64, Page)| counts[&(*domain, page.content)] > 1 || page.content == 0;
    all().filter(|one| worth(one) && !one.1.merged).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing is merged that was not stable, which the made-up kernel looks at; and in the end all that has a twin is.
    #[test]
    fn what_is_stable_is_merged_and_nothing_else(
        seconds in 1u64..120,
        tracks in any::<bool>(),
        writes in prop::collection::vec((1u64..6, 0u64..1500, 0u64..300, 0u64..20), 1..600),
    ) {
        let stable = Duration::from_secs(seconds);
        let mut world = MadeUp::new(stable);
        world.tracks = tracks;
        let mut scanner = Scanner::new(settings(stable, None), &world);
        for (process, page, content, wait) in writes {
            // Every other content has the sample of its neighbour.
            let content = content / 2 + (content % 2) * (1 << 40);
            world.write(process, page, content);
            world.processes.get_mut(&process).unwrap().domain = process % 2;
            let until = world.now + Duration::from_secs(wait);
            world.run(&mut scanner, until);
        }
        let end = world.now;
        // Longer than any wait that pages may have by then.
        world.run(&mut scanner, end + stable * 300);
        prop_assert_eq!(left_out(&world), 0);
        let merges = world.merges;
        world.run(&mut scanner, end + stable * 600);
        prop_assert_eq!(world.merges, merges);
    }

    #[test]
    fn the_budget_is_kept_over_any_minute(share in 0.002f64..0.2, churn in 0u64..400) {
        let stable = Duration::from_secs(20);
        let mut world = MadeUp::new(stable);
        let mut scanner = Scanner::new(settings(stable, Some(share)), &world);
        for page in 0..60_000 {
            world.write(page % 7, page / 7, page % 5000);
        }
        for round in 0..60 {
            for page in 0..churn {
                world.write(round % 7, page * 11 % 8000, (round << 32) + page);
            }
            let until = world.now + 5 * SECOND;
            world.run(&mut scanner, until);
        }
        // The last pieces of work may be too much by themselves.
        let most = share * 60.0 + 0.05;
        let taken = world.most_in_a_minute().as_secs_f64();
        prop_assert!(taken <= most, "{taken} of {most}");
    }
}

/// It is merged again ever more rarely.
#[test]
fn what_is_written_after_each_merge_is_left_alone_in_the_end() {
    let mut world = MadeUp::new(MINUTE);
    let mut scanner = Scanner::new(settings(MINUTE, None), &world);
    for page in 0..100 {
        world.write(1, page, 7 + page);
        world.write(2, page, 7 + page);
    }
    for _ in 0..24 * 60 {
        let until = world.now + MINUTE / 2;
        world.run(&mut scanner, until);
        // Whoever was merged is written at once, and the same again.
        let merged: Vec<u64> = (0..100)
            .filter(|page| world.processes[&1].pages[page].merged)
            .collect();
        merged
            .iter()
            .for_each(|page| world.write(1, *page, 7 + page));
    }
    let of_one = world.merges / 200;
    assert!(
        (3..=9).contains(&of_one),
        "merged {of_one} times in 12 hours"
    );
    assert!(scanner.total().came_apart >= 300);
}

/// Each has its turn, however large another is.
#[test]
fn small_processes_do_not_wait_for_a_large_one() {
    let mut world = MadeUp::new(MINUTE);
    // Alone with all it has, and it takes hours.
    for page in 0..1_000_000 {
        world.write(1, page, (1 << 50) + page);
    }
    for process in 2..52 {
        for page in 0..100 {
            world.write(process, page, page + 1);
        }
    }
    let mut scanner = Scanner::new(settings(MINUTE, Some(0.0005)), &world);
    world.run(&mut scanner, 8 * MINUTE);
    let small = |process: &u64| {
        world.processes[process]
            .pages
            .values()
            .all(|page| page.merged)
    };
    let done = (2..52).filter(small).count();
    assert_eq!(done, 50, "of 50; looked at {} pages", world.looked);
    let total = scanner.total();
    assert!(
        total.pages < 900_000,
        "the large one was looked at, too: {total:?}"
    );
}

/// Before all is known, or was looked at once, the stable time has long passed.
#[test]
fn once_is_not_over_before_all_was_seen_twice() {
    for share in [None, Some(0.1)] {
        let mut world = MadeUp::new(Duration::from_millis(100));
        world.list = SECOND;
        for page in 0..200_000 {
            world.write(page % 3, page / 3, page / 3);
        }
        let mut scanner = Scanner::new(settings(world.stable, share), &world);
        while !scanner.seen_twice() {
            let until = world.now + Duration::from_millis(10);
            world.run(&mut scanner, until);
            assert!(world.now < 600 * SECOND, "it is never over");
        }
        assert_eq!(world.merged(), 200_000, "with {share:?}");
    }
}

#[test]
fn who_has_gone_is_forgotten() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(SECOND, None), &world);
    let empty = scanner.size();
    for page in 0..100_000 {
        world.write(page % 50, page, page % 1000);
    }
    world.run(&mut scanner, 100 * SECOND);
    assert_eq!(world.merged(), 100_000);
    let full = scanner.size();
    // 8 MiB for a GiB.
    assert!(full < 100_000 * 32, "{full} bytes");
    let total = scanner.total();
    assert_eq!((total.pages, total.merged), (100_000, 100_000));
    world.processes.clear();
    let until = world.now + 30 * SECOND;
    world.run(&mut scanner, until);
    assert_eq!(scanner.ledgers().count(), 0);
    assert!(scanner.size() <= 2 * empty, "{} bytes", scanner.size());
    let total = scanner.total();
    assert_eq!((total.pages, total.merged, total.merges), (0, 0, 100_000));
}

#[test]
fn nothing_is_merged_across_domains() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(SECOND, None), &world);
    for process in 1..5 {
        (0..50).for_each(|page| world.write(process, page, 9 + page));
        world.processes.get_mut(&process).unwrap().domain = process;
    }
    world.run(&mut scanner, 60 * SECOND);
    assert_eq!(world.merged(), 0);
    // And is not even read in full for it.
    assert_eq!(scanner.total().read, 0);
}

/// Its twin may be where the scanner does not look.
#[test]
fn what_needs_no_twin_is_merged_once_stable() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(SECOND, None), &world);
    (0..50).for_each(|page| world.write(1, page, 9 + page));
    world.run(&mut scanner, 10 * SECOND);
    assert_eq!(world.merged(), 0);
    let told = world.told.len();
    assert_eq!(told, 50, "each was told of once");
    let mut stable = 0;
    scanner.each_stable(|id, sample| stable += u32::from(id == 1 && sample >= 9));
    assert_eq!(stable, 50);
    // It has come to be known elsewhere meanwhile.
    world.needs_no_twin = |sample| sample < 19;
    scanner.ask_again(&world);
    world.run(&mut scanner, 20 * SECOND);
    assert_eq!(world.merged(), 10);
    (50..60).for_each(|page| world.write(1, page, page % 2 + 9));
    world.run(&mut scanner, 40 * SECOND);
    assert_eq!(world.merged(), 20);
}

/// A page that is written elsewhere than where its sample is, is left alone.
#[test]
fn what_is_written_all_the_time_is_not_merged_for_its_sample() {
    let mut world = MadeUp::new(MINUTE);
    world.tracks = true;
    let mut scanner = Scanner::new(settings(MINUTE, None), &world);
    for minute in 0..120u64 {
        for process in 1..3 {
            (0..20).for_each(|page| world.write(process, page, (minute << 40) + page + 1));
        }
        world.run(&mut scanner, minute as u32 * MINUTE / 2);
    }
    assert_eq!((world.merges, scanner.total().read), (0, 0));
}

/// Twins in a huge page count even if they become known at different times.
#[test]
fn huge_pages_are_split_for_enough_twins_only() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(SECOND, None), &world);
    for page in 0..512 {
        world.write(1, 512 + page, (1 << 40) + page + 1);
    }
    world.processes.get_mut(&1).unwrap().huge = vec![1];
    let twins = |world: &mut MadeUp, pages: std::ops::Range<u64>| {
        for page in pages {
            world.write(2, page, (1 << 40) + page + 1);
        }
    };
    twins(&mut world, 0..40);
    world.run(&mut scanner, 100 * SECOND);
    let of = |world: &MadeUp, process| {
        let pages = world.processes[&process].pages.values();
        pages.filter(|page| page.merged).count()
    };
    assert_eq!(of(&world, 1), 0);
    twins(&mut world, 40..70);
    world.run(&mut scanner, 300 * SECOND);
    assert_eq!(of(&world, 1), 70);
    assert_eq!(scanner.total().split, 1);
}

/// What stays the same is looked at ever more rarely.
#[test]
fn idle_memory_costs_less_and_less() {
    let mut world = MadeUp::new(MINUTE);
    let mut scanner = Scanner::new(settings(MINUTE, None), &world);
    (0..10_000).for_each(|page| world.write(1, page, (1 << 33) + page + 1));
    world.run(&mut scanner, 5 * MINUTE);
    let first = world.looked;
    world.run(&mut scanner, 65 * MINUTE);
    let hour = world.looked - first;
    assert!(hour <= 6 * 10_000, "{hour} looks in an hour");
    // And so is what never stays the same.
    for minute in 65..125 {
        (0..10_000).for_each(|page| world.write(1, page, (minute << 33) + page + 1));
        world.run(&mut scanner, minute as u32 * MINUTE);
    }
    let restless = world.looked - hour - first;
    assert!(restless <= 12 * 10_000, "{restless} looks in an hour");
}

/// A page that is swapped out and in again is merged again at once, not after the stable time.
#[test]
fn a_page_that_is_its_own_again_later_is_merged_again() {
    let mut world = MadeUp::new(MINUTE);
    let mut scanner = Scanner::new(settings(MINUTE, None), &world);
    for process in 1..3 {
        (0..100).for_each(|page| world.write(process, page, 5 + page));
    }
    world.run(&mut scanner, 10 * MINUTE);
    assert_eq!(world.merged(), 200);
    let pages = world.processes.get_mut(&1).unwrap().pages.values_mut();
    pages.for_each(|page| page.merged = false);
    world.run(&mut scanner, 50 * MINUTE);
    assert_eq!((world.merged(), world.merges), (200, 300));
    assert_eq!(scanner.total().came_apart, 0);
}

/// More of one content than one search takes; and of one sample, with twins far from each other.
#[test]
fn crowds_of_one_sample_are_merged_to_the_last() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(SECOND, None), &world);
    for page in 0..70_000 {
        world.write(1, page, 0);
        world.write(2, page, 5);
        world.write(3, page, (page % 35_000 + 1) << 32);
    }
    world.run(&mut scanner, 300 * SECOND);
    assert_eq!(left_out(&world), 0);
    // And then there is nothing to be read any more.
    let read = scanner.total().read;
    world.run(&mut scanner, 600 * SECOND);
    assert_eq!(scanner.total().read, read);
}

/// What is known stays known when the clock of ages changes.
#[test]
fn another_stable_time_forgets_nothing() {
    let mut world = MadeUp::new(SECOND);
    let mut scanner = Scanner::new(settings(MINUTE, None), &world);
    for page in 0..100 {
        world.write(1, page, page + 1);
        world.write(2, page, page + 1);
    }
    world.run(&mut scanner, 3 * MINUTE);
    let total = scanner.total();
    assert_eq!(total.merged, 200);
    scanner.set(settings(SECOND, None), &world);
    assert_eq!(scanner.total(), total);
    for page in 100..200 {
        world.write(1, page, page + 1);
        world.write(2, page, page + 1);
    }
    world.run(&mut scanner, 3 * MINUTE + 10 * SECOND);
    assert_eq!((world.merged(), world.merges), (400, 400));
}
