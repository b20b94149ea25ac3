//! The scanner, on processes that do all they may do while they are looked at.

mod crowd;
mod latency;
mod profile;
mod served;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::harness::scanner::Scanner;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::Swap;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Entry;
use sksm_guest::memory::process::{Child, Link, become_user, exit_now, fork, wait};
use sksm_guest::memory::userfault;
use sksm_guest::page::{PAGE, TABLE};
use sksm_guest::skip::skip;

use crate::command::{number, run, said, set_domain, sksm, sysfs};
use crate::crew::USERS;

pub const TESTS: &[Test] = &[
    test("scan/once", || alone(once)),
    test("scan/opted-in-only", || alone(opted_in_only)),
    test("scan/other-users-apart", || alone(other_users_apart)),
    test("scan/alone-is-left-alone", || alone(alone_is_left_alone)),
    test("scan/huge-pages", || alone(huge_pages)),
    test("scan/contents-under-writers", || {
        alone(contents_under_writers)
    }),
    test("scan/comings-and-goings", || alone(comings_and_goings)),
    test("scan/after-swap", || alone(after_swap)),
    test("scan/left-out", || alone(left_out)),
    test("scan/after-fork", || alone(after_fork)),
    test("scan/written-after-merge", || alone(written_after_merge)),
    test("scan/reload", || alone(reload)),
    test("scan/state-after-trouble", || alone(state_after_trouble)),
    test("scan/memory-that-hangs", || alone(memory_that_hangs)),
    test("scan/budget", || alone(budget)),
    test("scan/not-twice", || alone(not_twice)),
    test("scan/more-processes-than-descriptors", || {
        alone(more_than_descriptors)
    }),
    test("scan/serves-each-domain-its-own", || {
        alone(served::to_each_its_own)
    }),
    test("scan/serves-while-one-floods-it", || {
        alone(served::one_floods_it)
    }),
    test("scan/under-the-profile-of-its-pod", || {
        alone(profile::of_its_pod)
    }),
    test("scan/latency", || alone(latency::no_worse_than_ksmd)),
    test("scan/thousands", || alone(crowd::thousands)),
];

const PAGES: usize = 600;

/// Runs a test, and has nothing stay merged in the process that began it: its children have pages in common with it.
fn alone(run: fn() -> Result<()>) -> Result<()> {
    let result = run();
    fs::write("/sys/kernel/mm/sksm/unmerge", "1")?;
    result
}

/// The advice that makes a mapping one that KSM would scan.
pub fn open_to_ksm(map: &Map) -> Result<()> {
    Ok(map.advise(libc::MADV_MERGEABLE)?)
}

/// That of the tests does not wait for long, and takes what it needs.
pub fn start(arguments: &[&str]) -> Result<Scanner> {
    let always = ["--stable", "200ms", "--cpu", "100%"];
    Scanner::start(&[&always, arguments].concat())
}

fn with_pids<'a>(arguments: &[&'a str], pids: &'a [String]) -> Vec<&'a str> {
    let mut words = arguments.to_vec();
    for pid in pids {
        words.extend(["--pid", pid]);
    }
    words
}

fn pids(children: &[Child]) -> Vec<String> {
    children
        .iter()
        .map(|child| child.pid().to_string())
        .collect()
}

/// Looks once, and tells what came of it.
fn scan_once(arguments: &[&str]) -> Result<Value> {
    scan_ends_with(0, arguments)
}

fn scan_ends_with(status: i32, arguments: &[&str]) -> Result<Value> {
    let always = [
        "scan", "--once", "--json", "--stable", "300ms", "--cpu", "100%",
    ];
    let output = sksm(&[&always, arguments].concat())?;
    let found = output.status.code();
    ensure!(found == Some(status), "{arguments:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Frames of a mapping in a child, where the child has it at the same place as this process; 0 where no page is.
pub fn frames(child: &Child, map: &Map) -> Result<Vec<u64>> {
    let entries = child.pagemap()?.entries(map.addr(), map.pages())?;
    let frame = |entry: &Entry| entry.pfn().filter(|_| entry.present()).unwrap_or(0);
    Ok(entries.iter().map(frame).collect())
}

pub fn shared(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b && **a != 0).count()
}

/// Of how many pages of this mapping the first two children have the same frame.
fn shared_by_two(children: &[Child], map: &Map) -> Result<usize> {
    Ok(shared(
        &frames(&children[0], map)?,
        &frames(&children[1], map)?,
    ))
}

/// Children that fill this mapping anew, each in its own frames, and hold it.
fn holders<'a>(
    map: &'a Map,
    count: usize,
    fill: impl Fn(usize, &Map) -> Result<()> + 'a,
) -> Result<Vec<Child>> {
    let child = |number| {
        let child = Child::spawn(|parent: &Link| {
            fill(number, map)?;
            parent.meet()?;
            parent.meet()
        })?;
        child.pause()?;
        Ok(child)
    };
    (0..count).map(child).collect()
}

