//! Makes calls of MADV_MERGE for `cargo xtask profile` to count the kernel's instructions in.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::Map;
use sksm_guest::page::TABLE;
use sksm_records::profile::{CASES, Case, DONE, READY, What};

/// Make calls of MADV_MERGE to look at from outside
///
/// Prints the kernel's symbols and "ready", waits until there is a file, makes the calls, and prints "done".
#[derive(Parser)]
struct Options {
    /// The file to wait for
    file: PathBuf,
}

/// The memory of a case: for all of its calls.
fn memory(case: &Case, number: u64) -> Result<Map> {
    let pages = case.calls * case.pages;
    let map = Map::aligned(pages, TABLE, 0)?;
    let published = |page: usize| page as u64 + 1;
    map.fill_all(|page| match case.what {
        What::New => (number + 1) << 32 | page as u64,
        What::Duplicate | What::Merged => published(page),
        What::Zeros => 0,
    });
    Ok(map)
}

/// Pages published and merged so far.
fn counters() -> Result<[i64; 2]> {
    Ok([
        SKSM.number("pages_published")?,
        SKSM.number("pages_merged")?,
    ])
}

/// Whether the host has made a file. Linux 7.3 does not ask 9p again for a day for a name that was not there once; a directory it
/// reads anew.
fn is_listed(file: &Path) -> Result<bool> {
    let dir = file.parent().context("not a file")?;
    for entry in fs::read_dir(dir)? {
        if Some(entry?.file_name().as_os_str()) == file.file_name() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn main() -> Result<()> {
    let Options { file } = Options::parse();
    let most = CASES.iter().map(|case| case.calls * case.pages).max();
    let published = Map::aligned(most.unwrap_or(0), TABLE, 0)?;
    published.fill_all(|page| page as u64 + 1);
    published.merge()?;
    let maps = (0..).zip(&CASES).map(|(number, case)| memory(case, number));
    let maps = maps.collect::<Result<Vec<_>>>()?;
    for (case, map) in CASES.iter().zip(&maps) {
        if case.what == What::Merged {
            map.merge()?;
        }
    }
    // What was written last is in the CPU's batch of the LRU: not the pages of a case, then.
    let _last = Map::filled(&[1; 64])?;

    let mut out = io::stdout().lock();
    out.write_all(&fs::read("/proc/kallsyms")?)?;
    writeln!(out, "{READY}")?;
    out.flush()?;
    while !is_listed(&file)? {
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = counters()?;
    for (case, map) in CASES.iter().zip(&maps) {
        for call in 0..case.calls {
            map.merge_pages(call * case.pages..(call + 1) * case.pages)?;
        }
    }
    let after = counters()?;
    writeln!(out, "{DONE}")?;
    out.flush()?;
    let wanted = |what: &[What]| {
        let cases = CASES.iter().filter(|case| what.contains(&case.what));
        cases.map(|case| case.calls * case.pages).sum::<usize>() as i64
    };
    let wanted = [
        wanted(&[What::New]),
        wanted(&[What::Duplicate, What::Zeros]),
    ];
    let done = [0, 1].map(|at| after[at] - before[at]);
    ensure!(
        done == wanted,
        "{done:?} pages were published and merged, not {wanted:?}"
    );
    Ok(())
}
