//! Merged pages that move to a device's memory, where no CPU can read them: nothing may be compared with them there, and they are
//! known no longer once they are gone.

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::hmm::Device;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::Child;

use crate::expect::{copies, merged};
use crate::writers::{beside, for_a_while};

pub const TESTS: &[Test] = &[
    test("hmm/merged-pages-go-and-come-back", go_and_come_back),
    test("hmm/equal-pages-merge-meanwhile", merge_meanwhile),
    test("hmm/pages-on-the-device-are-left", pages_there_are_left),
    test("hmm/exit-while-on-the-device", exit_there),
    test("hmm/fork-while-on-the-device", fork_there),
    test("hmm/back-and-forth-while-merging", back_and_forth),
];

const IDS: [u64; 8] = [5, 5, 5, 6, 7, 7, 8, 9];

/// Merged pages of this process, some without a twin, as many of them on the device as it takes.
fn on_device(device: &Device) -> Result<Map> {
    let map = Map::filled(&IDS)?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == 5, "not merged");
    taken(device, &map)?;
    Ok(map)
}

/// Moves pages there; of each that several share, all mappings go.
fn taken(device: &Device, map: &Map) -> Result<()> {
    device.take(map)?;
    let seen = device.snapshot(map)?;
    let there = seen.iter().filter(|seen| seen.on_device()).count();
    ensure!(there > 0, "the device took no page: {seen:x?}");
    eprintln!("{there} of {} pages are on the device", map.pages());
    Ok(())
}

fn right(map: &Map) -> Result<()> {
    map.expect_all(|page| IDS[page])
}

fn go_and_come_back() -> Result<()> {
    let device = Device::open()?;
    for round in 0..10 {
        let map = on_device(&device)?;
        // By the device, or by being read.
        if round % 2 == 0 {
            device.give_back(&map)?;
        }
        right(&map)?;
        map.merge()?;
        ensure!(copies(&map.pfns()?) == 5, "not merged again");
        right(&map)?;
        map.fill_all(|page| 20 + page as u64);
        map.expect_all(|page| 20 + page as u64)?;
    }
    Ok(())
}

/// Pages that equal those on the device find each other, and not these; what comes back and is written finds them.
fn merge_meanwhile() -> Result<()> {
    let device = Device::open()?;
    let map = on_device(&device)?;
    let others = [Map::filled(&IDS)?, Map::filled(&IDS)?];
    for other in &others {
        other.merge()?;
    }
    ensure!(
        others[0].pfns()? == others[1].pfns()?,
        "pages in memory do not merge"
    );
    others.iter().try_for_each(right)?;
    right(&map)?;
    map.merge()?;
    // A merged page that comes back is known no longer: it stays what it is, a copy, until it is written.
    for (page, pfn) in map.pfns()?.into_iter().enumerate() {
        ensure!(
            pfn == others[1].pfn(page)? || Flags::of(pfn)?.ksm(),
            "page {page} has merged with nothing"
        );
    }
    map.fill_all(|page| IDS[page]);
    map.merge()?;
    ensure!(map.pfns()? == others[1].pfns()?, "not merged with them");
    others[0].fill_all(|_| 30);
    right(&map)?;
    right(&others[1])
}

/// A merge of a range some of which is there takes nothing from the device and succeeds.
fn pages_there_are_left() -> Result<()> {
    let device = Device::open()?;
    let ordinary = Map::filled(&IDS)?;
    taken(&device, &ordinary)?;
    let merged_before = on_device(&device)?;
    for map in [&ordinary, &merged_before] {
        let before = device.snapshot(map)?;
        map.merge()?;
        let after = device.snapshot(map)?;
        for (page, (before, after)) in before.iter().zip(after).enumerate() {
            ensure!(
                !before.on_device() || after.on_device(),
                "page {page} came back"
            );
        }
        right(map)?;
        map.merge()?;
        right(map)?;
    }
    Ok(())
}

/// The process goes with its pages on the device; the device's pages are used by somebody else then.
fn exit_there() -> Result<()> {
    let device = Device::open()?;
    for round in 0..5 {
        let start = Counters::now()?;
        Child::spawn(|_| {
            let device = Device::open()?;
            std::mem::forget(on_device(&device)?);
            // Who closes it gets all back first.
            std::mem::forget(device);
            Ok(())
        })?
        .join()?;
        // Frames of the device that were theirs.
        let map = Map::filled(&[40 + round; 64])?;
        device.take(&map)?;
        let equal = Map::filled(&IDS)?;
        equal.merge()?;
        right(&equal)?;
        let change = start.change()?;
        ensure!(
            (change.pages_shared, change.pages_unshared) == (2, 3),
            "pages that have gone are known still: {change:?}"
        );
        map.expect_all(|_| 40 + round)?;
    }
    merged(2, 5).map(drop)
}

/// Parent and child share what is there, and each reads it as it was.
fn fork_there() -> Result<()> {
    let device = Device::open()?;
    let map = on_device(&device)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.merge()?;
        right(&map)?;
        map.fill(0, 50);
        map.merge()?;
        parent.meet()?;
        map.expect_all(|page| if page == 0 { 50 } else { IDS[page] })
    })?;
    child.pause()?;
    map.merge()?;
    child.go()?;
    child.pause()?;
    right(&map)?;
    map.merge()?;
    child.go()?;
    child.join()?;
    right(&map)
}

/// Pages go to the device all the time while others merge and write.
fn back_and_forth() -> Result<()> {
    let device = Device::open()?;
    let map = Map::filled(&IDS)?;
    let twin = Map::filled(&IDS)?;
    let merge = || {
        map.merge()?;
        twin.merge()
    };
    let moves = || device.take(&map);
    let write = |round: u64| {
        let page = round as usize % IDS.len();
        map.fill(page, IDS[page]);
        right(&map)?;
        right(&twin)
    };
    beside(1, merge, |_| beside(1, moves, |_| for_a_while(write)))
}