fn id(page: usize) -> u64 {
    1 + page as u64
}

pub fn filled(map: &Map) -> Result<()> {
    map.fill_all(id);
    Ok(())
}

fn once() -> Result<()> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 3, |_, map| filled(map))?;
    let report = scan_once(&with_pids(&[], &pids(&children)))?;
    let first = frames(&children[0], &map)?;
    for child in &children {
        ensure!(
            shared(&first, &frames(child, &map)?) == PAGES,
            "not merged: {report}"
        );
    }
    let total = &report["total"];
    ensure!(
        number(&total["merged_pages"])? >= (3 * PAGES) as f64,
        "{report}"
    );
    ensure!(
        number(&total["saved_bytes"])? > (PAGES * PAGE) as f64,
        "{report}"
    );
    // 8 MiB for each GiB.
    let bytes = number(&total["bytes"])?;
    let kept = number(&report["table_bytes"])?;
    ensure!(kept < bytes / 128.0 + 65536.0, "{kept} bytes about {bytes}");
    // What has been done is found done.
    let again = scan_once(&with_pids(&[], &pids(&children)))?;
    ensure!(number(&again["total"]["merged_pages"])? < 100.0, "{again}");
    Ok(())
}

/// By itself it looks only at what KSM would.
fn opted_in_only() -> Result<()> {
    let (open, closed) = (Map::anon(PAGES)?, Map::anon(PAGES)?);
    [&open, &closed].into_iter().for_each(Map::no_huge);
    let children = holders(&open, 2, |_, open| {
        open_to_ksm(open)?;
        filled(open)?;
        filled(&closed)
    })?;
    let report = scan_once(&[])?;
    let both = |map: &Map| shared_by_two(&children, map);
    ensure!(both(&open)? == PAGES, "{} shared: {report}", both(&open)?);
    ensure!(both(&closed)? == 0, "{} shared: {report}", both(&closed)?);
    Ok(())
}

fn other_users_apart() -> Result<()> {
    set_domain("user")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let users = [USERS[0], USERS[1], USERS[0]];
    let children = holders(&map, 3, |number, map| {
        become_user(users[number])?;
        // Who changes its user is not dumpable any more.
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
        filled(map)
    })?;
    let report = scan_once(&with_pids(&[], &pids(&children)))?;
    let all: Vec<Vec<u64>> = children
        .iter()
        .map(|child| frames(child, &map))
        .collect::<Result<_>>()?;
    ensure!(shared(&all[0], &all[2]) == PAGES, "one user's: {report}");
    ensure!(shared(&all[0], &all[1]) == 0, "two users': {report}");
    Ok(())
}

/// Nothing is write-protected, published or split for pages that nobody else has.
fn alone_is_left_alone() -> Result<()> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 2, |number, map| {
        map.fill_all(|page| (1 + number * PAGES + page) as u64);
        Ok(())
    })?;
    let looked = ["pages_scanned", "pages_published", "calls"];
    let before: Vec<i64> = looked
        .iter()
        .map(|name| sysfs(name))
        .collect::<Result<_>>()?;
    let words = pids(&children);
    let report = scan_once(&with_pids(&["--what", "heap"], &words))?;
    // The heaps of the two may have something in common; these pages have not.
    let after: Vec<i64> = looked
        .iter()
        .map(|name| sysfs(name))
        .collect::<Result<_>>()?;
    ensure!(after[0] - before[0] < PAGES as i64, "{report}");
    for child in &children {
        let entries = child.pagemap()?.entries(map.addr(), PAGES)?;
        ensure!(entries.iter().all(|entry| entry.present()), "{report}");
    }
    ensure!(
        number(&report["total"]["bytes"])? >= (2 * PAGES * PAGE) as f64,
        "{report}"
    );
    Ok(())
}

