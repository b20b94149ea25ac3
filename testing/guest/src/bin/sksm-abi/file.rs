//! Private copies of file pages: patched text, `.data`, `.bss`.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use libc::MAP_PRIVATE;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::code;
use sksm_guest::memory::content::content;
use sksm_guest::memory::file::with_contents;
use sksm_guest::memory::map::{EXECUTE, Map, WRITE};
use sksm_guest::memory::process::Child;
use sksm_guest::page::{PAGE, WORDS};

use crate::expect::{apart, one_page};

pub const TESTS: &[Test] = &[
    test("file/untouched-pages-stay", untouched_pages_stay),
    test("file/written-pages-merge", written_pages_merge),
    test(
        "file/dropped-pages-show-the-file",
        dropped_pages_show_the_file,
    ),
    test("file/patched-text", patched_text),
    test("file/patched-text-of-two-processes", patched_text_of_two),
    test("file/merged-text-runs", merged_text_runs),
    test("file/data-and-bss", data_and_bss),
    test("file/truncated", truncated),
];

pub fn private(contents: &[u64]) -> Result<Map> {
    let file = with_contents(contents)?;
    Map::new(contents.len(), WRITE, MAP_PRIVATE, Some(&file)).context("mmap of a file")
}

fn untouched_pages_stay() -> Result<()> {
    let map = private(&[1; 4])?;
    map.expect_all(|_| 1)?;
    map.fill(0, 1);
    map.fill(3, 1);
    let before = map.pfns()?;
    map.merge()?;
    let after = map.pfns()?;
    ensure!(
        before[1..3] == after[1..3],
        "pages of the page cache changed"
    );
    one_page(&[after[0], after[3]])?;
    map.expect_all(|_| 1)
}

fn written_pages_merge() -> Result<()> {
    let map = private(&[1, 2, 3, 4])?;
    let anon = Map::filled(&[7])?;
    map.fill_all(|_| 7);
    map.merge()?;
    anon.merge()?;
    one_page(&[map.pfns()?, anon.pfns()?].concat())?;
    map.fill(2, 8);
    map.expect_all(|page| if page == 2 { 8 } else { 7 })?;
    anon.expect(0, 7)
}

fn dropped_pages_show_the_file() -> Result<()> {
    let map = private(&[1, 2, 3, 4])?;
    map.fill_all(|_| 7);
    map.merge()?;
    one_page(&map.pfns()?)?;
    map.advise_pages(1..3, libc::MADV_DONTNEED)?;
    map.expect_all(|page| [7, 2, 3, 7][page])
}

/// Text as a patcher leaves it: made writable, written, made executable again, merged.
fn patch(text: &Map, word: usize) -> Result<()> {
    text.protect(WRITE)?;
    (0..text.pages()).for_each(|page| text.put(page, word, 0xcc));
    text.protect(EXECUTE)?;
    text.merge()
}

fn expect_patched(text: &Map, word: usize, contents: &[u64]) -> Result<()> {
    for (page, id) in contents.iter().enumerate() {
        ensure!(
            text.get(page, word) == 0xcc,
            "the patch of page {page} is lost"
        );
        text.expect_after(page, word + 1, *id)?;
    }
    Ok(())
}

fn text_of(file: &File) -> Result<Map> {
    let pages = file.metadata()?.len() as usize / PAGE;
    Map::new(pages, EXECUTE, MAP_PRIVATE, Some(file)).context("mmap of text")
}

fn patched_text() -> Result<()> {
    let file = with_contents(&[1, 2, 3])?;
    let (one, other) = (text_of(&file)?, text_of(&file)?);
    patch(&one, 0)?;
    patch(&other, 0)?;
    let pfns = one.pfns()?;
    ensure!(pfns == other.pfns()?, "two patched copies");
    apart(&pfns)?;
    // A second patch of one does not show in the other.
    patch(&one, 1)?;
    ensure!(other.pfns()? == pfns, "the other's pages changed");
    expect_patched(&other, 0, &[1, 2, 3])?;
    expect_patched(&one, 1, &[1, 2, 3])?;
    patch(&other, 1)?;
    ensure!(one.pfns()? == other.pfns()?, "patched alike and apart");
    Ok(())
}

