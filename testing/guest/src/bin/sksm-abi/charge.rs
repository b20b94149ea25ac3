//! Which control group pays for a merged page: the one whose page was there first, until the page goes. So groups share only where
//! somebody has said so who is in charge of both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;

use crate::expect::copies;
use crate::marks::set;

pub const TESTS: &[Test] = &[
    test("charge/other-group-is-not-charged", other_group),
    test("charge/with-mark", with_mark),
    test("charge/loser-is-uncharged", loser_is_uncharged),
    test("charge/first-owner-exits", first_owner_exits),
    test("charge/writes-are-charged", writes_are_charged),
    test("charge/zero-pages", zero_pages),
    test("charge/no-room-for-bookkeeping", no_room),
];

fn cpus() -> Result<i64> {
    Ok(std::thread::available_parallelism()?.get() as i64)
}

/// 16 MiB, more with many CPUs: far more than what charges and statistics may be off by.
fn pages() -> Result<i64> {
    Ok(1024 * cpus()?.max(4))
}

/// Charges are made and given back in batches of 64 pages a CPU, one for memory of processes and one for the kernel's own, and
/// statistics are brought up to date when they are off by 64 pages a CPU, for each level of groups. Beside them stand page
/// tables, kernel stacks and, for a page that is merged, a node of a hundred bytes.
fn slack() -> Result<i64> {
    Ok(2 * 2 * 64 * cpus()? + pages()? / 16)
}

/// A group, and what its memory was at the start.
struct Payer {
    group: Cgroup,
    start: [i64; 2],
}

const FIGURES: [&str; 2] = ["memory.current", "anon in memory.stat"];

/// In pages: all that the group pays for, and the anonymous part of it.
fn charged(group: &Cgroup) -> Result<[i64; 2]> {
    let current: i64 = group.read("memory.current")?.trim().parse()?;
    let stat = group.read("memory.stat")?;
    let anon = stat.lines().find_map(|line| line.strip_prefix("anon "));
    let anon: i64 = anon.context("no anon in memory.stat")?.parse()?;
    Ok([current, anon].map(|bytes| bytes / PAGE as i64))
}

impl Payer {
    fn new(name: &str) -> Result<Self> {
        Self::of(Cgroup::new(name)?)
    }

    fn of(group: Cgroup) -> Result<Self> {
        let start = charged(&group)?;
        Ok(Self { group, start })
    }