/// One is split for many twins, and not for few.
fn huge_pages() -> Result<()> {
    let Some(map) = Map::huge(TABLE / PAGE, id)? else {
        return skip("no huge pages in this kernel (CONFIG_TRANSPARENT_HUGEPAGE)");
    };
    let pages = map.pages();
    let small = Map::anon(pages)?;
    small.no_huge();
    let has_huge = || -> Result<bool> {
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let start = format!("{:x}-", map.addr());
        let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let huge = lines
            .skip(1)
            .find_map(|line| line.strip_prefix("AnonHugePages:"));
        Ok(huge.is_some_and(|kib| kib.trim() != "0 kB"))
    };
    if !has_huge()? {
        return skip("no huge page was free");
    }
    // A child with the huge page would have it in common with this process.
    let scan = |twins: usize| -> Result<Value> {
        let children = holders(&small, 1, |_, small| {
            (0..twins).for_each(|page| small.fill(page, id(page)));
            Ok(())
        })?;
        let own = std::process::id().to_string();
        let child = children[0].pid().to_string();
        // The command leaves itself out, not this process.
        scan_once(&["--what", "heap", "--pid", &own, "--pid", &child])
    };
    let report = scan(50)?;
    ensure!(has_huge()?, "split for 50 twins: {report}");
    let report = scan(200)?;
    ensure!(!has_huge()?, "not split for 200 twins: {report}");
    ensure!(
        number(&report["total"]["split_huge_pages"])? >= 1.0,
        "{report}"
    );
    map.expect_all(id)
}

/// Programs read what they wrote, whatever is merged meanwhile.
fn contents_under_writers() -> Result<()> {
    const ROUNDS: u64 = 400;
    /// So many of them with pages that are merged.
    const AFTERWARDS: u64 = 100;
    let map = Map::anon(256)?;
    map.no_huge();
    let before = sysfs("pages_merged")?;
    let writers: Vec<Child> = (0..3u64)
        .map(|number| {
            Child::spawn(|parent| {
                let mut held = vec![0; map.pages()];
                let (end, mut merged, mut afterwards) = (deadline(), false, 0);
                // On a busy machine the scanner may not come to it for long.
                for round in 0.. {
                    let enough = round >= ROUNDS && afterwards >= AFTERWARDS;
                    if enough || Instant::now() > end {
                        break;
                    }
                    for (page, held) in held.iter_mut().enumerate() {
                        // Some pages change often, some hardly ever.
                        let every = 1 << (page % 8);
                        if (round + number) % every == 0 {
                            *held = 1 + (round / 16 + page as u64 / 8) % 9;
                            map.fill(page, *held);
                        }
                    }
                    map.expect_all(|page| held[page])?;
                    if round % 16 == 0 {
                        std::thread::sleep(Duration::from_millis(60));
                        merged = merged || sysfs("pages_merged")? > before;
                    }
                    afterwards += u64::from(merged);
                }
                parent.go()
            })
        })
        .collect::<Result<_>>()?;
    let words = pids(&writers);
    let mut scanner = start(&with_pids(&["--what", "heap"], &words))?;
    for writer in &writers {
        writer.pause()?;
    }
    scanner.runs()?;
    let (report, _) = scanner.end()?;
    ensure!(
        sysfs("pages_merged")? > before,
        "nothing was merged: {report}"
    );
    writers.into_iter().try_for_each(Child::join)
}

