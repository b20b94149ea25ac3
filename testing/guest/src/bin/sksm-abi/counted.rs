//! What counters say of merging, and that they never say too much: a page that fork shares anyway is not saved by a merge.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM, ksm_stat};
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::process::{Child, Gate, become_user};
use sksm_guest::page::PAGE;

use crate::expect::{copies, merged, zero_pages};
use crate::seen::COUNTERS;

pub const TESTS: &[Test] = &[
    test("seen/sharing-does-not-count-fork", fork_is_not_counted),
    test("seen/sharing-follows-unmapping", follows_unmapping),
    test("seen/sharing-of-two-processes", of_two_processes),
    test("seen/per-process", per_process),
    test("seen/per-process-after-fork", per_process_after_fork),
    test("seen/general-profit", general_profit),
    test("seen/ksm-counts-its-own", ksm_counts_its_own),
    test("seen/counters-as-any-user", as_any_user),
    test("content/zero-pages-of-a-child", zeros_of_a_child),
];

/// Merged pages with a saved mapping, those without, and saved mappings, since the start.
fn expect(start: &Counters, wanted: [i64; 3], when: &str) -> Result<()> {
    let change = start.change()?;
    let found = [
        change.pages_shared,
        change.pages_unshared,
        change.pages_sharing,
    ];
    ensure!(
        found == wanted,
        "{when}: shared, unshared, sharing {found:?}, not {wanted:?}"
    );
    Ok(())
}

/// Children that stay until the gate opens.
fn children(count: usize, gate: &Gate) -> Result<Vec<Child>> {
    (0..count).map(|_| Child::spawn(|_| gate.wait())).collect()
}

fn fork_is_not_counted() -> Result<()> {
    const UNIQUE: usize = 1000;
    let start = Counters::now()?;
    let map = Map::anon(UNIQUE)?;
    map.no_huge();
    map.fill_all(|page| 10 + page as u64);
    map.merge()?;
    let unique = UNIQUE as i64;
    expect(&start, [0, unique, 0], "pages without a twin")?;
    let gate = Gate::closed()?;
    let family = children(20, &gate)?;
    expect(&start, [0, unique, 0], "with children")?;
    gate.open()?;
    family.into_iter().try_for_each(Child::join)?;
    expect(&start, [0, unique, 0], "children gone")?;
    drop(map);
    // And duplicates: what a merge saved once is saved once.
    let start = Counters::now()?;
    let map = merged(10, 5)?;
    expect(&start, [1, 0, 9], "ten equal pages")?;
    let gate = Gate::closed()?;
    let family = children(5, &gate)?;
    expect(&start, [1, 0, 9], "forked")?;
    gate.open()?;
    family.into_iter().try_for_each(Child::join)?;
    expect(&start, [1, 0, 9], "children gone")?;
    // A child that has the pages merged again has saved nothing more.
    Child::spawn(|_| {
        map.merge()?;
        expect(&start, [1, 0, 9], "merged again by a child")
    })?
    .join()
}

fn follows_unmapping() -> Result<()> {
    let start = Counters::now()?;
    let map = merged(12, 5)?;
    expect(&start, [1, 0, 11], "merged")?;
    // The page was the first's.
    (9..12).for_each(|page| map.put(page, 0, page as u64));
    expect(&start, [1, 0, 8], "three written")?;
    map.unmap_pages(7..9)?;
    expect(&start, [1, 0, 6], "two unmapped")?;
    map.advise_pages(5..7, libc::MADV_DONTNEED)?;
    expect(&start, [1, 0, 4], "two dropped")?;
    map.protect_pages(1..3, libc::PROT_NONE)?;
    expect(&start, [1, 0, 4], "protected")?;
    map.protect_pages(1..3, WRITE)?;
    let rest = std::mem::ManuallyDrop::into_inner(map.part(0..5)).moved()?;
    expect(&start, [1, 0, 4], "moved")?;
    // The last but one goes: nothing is saved any more.
    rest.unmap_pages(1..5)?;
    expect(&start, [0, 1, 0], "one left")?;
    rest.put(0, 0, 1);
    expect(&start, [0, 0, 0], "written")?;
    std::mem::forget(map);
    Ok(())
}

/// One publishes and another is redirected; whoever goes first, nothing is saved by a page with one user.
fn of_two_processes() -> Result<()> {
    for publisher_goes_first in [true, false] {
        let start = Counters::now()?;
        let map = Map::filled(&[1; 4])?;
        let of = || -> Result<Child> {
            let child = Child::spawn(|parent| {
                map.fill_all(|page| 5 + page as u64);
                map.merge()?;
                parent.meet()?;
                map.expect_all(|page| 5 + page as u64)
            })?;
            child.pause()?;
            Ok(child)
        };
        let (one, other) = (of()?, of()?);
        expect(&start, [4, 0, 4], "merged")?;
        let (first, last) = match publisher_goes_first {
            true => (one, other),
            false => (other, one),
        };
        first.go()?;
        first.join()?;
        expect(&start, [0, 4, 0], "one has gone")?;
        last.go()?;
        last.join()?;
    }
    Ok(())
}

