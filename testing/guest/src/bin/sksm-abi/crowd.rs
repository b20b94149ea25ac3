//! Pages that have the engine's sample in common and differ elsewhere: further ones are found by a checksum of all bytes.

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::Map;
use sksm_guest::page::WORDS;

use crate::expect::{apart, one_page};

pub const TESTS: &[Test] = &[
    test("crowd/stays-apart", stays_apart),
    test("crowd/twins-are-found", twins_are_found),
    test("crowd/found-after-the-first-have-gone", first_have_gone),
    test(
        "crowd/found-as-one-after-the-other-goes",
        one_after_the_other,
    ),
    test("crowd/found-after-others-were-written", others_written),
    test("crowd/every-word-counts", every_word_counts),
];

/// More than stand under one sample, and than are worth a walk.
const CROWD: usize = 300;
/// What all of them are but for one word, which is in no sample: the second line of the page.
const ID: u64 = 77;
const WORD: usize = 12;

fn crowd() -> Result<Map> {
    let map = Map::anon(CROWD)?;
    map.no_huge();
    map.fill_all(|_| ID);
    for page in 0..CROWD {
        map.put(page, WORD, page as u64);
    }
    Ok(map)
}

fn expect_crowd(map: &Map) -> Result<()> {
    (0..CROWD).try_for_each(|page| expect_but(map, page, ID, WORD, page as u64))
}

/// The page has this content but for one word.
fn expect_but(map: &Map, page: usize, id: u64, word: usize, value: u64) -> Result<()> {
    let found = map.get(page, word);
    ensure!(found == value, "page {page} has {found}, not {value}");
    ensure!(
        (0..word).all(|word| map.get(page, word) == content(id, word)),
        "page {page} changed before word {word}"
    );
    map.expect_after(page, word + 1, id)
}

fn stays_apart() -> Result<()> {
    let map = crowd()?;
    map.merge()?;
    apart(&map.pfns()?)?;
    expect_crowd(&map)
}

/// Each merges with its equal, in whatever order they come.
fn twins_are_found() -> Result<()> {
    let maps = [crowd()?, crowd()?, crowd()?];
    maps[0].merge()?;
    for page in (0..CROWD).rev() {
        maps[1].merge_pages(page..page + 1)?;
    }
    maps[2].merge()?;
    let pfns = maps[0].pfns()?;
    apart(&pfns)?;
    for map in &maps {
        ensure!(map.pfns()? == pfns, "equal pages did not merge");
        expect_crowd(map)?;
    }
    Ok(())
}

/// Those that stand under the sample go; the others are found all the same.
fn first_have_gone() -> Result<()> {
    let first = crowd()?;
    first.merge()?;
    first.advise_pages(0..CROWD / 2, libc::MADV_DONTNEED)?;
    let second = crowd()?;
    second.merge()?;
    for page in CROWD / 2..CROWD {
        one_page(&[first.pfn(page)?, second.pfn(page)?])?;
    }
    apart(&second.pfns()?)?;
    expect_crowd(&second)
}

/// Of a few pages with one sample the first goes, then the second, and so on: each time the last one is found, though what else had
/// its sample may be no more.
fn one_after_the_other() -> Result<()> {
    const FEW: usize = 6;
    let alike = |page: usize| -> Result<Map> {
        let map = Map::filled(&[ID])?;
        map.put(0, WORD, page as u64);
        map.merge()?;
        Ok(map)
    };
    let mut pages = (0..FEW).map(alike).collect::<Result<Vec<_>>>()?;
    let last = pages.pop().context("one at least")?;
    let found = |gone: usize| {
        let twin = alike(FEW - 1)?;
        one_page(&[twin.pfn(0)?, last.pfn(0)?])
            .with_context(|| format!("{gone} of {FEW} have gone"))?;
        expect_but(&twin, 0, ID, WORD, FEW as u64 - 1)
    };
    found(0)?;
    for (gone, page) in pages.into_iter().enumerate() {
        drop(page);
        found(gone + 1)?;
    }
    // And in the other order, the last one first.
    drop(last);
    let again = [alike(1)?, alike(0)?, alike(1)?, alike(0)?];
    let pfns = again
        .iter()
        .map(|map| map.pfn(0))
        .collect::<Result<Vec<_>>>()?;
    apart(&pfns[..2])?;
    ensure!(pfns[..2] == pfns[2..], "twins are apart: {pfns:x?}");
    Ok(())
}

/// Pages that are taken back leave the crowd, and join it again.
fn others_written() -> Result<()> {
    let (first, second) = (crowd()?, crowd()?);
    first.merge()?;
    let written = || (0..CROWD).filter(|page| page % 3 != 0);
    written().for_each(|page| first.put(page, WORDS - 1, 0));
    second.merge()?;
    for page in 0..CROWD {
        let pfns = [first.pfn(page)?, second.pfn(page)?];
        if page % 3 == 0 {
            one_page(&pfns)?;
        } else {
            apart(&pfns)?;
        }
    }
    written().for_each(|page| first.put(page, WORDS - 1, content(ID, WORDS - 1)));
    first.merge()?;
    ensure!(
        first.pfns()? == second.pfns()?,
        "pages that are equal again did not merge"
    );
    expect_crowd(&first)?;
    expect_crowd(&second)
}

/// Of two pages that differ in one word, wherever it is, none merge; equal ones do. The first two of each content are compared, as
/// they are under its sample.
fn every_word_counts() -> Result<()> {
    let id = |word: usize| 1000 + word as u64;
    let pairs = || -> Result<Map> {
        let map = Map::anon(2 * WORDS)?;
        map.no_huge();
        map.fill_all(|page| id(page / 2));
        (0..WORDS).for_each(|word| map.put(2 * word + 1, word, 1));
        Ok(map)
    };
    let (first, second) = (pairs()?, pairs()?);
    first.merge()?;
    apart(&first.pfns()?)?;
    second.merge()?;
    ensure!(first.pfns()? == second.pfns()?, "equal pages did not merge");
    (0..WORDS).try_for_each(|word| {
        first.expect(2 * word, id(word))?;
        expect_but(&first, 2 * word + 1, id(word), word, 1)
    })
}
