//! Merged pages that are in swap space only: they come back merged, whatever happened to their users meanwhile.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libc::{MADV_DONTNEED, MADV_FREE, MADV_UNMERGEABLE, MADV_WILLNEED};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::{self, Swap, SwapDisk};
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM, ksm_stat};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Flags, Pagemap, copies};
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

use crate::expect::apart;
use crate::marks::{MARK, set};
use crate::reclaim::{all_out, swapped_here};

pub const TESTS: &[Test] = &[
    test("asleep/come-back-merged", || come_back(Swap::on)),
    test("asleep/come-back-merged-from-a-disk", || {
        come_back(SwapDisk::on)
    }),
    test("asleep/come-back-merged-from-zswap", || come_back(zswap)),
    test("asleep/come-back-in-all-processes", in_all_processes),
    test("asleep/out-and-back-again-and-again", again_and_again),
    test("asleep/swapoff", swapoff),
    test("asleep/one-user-left", one_user_left),
    test("asleep/forked-meanwhile", forked),
    test("asleep/publisher-exits-meanwhile", publisher_exits),
    test("asleep/moved-meanwhile", moved),
    test("asleep/split-and-partly-unmapped-meanwhile", || {
        given_up(|map| Ok(map.unmap_pages(HALF)?))
    }),
    test("asleep/partly-dropped-meanwhile", || {
        given_up(|map| Ok(map.advise_pages(HALF, MADV_DONTNEED)?))
    }),
    test("asleep/partly-freed-meanwhile", || {
        given_up(|map| Ok(map.advise_pages(HALF, MADV_FREE)?))
    }),
    test("asleep/forgotten-when-all-are-unmapped", forgotten),
    test("asleep/read-ahead-and-never-used", read_ahead),
    test("asleep/first-use-is-a-write", first_use_is_a_write),
    test("asleep/parted-meanwhile", parted),
    test("asleep/parted-on-the-whole-machine", parted_everywhere),
    test("asleep/same-content-published-meanwhile", same_content),
    test(
        "asleep/other-content-of-the-sample-meanwhile",
        other_content,
    ),
    test("asleep/domain-changed-meanwhile", domain_changed),
    test("asleep/ksm-run-2", ksm_unmerges),
    test("asleep/beside-a-page-that-could-be-read-at-large", at_large),
    test("asleep/not-for-one-user", not_for_one_user),
    test("asleep/counted", counted),
];

const CONTENTS: usize = 16;
const PAGES: usize = 20 * CONTENTS;
const HALF: std::ops::Range<usize> = PAGES / 2..PAGES;

fn id(page: usize) -> u64 {
    1 + (page % CONTENTS) as u64
}

/// Compressed swap space in memory, before a disk.
fn zswap() -> Result<SwapDisk> {
    const ENABLED: &str = "/sys/module/zswap/parameters/enabled";
    if !Path::new(ENABLED).exists() {
        return skip("no zswap in this kernel (CONFIG_ZSWAP)");
    }
    fs::write(ENABLED, "Y").context("cannot enable zswap")?;
    SwapDisk::on()
}

fn pages_asleep() -> Result<usize> {
    Ok(SKSM.number("pages_asleep")? as usize)
}

/// Reclaims until none of these mappings is there, and so many merged pages have left memory since `before` were asleep.
fn all_asleep(
    group: &Cgroup,
    maps: &[(&Pagemap, &Map)],
    before: usize,
    contents: usize,
) -> Result<()> {
    let deadline = deadline();
    loop {
        all_out(group, maps)?;
        let asleep = pages_asleep()? - before;
        if asleep == contents {
            return Ok(());
        }
        // Written, and not freed yet.
        ensure!(
            Instant::now() < deadline,
            "{asleep} merged pages of {contents} have left memory"
        );
        group.reclaim(16 << 20)?;
    }
}

/// Merged pages of this process that are in swap space only.
struct Sleeping<S> {
    map: Map,
    group: Cgroup,
    before: usize,
    /// Last: taken away when all else is gone.
    _swap: S,
}

impl Sleeping<Swap> {
    fn new() -> Result<Self> {
        Self::on(Swap::on()?)
    }
}