/// SKSM's lines of a process's ksm_stat, and its zero pages: merged, published, profit, zero.
fn lines(pid: i32) -> Result<[i64; 4]> {
    let mut found = [0; 4];
    for (found, name) in found.iter_mut().zip([
        "sksm_merged_pages",
        "sksm_published_pages",
        "sksm_process_profit",
        "ksm_zero_pages",
    ]) {
        *found = ksm_stat(pid, name)?;
    }
    let [merged, published, profit, _] = found;
    let right = merged * PAGE as i64 - 96 * published - 16 * merged;
    ensure!(profit == right, "profit {profit} of {found:?}, not {right}");
    Ok(found)
}

fn per_process() -> Result<()> {
    let own = || lines(std::process::id() as i32);
    let start = own()?;
    let expect = |wanted: [i64; 3], when: &str| -> Result<()> {
        let [merged, published, _, zero] = own()?;
        let found = [merged - start[0], published - start[1], zero - start[3]];
        ensure!(
            found == wanted,
            "{when}: merged, published, zero {found:?}, not {wanted:?}"
        );
        Ok(())
    };
    let map = Map::filled(&[5, 5, 5, 6, 0, 0, 7])?;
    expect([0, 0, 0], "not merged")?;
    map.merge()?;
    expect([2, 3, 2], "merged")?;
    map.merge()?;
    expect([2, 3, 2], "merged again")?;
    let gate = Gate::closed()?;
    let other = Child::spawn(|parent| {
        map.fill_all(|page| [5, 5, 5, 6, 0, 0, 7][page]);
        map.merge()?;
        parent.meet()
    })?;
    other.pause()?;
    expect([2, 3, 2], "another process merged the same")?;
    let [merged, published, _, zero] = lines(other.pid())?;
    ensure!(
        [merged, published, zero - start[3]] == [5, 0, 2],
        "another process, which published nothing: {:?}",
        lines(other.pid())?
    );
    other.go()?;
    other.join()?;
    map.put(1, 0, 1);
    map.put(4, 0, 1);
    expect([1, 3, 1], "one of each written")?;
    drop(map);
    expect([0, 0, 0], "unmapped")?;
    gate.open()
}

/// A child starts from nothing, and nothing that it does with its parent's pages makes a count negative or too high.
fn per_process_after_fork() -> Result<()> {
    let map = Map::filled(&[5, 5, 5, 6, 0, 0, 7])?;
    map.merge()?;
    let before = lines(std::process::id() as i32)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.fill_all(|page| 20 + page as u64 / 2);
        parent.meet()?;
        map.merge()?;
        parent.meet()
    })?;
    child.pause()?;
    let check = |wanted: [i64; 3], when: &str| -> Result<()> {
        let [merged, published, _, zero] = lines(child.pid())?;
        let found = [merged, published, zero];
        ensure!(found == wanted, "{when}: {found:?}, not {wanted:?}");
        let ours = lines(std::process::id() as i32)?;
        ensure!(
            ours == before,
            "{when}, in the parent: {ours:?}, not {before:?}"
        );
        Ok(())
    };
    check([0, 0, before[3]], "forked")?;
    child.go()?;
    child.pause()?;
    check([0, 0, before[3] - 2], "written")?;
    child.go()?;
    child.pause()?;
    check([3, 4, before[3] - 2], "merged")?;
    child.go()?;
    child.join()?;
    let ours = lines(std::process::id() as i32)?;
    ensure!(
        ours == before,
        "the child has gone: {ours:?}, not {before:?}"
    );
    Ok(())
}

/// What is saved, less what it takes to know it.
fn general_profit() -> Result<()> {
    let right = || -> Result<i64> {
        let now = Counters::now()?;
        let saved = now.pages_sharing + now.pages_zero;
        let profit = SKSM.number("general_profit")?;
        let right = saved * PAGE as i64 - now.bytes_metadata;
        ensure!(profit == right, "general_profit {profit}, not {right}");
        Ok(profit)
    };
    let start = right()?;
    // Without a twin it is a loss.
    let unique = Map::anon(500)?;
    unique.no_huge();
    unique.fill_all(|page| 1 + page as u64);
    unique.merge()?;
    let loss = right()? - start;
    ensure!(
        (-500 * 200..0).contains(&loss),
        "500 pages without a twin: {loss}"
    );
    let gate = Gate::closed()?;
    let family = children(5, &gate)?;
    ensure!(right()? - start == loss, "what fork shares is no profit");
    gate.open()?;
    family.into_iter().try_for_each(Child::join)?;
    let equal = merged(100, 7777)?;
    let zeros = Map::filled(&[0; 50])?;
    zeros.merge()?;
    let gain = right()? - start - loss;
    ensure!(
        gain > 149 * PAGE as i64 * 9 / 10 && gain <= 149 * PAGE as i64,
        "149 pages saved: {gain}"
    );
    drop((unique, equal, zeros));
    Ok(())
}

