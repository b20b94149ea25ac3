//! Merged memory that goes to swap space and comes back, as the command tells it.

use std::time::Instant;

use anyhow::{Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::Swap;
use sksm_guest::page::PAGE;

use crate::command::{json, number, text};
use crate::crew::{Crew, Holding, TABLE};

pub const TESTS: &[Test] = &[
    test("swap/comes-back-merged", comes_back),
    test("swap/unmerge-processes", undone),
    test("swap/unmerge-machine", undone_everywhere),
];

/// Each of them holds the same, some of it twice.
const PROCESSES: usize = 4;
const CONTENTS: usize = 2500;

/// Processes that share all of their tables.
struct Merged {
    crew: Crew,
    group: Cgroup,
    /// Merged pages that slept before.
    before: f64,
    /// Last: taken away when all else is gone.
    _swap: Swap,
}

fn counter(name: &str) -> Result<f64> {
    number(&json(&["stat"])?["sksm"][name])
}

impl Merged {
    fn new() -> Result<Self> {
        let swap = Swap::on()?;
        let group = Cgroup::new("swapped")?;
        // They are started in it, so that their memory is the group's.
        group.enter()?;
        let crew = Crew::start([(Holding::Table, 0); PROCESSES])?;
        let before = counter("pages_asleep")?;
        crew.sksm(&["merge"])?;
        Ok(Self {
            crew,
            group,
            before,
            _swap: swap,
        })
    }

    /// Until the tables are in swap space only.
    fn all_out(&self) -> Result<()> {
        let deadline = deadline();
        loop {
            self.group.reclaim(64 << 20)?;
            let asleep = counter("pages_asleep")? - self.before;
            if asleep >= CONTENTS as f64 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{asleep} merged pages of {CONTENTS} are in swap space only"
            );
        }
    }

    fn merged_bytes(&self) -> Result<Vec<f64>> {
        let pids = self.crew.pids();
        let merged = |pid: &u32| {
            let stat = json(&["stat", "--pid", &pid.to_string()])?;
            number(&stat[0]["merged_bytes"])
        };
        pids.iter().map(merged).collect()
    }
}

/// By the command's account and by the page frames.
fn comes_back() -> Result<()> {
    let mut merged = Merged::new()?;
    let right = merged.crew.read()?;
    // At least the tables' mappings, but for one of each content.
    let saved = (PROCESSES * TABLE - CONTENTS) as f64;
    let sharing = counter("pages_sharing")?;
    let [out, back] = ["pages_swapped", "pages_swapped_in"].map(counter);
    let (out, back) = (out?, back?);
    merged.all_out()?;
    let left = counter("pages_sharing")?;
    ensure!(
        sharing - left >= saved,
        "{left} of {sharing} shared mappings are said to be in memory still"
    );
    let out = counter("pages_swapped")? - out;
    ensure!(out >= (PROCESSES * TABLE) as f64, "{out} mappings went out");
    ensure!(merged.crew.read()? == right, "they read something else");
    let again = counter("pages_sharing")?;
    ensure!(
        again - left >= saved,
        "{again} mappings are shared again, {sharing} were, {left} were left"
    );
    let back = counter("pages_swapped_in")? - back;
    ensure!(
        back >= (PROCESSES * TABLE) as f64,
        "{back} mappings came back"
    );
    let asleep = counter("pages_asleep")? - merged.before;
    ensure!(
        asleep < CONTENTS as f64 / 10.0,
        "{asleep} merged pages are in swap space still"
    );
    for bytes in merged.merged_bytes()? {
        ensure!(
            bytes >= (TABLE * PAGE) as f64,
            "{bytes} bytes of a process are merged"
        );
    }
    // And not each process for itself.
    let frames = merged.crew.frames()?;
    ensure!(
        frames < PROCESSES * CONTENTS / 2,
        "{frames} pages for {PROCESSES} processes with {CONTENTS} contents"
    );
    Ok(())
}

/// Of one process only, whose pages come back as its own.
fn undone() -> Result<()> {
    let mut merged = Merged::new()?;
    let right = merged.crew.read()?;
    merged.all_out()?;
    let first = merged.crew.pids()[0].to_string();
    let plan = text(&["unmerge", "--dry-run", "--pid", &first])?;
    ensure!(plan.contains("in swap space"), "{plan}");
    let report = json(&["unmerge", "--pid", &first])?;
    let row = &report["processes"][0];
    let table = (TABLE * PAGE) as f64;
    ensure!(number(&row["swapped_bytes"])? >= table, "{report}");
    ensure!(number(&row["unmerged_bytes"])? >= table, "{report}");
    ensure!(merged.crew.read()? == right, "they read something else");
    let bytes = merged.merged_bytes()?;
    ensure!(bytes[0] == 0.0, "{bytes:?}");
    ensure!(bytes[1..].iter().all(|bytes| *bytes >= table), "{bytes:?}");
    Ok(())
}

fn undone_everywhere() -> Result<()> {
    let mut merged = Merged::new()?;
    let right = merged.crew.read()?;
    merged.all_out()?;
    let told = text(&["unmerge", "--all"])?;
    let pages = told
        .split_whitespace()
        .find_map(|word| word.parse::<usize>().ok());
    ensure!(pages.is_some_and(|pages| pages >= CONTENTS), "{told}");
    ensure!(merged.crew.read()? == right, "they read something else");
    let bytes = merged.merged_bytes()?;
    ensure!(bytes.iter().all(|bytes| *bytes == 0.0), "{bytes:?}");
    let frames = merged.crew.frames()?;
    ensure!(
        frames >= PROCESSES * TABLE,
        "{frames} pages for {PROCESSES} processes with a table of {TABLE} each"
    );
    Ok(())
}
