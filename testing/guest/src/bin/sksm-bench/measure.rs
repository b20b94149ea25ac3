//! How things are measured: content that nothing equals, one timed call, repeats, and the yardstick.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::machine::system;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::syscall::check;
use sksm_records::bench::names::{self, ONE_USER, ORDINARY, SHARED};
use sksm_records::bench::{BesideKsm, Family, Row, Unit, Yardstick};
use sksm_records::statistics::Summary;
use twox_hash::XxHash64;

/// Pages that one page table maps.
pub const TABLE_PAGES: usize = TABLE / PAGE;

/// One family of measurements in progress.
pub struct Bench {
    pub quick: bool,
    /// No repeats.
    pub once: bool,
    /// Instead of time.
    pub instructions: bool,
    family: Family,
    beside_ksm: Option<BesideKsm>,
    start: Instant,
    told: Duration,
    yard: Yard,
}

/// What a row is about.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    pub what: &'a str,
    pub variant: &'a str,
    pub at: Option<u64>,
}

pub fn name<'a>(what: &'a str, variant: &'a str) -> Name<'a> {
    Name {
        what,
        variant,
        at: None,
    }
}

impl Name<'_> {
    pub fn at(self, at: usize) -> Self {
        Self {
            at: Some(at as u64),
            ..self
        }
    }
}

impl Bench {
    pub fn new(name: &str, title: &str) -> Self {
        eprintln!("{name}");
        Self {
            quick: false,
            once: false,
            instructions: false,
            family: Family {
                name: name.to_owned(),
                title: title.to_owned(),
                seconds: 0.0,
                rows: Vec::new(),
                notes: Vec::new(),
            },
            beside_ksm: None,
            start: Instant::now(),
            told: Duration::ZERO,
            yard: Yard::new(),
        }
    }

    pub fn finish(mut self) -> (Family, Option<BesideKsm>) {
        self.family.seconds = self.start.elapsed().as_secs_f64();
        (self.family, self.beside_ksm)
    }

    /// `few` when it has to be quick.
    pub fn size(&self, few: usize, many: usize) -> usize {
        if self.quick { few } else { many }
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.family.notes.push(text.into());
    }

    pub fn beside_ksm(&mut self, result: BesideKsm) {
        self.beside_ksm = Some(result);
    }

    /// Progress for whoever watches.
    pub fn tell(&mut self, text: &str) {
        let now = self.start.elapsed();
        if now - self.told > Duration::from_millis(500) {
            self.told = now;
            eprintln!("{}: {text}", self.family.name);
        }
    }

    /// Rounds of a measurement.
    pub fn rounds(&self, wanted: usize) -> Rounds {
        self.rounds_of(1, wanted)
    }

    /// The same, of so many rows that are measured in turn.
    pub fn rounds_of(&self, rows: usize, wanted: usize) -> Rounds {
        Rounds {
            wanted: if self.once { 1 } else { wanted },
            done: 0,
            end: Instant::now() + Duration::from_secs((rows * self.size(2, 5)) as u64),
        }
    }

    /// A row from repeated samples.
    pub fn repeated(
        &mut self,
        name: Name,
        unit: Unit,
        repeats: usize,
        mut sample: impl FnMut() -> Result<f64>,
    ) -> Result<()> {
        self.tell(name.what);
        let mut values = Vec::new();
        for warm in self.rounds(repeats) {
            let value = sample().with_context(|| format!("{}, {}", name.what, name.variant))?;
            if warm {
                values.push(value);
            }
        }
        self.row(name, unit, values)
    }

    /// The same, of what takes that long for that many pages.
    pub fn per_page(
        &mut self,
        name: Name,
        pages: usize,
        repeats: usize,
        mut sample: impl FnMut() -> Result<Duration>,
    ) -> Result<()> {
        self.repeated(name, Unit::NsPerPage, repeats, || {
            Ok(sample()?.as_nanos() as f64 / pages as f64)
        })
    }