/// KSM's counters, of the system and of a process, have SKSM's zero pages and nothing else of it.
fn ksm_counts_its_own() -> Result<()> {
    let pid = std::process::id() as i32;
    let now = || -> Result<[i64; 5]> {
        let merging = fs::read_to_string("/proc/self/ksm_merging_pages")?;
        Ok([
            KSM.number("pages_shared")?,
            KSM.number("pages_sharing")?,
            merging.trim().parse()?,
            ksm_stat(pid, "ksm_merging_pages")?,
            ksm_stat(pid, "ksm_rmap_items")?,
        ])
    };
    let (start, zeros) = (now()?, ksm_stat(pid, "ksm_zero_pages")?);
    let profit = ksm_stat(pid, "ksm_process_profit")?;
    let map = Map::filled(&[5, 5, 5, 6, 0, 0])?;
    map.merge()?;
    ensure!(now()? == start, "{:?}, was {start:?}", now()?);
    let zeros = ksm_stat(pid, "ksm_zero_pages")? - zeros;
    ensure!(zeros == 2, "{zeros} zero pages more");
    let profit = ksm_stat(pid, "ksm_process_profit")? - profit;
    ensure!(profit == 2 * PAGE as i64, "a profit of {profit} more");
    Ok(())
}

/// Anybody may read them, and a read costs as much however many merged pages there are.
fn as_any_user() -> Result<()> {
    const MANY: usize = 24_000;
    let map = Map::anon(MANY)?;
    map.no_huge();
    map.fill_all(|page| 1 + page as u64);
    let reader = Child::spawn(|parent| {
        become_user(1001)?;
        let quickest = || -> Result<Vec<Duration>> {
            let mut quickest = vec![Duration::MAX; COUNTERS.len()];
            for _ in 0..20 {
                for (quickest, name) in quickest.iter_mut().zip(COUNTERS) {
                    let start = Instant::now();
                    SKSM.number(name)?;
                    *quickest = start.elapsed().min(*quickest);
                }
            }
            Ok(quickest)
        };
        let few = quickest()?;
        parent.meet()?;
        let many = quickest()?;
        for ((name, few), many) in COUNTERS.into_iter().zip(few).zip(many) {
            ensure!(
                many < few * 5 + Duration::from_micros(20),
                "{name} takes {few:?}, and {many:?} with {MANY} merged pages"
            );
        }
        Ok(())
    })?;
    reader.pause()?;
    map.merge()?;
    ensure!(copies(&map.pfns()?) == MANY, "not {MANY} pages");
    reader.go()?;
    reader.join()
}

/// A child has the zero pages of its parent, and counts them as they are there.
fn zeros_of_a_child() -> Result<()> {
    const PAGES: i64 = 100;
    const WRITTEN: i64 = 60;
    let all = KSM.number("ksm_zero_pages")?;
    let of = |pid: i32| -> Result<[i64; 2]> {
        Ok([
            ksm_stat(pid, "ksm_zero_pages")?,
            ksm_stat(pid, "ksm_process_profit")?,
        ])
    };
    let own = || of(std::process::id() as i32);
    let start = own()?;
    let map = Map::filled(&[0; PAGES as usize])?;
    map.merge()?;
    zero_pages(&map)?;
    let before = own()?;
    ensure!(before[0] - start[0] == PAGES, "in the parent: {before:?}");
    let child = Child::spawn(|parent| {
        parent.meet()?;
        (0..WRITTEN as usize).for_each(|page| map.put(page, 0, 1));
        parent.meet()?;
        map.advise(libc::MADV_DONTNEED)?;
        parent.meet()
    })?;
    child.pause()?;
    let expect = |zeros: i64, when: &str| -> Result<()> {
        let found = of(child.pid())?;
        ensure!(
            found[0] == start[0] + zeros,
            "{when}: the child counts {found:?}, with {zeros} zero pages"
        );
        ensure!(found[1] >= 0, "{when}: a loss of zero pages, {found:?}");
        ensure!(own()? == before, "{when}: the parent counts {:?}", own()?);
        let total = KSM.number("ksm_zero_pages")? - all;
        ensure!(total == PAGES + zeros, "{when}: {total} in all");
        Ok(())
    };
    expect(PAGES, "forked")?;
    child.go()?;
    child.pause()?;
    expect(PAGES - WRITTEN, "written")?;
    child.go()?;
    child.pause()?;
    expect(0, "dropped")?;
    child.go()?;
    child.join()?;
    let total = KSM.number("ksm_zero_pages")? - all;
    ensure!(total == PAGES, "the child has gone: {total} in all");
    Ok(())
}
