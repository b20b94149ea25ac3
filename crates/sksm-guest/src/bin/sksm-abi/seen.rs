//! What can be seen of merging from outside.

use std::fs;

use anyhow::{Context, Result, ensure};
use sksm_guest::memory::Map;
use sksm_guest::pagemap::{self, Flags};
use sksm_guest::report::{Test, test};
use sksm_guest::sysfs::{Counters, SKSM};

use crate::expect::merged;

pub const TESTS: &[Test] = &[
    test("seen/counters", counters),
    test("seen/read-only-files", read_only_files),
    test("seen/smaps", smaps),
    test("seen/kpageflags", kpageflags),
    test("seen/kpagecount", kpagecount),
];

fn counters() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&[1, 1, 1, 2, 2, 3, 0, 0])?;
    map.merge()?;
    let change = start.change()?;
    let found = (
        change.pages_shared,
        change.pages_sharing,
        change.pages_unshared,
        change.pages_zero,
    );
    ensure!(found == (2, 3, 1, 2), "{change:?}");
    ensure!(change.calls == 1, "{change:?}");
    ensure!(change.pages_scanned == 8, "{change:?}");
    // Three duplicates; whether a page of zeros counts as merged is the engine's to say.
    ensure!((3..=5).contains(&change.pages_merged), "{change:?}");
    ensure!(change.pages_busy == 0, "{change:?}");
    ensure!(change.bytes_metadata > 0, "{change:?}");
    Ok(())
}

fn read_only_files() -> Result<()> {
    for name in [
        "pages_shared",
        "pages_sharing",
        "pages_zero",
        "pages_unshared",
        "calls",
        "pages_scanned",
        "pages_merged",
        "pages_busy",
        "bytes_metadata",
    ] {
        SKSM.number(name)?;
        ensure!(SKSM.write(name, 1).is_err(), "{name} can be written");
    }
    let sharing = SKSM.number("max_page_sharing")?;
    for value in ["-1", "0", "many"] {
        ensure!(
            SKSM.write("max_page_sharing", value).is_err(),
            "took {value}"
        );
    }
    ensure!(
        SKSM.number("max_page_sharing")? == sharing,
        "a refused value had an effect"
    );
    SKSM.number("merge_across_nodes").map(drop)
}

/// The `KSM:` field of the mapping, in kB.
fn ksm_field(map: &Map) -> Result<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let start = format!("{:x}-", map.addr());
    let fields = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let line = fields
        .skip(1)
        .find_map(|line| line.strip_prefix("KSM:"))
        .context("smaps has no KSM field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn smaps() -> Result<()> {
    // A mapping between others that it cannot join.
    let map = Map::filled(&[5; 6])?;
    map.protect_pages(0..1, libc::PROT_NONE)?;
    map.protect_pages(5..6, libc::PROT_NONE)?;
    let inner = map.part(1..5);
    ensure!(ksm_field(&inner)? == 0, "before merging");
    inner.merge()?;
    let found = ksm_field(&inner)?;
    ensure!(found == 16, "four merged pages show as {found} kB");
    inner.fill(0, 6);
    let found = ksm_field(&inner)?;
    ensure!(found == 12, "three merged pages show as {found} kB");
    Ok(())
}

fn kpageflags() -> Result<()> {
    let map = merged(2, 5)?;
    let flags = Flags::of(map.pfn(0)?)?;
    ensure!(flags.ksm() && flags.anon(), "merged page: {flags:x?}");
    let ordinary = Map::filled(&[6])?;
    let flags = Flags::of(ordinary.pfn(0)?)?;
    ensure!(!flags.ksm() && flags.anon(), "ordinary page: {flags:x?}");
    map.fill(0, 7);
    map.fill(1, 8);
    for page in 0..2 {
        let flags = Flags::of(map.pfn(page)?)?;
        ensure!(!flags.ksm() && flags.anon(), "written page: {flags:x?}");
    }
    Ok(())
}

fn kpagecount() -> Result<()> {
    let map = merged(7, 5)?;
    let count = pagemap::map_count(map.pfn(0)?)?;
    ensure!(count == 7, "seven mappings counted as {count}");
    map.fill(0, 6);
    let count = pagemap::map_count(map.pfn(1)?)?;
    ensure!(count == 6, "six mappings counted as {count}");
    Ok(())
}