    /// The same, of what is not done by the page.
    pub fn each(
        &mut self,
        name: Name,
        repeats: usize,
        mut sample: impl FnMut() -> Result<Duration>,
    ) -> Result<()> {
        self.repeated(name, Unit::Ns, repeats, || Ok(sample()?.as_nanos() as f64))
    }

    /// A row from values that are there already.
    pub fn row(&mut self, name: Name, unit: Unit, values: Vec<f64>) -> Result<()> {
        self.tell(name.what);
        ensure!(
            names::known(&self.family.name, name.what, name.variant),
            "the row {:?} of {:?} is not in the list of names",
            name.what,
            name.variant
        );
        let value = Summary::of(values).with_context(|| format!("no value of {:?}", name.what))?;
        self.family.rows.push(Row {
            what: name.what.to_owned(),
            variant: name.variant.to_owned(),
            at: name.at,
            unit,
            value,
            yardstick: Some(self.yard.measure()),
        });
        Ok(())
    }
}

/// One round to warm up, which is false, and then as many as wanted; three on a machine too slow for all of them.
pub struct Rounds {
    wanted: usize,
    done: usize,
    end: Instant,
}

impl Iterator for Rounds {
    type Item = bool;

    fn next(&mut self) -> Option<bool> {
        let enough = self.done > 3 && Instant::now() > self.end;
        if enough || self.done > self.wanted {
            return None;
        }
        self.done += 1;
        Some(self.done > 1)
    }
}

/// Two page tables' worth of equal pages, warm for neither of them: as the pages that a merge looks at.
struct Yard {
    one: Vec<u8>,
    other: Vec<u8>,
}

impl Yard {
    fn new() -> Self {
        let one: Vec<u8> = (0..TABLE / 8)
            .flat_map(|word| {
                (word as u64)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .to_ne_bytes()
            })
            .collect();
        let other = one.clone();
        Self { one, other }
    }

    fn measure(&mut self) -> Yardstick {
        const TIMES: usize = 5;
        let median = |mut pass: Box<dyn FnMut() + '_>| {
            let mut time = || {
                let start = Instant::now();
                pass();
                start.elapsed().as_nanos() as f64 / TABLE_PAGES as f64
            };
            let values = (0..TIMES).map(|_| time()).collect();
            Summary::of(values).map_or(f64::NAN, |summary| summary.median)
        };
        let memcmp = median(Box::new(|| {
            for (one, other) in self.one.chunks(PAGE).zip(self.other.chunks(PAGE)) {
                // What slices compare by is memcmp.
                assert!(std::hint::black_box(one) == std::hint::black_box(other));
            }
        }));
        let memcpy = median(Box::new(|| {
            for (one, other) in self.one.chunks(PAGE).zip(self.other.chunks_mut(PAGE)) {
                std::hint::black_box(other).copy_from_slice(std::hint::black_box(one));
            }
        }));
        let xxh64 = median(Box::new(|| {
            for page in self.one.chunks(PAGE) {
                std::hint::black_box(XxHash64::oneshot(0, std::hint::black_box(page)));
            }
        }));
        Yardstick {
            memcmp,
            memcpy,
            xxh64,
        }
    }
}

/// Whether this kernel has MADV_MERGE.
pub fn merges() -> bool {
    sksm::support() == sksm::Support::Merge
}

/// Names of so many contents that no page has had before: the first of a row of numbers.
pub fn fresh(count: usize) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(count as u64, Ordering::Relaxed)
}

/// Private pages in whole page tables, with contents of consecutive names.
pub fn filled(pages: usize, first: u64) -> Result<Map> {
    let map = Map::aligned(pages, TABLE, 0)?;
    map.fill_all(|page| first + page as u64);
    Ok(map)
}

/// The same, published or merged.
pub fn merged(pages: usize, first: u64) -> Result<Map> {
    let map = filled(pages, first)?;
    map.merge()?;
    Ok(map)
}

/// Makes the pages of one kind.
pub type Make<'a> = &'a dyn Fn() -> Result<Map>;