impl<S> Sleeping<S> {
    fn on(swap: S) -> Result<Self> {
        let group = Cgroup::new("asleep")?;
        group.enter()?;
        let map = Map::anon(PAGES)?;
        map.no_huge();
        map.fill_all(id);
        map.merge()?;
        ensure!(copies(&map.pfns()?) == CONTENTS, "not merged");
        let sleeping = Self {
            before: pages_asleep()?,
            map,
            group,
            _swap: swap,
        };
        sleeping.again()?;
        Ok(sleeping)
    }

    fn again(&self) -> Result<()> {
        self.all_with(&[(&Pagemap::own()?, &self.map)])
    }

    fn all_with(&self, maps: &[(&Pagemap, &Map)]) -> Result<()> {
        all_asleep(&self.group, maps, self.before, CONTENTS)
    }

    /// So many of them sleep still.
    fn expect_asleep(&self, contents: usize) -> Result<()> {
        let asleep = pages_asleep()? - self.before;
        ensure!(asleep == contents, "{asleep} pages sleep, not {contents}");
        Ok(())
    }
}

/// These mappings have their contents, on so many pages.
fn back(map: &Map, contents: usize) -> Result<()> {
    map.expect_all(id)?;
    let pfns = map.pfns()?;
    let found = copies(&pfns);
    ensure!(
        found == contents,
        "{} mappings came back as {found} pages, not {contents}",
        map.pages()
    );
    for pfn in pfns {
        ensure!(Flags::of(pfn)?.ksm(), "page {pfn:#x} is no merged page");
    }
    Ok(())
}

fn come_back<S>(swap: impl FnOnce() -> Result<S>) -> Result<()> {
    let sleeping = Sleeping::on(swap()?)?;
    back(&sleeping.map, CONTENTS)?;
    sleeping.expect_asleep(0)?;
    // Also for who comes later.
    let late = Map::anon(CONTENTS)?;
    late.fill_all(id);
    late.merge()?;
    ensure!(
        late.pfns()? == sleeping.map.pfns()?[..CONTENTS],
        "a page that came back is not shared by later merges"
    );
    sleeping.map.fill_all(|page| page as u64 + 100);
    apart(&sleeping.map.pfns()?)?;
    late.expect_all(id)
}

fn in_all_processes() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("processes")?;
    let before = pages_asleep()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let body = |parent: &sksm_guest::memory::process::Link| {
        group.enter()?;
        map.fill_all(id);
        map.merge()?;
        parent.meet()?;
        map.expect_all(id)?;
        parent.meet()?;
        map.expect_all(id)
    };
    let children = (0..4)
        .map(|_| Child::spawn(body))
        .collect::<Result<Vec<_>>>()?;
    children.iter().try_for_each(|child| child.pause())?;
    let pagemaps = (children.iter().map(Child::pagemap)).collect::<Result<Vec<_>>>()?;
    let maps: Vec<_> = pagemaps.iter().map(|pagemap| (pagemap, &map)).collect();
    all_asleep(&group, &maps, before, CONTENTS)?;
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    let mut pfns = Vec::new();
    for pagemap in &pagemaps {
        pfns.extend(pagemap.pfns(map.addr(), PAGES)?);
    }
    ensure!(
        copies(&pfns) == CONTENTS,
        "{} mappings of {} processes came back as {} pages",
        pfns.len(),
        children.len(),
        copies(&pfns)
    );
    children.into_iter().try_for_each(|child| {
        child.go()?;
        child.join()
    })
}

fn again_and_again() -> Result<()> {
    let sleeping = Sleeping::new()?;
    back(&sleeping.map, CONTENTS)?;
    let start = Counters::now()?;
    for round in 0..5 {
        sleeping.again()?;
        back(&sleeping.map, CONTENTS).with_context(|| format!("round {round}"))?;
    }
    let change = start.change()?;
    ensure!(
        change.bytes_metadata == 0 && change.pages_sharing == 0,
        "something grew or was lost: {change:?}"
    );
    Ok(())
}