/// Processes that end, run other programs, map and unmap, are stopped, or wait to be buried: while all are looked at.
fn comings_and_goings() -> Result<()> {
    const ROUNDS: usize = 60;
    let mut scanner = start(&["--all"])?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let stopped = holders(&map, 2, |_, map| filled(map))?;
    for child in &stopped {
        // SAFETY: takes numbers only; our own child.
        unsafe { libc::kill(child.pid(), libc::SIGSTOP) };
    }
    let restless = Child::spawn(|parent| {
        for round in 0..ROUNDS * 20 {
            let map = Map::anon(64)?;
            map.no_huge();
            map.fill_all(|page| (round + page) as u64 % 50 + 1);
            map.unmap_pages(7..19)?;
            let rest = map.part(19..64);
            rest.expect_all(|page| (round + page + 19) as u64 % 50 + 1)?;
        }
        parent.go()
    })?;
    for round in 0..ROUNDS {
        let child = fork()?;
        if child == 0 {
            // What it has in common with this process becomes its own.
            map.fill_all(id);
            if round % 3 == 0 {
                let error = Command::new("/bin/sleep").arg("0.02").exec();
                eprintln!("{error}");
            }
            exit_now(0);
        }
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(15));
        }
        wait(child)?;
    }
    // Ended, and nobody has waited for it yet.
    let zombie = fork()?;
    if zombie == 0 {
        exit_now(0);
    }
    restless.pause()?;
    // Those that are stopped are merged like others.
    scanner.until(|| {
        let all = [frames(&stopped[0], &map)?, frames(&stopped[1], &map)?];
        Ok(shared(&all[0], &all[1]) == PAGES)
    })?;
    wait(zombie)?;
    let (report, told) = scanner.end()?;
    ensure!(!told.contains("panicked"), "{told}");
    ensure!(
        number(&report["table_bytes"])? < (8 << 20) as f64,
        "{report}"
    );
    for child in &stopped {
        // SAFETY: as above.
        unsafe { libc::kill(child.pid(), libc::SIGCONT) };
    }
    restless.join()
}

/// What had been shared comes back as a page for each, and is shared again.
fn after_swap() -> Result<()> {
    let _swap = Swap::on()?;
    let group = Cgroup::new("scanned")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let child = |_| {
        let child = Child::spawn(|parent: &Link| {
            group.enter()?;
            map.fill_all(id);
            loop {
                parent.meet()?;
                map.expect_all(id)?;
            }
        })?;
        child.pause()?;
        Ok(child)
    };
    let children: Vec<Child> = (0..2).map(child).collect::<Result<_>>()?;
    let words = pids(&children);
    let mut scanner = start(&with_pids(&["--what", "heap"], &words))?;
    let both = || shared_by_two(&children, &map);
    scanner.until(|| Ok(both()? == PAGES))?;
    scanner.until(|| {
        group.reclaim(4 << 20)?;
        Ok(both()? == 0)
    })?;
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    scanner.until(|| Ok(both()? == PAGES))?;
    scanner.end()?;
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    Ok(())
}

/// Who cannot be looked at is named, with the reason.
fn left_out() -> Result<()> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 2, |number, map| {
        filled(map)?;
        if number == 0 {
            become_user(USERS[0])?;
            // SAFETY: takes numbers only.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        }
        Ok(())
    })?;
    let words = pids(&children);
    let report = scan_ends_with(5, &with_pids(&[], &words))?;
    let left_out = &report["left_out"][0];
    ensure!(left_out["pid"] == children[0].pid(), "{report}");
    ensure!(
        left_out["reason"].to_string().contains("not dumpable"),
        "{report}"
    );
    ensure!(report["processes_count"] == 1, "{report}");
    Ok(())
}

/// What is one page since a fork is no twin, and is not read again and again; with a copy of it all become one.
fn after_fork() -> Result<()> {
    let map = Map::filled(&(0..PAGES).map(id).collect::<Vec<_>>())?;
    let mut children = holders(&map, 2, |_, _| Ok(()))?;
    let words = pids(&children);
    let report = scan_once(&with_pids(&["--what", "heap"], &words))?;
    let total = &report["total"];
    ensure!(
        number(&total["merged_pages"])? < PAGES as f64 / 2.0,
        "{report}"
    );
    children.extend(holders(&map, 1, |_, map| filled(map))?);
    let words = pids(&children);
    let report = scan_once(&with_pids(&["--what", "heap"], &words))?;
    let all: Vec<Vec<u64>> = children
        .iter()
        .map(|child| frames(child, &map))
        .collect::<Result<_>>()?;
    ensure!(shared(&all[0], &all[2]) == PAGES, "the copy: {report}");
    ensure!(shared(&all[0], &all[1]) == PAGES, "the common: {report}");
    map.expect_all(id)
}

