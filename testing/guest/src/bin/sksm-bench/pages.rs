//! What one page costs, by what becomes of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::page::TABLE;
use sksm_records::bench::names::{
    DUPLICATE, HUGE, MERGED_ALREADY, NOT_PRESENT, PUBLISH, SMALL, ZEROS,
};

use crate::inside;
use crate::measure::{
    Bench, TABLE_PAGES, Wanted, counting, fresh, merged, name, settle, timed_merge,
};

/// What the pages are in before the call.
#[derive(Clone, Copy)]
enum Backing {
    Small,
    Huge,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    let backings: &[Backing] = if Map::huge(TABLE_PAGES, |_| 0)?.is_some() {
        &[Backing::Small, Backing::Huge]
    } else {
        bench.note("huge pages: not in this kernel");
        &[Backing::Small]
    };
    for measure in [unique, duplicates, zeros, again, absent] {
        for backing in backings {
            measure(bench, *backing)?;
        }
    }
    inside::run(bench)
}

fn unique(bench: &mut Bench, backing: Backing) -> Result<()> {
    backing.row(bench, PUBLISH, |pages| {
        publish(backing.filled(pages, fresh(pages))?)
    })
}

fn duplicates(bench: &mut Bench, backing: Backing) -> Result<()> {
    let pages = pages(bench);
    let first = fresh(pages);
    let published = merged(pages, first)?;
    backing.row(bench, DUPLICATE, |pages| {
        let map = backing.filled(pages, first)?;
        let taken = merge(&map, Wanted::merge(pages))?;
        ensure!(map.pfns()? == published.pfns()?, "equal pages apart");
        Ok(taken)
    })
}

fn zeros(bench: &mut Bench, backing: Backing) -> Result<()> {
    backing.row(bench, ZEROS, |pages| {
        let map = backing.map(pages, &|_| 0)?;
        let taken = merge(&map, Wanted::merge(pages))?;
        for pfn in map.pfns()? {
            ensure!(Flags::of(pfn)?.zero_page(), "a page of zeros is left");
        }
        Ok(taken)
    })
}

fn again(bench: &mut Bench, backing: Backing) -> Result<()> {
    let pages = pages(bench);
    let first = fresh(pages);
    let _published = merged(pages, first)?;
    let map = backing.filled(pages, first)?;
    merge(&map, Wanted::merge(pages))?;
    backing.row(bench, MERGED_ALREADY, |_| merge(&map, Wanted::default()))
}

/// Small pages leave their page tables behind, huge ones have none.
fn absent(bench: &mut Bench, backing: Backing) -> Result<()> {
    let pages = pages(bench);
    let map = backing.filled(pages, fresh(pages))?;
    map.advise(libc::MADV_DONTNEED)?;
    backing.row(bench, NOT_PRESENT, |_| merge(&map, Wanted::default()))
}

fn pages(bench: &Bench) -> usize {
    bench.size(1, 4) * TABLE_PAGES
}

fn merge(map: &Map, wanted: Wanted) -> Result<Duration> {
    counting(wanted, || timed_merge(map, 0..map.pages()))
}

impl Backing {
    fn row(
        self,
        bench: &mut Bench,
        what: &str,
        mut sample: impl FnMut(usize) -> Result<Duration>,
    ) -> Result<()> {
        let pages = pages(bench);
        let (variant, repeats) = match self {
            Self::Small => (SMALL, bench.size(3, 15)),
            Self::Huge => (HUGE, bench.size(3, 9)),
        };
        bench.per_page(name(what, variant), pages, repeats, || sample(pages))
    }

    fn filled(self, pages: usize, first: u64) -> Result<Map> {
        self.map(pages, &|page| first + page as u64)
    }

    fn map(self, pages: usize, id: &dyn Fn(usize) -> u64) -> Result<Map> {
        match self {
            Self::Small => {
                let map = Map::aligned(pages, TABLE, 0)?;
                map.fill_all(id);
                Ok(map)
            }
            Self::Huge => Map::huge(pages, id)?.context("no huge pages any more"),
        }
    }
}

/// Publishes all of a map, and sees it go.
pub fn publish(map: Map) -> Result<Duration> {
    let taken = merge(&map, Wanted::publish(map.pages()))?;
    drop(map);
    settle()?;
    Ok(taken)
}