fn patched_text_of_two() -> Result<()> {
    let file = with_contents(&[1, 2, 3])?;
    let text = text_of(&file)?;
    let body = |parent: &sksm_guest::memory::process::Link| {
        patch(&text, 0)?;
        parent.meet()?;
        expect_patched(&text, 0, &[1, 2, 3])
    };
    let (one, other) = (Child::spawn(body)?, Child::spawn(body)?);
    one.pause()?;
    other.pause()?;
    let pfns = |child: &Child| child.pagemap()?.pfns(text.addr(), text.pages());
    ensure!(
        pfns(&one)? == pfns(&other)?,
        "two copies of the same patched text"
    );
    one.go()?;
    one.join()?;
    other.go()?;
    other.join()?;
    text.expect_all(|page| page as u64 + 1)
}

/// At the start of a page.
pub fn write_function(map: &Map, page: usize, number: u16) {
    map.put(page, 0, u64::from_ne_bytes(code::function(number)));
}

pub fn call(map: &Map, page: usize) -> u32 {
    // SAFETY: `write_function` has put a function there.
    unsafe { code::call(map.page(page)) }
}

fn merged_text_runs() -> Result<()> {
    let text = private(&[1; 6])?;
    let write = |numbers: [u16; 6]| -> Result<()> {
        text.protect(WRITE)?;
        (0..6).for_each(|page| write_function(&text, page, numbers[page]));
        Ok(text.protect(EXECUTE)?)
    };
    for round in 0..20 {
        let numbers = [1, 2, 1, 2 + round, 1, 7];
        write(numbers)?;
        text.merge()?;
        let pfns = text.pfns()?;
        one_page(&[pfns[0], pfns[2], pfns[4]])?;
        for (page, number) in numbers.into_iter().enumerate() {
            let found = call(&text, page);
            ensure!(found == u32::from(number), "page {page} returned {found}");
        }
    }
    Ok(())
}

#[repr(C, align(4096))]
struct Pages([u64; 4 * WORDS]);
static mut DATA: Pages = Pages([1; 4 * WORDS]);
static mut BSS: Pages = Pages([0; 4 * WORDS]);

fn data_and_bss() -> Result<()> {
    for start in [&raw mut DATA, &raw mut BSS] {
        let start = start.cast::<u64>();
        // SAFETY: inside one of the arrays, which nothing else uses.
        let put = |word: usize, value| unsafe { start.add(word).write_volatile(value) };
        // SAFETY: as above.
        let get = |word: usize| unsafe { start.add(word).read_volatile() };
        (0..4 * WORDS).for_each(|word| put(word, content(19, word % WORDS)));
        sksm_guest::memory::map::merge(start as usize, 4 * PAGE)?;
        let pfns = sksm_guest::memory::pagemap::Pagemap::own()?.pfns(start as usize, 4)?;
        one_page(&pfns)?;
        put(WORDS, 5);
        for word in 0..4 * WORDS {
            let right = if word == WORDS {
                5
            } else {
                content(19, word % WORDS)
            };
            ensure!(get(word) == right, "word {word}");
        }
    }
    Ok(())
}

/// Truncating the file takes the private copies away, merged or not; reading them is SIGBUS.
fn truncated() -> Result<()> {
    let file = with_contents(&[1, 2, 3])?;
    let map = Map::new(3, WRITE, MAP_PRIVATE, Some(&file))?;
    let anon = Map::filled(&[7])?;
    map.fill_all(|_| 7);
    map.merge()?;
    anon.merge()?;
    one_page(&[map.pfns()?, anon.pfns()?].concat())?;
    file.set_len(PAGE as u64)?;
    map.expect(0, 7)?;
    anon.expect(0, 7)?;
    let child = Child::spawn(|_| map.expect(1, 7))?;
    let ended = child.ended()?;
    ensure!(
        ended == sksm_guest::memory::process::Ended::Signal(libc::SIGBUS),
        "a page beyond the end of the file: {ended}"
    );
    Ok(())
}