/// For pages of each kind that this kernel can have; they differ in nothing else.
pub fn each_kind(pages: usize, mut each: impl FnMut(&str, Make) -> Result<()>) -> Result<()> {
    each(ORDINARY, &|| filled(pages, fresh(pages)))?;
    if !merges() {
        return Ok(());
    }
    each(ONE_USER, &|| merged(pages, fresh(pages)))?;
    let first = fresh(pages);
    // In a process of its own: this one's children are not to have them twice.
    let keeper = Child::spawn(|parent| {
        let _published = merged(pages, first)?;
        parent.meet()
    })?;
    keeper.pause()?;
    each(SHARED, &|| {
        let before = SKSM.number("pages_merged")?;
        let map = merged(pages, first)?;
        let count = SKSM.number("pages_merged")? - before;
        ensure!(
            count >= pages as i64 * 99 / 100,
            "{count} of {pages} pages were merged"
        );
        Ok(map)
    })?;
    keeper.go()?;
    keeper.join()?;
    settle()
}

/// How long exactly the call takes.
pub fn timed_merge(map: &Map, pages: Range<usize>) -> Result<Duration> {
    let (addr, len) = (map.page(pages.start), pages.len() * PAGE);
    let start = Instant::now();
    let result = sksm::merge_exact(addr, len);
    let taken = start.elapsed();
    result.with_context(|| format!("merge of {} pages", pages.len()))?;
    Ok(taken)
}

/// How long something takes.
pub fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// What the engine is to do, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub scanned: usize,
    pub published: usize,
    pub merged: usize,
}

impl Wanted {
    pub fn publish(pages: usize) -> Self {
        Self {
            scanned: pages,
            published: pages,
            merged: 0,
        }
    }

    pub fn merge(pages: usize) -> Self {
        Self {
            scanned: pages,
            published: 0,
            merged: pages,
        }
    }
}

/// Does some work, in which the engine must do just that. One page of a hundred may be left out: reclaim or compaction may be
/// using it.
pub fn counting<T>(wanted: Wanted, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let read = || -> Result<[i64; 4]> {
        Ok([
            SKSM.number("pages_scanned")?,
            SKSM.number("pages_published")?,
            SKSM.number("pages_merged")?,
            SKSM.number("pages_busy")?,
        ])
    };
    let before = read()?;
    let result = work()?;
    let after = read()?;
    let names = ["scanned", "published", "merged"];
    let wanted = [wanted.scanned, wanted.published, wanted.merged];
    for (index, name) in names.into_iter().enumerate() {
        let (found, wanted) = (after[index] - before[index], wanted[index] as i64);
        ensure!(
            (found - wanted).abs() <= wanted / 100,
            "the engine {name} {found} pages instead of {wanted}, and {} were busy: this measures something else",
            after[3] - before[3]
        );
    }
    Ok(result)
}

/// Waits until the engine has freed what it held for pages that have gone: that would disturb what comes next.
pub fn settle() -> Result<()> {
    if !merges() {
        return Ok(());
    }
    // It frees after a grace period of RCU; so a second one has begun after the first when both have passed.
    for _ in 0..2 {
        // SAFETY: takes numbers only.
        check(unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) })
            .context("membarrier")?;
    }
    Ok(())
}

/// Where pages are not neighbours in memory, each is a mapping of the host's, and a process may have 65,530 of them.
const UM_PAGES: usize = 32_768;

/// So many pages this process can fill besides those that it `has`, with some left for everything else.
pub fn affordable_pages(has: usize) -> Result<usize> {
    let mib = system::memory_available_mib()? as usize;
    let pages = (mib * 9 / 10).saturating_sub(128) * ((1 << 20) / PAGE);
    Ok(match is_um()? {
        true => pages.min(UM_PAGES.saturating_sub(has)),
        false => pages,
    })
}

/// What stands in the way of more.
pub fn shortage() -> Result<&'static str> {
    Ok(match is_um()? {
        true => "User-Mode Linux could need more mappings than its host allows (vm.max_map_count)",
        false => "not enough memory",
    })
}

fn is_um() -> Result<bool> {
    Ok(system::processor()? == "UML")
}
