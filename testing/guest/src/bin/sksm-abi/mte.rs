//! Memory tags (arm64 MTE) belong to the bytes: pages that have any are nobody's twins, and keep them.

use anyhow::{Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::machine::tags::{TAGGED, Tags};
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::pagemap::Flags;
use sksm_guest::memory::process::{Child, Ended};

use crate::expect::{apart, merged, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("mte/different-tags-stay-apart", different_tags),
    test("mte/tags-survive", tags_survive),
    test("mte/zeros-with-tags-stay", zeros),
    test("mte/untagged-pages-beside-them-merge", untagged_beside),
    test("mte/tagged-addresses", tagged_addresses),
    test("mte/merged-then-tagged", merged_then_tagged),
    test("mte/zero-pages-then-tagged", zero_pages_then_tagged),
    test("mte/forked", forked),
];

/// Tags of a page, other ones than those of its neighbours. QEMU 7.2 remembers two for a page: one for all even granules, and
/// one for all odd ones.
fn tag(page: usize) -> impl Fn(usize) -> u8 {
    move |granule| ((page * 5 + granule % 2 * 3) % 15 + 1) as u8
}

/// Whether it is one of the odd ones.
fn odd(granule: usize) -> bool {
    granule % 2 == 1
}

/// Merges, and nothing of the mapping may have changed: neither frames, nor bytes, nor tags.
fn merge_changes_nothing(tags: Tags, map: &Map, tag_of: impl Fn(usize, usize) -> u8) -> Result<()> {
    let (pfns, bytes, start) = (map.pfns()?, map.bytes(), Counters::now()?);
    apart(&pfns)?;
    map.merge()?;
    ensure!(map.pfns()? == pfns, "pages with tags were merged");
    ensure!(map.bytes() == bytes, "bytes changed");
    for page in 0..map.pages() {
        tags.expect(map, page, |granule| tag_of(page, granule))?;
    }
    let change = start.change()?;
    let made = (
        change.pages_merged,
        change.pages_published,
        change.pages_zero,
    );
    ensure!(made == (0, 0, 0), "{change:?}");
    Ok(())
}

/// Equal bytes are not enough.
fn different_tags() -> Result<()> {
    let tags = Tags::new()?;
    let map = tags.filled(&[5; 4])?;
    for page in 0..4 {
        tags.put(&map, page, |_| page as u8 + 1);
    }
    merge_changes_nothing(tags, &map, |page, _| page as u8 + 1)?;
    // Not all of them.
    tags.put(&map, 1, |granule| if odd(granule) { 2 } else { 1 });
    merge_changes_nothing(tags, &map, |page, granule| match page {
        1 if !odd(granule) => 1,
        _ => page as u8 + 1,
    })
}

/// Also where pages have the same tags, or none but zero: who set them up wants them checked. The processor still does.
fn tags_survive() -> Result<()> {
    let tags = Tags::new()?;
    let map = tags.filled(&[5, 5, 5, 5, 6, 6])?;
    let tag_of = |page: usize, granule: usize| match page {
        0 | 1 => tag(0)(granule),
        4 => tag(4)(granule),
        _ => 0,
    };
    for page in [0, 1, 4] {
        tags.put(&map, page, tag(if page == 1 { 0 } else { page }));
    }
    for _ in 0..3 {
        merge_changes_nothing(tags, &map, tag_of)?;
    }
    let word = map.get(4, 0);
    let access = |tag: u8| -> Result<Ended> {
        let child = Child::spawn(|_| {
            tags.checked()?;
            ensure!(tags.read(&map, 4, 0, tag) == word, "another word");
            Ok(())
        })?;
        child.ended()
    };
    let right = tag_of(4, 0);
    let ended = access(right)?;
    ensure!(ended == Ended::Exit(0), "with the right tag: {ended}");
    let ended = access(right ^ 1)?;
    ensure!(
        ended == Ended::Signal(libc::SIGSEGV),
        "with another tag: {ended}"
    );
    Ok(())
}

fn zeros() -> Result<()> {
    let tags = Tags::new()?;
    let map = tags.filled(&[0; 4])?;
    tags.put(&map, 0, tag(0));
    tags.put(&map, 1, |granule| u8::from(odd(granule)));
    merge_changes_nothing(tags, &map, |page, granule| match page {
        0 => tag(0)(granule),
        1 => u8::from(odd(granule)),
        _ => 0,
    })?;
    for pfn in map.pfns()? {
        ensure!(!Flags::of(pfn)?.zero_page(), "tags of a zero page are lost");
    }
    Ok(())
}

/// In one mapping, in one call, and in both orders of what is first.
fn untagged_beside() -> Result<()> {
    let tags = Tags::new()?;
    let map = Map::filled(&[5, 5, 5, 5, 0, 0, 0])?;
    for page in [0, 2, 5] {
        map.protect_pages(page..page + 1, TAGGED)?;
        tags.put(&map, page, tag(page));
    }
    let before = map.pfns()?;
    map.merge()?;
    let after = map.pfns()?;
    one_page(&[after[1], after[3]])?;
    apart(&[after[0], after[1], after[2]])?;
    for page in [0, 2, 5] {
        ensure!(after[page] == before[page], "page {page} was replaced");
        tags.expect(&map, page, tag(page))?;
    }
    for page in [4, 6] {
        zero_pages(&map.part(page..page + 1))?;
    }
    ensure!(
        !Flags::of(after[5])?.zero_page(),
        "a page of zeros with tags"
    );
    let other = Map::filled(&[5; 2])?;
    other.merge()?;
    one_page(&[other.pfns()?, vec![after[1]]].concat())?;
    let contents = [5, 5, 5, 5, 0, 0, 0];
    map.expect_all(|page| contents[page])?;
    map.fill(1, 7);
    map.expect_all(|page| if page == 1 { 7 } else { contents[page] })?;
    other.expect_all(|_| 5)
}

/// A pointer to memory with tags may have its tag when it is handed to the kernel.
fn tagged_addresses() -> Result<()> {
    let tags = Tags::new()?;
    tags.checked()?;
    let map = Map::filled(&[5; 4])?;
    map.protect_pages(1..2, TAGGED)?;
    sksm::merge_exact(map.addr() | 3 << 56, map.len())?;
    let pfns = map.pfns()?;
    one_page(&[pfns[0], pfns[2], pfns[3]])?;
    apart(&[pfns[0], pfns[1]])?;
    map.expect_all(|_| 5)
}

/// Memory that was merged becomes memory with tags, in one of those who share it: the first tag that is set copies the page.
fn merged_then_tagged() -> Result<()> {
    let tags = Tags::new()?;
    let map = merged(4, 5)?;
    let page = map.pfn(0)?;
    map.protect_pages(1..3, TAGGED)?;
    ensure!(map.pfns()? == [page; 4], "copied although nobody wrote");
    for at in 0..4 {
        tags.expect(&map, at, |_| 0)?;
    }
    tags.put(&map, 1, tag(1));
    let pfns = map.pfns()?;
    one_page(&[pfns[0], pfns[2], pfns[3]])?;
    apart(&[pfns[0], pfns[1]])?;
    tags.expect(&map, 1, tag(1))?;
    for at in [0, 2, 3] {
        tags.expect(&map, at, |_| 0)?;
    }
    map.expect_all(|_| 5)?;
    // Others find each other still, and nobody the page with tags.
    let others = merged(3, 5)?;
    map.merge()?;
    ensure!(map.pfn(1)? == pfns[1], "a page with tags was merged");
    tags.expect(&map, 1, tag(1))?;
    tags.expect(&map, 2, |_| 0)?;
    // Back to memory without: the tags go with it, and the page may be shared again.
    map.protect(WRITE)?;
    map.fill(1, 6);
    others.expect_all(|_| 5)?;
    map.expect_all(|at| if at == 1 { 6 } else { 5 })
}

fn zero_pages_then_tagged() -> Result<()> {
    let tags = Tags::new()?;
    let map = Map::filled(&[0; 3])?;
    map.merge()?;
    zero_pages(&map)?;
    map.protect_pages(0..2, TAGGED)?;
    tags.put(&map, 0, tag(0));
    tags.expect(&map, 0, tag(0))?;
    tags.expect(&map, 1, |_| 0)?;
    map.expect_all(|_| 0)?;
    map.merge()?;
    tags.expect(&map, 0, tag(0))?;
    zero_pages(&map.part(2..3))?;
    map.expect_all(|_| 0)
}

/// Parent and child share pages with tags as fork left them, whoever merges, and each writes its own.
fn forked() -> Result<()> {
    let tags = Tags::new()?;
    let map = tags.filled(&[5, 5, 0])?;
    for page in 0..3 {
        tags.put(&map, page, tag(page));
    }
    let pfns = map.pfns()?;
    let child = Child::spawn(|parent| {
        map.merge()?;
        parent.meet()?;
        ensure!(map.pfns()? == pfns, "pages with tags were merged");
        tags.put(&map, 1, |_| 9);
        map.put(2, 0, 1);
        map.merge()?;
        parent.meet()?;
        tags.expect(&map, 0, tag(0))?;
        tags.expect(&map, 1, |_| 9)?;
        tags.expect(&map, 2, tag(2))
    })?;
    child.pause()?;
    map.merge()?;
    ensure!(map.pfns()? == pfns, "pages with tags were merged");
    child.go()?;
    child.pause()?;
    for page in 0..3 {
        tags.expect(&map, page, tag(page))?;
    }
    map.expect_all(|page| [5, 5, 0][page])?;
    child.go()?;
    child.join()
}