    /// Waits until the group pays for this many pages more than at the start: memory is given back by those who free it, and
    /// that may be a little later.
    fn pays(&self, pages: i64, when: &str) -> Result<()> {
        let slack = slack()?;
        let deadline = deadline();
        loop {
            let now = charged(&self.group)?;
            let more: Vec<i64> = (0..2)
                .map(|figure| now[figure] - self.start[figure])
                .collect();
            let wrong = (0..2).find(|figure| (more[*figure] - pages).abs() > slack);
            let Some(wrong) = wrong else { return Ok(()) };
            ensure!(
                Instant::now() < deadline,
                "{when}: {} rose by {} pages, not by {pages} (give or take {slack})",
                FIGURES[wrong],
                more[wrong]
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A process in this group that has written the pages, and merges them when it is told to.
    fn process(&self, map: &Map, id: fn(usize) -> u64) -> Result<Child> {
        let child = Child::spawn(|parent| {
            self.group.enter()?;
            map.fill_all(id);
            parent.meet()?;
            map.merge()?;
            parent.meet()?;
            map.expect_all(id)?;
            map.fill_all(|page| page as u64 + 100_000);
            parent.meet()?;
            map.expect_all(|page| page as u64 + 100_000)
        })?;
        child.pause()?;
        Ok(child)
    }
}

fn room() -> Result<Map> {
    let map = Map::anon(pages()? as usize)?;
    map.no_huge();
    Ok(map)
}

fn different(page: usize) -> u64 {
    page as u64 + 1
}

fn step(child: &Child) -> Result<()> {
    child.go()?;
    child.pause()
}

/// A payer and its process.
type Payers = [(Payer, Child); 2];

/// One process in each of two groups, both of which have merged the same.
fn both_merged(map: &Map, [first, second]: [Payer; 2]) -> Result<Payers> {
    ensure!(slack()? < pages()? / 2, "too few pages for this many CPUs");
    let one = first.process(map, different)?;
    first.pays(pages()?, "first written")?;
    step(&one)?;
    first.pays(pages()?, "first published")?;
    let other = second.process(map, different)?;
    second.pays(pages()?, "second written")?;
    step(&other)?;
    Ok([(first, one), (second, other)])
}

/// The pages of both.
fn pfns([(_, one), (_, other)]: &Payers, map: &Map) -> Result<[Vec<u64>; 2]> {
    let of = |child: &Child| child.pagemap()?.pfns(map.addr(), map.pages());
    Ok([of(one)?, of(other)?])
}

/// Two groups of one user, who may share with himself wherever he is: everything of the second merged into the pages of the first.
fn merged(map: &Map) -> Result<Payers> {
    SKSM.write("domain", "user")?;
    let payers = both_merged(map, [Payer::new("first")?, Payer::new("second")?])?;
    let [one, other] = pfns(&payers, map)?;
    ensure!(one == other, "not merged");
    Ok(payers)
}

/// Unless somebody has said otherwise a group pays for what its processes have and for nothing else.
fn other_group() -> Result<()> {
    let map = room()?;
    let payers = both_merged(&map, [Payer::new("first")?, Payer::new("second")?])?;
    let [one, other] = pfns(&payers, &map)?;
    let all = [one, other].concat();
    ensure!(copies(&all) == all.len(), "two groups share pages");
    let [(first, one), (second, other)] = payers;
    for payer in [&first, &second] {
        payer.pays(pages()?, "both merged")?;
    }
    drop(one);
    first.pays(0, "first gone")?;
    second.pays(pages()?, "first gone")?;
    drop(other);
    second.pays(0, "both gone")
}

/// The administrator of the group above both has said that they share: the first pays, also when its process has gone.
fn with_mark() -> Result<()> {
    let map = room()?;
    let outer = Cgroup::new("above")?;
    set(&outer, "user")?;
    let inner = |name| Payer::of(outer.inner(name)?);
    let payers = both_merged(&map, [inner("first")?, inner("second")?])?;
    let [one, other] = pfns(&payers, &map)?;
    ensure!(one == other, "not merged");
    let [(first, one), (second, other)] = payers;
    second.pays(0, "second merged into the first's pages")?;
    drop(one);
    first.pays(pages()?, "first gone, second still there")?;
    drop(other);
    first.pays(0, "both gone")?;
    drop((first, second));
    Ok(())
}

fn loser_is_uncharged() -> Result<()> {
    let map = room()?;
    let [(first, one), (second, other)] = merged(&map)?;
    second.pays(0, "second merged into the first's pages")?;
    first.pays(pages()?, "the second merged into it")?;
    // The second's end is nothing to the first.
    drop(other);
    second.pays(0, "second gone")?;
    first.pays(pages()?, "second gone")?;
    drop(one);
    first.pays(0, "both gone")
}

fn first_owner_exits() -> Result<()> {
    let map = room()?;
    let [(first, one), (second, other)] = merged(&map)?;
    drop(one);
    // As for any page that is shared: who came first pays as long as it is there.
    first.pays(pages()?, "first gone, second still there")?;
    second.pays(0, "first gone, second still there")?;
    drop(other);
    first.pays(0, "both gone")?;
    second.pays(0, "both gone")
}

fn writes_are_charged() -> Result<()> {
    let map = room()?;
    let [(first, one), (second, other)] = merged(&map)?;
    // Copies are the writer's.
    step(&other)?;
    second.pays(pages()?, "second wrote")?;
    first.pays(pages()?, "second wrote")?;
    // In place, by the only user: nothing changes.
    step(&one)?;
    first.pays(pages()?, "first wrote")?;
    for child in [one, other] {
        child.go()?;
        child.join()?;
    }
    first.pays(0, "both gone")?;
    second.pays(0, "both gone")
}

fn zero_pages() -> Result<()> {
    let map = room()?;
    let payer = Payer::new("zero")?;
    let child = payer.process(&map, |_| 0)?;
    payer.pays(pages()?, "zeros written")?;
    step(&child)?;
    payer.pays(0, "zeros merged")?;
    step(&child)?;
    payer.pays(pages()?, "zero pages written")?;
    drop(child);
    payer.pays(0, "gone")
}

/// A group with hardly more memory than it may have, of which nothing can be taken away: merging needs more than is left, to
/// remember what it merged. Then it says so, and nobody is killed for it.
fn no_room() -> Result<()> {
    const UNIQUE: usize = 24_576;
    /// For what the process needs itself: a quarter of what a merge of all takes.
    const LEFT: usize = UNIQUE * 96 / 4;
    let group = Cgroup::new("full")?;
    let id = |page: usize| 1 + page as u64;
    // How the merge ended, plus one. A message would take memory, of which there is none then.
    let told = Map::new(1, WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    told.put(0, 0, 0);
    let child = Child::spawn(|parent| {
        group.enter()?;
        let map = Map::anon(UNIQUE)?;
        map.no_huge();
        map.fill_all(id);
        let advise = |advice| match map.advise(advice) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1) as u64,
        };
        // Every page that a refused call writes to is its own from here on.
        told.put(0, 1, advise(-1));
        parent.meet()?;
        told.put(0, 0, 1 + advise(sksm::MADV_MERGE));
        parent.pause()?;
        map.expect_all(id)?;
        map.merge()?;
        map.expect_all(id)?;
        parent.meet()
    })?;
    child.pause()?;
    let start = Counters::now()?;
    let limit = group.number("memory.current")? + LEFT;
    group.write("memory.max", &limit.to_string())?;
    child.go()?;
    let pidfd = child.pidfd()?;
    while told.get(0, 0) == 0 && !pidfd.ends_within(Duration::from_millis(10))? {}
    let events = group.read("memory.events")?;
    let count = |name: &str| -> Result<u64> {
        let line = events.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("memory.events")?.trim().parse()?)
    };
    ensure!(count("oom_kill ")? == 0, "killed: {events}");
    let error = told.get(0, 0) as i32 - 1;
    let published = start.change()?.pages_published;
    eprintln!("error {error} after {published} of {UNIQUE} pages");
    ensure!(count("max ")? > 0, "the limit was not met: {events}");
    ensure!(
        error == 0 || error == libc::EAGAIN,
        "merging: error {error}"
    );
    group.write("memory.max", "max")?;
    child.go()?;
    child.pause()?;
    let published = start.change()?.pages_published;
    ensure!(
        published == UNIQUE as i64,
        "{published} of {UNIQUE} pages in the end"
    );
    child.go()?;
    child.join()
}
