//! What can be seen of merging from outside.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{self, Flags, Pagemap};
use sksm_guest::memory::process::{Child, pipe};
use sksm_guest::skip::skip;

use crate::expect::merged;
use crate::pins::splice;

pub const TESTS: &[Test] = &[
    test("seen/counters", counters),
    test("seen/vmstat", vmstat),
    test("seen/read-only-files", read_only_files),
    test("seen/smaps", smaps),
    test("seen/smaps-sizes", smaps_sizes),
    test("seen/pagemap", pagemap),
    test("seen/numa_maps", numa_maps),
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

/// The files that only tell.
pub const COUNTERS: [&str; 16] = [
    "pages_shared",
    "pages_sharing",
    "pages_zero",
    "pages_unshared",
    "calls",
    "pages_scanned",
    "pages_merged",
    "pages_published",
    "pages_withdrawn",
    "pages_busy",
    "pages_refused",
    "pages_swapped",
    "pages_swapped_in",
    "pages_asleep",
    "bytes_metadata",
    "general_profit",
];

fn read_only_files() -> Result<()> {
    for name in COUNTERS {
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

/// A field of the mapping in smaps, in kB.
fn field(map: &Map, name: &str) -> Result<u64> {
    let all = Process::myself()?.smaps()?;
    let own = all.iter().find(|other| other.address == bounds(map));
    let own = own.context("smaps shows no such mapping")?;
    let bytes = own.extension.map.get(name);
    Ok(bytes.with_context(|| format!("smaps has no field {name}"))? / 1024)
}

fn bounds(map: &Map) -> (u64, u64) {
    let start = map.addr() as u64;
    (start, start + map.len() as u64)
}

/// Pages between others that they cannot join.
fn walled(contents: &[u64]) -> Result<(Map, Range<usize>)> {
    let last = contents.len() + 1;
    let map = Map::filled(&vec![1; last + 1])?;
    map.protect_pages(0..1, libc::PROT_NONE)?;
    map.protect_pages(last..last + 1, libc::PROT_NONE)?;
    map.part(1..last).fill_all(|page| contents[page]);
    Ok((map, 1..last))
}

fn smaps() -> Result<()> {
    let (map, inner) = walled(&[5; 4])?;
    let inner = map.part(inner);
    ensure!(field(&inner, "KSM")? == 0, "before merging");
    inner.merge()?;
    let found = field(&inner, "KSM")?;
    ensure!(found == 16, "four merged pages show as {found} kB");
    inner.fill(0, 6);
    let found = field(&inner, "KSM")?;
    ensure!(found == 12, "three merged pages show as {found} kB");
    Ok(())
}

/// Sizes as they are for pages that are shared otherwise: of a page with n mappings each has an nth part.
fn smaps_sizes() -> Result<()> {
    let (map, inner) = walled(&[5, 5, 5, 5, 6, 0, 0, 7])?;
    let inner = map.part(inner);
    let sizes = |wanted: [u64; 6], when: &str| -> Result<()> {
        let names = [
            "Rss",
            "Pss",
            "Anonymous",
            "Shared_Dirty",
            "Private_Dirty",
            "KSM",
        ];
        for (name, wanted) in names.into_iter().zip(wanted) {
            let found = field(&inner, name)?;
            ensure!(
                found == wanted,
                "{when}: {name} is {found} kB, not {wanted}"
            );
        }
        Ok(())
    };
    sizes([32, 32, 32, 0, 32, 0], "plain")?;
    inner.merge_pages(0..7)?;
    // Four on one page; one without a twin; two on the zero page, which counts for nobody; one plain.
    sizes([24, 12, 24, 16, 8, 20], "merged")?;
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    sizes([24, 6, 24, 24, 0, 20], "with a child")?;
    child.go()?;
    child.join()?;
    inner.fill_all(|page| page as u64 + 10);
    sizes([32, 32, 32, 0, 32, 0], "written")
}

/// What a page table entry shows of merged, published, zero and plain pages.
fn pagemap() -> Result<()> {
    let map = Map::filled(&[5, 5, 6, 0, 7])?;
    let exclusive = |wanted: [bool; 5], when: &str| -> Result<()> {
        let entries = Pagemap::own()?.entries(map.addr(), 5)?;
        let found: Vec<bool> = entries.iter().map(|entry| entry.exclusive()).collect();
        ensure!(found == wanted, "{when}: mapped once: {found:?}");
        let odd = entries
            .iter()
            .find(|entry| !entry.present() || entry.swapped() || entry.file_or_shared());
        ensure!(odd.is_none(), "{when}: {odd:x?}");
        Ok(())
    };
    exclusive([true; 5], "plain")?;
    let before = map.pfns()?;
    map.merge_pages(0..4)?;
    exclusive([false, false, true, false, true], "merged")?;
    let now = map.pfns()?;
    ensure!(now[0] == before[0] && now[1] == before[0], "{now:x?}");
    ensure!(now[2] == before[2] && now[4] == before[4], "{now:x?}");
    ensure!(Flags::of(now[3])?.zero_page(), "{now:x?}");
    map.put(0, 0, 1);
    exclusive([true, true, true, false, true], "one of two written")?;
    map.put(3, 0, 1);
    exclusive([true; 5], "all apart")
}

fn numa_maps() -> Result<()> {
    if !fs::exists("/proc/self/numa_maps")? {
        return skip("no numa_maps in this kernel (CONFIG_NUMA)");
    }
    let (map, inner) = walled(&[5, 5, 5, 6, 0, 0])?;
    let inner = map.part(inner);
    let shows = |wanted: [u64; 3], when: &str| -> Result<()> {
        let all = fs::read_to_string("/proc/self/numa_maps")?;
        let start = format!("{:08x} ", inner.addr());
        let line = all.lines().find(|line| line.starts_with(&start));
        let line = line.context("numa_maps shows no such mapping")?;
        // What is not there is not shown.
        let number = |name: &str| {
            let value = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            value.map_or(Ok(0), str::parse::<u64>)
        };
        let found = [number("anon=")?, number("dirty=")?, number("mapmax=")?];
        ensure!(
            found == wanted,
            "{when}: anon, dirty, mapmax {found:?}, not {wanted:?}: {line}"
        );
        let nodes = line.split_whitespace().filter_map(|word| {
            let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
            node.parse::<u32>().ok().and(pages.parse::<u64>().ok())
        });
        let on_nodes: u64 = nodes.sum();
        ensure!(
            on_nodes == wanted[0],
            "{when}: {on_nodes} pages on nodes: {line}"
        );
        Ok(())
    };
    // Where each page has one mapping, that is not shown.
    shows([6, 6, 0], "plain")?;
    inner.merge()?;
    shows([4, 4, 3], "merged")?;
    inner.fill(0, 7);
    inner.fill(4, 7);
    shows([5, 5, 2], "written")
}

/// The counters of events, exactly, and equal to those in sysfs.
fn vmstat() -> Result<()> {
    const NAMES: [&str; 4] = ["sksm_merge", "sksm_publish", "sksm_withdraw", "sksm_busy"];
    let now = || -> Result<[i64; 4]> {
        let all = procfs::vmstat()?;
        let value = |name| all.get(name).copied().with_context(|| format!("no {name}"));
        let mut found = [0; 4];
        for (found, name) in found.iter_mut().zip(NAMES) {
            *found = value(name)?;
        }
        Ok(found)
    };
    let map = Map::filled(&[5, 5, 5, 6, 0, 7, 7])?;
    let (start, counters) = (now()?, Counters::now()?);
    let moved = |wanted: [i64; 4], when: &str| -> Result<()> {
        let now = now()?;
        let found = [0, 1, 2, 3].map(|index| now[index] - start[index]);
        ensure!(
            found == wanted,
            "{when}: {NAMES:?} rose by {found:?}, not {wanted:?}"
        );
        let change = counters.change()?;
        let sysfs = [
            change.pages_merged,
            change.pages_published,
            change.pages_withdrawn,
            change.pages_busy,
        ];
        ensure!(sysfs == found, "{when}: vmstat {found:?}, sysfs {sysfs:?}");
        Ok(())
    };
    map.merge_pages(0..5)?;
    moved([3, 2, 0, 0], "merged")?;
    map.merge_pages(0..5)?;
    moved([3, 2, 0, 0], "merged again")?;
    map.put(3, 0, 1);
    moved([3, 2, 1, 0], "written in place")?;
    map.put(0, 0, 1);
    map.put(4, 0, 1);
    moved([3, 2, 1, 0], "copied")?;
    let (_out, into) = pipe()?;
    splice(&map.part(5..7), 2, &into)?;
    map.merge_pages(5..7)?;
    moved([3, 2, 1, 2], "busy")?;
    drop((_out, into));
    map.merge_pages(5..7)?;
    moved([4, 3, 1, 2], "not busy any more")
}

fn kpageflags() -> Result<()> {
    let map = merged(2, 5)?;
    let flags = Flags::of(map.pfn(0)?)?;
    ensure!(flags.ksm() && flags.anon(), "merged page: {flags:x?}");
    let ordinary = Map::filled(&[6])?;
    let flags = Flags::of(ordinary.pfn(0)?)?;
    ensure!(!flags.ksm() && flags.anon(), "ordinary page: {flags:x?}");
    let zero = Map::filled(&[0])?;
    zero.merge()?;
    let flags = Flags::of(zero.pfn(0)?)?;
    let right = flags.zero_page() && !flags.ksm() && !flags.anon();
    ensure!(right, "zero page: {flags:x?}");
    ordinary.merge()?;
    let flags = Flags::of(ordinary.pfn(0)?)?;
    ensure!(flags.ksm() && flags.anon(), "published page: {flags:x?}");
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