/// Swap space that is taken away brings them back merged.
fn swapoff() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        back(&sleeping.map, CONTENTS)
    })?;
    child.pause()?;
    swap::off_all()?;
    let out = swapped_here(&sleeping.map)?;
    ensure!(out == 0, "{out} pages are in swap space that is off");
    sleeping.expect_asleep(0)?;
    back(&sleeping.map, CONTENTS)?;
    child.go()?;
    child.join()
}

/// Where nobody else is left there is nothing to share, and a disk without delay gives the page to its user.
fn one_user_left() -> Result<()> {
    let sleeping = Sleeping::new()?;
    sleeping.map.unmap_pages(CONTENTS..PAGES)?;
    let left = sleeping.map.part(0..CONTENTS);
    left.expect_all(id)?;
    sleeping.expect_asleep(0)?;
    apart(&left.pfns()?)?;
    left.fill_all(|page| page as u64 + 100);
    left.expect_all(|page| page as u64 + 100)
}

fn forked() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let map = &sleeping.map;
    let child = Child::spawn(|parent| {
        back(map, CONTENTS)?;
        parent.meet()?;
        map.fill_all(|page| page as u64 + 100);
        map.expect_all(|page| page as u64 + 100)
    })?;
    child.pause()?;
    back(map, CONTENTS)?;
    ensure!(
        child.pagemap()?.pfns(map.addr(), PAGES)? == map.pfns()?,
        "the child has pages of its own"
    );
    child.go()?;
    child.join()?;
    back(map, CONTENTS)
}

fn publisher_exits() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("publisher")?;
    group.enter()?;
    let before = pages_asleep()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let publisher = Child::spawn(|parent| {
        map.fill_all(id);
        map.merge()?;
        parent.meet()
    })?;
    publisher.pause()?;
    map.fill_all(id);
    map.merge()?;
    let theirs = publisher.pagemap()?;
    ensure!(
        theirs.pfns(map.addr(), PAGES)? == map.pfns()?,
        "not merged with the publisher's"
    );
    let maps = [(&Pagemap::own()?, &map), (&theirs, &map)];
    all_asleep(&group, &maps, before, CONTENTS)?;
    publisher.go()?;
    publisher.join()?;
    back(&map, CONTENTS)
}

fn moved() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let Sleeping {
        map, group, _swap, ..
    } = sleeping;
    let map = map.moved()?;
    back(&map, CONTENTS)?;
    // All of them are found where they are now.
    all_out(&group, &[(&Pagemap::own()?, &map)])?;
    back(&map, CONTENTS)
}

/// Half of the users go in this way, the others get their pages.
fn given_up(give_up: impl FnOnce(&Map) -> Result<()>) -> Result<()> {
    let sleeping = Sleeping::new()?;
    give_up(&sleeping.map)?;
    sleeping.expect_asleep(CONTENTS)?;
    let left = sleeping.map.part(0..HALF.start);
    back(&left, CONTENTS)
}

fn forgotten() -> Result<()> {
    let start = Counters::now()?;
    let sleeping = Sleeping::new()?;
    let held = start.change()?.bytes_metadata;
    ensure!(held > 0, "nothing is kept of pages that sleep");
    sleeping.map.unmap_pages(0..PAGES)?;
    sleeping.expect_asleep(0)?;
    // New pages in the same slots are nobody's.
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(|page| page as u64 + 1000);
    all_out(&sleeping.group, &[(&Pagemap::own()?, &map)])?;
    map.expect_all(|page| page as u64 + 1000)?;
    apart(&map.pfns()?)
}

/// Pages that are read and not mapped sleep on, and are forgotten with their slots.
fn read_ahead() -> Result<()> {
    let sleeping = Sleeping::on(SwapDisk::on()?)?;
    sleeping.map.advise(MADV_WILLNEED)?;
    sleeping.expect_asleep(CONTENTS)?;
    let half = sleeping.map.part(0..HALF.start);
    half.expect_all(id)?;
    sleeping.expect_asleep(0)?;
    back(&sleeping.map, CONTENTS)?;
    sleeping.again()?;
    sleeping.map.advise(MADV_WILLNEED)?;
    sleeping.map.unmap_pages(0..PAGES)?;
    // What was read is freed by reclaim.
    let deadline = deadline();
    while pages_asleep()? != sleeping.before {
        ensure!(Instant::now() < deadline, "pages sleep that nobody has");
        sleeping.group.reclaim(16 << 20)?;
    }
    Ok(())
}

