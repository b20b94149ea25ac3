//! DAMON watches frames: accesses to a merged page are seen, by whichever mapping.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

use crate::expect::{merged, merging, one_page};
use crate::idle::forget_translations;
use crate::writers::{beside, count, for_a_while};

pub const TESTS: &[Test] = &[
    test("damon/accesses-are-seen", accesses),
    test("damon/all-memory-while-merging", all_memory),
];

const ADMIN: &str = "/sys/kernel/mm/damon/admin/kdamonds";

/// One that counts regions in which there was no access, and regions in which there was one. Stopped when dropped.
struct Damon(PathBuf);

#[derive(Clone, Copy)]
enum Kind {
    Untouched,
    Touched,
}

impl Damon {
    /// Watches frames from `first` up to `end`.
    fn start(first: u64, end: u64) -> Result<Self> {
        if !Path::new(ADMIN).is_dir() {
            return skip("no DAMON in this kernel (CONFIG_DAMON_PADDR, CONFIG_DAMON_SYSFS)");
        }
        let admin = PathBuf::from(ADMIN);
        write(&admin, "nr_kdamonds", "1")?;
        let this = Self(admin.join("0"));
        write(&this.0, "contexts/nr_contexts", "1")?;
        let context = this.0.join("contexts/0");
        let size = PAGE as u64;
        for (file, value) in [
            ("operations", "paddr".to_owned()),
            ("monitoring_attrs/intervals/sample_us", "5000".into()),
            ("monitoring_attrs/intervals/aggr_us", "50000".into()),
            ("targets/nr_targets", "1".into()),
            ("targets/0/regions/nr_regions", "1".into()),
            ("targets/0/regions/0/start", (first * size).to_string()),
            ("targets/0/regions/0/end", (end * size).to_string()),
            ("schemes/nr_schemes", "2".into()),
        ] {
            write(&context, file, &value)?;
        }
        for (scheme, accesses) in [(Kind::Untouched, [0, 0]), (Kind::Touched, [1, 1000])] {
            let scheme = context.join(format!("schemes/{}", scheme as usize));
            write(&scheme, "action", "stat")?;
            for (range, [min, max]) in [
                ("sz", [0, u64::MAX]),
                ("nr_accesses", accesses),
                ("age", [0, u32::MAX.into()]),
            ] {
                write(
                    &scheme,
                    &format!("access_pattern/{range}/min"),
                    &min.to_string(),
                )?;
                write(
                    &scheme,
                    &format!("access_pattern/{range}/max"),
                    &max.to_string(),
                )?;
            }
        }
        write(&this.0, "state", "on")?;
        Ok(this)
    }

    /// How many regions of that kind it has found so far.
    fn found(&self, kind: Kind) -> Result<u64> {
        write(&self.0, "state", "update_schemes_stats")?;
        let path = format!("contexts/0/schemes/{}/stats/nr_tried", kind as usize);
        let text = fs::read_to_string(self.0.join(path))?;
        Ok(text.trim().parse()?)
    }

    /// Waits until it has found more regions of that kind.
    fn finds(&self, kind: Kind, what: &str) -> Result<()> {
        let start = self.found(kind)?;
        let deadline = deadline();
        while self.found(kind)? < start + 2 {
            ensure!(Instant::now() < deadline, "DAMON does not see {what}");
        }
        Ok(())
    }
}

impl Drop for Damon {
    fn drop(&mut self) {
        let off = write(&self.0, "state", "off");
        if let Err(error) = off.and_then(|()| write(Path::new(ADMIN), "nr_kdamonds", "0")) {
            eprintln!("cannot stop DAMON: {error:#}");
        }
    }
}

fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

fn accesses() -> Result<()> {
    let map = merged(2, 5)?;
    let child = Child::spawn(|parent| {
        // Its own pages, which find the parent's.
        map.fill_all(|_| 5);
        map.merge()?;
        parent.meet()?;
        // By the last of the four mappings, until told to stop.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                while !stop.load(Relaxed) {
                    forget_translations()?;
                    map.expect(1, 5)?;
                }
                anyhow::Ok(())
            });
            let told = parent.meet();
            stop.store(true, Relaxed);
            reads.join().expect("the reader panicked")?;
            told
        })
    })?;
    child.pause()?;
    let pfn = map.pfn(0)?;
    one_page(&[child.pagemap()?.pfns(map.addr(), 2)?, map.pfns()?].concat())?;
    let damon = Damon::start(pfn, pfn + 1)?;
    damon.finds(Kind::Untouched, "that nobody accesses the page")?;
    let touched = damon.found(Kind::Touched)?;
    damon.finds(Kind::Untouched, "that nobody accesses the page")?;
    ensure!(
        damon.found(Kind::Touched)? == touched,
        "DAMON sees accesses that nobody makes"
    );
    child.go()?;
    child.pause()?;
    damon.finds(Kind::Touched, "accesses to a merged page")?;
    drop(damon);
    child.go()?;
    child.join()
}

/// It looks at frames all over memory while pages become merged ones, and stop to be.
fn all_memory() -> Result<()> {
    const PAGES: usize = 64;
    let map = Map::filled(&[0; PAGES])?;
    // Around the pages that merge, or it would hardly ever come by them.
    let pfns = map.pfns()?;
    let (first, last) = (pfns.iter().min(), pfns.iter().max());
    let (first, last) = (first.context("no page")?, last.context("no page")?);
    let damon = Damon::start(*first, *last + 1)?;
    let write = |round| count(&map, 0..PAGES, round);
    merging(|| beside(1, || map.merge(), |_| for_a_while(write)))?;
    damon.finds(Kind::Untouched, "anything")
}
