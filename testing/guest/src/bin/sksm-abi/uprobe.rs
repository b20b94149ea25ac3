//! Uprobes: breakpoints that the kernel puts into every process that runs a file's text, also into private, merged copies.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libc::MAP_PRIVATE;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::code::{self, UPROBE};
use sksm_guest::machine::tracefs::{Trace, Uprobe};
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::{EXECUTE, Map, WRITE};
use sksm_guest::memory::process::{Child, Link};
use sksm_guest::page::PAGE;

use crate::file::call;

pub const TESTS: &[Test] = &[
    test("uprobe/on-merged-text", on_merged_text),
    test("uprobe/merged-while-probed", merged_while_probed),
];

const NUMBER: u16 = 43;
/// A word of the page beyond the code, which patching changes.
const PATCHED: usize = 100;

/// A page with the function at its start.
fn page() -> Vec<u8> {
    let mut page = vec![0x90; PAGE];
    page[..8].copy_from_slice(&code::function(NUMBER));
    page
}

/// A file with a function, for as long as this is not dropped.
struct Program(PathBuf);

impl Program {
    fn new() -> Result<Self> {
        let program = Self(PathBuf::from(format!(
            "/tmp/sksm-uprobe-{}",
            std::process::id()
        )));
        File::create(&program.0)?.write_all(&page())?;
        Ok(program)
    }

    fn text(&self) -> Result<Map> {
        let file = File::open(&self.0)?;
        Map::new(1, EXECUTE, MAP_PRIVATE, Some(&file)).context("mmap of text")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn patch(text: &Map) -> Result<()> {
    text.protect(WRITE)?;
    text.put(0, PATCHED, content(9, PATCHED));
    Ok(text.protect(EXECUTE)?)
}

fn runs(text: &Map) -> Result<()> {
    let found = call(text, 0);
    ensure!(found == u32::from(NUMBER), "the function returned {found}");
    Ok(())
}

/// The bytes are those of the patched page, with a probe or without.
fn expect(text: &Map, probed: bool) -> Result<()> {
    let mut right = page();
    if probed {
        right[..UPROBE.len()].copy_from_slice(UPROBE);
    }
    right[PATCHED * 8..][..8].copy_from_slice(&content(9, PATCHED).to_ne_bytes());
    ensure!(text.bytes() == right, "bytes of the text differ");
    Ok(())
}

/// Pids of the hits, in order.
fn hits(trace: &Trace, probe: &Uprobe) -> Result<Vec<i32>> {
    let events = trace.take()?.into_iter();
    let hits = events.filter(|event| event.name == probe.name());
    Ok(hits.map(|event| event.pid).collect())
}

/// The text of this process and of a child are one page, and so is a copy of it that is no file's text. Then probes come and go.
fn on_merged_text() -> Result<()> {
    let trace = Trace::new()?;
    let program = Program::new()?;
    let text = program.text()?;
    let copy = Map::filled(&[0])?;
    let child = Child::spawn(|parent: &Link| {
        patch(&text)?;
        text.merge()?;
        parent.meet()?;
        runs(&text)?;
        expect(&text, true)?;
        parent.meet()?;
        runs(&text)?;
        expect(&text, false)?;
        text.merge()?;
        parent.meet()
    })?;
    child.pause()?;
    patch(&text)?;
    // SAFETY: the copy is writable and as long as the text, which is readable.
    unsafe {
        std::ptr::copy_nonoverlapping(text.addr() as *const u8, copy.addr() as *mut u8, PAGE)
    };
    text.merge()?;
    copy.merge()?;
    let page = copy.pfn(0)?;
    let theirs = || child.pagemap()?.pfn(text.addr());
    ensure!(text.pfn(0)? == page && theirs()? == page, "not merged");

    let probe = Uprobe::new(&trace, &program.0, 0)?;
    expect(&text, true).context("no probe in this process")?;
    ensure!(
        text.pfn(0)? != page && theirs()? != page,
        "a shared page was changed"
    );
    ensure!(copy.pfn(0)? == page, "the copy's page changed");
    expect(&copy, false).context("a page that is not the file's")?;
    expect(&text, true)?;
    runs(&text)?;
    child.go()?;
    child.pause()?;
    let found = hits(&trace, &probe)?;
    let wanted = [std::process::id() as i32, child.pid()];
    ensure!(found == wanted, "hits by {found:?}, not by {wanted:?}");

    drop(probe);
    expect(&text, false).context("after the probe was removed")?;
    runs(&text)?;
    child.go()?;
    child.pause()?;
    ensure!(trace.take()?.is_empty(), "hits of a probe that was removed");
    text.merge()?;
    ensure!(
        text.pfn(0)? == page && theirs()? == page,
        "not merged again"
    );
    child.go()?;
    child.join()
}

/// Text that has a probe merges with other text that has it, and the probe is removed from each.
fn merged_while_probed() -> Result<()> {
    let trace = Trace::new()?;
    let program = Program::new()?;
    let (one, other) = (program.text()?, program.text()?);
    patch(&one)?;
    patch(&other)?;
    let probe = Uprobe::new(&trace, &program.0, 0)?;
    one.merge()?;
    other.merge()?;
    ensure!(one.pfn(0)? == other.pfn(0)?, "equal pages, not merged");
    for text in [&one, &other] {
        expect(text, true)?;
        runs(text)?;
    }
    let found = hits(&trace, &probe)?;
    ensure!(found.len() == 2, "hits by {found:?}");
    drop(probe);
    for text in [&one, &other] {
        expect(text, false)?;
        runs(text)?;
    }
    one.merge()?;
    other.merge()?;
    ensure!(one.pfn(0)? == other.pfn(0)?, "equal pages, not merged");
    ensure!(
        hits(&trace, &Uprobe::new(&trace, &program.0, 0)?)?.is_empty(),
        "hits"
    );
    Ok(())
}