fn first_use_is_a_write() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let map = &sleeping.map;
    map.part(0..CONTENTS).fill_all(|page| page as u64 + 100);
    map.part(0..CONTENTS).expect_all(|page| page as u64 + 100)?;
    back(&map.part(CONTENTS..PAGES), CONTENTS)
}

/// Advice that parts pages is for those in swap space, too.
fn parted() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let map = &sleeping.map;
    map.advise_pages(0..CONTENTS, MADV_UNMERGEABLE)?;
    let own = map.part(0..CONTENTS);
    own.expect_all(id)?;
    let rest = map.part(CONTENTS..PAGES);
    back(&rest, CONTENTS)?;
    let shared = rest.pfns()?;
    for pfn in own.pfns()? {
        ensure!(!shared.contains(&pfn), "a parted page is shared");
        ensure!(!Flags::of(pfn)?.ksm(), "a parted page is a merged one");
    }
    Ok(())
}

fn parted_everywhere() -> Result<()> {
    let sleeping = Sleeping::new()?;
    SKSM.write("unmerge", 1)?;
    sleeping.expect_asleep(0)?;
    sleeping.map.expect_all(id)?;
    apart(&sleeping.map.pfns()?)
}

fn same_content() -> Result<()> {
    let sleeping = Sleeping::new()?;
    let new = Map::anon(2 * CONTENTS)?;
    new.no_huge();
    new.fill_all(id);
    new.merge()?;
    ensure!(copies(&new.pfns()?) == CONTENTS, "not merged");
    back(&sleeping.map, CONTENTS)?;
    back(&new, CONTENTS)?;
    // Which of the two a later page joins is open.
    let late = Map::anon(CONTENTS)?;
    late.fill_all(id);
    late.merge()?;
    let there = [sleeping.map.pfns()?, new.pfns()?].concat();
    for pfn in late.pfns()? {
        ensure!(there.contains(&pfn), "a third copy was published");
    }
    late.expect_all(id)
}

/// A page with the same sample stands where the sleeping one stood.
fn other_content() -> Result<()> {
    const WORD: usize = 12;
    let sleeping = Sleeping::new()?;
    let other = || -> Result<Map> {
        let map = Map::anon(CONTENTS)?;
        map.no_huge();
        map.fill_all(id);
        (0..CONTENTS).for_each(|page| map.put(page, WORD, 1));
        map.merge()?;
        Ok(map)
    };
    let first = other()?;
    back(&sleeping.map, CONTENTS)?;
    let second = other()?;
    ensure!(
        first.pfns()? == second.pfns()?,
        "what was published meanwhile is not found any more"
    );
    let late = Map::anon(2 * CONTENTS)?;
    late.no_huge();
    late.fill_all(id);
    late.merge()?;
    late.expect_all(id)?;
    ensure!(copies(&late.pfns()?) == CONTENTS, "not merged");
    sleeping.map.expect_all(id)?;
    for map in [&first, &second] {
        ensure!(
            (0..CONTENTS).all(|page| map.get(page, WORD) == 1),
            "a page with another content was merged"
        );
    }
    Ok(())
}

/// What was shared stays shared, and nothing new is.
fn domain_changed() -> Result<()> {
    let sleeping = Sleeping::new()?;
    set(&sleeping.group, "none").with_context(|| format!("cannot write {MARK}"))?;
    back(&sleeping.map, CONTENTS)?;
    let late = Map::anon(CONTENTS)?;
    late.no_huge();
    late.fill_all(id);
    late.merge()?;
    let there = sleeping.map.pfns()?;
    for pfn in late.pfns()? {
        ensure!(!there.contains(&pfn), "merged in spite of the mark");
    }
    Ok(())
}

/// KSM's `run` of 2 parts all merged pages, and whatever is read meanwhile.
fn ksm_unmerges() -> Result<()> {
    let sleeping = Sleeping::new()?;
    KSM.write("run", 2)?;
    let map = &sleeping.map;
    map.expect_all(id)?;
    apart(&map.pfns()?)?;
    KSM.write("run", 0)?;
    map.fill_all(|page| page as u64 + 100);
    map.expect_all(|page| page as u64 + 100)
}