/// What is written after each merge is merged ever more rarely.
fn written_after_merge() -> Result<()> {
    const ROUNDS: usize = 4;
    let map = Map::anon(100)?;
    map.no_huge();
    let child = |number: u64| {
        let child = Child::spawn(|parent: &Link| {
            map.fill_all(id);
            loop {
                parent.meet()?;
                // One of them writes: the same sample, other bytes.
                (0..map.pages() * number as usize)
                    .for_each(|page| map.put(page, 0, map.get(page, 0)));
            }
        })?;
        child.pause()?;
        Ok(child)
    };
    let children: Vec<Child> = (0..2).map(child).collect::<Result<_>>()?;
    let words = pids(&children);
    let mut scanner = start(&with_pids(&["--what", "heap"], &words))?;
    let both = || shared_by_two(&children, &map);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        scanner.until(|| Ok(both()? == map.pages()))?;
        times.push(start.elapsed());
        children[1].go()?;
        children[1].pause()?;
        ensure!(both()? == 0, "not parted by the write");
    }
    let (report, _) = scanner.end()?;
    eprintln!("merged after {times:?}");
    ensure!(times[3] > times[1], "{times:?}: {report}");
    // Before the last of them was seen, perhaps.
    let apart = number(&report["total"]["came_apart_pages"])?;
    ensure!(apart >= (map.pages() * 2) as f64, "{report}");
    Ok(())
}

/// A configuration is read again, and one that is wrong is left.
fn reload() -> Result<()> {
    let file = std::env::temp_dir().join(format!("sksm-scan-{}.conf", std::process::id()));
    let path = file.to_str().context("a path")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 2, |_, map| filled(map))?;
    let words = pids(&children);
    fs::write(
        &file,
        "# as the options are called\nname = nobody-is-called-so\n",
    )?;
    let mut scanner = start(&["--config", path])?;
    let both = || shared_by_two(&children, &map);
    scanner.until_told("looks again")?;
    fs::write(&file, "name = nobody-is-called-so\ncolour = red\n")?;
    scanner.signal(libc::SIGHUP);
    scanner.until_told("stays as it was")?;
    ensure!(both()? == 0, "merged although it was not asked to");
    fs::write(&file, format!("pid = {}\npid = {}\n", words[0], words[1]))?;
    scanner.signal(libc::SIGHUP);
    scanner.until(|| Ok(both()? == PAGES))?;
    let (_, told) = scanner.end()?;
    fs::remove_file(&file)?;
    ensure!(told.contains("line 2: unexpected argument"), "{told}");
    ensure!(told.contains("was read again"), "{told}");
    Ok(())
}

/// What cannot be written for a while is written again once it can.
fn state_after_trouble() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("sksm-state-{}", std::process::id()));
    let file = dir.join("state.json");
    fs::create_dir(&dir)?;
    let path = file.to_str().context("a path")?;
    let mut scanner = start(&["--name", "nobody-is-called-so", "--state", path])?;
    scanner.until(|| Ok(file.exists()))?;
    fs::remove_dir_all(&dir)?;
    scanner.until_told("cannot write")?;
    fs::create_dir(&dir)?;
    scanner.until(|| Ok(file.exists()))?;
    let (_, told) = scanner.end()?;
    fs::remove_dir_all(&dir)?;
    ensure!(told.matches("cannot write").count() == 1, "{told}");
    Ok(())
}

