//! What a kernel does that was booted with `sksm=off`: nothing, and it says so.

use std::fs;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use libc::{EPERM, MADV_UNMERGEABLE};
use sksm_guest::harness::report::{self, Options, Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, become_user};

const TESTS: &[Test] = &[
    test("off/nothing-merges", nothing_merges),
    test("off/whoever-asks", whoever_asks),
    test("off/no-mark-helps", no_mark_helps),
    test("off/domain-says-none", domain_says_none),
    test("off/nothing-to-undo", nothing_to_undo),
];

/// Checks a kernel that was booted with sksm=off, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    report::run(TESTS, &Arguments::parse().options)
}

const IDS: [u64; 4] = [5, 5, 0, 0];

/// Its pages have not merged, neither with each other nor with the zero page.
fn apart(pfns: &[u64]) -> Result<()> {
    for (page, pfn) in pfns.iter().enumerate() {
        ensure!(!pfns[..page].contains(pfn), "page {page} is shared");
        let flags = Flags::of(*pfn)?;
        ensure!(
            !flags.ksm() && !flags.zero_page(),
            "page {page}: {flags:x?}"
        );
    }
    Ok(())
}

/// The call succeeds, as programs rely on, and does nothing.
fn nothing_merges() -> Result<()> {
    let start = Counters::now()?;
    let map = Map::filled(&IDS)?;
    let before = map.pfns()?;
    map.merge()?;
    ensure!(map.pfns()? == before, "pages changed");
    apart(&before)?;
    let change = start.change()?;
    let done = [
        change.pages_merged,
        change.pages_published,
        change.pages_zero,
        change.bytes_metadata,
    ];
    ensure!(done == [0; 4], "{change:?}");
    map.expect_all(|page| IDS[page])
}

fn whoever_asks() -> Result<()> {
    let map = Map::filled(&IDS)?;
    let child = Child::spawn(|parent| {
        become_user(1001)?;
        map.fill_all(|page| IDS[page]);
        map.merge()?;
        parent.meet()?;
        map.expect_all(|page| IDS[page])
    })?;
    child.pause()?;
    let advised = sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    apart(&child.pagemap()?.pfns(map.addr(), map.pages())?)?;
    child.go()?;
    child.join()
}

fn no_mark_helps() -> Result<()> {
    let group = Cgroup::new("marked")?;
    // Whether it can be written or not.
    group.write("memory.merge_domain", "all").ok();
    group.enter()?;
    nothing_merges()
}

fn domain_says_none() -> Result<()> {
    let text = SKSM.text("domain")?;
    ensure!(text == "cgroup user global [none]", "it says {text:?}");
    for word in ["user", "none", "cgroup", "global"] {
        let error = fs::write(SKSM.path("domain"), word).err();
        let error = error.and_then(|error| error.raw_os_error());
        ensure!(error == Some(EPERM), "{word}: error {error:?}");
    }
    ensure!(SKSM.text("domain")? == text, "refused, and changed");
    Ok(())
}

/// Ways back are open, and lead nowhere.
fn nothing_to_undo() -> Result<()> {
    let map = Map::filled(&IDS)?;
    let before = map.pfns()?;
    map.advise(MADV_UNMERGEABLE).context("MADV_UNMERGEABLE")?;
    SKSM.write("unmerge", 1)?;
    ensure!(map.pfns()? == before, "pages changed");
    map.expect_all(|page| IDS[page])
}