/// What is shared again is saved again, by the machine's account and the process's.
fn counted() -> Result<()> {
    let start = Counters::now()?;
    let (saved, contents) = ((PAGES - CONTENTS) as i64, CONTENTS as i64);
    let pid = std::process::id() as i32;
    let own = || -> Result<[i64; 2]> {
        Ok([
            ksm_stat(pid, "sksm_merged_pages")?,
            ksm_stat(pid, "sksm_published_pages")?,
        ])
    };
    let before = own()?;
    let swapped = SKSM.number("pages_swapped")?;
    let swapped_in = SKSM.number("pages_swapped_in")?;
    let sleeping = Sleeping::new()?;
    let swapped = SKSM.number("pages_swapped")? - swapped;
    ensure!(
        swapped as usize == PAGES,
        "{swapped} mappings went out by the counter"
    );
    let out = start.change()?;
    ensure!(
        [out.pages_shared, out.pages_unshared, out.pages_sharing] == [0; 3],
        "pages in swap space are counted as memory: {out:?}"
    );
    ensure!(own()? == before, "the process's counts: {:?}", own()?);
    back(&sleeping.map, CONTENTS)?;
    let change = start.change()?;
    ensure!(
        [
            change.pages_shared,
            change.pages_unshared,
            change.pages_sharing
        ] == [contents, 0, saved],
        "back: {change:?}"
    );
    let own = own()?;
    ensure!(
        [own[0] - before[0], own[1] - before[1]] == [saved, contents],
        "the process's counts: {own:?}, before: {before:?}"
    );
    let swapped_in = SKSM.number("pages_swapped_in")? - swapped_in;
    ensure!(
        swapped_in as usize == PAGES,
        "{swapped_in} mappings came back by the counter"
    );
    Ok(())
}

/// A swap device without delay lets a page with one user be read with its neighbours, as a large folio: not if those are others'
/// too.
fn at_large() -> Result<()> {
    const LARGE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled";
    const RUN: usize = 16;
    if !Path::new(LARGE).exists() {
        return skip("no large folios in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)");
    }
    let _swap = Swap::on()?;
    let group = Cgroup::new("large")?;
    group.enter()?;
    let id = |page: usize| page as u64 + 1;
    let room = Map::aligned(RUN, RUN * PAGE, 0)?;
    room.fill_all(id);
    room.merge()?;
    let twins = Map::anon(RUN)?;
    twins.no_huge();
    // All but the first.
    (1..RUN).for_each(|page| twins.fill(page, id(page)));
    twins.merge()?;
    ensure!(
        room.pfns()?[1..] == Pagemap::own()?.pfns(twins.page(1), RUN - 1)?,
        "not merged"
    );
    let rest = twins.part(1..RUN);
    all_out(
        &group,
        &[(&Pagemap::own()?, &room), (&Pagemap::own()?, &rest)],
    )?;
    fs::write(LARGE, "always").context("cannot enable large folios")?;
    room.advise(libc::MADV_HUGEPAGE)?;
    room.expect_all(id)?;
    rest.expect_all(|page| id(page + 1))?;
    ensure!(
        room.pfns()?[1..] == rest.pfns()?[..],
        "what two have came back as pages of one"
    );
    Ok(())
}

/// A published page that nobody shares is an ordinary one when it comes back: nothing is kept of it meanwhile.
fn not_for_one_user() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("one")?;
    group.enter()?;
    let start = Counters::now()?;
    let before = pages_asleep()?;
    let map = Map::anon(CONTENTS)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    ensure!(start.change()?.bytes_metadata > 0, "nothing was published");
    all_out(&group, &[(&Pagemap::own()?, &map)])?;
    let deadline = deadline();
    while start.change()?.bytes_metadata != 0 {
        ensure!(Instant::now() < deadline, "something is kept");
        group.reclaim(16 << 20)?;
    }
    ensure!(pages_asleep()? == before, "pages sleep that nobody shares");
    map.expect_all(id)
}