/// Its reader waits for ever: the scanner says for whom and merges all others, and so does the next one.
fn memory_that_hangs() -> Result<()> {
    // Skips it where there are none.
    userfault::open(userfault::FEATURES_RWP, "traps for reads")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let children = holders(&map, 3, |number, map| {
        filled(map)?;
        if number == 0 {
            hang_readers(map)?;
        }
        Ok(())
    })?;
    let [hangs, one, other] = &children[..] else {
        unreachable!("three were begun");
    };
    let dir = std::env::temp_dir().join(format!("sksm-hung-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let state = dir.join("state.json");
    let words = pids(&children);
    let always = [
        "--patience",
        "1s",
        "--state",
        state.to_str().context("a path")?,
    ];
    let arguments = with_pids(&always, &words);
    let mut first = start(&arguments)?;
    first.until_told("goes on without it")?;
    first.until(|| Ok(shared(&frames(one, &map)?, &frames(other, &map)?) == PAGES))?;
    let (report, told) = first.end()?;
    ensure!(
        told.contains(&format!("process {} (", hangs.pid())),
        "{told}"
    );
    ensure!(report["left_out"][0]["pid"] == hangs.pid(), "{report}");
    fs::remove_file(&state)?;
    let mut next = start(&arguments)?;
    next.until(|| {
        let state = fs::read_to_string(&state).unwrap_or_default();
        Ok(state.contains("made the scanner wait"))
    })?;
    let (report, told) = next.end()?;
    fs::remove_dir_all(&dir)?;
    ensure!(!told.contains("goes on without it"), "{told}");
    ensure!(report["left_out"][0]["pid"] == hangs.pid(), "{report}");
    Ok(())
}

/// Who reads the first page of this memory waits until somebody handles that access, which nobody does.
fn hang_readers(map: &Map) -> Result<()> {
    let uffd = userfault::open(userfault::FEATURES_RWP, "traps for reads")?;
    let first = (map.addr(), PAGE);
    userfault::register(&uffd, first, userfault::REGISTER_RWP)?;
    userfault::trap(&uffd, first)?;
    // For as long as this process is there.
    std::mem::forget(uffd);
    Ok(())
}

/// However much there is to do.
fn budget() -> Result<()> {
    const SHARE: f64 = 0.05;
    let map = Map::anon(20_000)?;
    map.no_huge();
    let children = holders(&map, 2, |_, map| filled(map))?;
    let words = pids(&children);
    // The last one holds.
    let arguments = with_pids(&["--what", "heap", "--cpu", "5%"], &words);
    let began = Instant::now();
    let mut scanner = start(&arguments)?;
    let before = sysfs("pages_merged")?;
    scanner.until(|| Ok(sysfs("pages_merged")? - before >= 5000))?;
    let (report, _) = scanner.end()?;
    let elapsed = began.elapsed().as_secs_f64();
    let taken = number(&report["total"]["cpu_seconds"])?;
    eprintln!("{taken:.2} s of {elapsed:.2} s");
    // Starting and ending are not in it, nor is the burst that comes first.
    ensure!(
        taken < SHARE * elapsed + SHARE * 3.0 + 0.5,
        "{taken} s of {elapsed} s"
    );
    Ok(())
}

/// ksmd does the same, which is said.
fn not_twice() -> Result<()> {
    let run = "/sys/kernel/mm/ksm/run";
    fs::write(run, "1")?;
    let output = sksm(&["scan", "--once", "--stable", "100ms"]);
    fs::write(run, "2")?;
    let told = said(&output?.stderr);
    ensure!(told.contains("echo 0 > /sys/kernel/mm/ksm/run"), "{told}");
    // And that there is nothing to look at.
    ensure!(told.contains("no memory is open to KSM"), "{told}");
    Ok(())
}

/// Files of processes are opened anew where not all can be kept open.
fn more_than_descriptors() -> Result<()> {
    const PROCESSES: usize = 300;
    const EACH: usize = 8;
    let map = Map::anon(EACH)?;
    map.no_huge();
    let children = holders(&map, PROCESSES, |_, map| filled(map))?;
    let words = pids(&children);
    let mut command = Command::new("/bin/sh");
    // Two files each of some twenty processes.
    command
        .args(["-c", "ulimit -n 100 && exec \"$@\"", "sh"])
        .arg(beside("sksm")?);
    command.args([
        "scan", "--once", "--json", "--stable", "1s", "--cpu", "100%", "--what", "heap",
    ]);
    let output = run(command.args(with_pids(&[], &words)))?;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let mut copies = BTreeSet::new();
    for child in &children {
        copies.extend(frames(child, &map)?);
    }
    ensure!(report["processes_count"] == PROCESSES, "{report}");
    // A page serves 256 at most.
    let most = EACH * (PROCESSES / 256 + 2);
    ensure!(copies.len() <= most, "{} copies: {report}", copies.len());
    Ok(())
}
