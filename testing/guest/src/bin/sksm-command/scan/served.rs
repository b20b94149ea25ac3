//! The socket at which the scanner tells programs of others' memory: two users at one.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, Link, become_user};
use sksm_scan::SharedFilter;

use super::{PAGES, filled, pids, shared_by_two, start, with_pids};
use crate::crew::USERS;

/// Samples at places of their own.
const OF_ONE: u32 = 7;
const OF_OTHER: u32 = 8;

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("sksm-{}-{name}", std::process::id()))
}

fn ask(path: &Path) -> io::Result<SharedFilter> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    SharedFilter::receive(&stream)
}

/// Who has been refused asks again later, as the tracker does.
fn ask_until_answered(path: &Path) -> Result<SharedFilter> {
    let deadline = deadline();
    loop {
        match ask(path) {
            Ok(filter) => return Ok(filter),
            Err(error) => ensure!(Instant::now() < deadline, "never answered: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A user's process: has a filter, tells this sample as that of two programs, and then which of the two samples it is told of.
fn program(path: &Path, user: u32, sample: u32) -> Result<Child> {
    let child = Child::spawn(move |parent: &Link| {
        become_user(user)?;
        let filter = ask_until_answered(path)?;
        (0..2).for_each(|_| filter.add(sample));
        parent.meet()?;
        for asked in [OF_ONE, OF_OTHER] {
            parent.send(u64::from(filter.twice(asked)))?;
        }
        parent.meet()
    })?;
    child.pause()?;
    Ok(child)
}

/// A twin of another merge domain is neither told nor handed out.
pub fn to_each_its_own() -> Result<()> {
    let path = socket("own");
    let name = path.to_str().context("a path")?;
    let arguments = ["--serve", name, "--name", "nobody-is-called-so"];
    let scanner = start(&arguments)?;
    let programs = [
        program(&path, USERS[0], OF_ONE)?,
        program(&path, USERS[1], OF_OTHER)?,
        // Tells nothing that would not be known already.
        program(&path, USERS[0], OF_ONE)?,
    ];
    let mut told = Vec::new();
    for program in &programs {
        program.go()?;
        told.push([program.receive()?, program.receive()?]);
    }
    ensure!(told == [[1, 0], [0, 1], [1, 0]], "{told:?}");
    scanner.end()?;
    ensure!(!path.exists(), "the socket is left");
    Ok(())
}

/// Whoever connects as often as he can, and reads nothing of what he is told, has nobody else wait: neither another user nor what
/// is scanned; and the service holds no more for him than a little.
pub fn one_floods_it() -> Result<()> {
    const FLOODS: usize = 2;
    // More than there are answers for one.
    const BEGUN: u64 = 600;
    let path = socket("flood");
    let name = path.to_str().context("a path")?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    let holder = |_| {
        let child = Child::spawn(|parent: &Link| {
            parent.meet()?;
            filled(&map)?;
            parent.meet()?;
            parent.meet()
        })?;
        child.pause()?;
        Ok(child)
    };
    let holders: Vec<Child> = (0..2).map(holder).collect::<Result<_>>()?;
    let words = pids(&holders);
    let arguments = ["--what", "heap", "--cpu", "20%", "--serve", name];
    let mut scanner = start(&with_pids(&arguments, &words))?;
    drop(ask_until_answered(&path)?);
    let worker = scanner.worker()?;
    let of_service = |file: &str| format!("/proc/{worker}/{file}");
    let descriptors = of_service("fd");
    let descriptors = || Ok::<_, anyhow::Error>(fs::read_dir(&descriptors)?.count());
    let resident = of_service("statm");
    let resident = || -> Result<usize> {
        let text = fs::read_to_string(&resident)?;
        let pages = text.split(' ').nth(1).context("no second number")?;
        Ok(pages.parse()?)
    };
    let before = (descriptors()?, resident()?);
    let flood = |_| {
        let child = Child::spawn(|parent: &Link| {
            become_user(USERS[0])?;
            let mut held = Vec::new();
            let mut count = 0u64;
            loop {
                if let Ok(stream) = UnixStream::connect(&path) {
                    count += 1;
                    // As many as it may have open; what it drops it has not read either.
                    if held.len() < 500 {
                        held.push(stream);
                    }
                    if count == BEGUN {
                        parent.meet()?;
                    }
                }
            }
        })?;
        child.pause()?;
        Ok(child)
    };
    let floods: Vec<Child> = (0..FLOODS).map(flood).collect::<Result<_>>()?;
    floods.iter().try_for_each(|flood| flood.go())?;
    // Another user, as the first process of his and as a later one.
    for _ in 0..2 {
        program(&path, USERS[1], OF_OTHER)?;
    }
    for holder in &holders {
        holder.go()?;
        holder.pause()?;
    }
    scanner.until(|| Ok(shared_by_two(&holders, &map)? == PAGES))?;
    let after = (descriptors()?, resident()?);
    eprintln!("descriptors and resident pages: {before:?}, in the flood {after:?}");
    ensure!(
        after.0 < before.0 + 100 && after.1 < before.1 + 1024,
        "{before:?} descriptors and resident pages became {after:?}"
    );
    drop(floods);
    scanner.end()?;
    Ok(())
}
