//! What a process that maps, writes and unmaps notes of being scanned.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::machine::sysfs::KSM;
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::process::{Child, Link};

use super::{filled, holders, open_to_ksm, start, sysfs};

const PAGES: usize = 6000;
/// Those that it writes all the time; of the others it writes one now and then, which takes a merged one apart.
const BUSY: usize = 200;
const STEPS: usize = 4000;
/// Another process may come in between, whoever scans.
const TRIES: usize = 5;
/// A scanner that stops its target, or keeps its mappings locked, is worse by far.
const RATIO: u64 = 4;

/// One step in a thousand is slower than this, in nanoseconds; and the slowest.
#[derive(Debug)]
struct Latency {
    thousandth: u64,
    worst: u64,
}

/// Steps until the flag is set, so many at least.
fn steps(map: &Map, flag: &Map) -> Result<Latency> {
    let mut times = Vec::new();
    while times.len() < STEPS || flag.get(0, 0) == 0 {
        let step = times.len();
        let start = Instant::now();
        let new = Map::anon(16)?;
        (0..new.pages()).for_each(|page| new.put(page, 0, 1));
        (0..4).for_each(|page| map.put((step * 4 + page) % BUSY, 1, step as u64));
        if step % 50 == 0 {
            map.put(BUSY + step / 50 % (PAGES - BUSY), 1, step as u64);
        }
        drop(new);
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    let at = |rank: usize| times[times.len() - rank];
    Ok(Latency {
        thousandth: at(times.len() / 1000),
        worst: at(1),
    })
}

/// A process that takes steps, and another with the same memory.
struct Scene {
    target: Child,
    twin: Vec<Child>,
    flag: Map,
}

impl Scene {
    fn watch(&self, scan: impl FnOnce() -> Result<()>) -> Result<Latency> {
        self.flag.put(0, 0, 0);
        self.target.go()?;
        let scanned = scan();
        self.flag.put(0, 0, 1);
        let latency = Latency {
            thousandth: self.target.receive()?,
            worst: self.target.receive()?,
        };
        self.target.pause()?;
        scanned?;
        Ok(latency)
    }
}

fn beside_ksmd(scene: &Scene) -> Result<Latency> {
    KSM.write("sleep_millisecs", 0)?;
    KSM.write("pages_to_scan", 10_000)?;
    let latency = scene.watch(|| {
        KSM.write("run", 1)?;
        let scans = KSM.number("full_scans")?;
        let deadline = deadline();
        while KSM.number("pages_sharing")? < PAGES as i64 / 2
            || KSM.number("full_scans")? < scans + 4
        {
            ensure!(Instant::now() < deadline, "ksmd does nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })?;
    KSM.write("run", 2)?;
    Ok(latency)
}

fn beside_scanner(scene: &Scene) -> Result<Latency> {
    let words = [&scene.target, &scene.twin[0]].map(|child| child.pid().to_string());
    let before = sysfs("pages_merged")?;
    let mut scanner = None;
    let latency = scene.watch(|| {
        let scanner = scanner.insert(start(&["--pid", &words[0], "--pid", &words[1]])?);
        scanner.until(|| Ok(sysfs("pages_merged")? >= before + PAGES as i64 / 2))
    })?;
    if let Some(scanner) = scanner {
        scanner.end()?;
    }
    fs::write("/sys/kernel/mm/sksm/unmerge", "1")?;
    Ok(latency)
}

pub fn no_worse_than_ksmd() -> Result<()> {
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let fill = |map: &Map| {
        open_to_ksm(map)?;
        filled(map)
    };
    let twin = holders(&map, 1, |_, map| fill(map))?;
    let flag = Map::new(1, WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    let target = Child::spawn(|parent: &Link| {
        fill(&map)?;
        loop {
            parent.meet()?;
            let latency = steps(&map, &flag)?;
            parent.send(latency.thousandth)?;
            parent.send(latency.worst)?;
        }
    })?;
    target.pause()?;
    let scene = Scene { target, twin, flag };
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let (ksmd, scanner) = (beside_ksmd(&scene)?, beside_scanner(&scene)?);
        eprintln!("ns a step beside ksmd: {ksmd:?}, beside the scanner: {scanner:?}");
        let fine =
            scanner.thousandth <= RATIO * ksmd.thousandth && scanner.worst <= RATIO * ksmd.worst;
        if fine {
            return Ok(());
        }
        seen.push((ksmd, scanner));
    }
    bail!("each time much worse beside the scanner: {seen:?}")
}
