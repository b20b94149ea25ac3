//! Migration of merged pages by compaction.

use std::fs;

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::{Map, PAGE};
use sksm_guest::process::Child;
use sksm_guest::report::{Test, skip, test};

use crate::expect::{copies, merging};
use crate::writers::{beside, count, for_a_while};

pub const TESTS: &[Test] = &[
    test("moving/compaction", compaction),
    test("moving/compaction-with-writes", compaction_with_writes),
];

pub fn compact() -> Result<()> {
    fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")
}

/// Merged pages among many holes, so that compaction has reason to move them.
fn fragmented(pages: usize) -> Result<Map> {
    if !fs::exists("/proc/sys/vm/compact_memory")? {
        return skip("no compaction in this kernel (CONFIG_COMPACTION)");
    }
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(|page| 1 + page as u64 / 4);
    map.merge()?;
    ensure!(copies(&map.pfns()?) == pages / 4, "not merged");
    Ok(map)
}

fn compaction() -> Result<()> {
    let id = |page: usize| 1 + page as u64 / 4;
    let map = fragmented((32 << 20) / PAGE)?;
    let before = map.pfns()?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(id)?;
        map.merge()?;
        (0..map.pages())
            .step_by(5)
            .for_each(|page| map.fill(page, 1));
        parent.meet()?;
        map.expect_all(|page| if page % 5 == 0 { 1 } else { id(page) })
    })?;
    child.pause()?;
    compact()?;
    let after = map.pfns()?;
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(was, is)| was != is)
        .count();
    eprintln!("{moved} of {} mappings moved", before.len());
    ensure!(
        copies(&after) == copies(&before),
        "moving parted merged pages"
    );
    child.go()?;
    child.pause()?;
    compact()?;
    map.expect_all(id)?;
    // A page that moved is still found by content.
    let twin = Map::anon(map.pages())?;
    twin.no_huge();
    twin.fill_all(id);
    twin.merge()?;
    ensure!(
        copies(&[map.pfns()?, twin.pfns()?].concat()) == copies(&after),
        "moved pages are not found"
    );
    child.go()?;
    child.join()
}

fn compaction_with_writes() -> Result<()> {
    const PAGES: usize = 64;
    let _others = fragmented((16 << 20) / PAGE)?;
    let map = Map::filled(&[0; PAGES])?;
    let write = |round| count(&map, 0..PAGES, round);
    let compacting = |_: &_| beside(1, compact, |_| for_a_while(write));
    merging(|| beside(1, || map.merge(), compacting))
}
