//! Memory that is taken away: blocks with merged pages go offline, and the pages move elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::blocks::Block;
use sksm_guest::memory::Map;
use sksm_guest::numa;
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::Child;
use sksm_guest::report::{Test, skip, test};

use crate::expect::{copies, merging};
use crate::writers::{beside, count};

pub const TESTS: &[Test] = &[
    test("offline/merged-pages", merged_pages),
    test("offline/while-used", while_used),
];

/// Blocks that can be emptied and have some of these pages, those with most first. Moves the pages to where such blocks are.
fn blocks(map: &Map) -> Result<Vec<Block>> {
    for node in [1, 0] {
        let blocks = blocks_with(map)?;
        if !blocks.is_empty() {
            return Ok(blocks);
        }
        // What cannot be moved just now may be where it is.
        numa::try_move(0, map, node).ok();
    }
    blocks_with(map)
}

/// The same, to begin with: where pages come to lie is the allocator's business.
fn needed(map: &Map) -> Result<Vec<Block>> {
    let blocks = blocks(map)?;
    if blocks.is_empty() {
        return skip("none of the pages came to lie in a block that can be taken offline");
    }
    Ok(blocks)
}

fn blocks_with(map: &Map) -> Result<Vec<Block>> {
    // Those that are on the move just now are nowhere.
    let entries = Pagemap::own()?.entries(map.addr(), map.pages())?;
    let pfns: Vec<u64> = entries.iter().filter_map(|entry| entry.pfn()).collect();
    let mut blocks = Vec::new();
    for block in Block::all()? {
        if block.can_go()? {
            blocks.push(block);
        }
    }
    if blocks.is_empty() {
        return skip(
            "no memory block that can be taken offline (CONFIG_MEMORY_HOTREMOVE, movablecore=)",
        );
    }
    blocks.retain(|block| held(block, &pfns) > 0);
    blocks.sort_by_key(|block| std::cmp::Reverse(held(block, &pfns)));
    Ok(blocks)
}

fn held(block: &Block, pfns: &[u64]) -> usize {
    pfns.iter().filter(|pfn| block.holds(**pfn)).count()
}

/// Takes one of the blocks away. Some page in one may be busy for long, but not in all.
fn offline(blocks: &[Block]) -> Result<&Block> {
    let mut last = None;
    for block in blocks.iter().cycle().take(3 * blocks.len()) {
        match block.offline() {
            Ok(()) => return Ok(block),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).context("no block with merged pages can be taken offline"),
        None => bail!("no merged page is in a block that can be taken offline"),
    }
}

fn merged_pages() -> Result<()> {
    const PAGES: usize = 4096;
    let id = |page: usize| 1 + page as u64 / 4;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(id);
    map.merge()?;
    let blocks = needed(&map)?;
    let before = map.pfns()?;
    ensure!(copies(&before) == PAGES / 4, "not merged");
    let body = |own: bool| {
        let map = &map;
        Child::spawn(move |parent| {
            if own {
                map.fill_all(id);
                map.merge()?;
            }
            parent.meet()?;
            map.expect_all(id)?;
            map.fill(9, 1);
            parent.meet()?;
            map.expect_all(|page| if page == 9 { 1 } else { id(page) })
        })
    };
    // One that maps the pages by fork, and one that merged its own.
    let children = [body(false)?, body(true)?];
    children.iter().try_for_each(|child| child.pause())?;
    let block = offline(&blocks)?;
    let after = map.pfns()?;
    eprintln!("{} mappings were in {block:?}", held(block, &before));
    ensure!(held(block, &after) == 0, "pages are still in the block");
    ensure!(copies(&after) == PAGES / 4, "moving parted merged pages");
    for child in &children {
        ensure!(
            child.pagemap()?.pfns(map.addr(), PAGES)? == after,
            "a process maps another page"
        );
    }
    map.expect_all(id)?;
    for child in &children {
        child.go()?;
        child.pause()?;
    }
    // They are found by content where they are now.
    let twin = Map::anon(PAGES)?;
    twin.no_huge();
    twin.fill_all(id);
    twin.merge()?;
    ensure!(twin.pfns()? == after, "moved pages are not found");
    block.online().context("cannot put the block back")?;
    map.expect_all(id)?;
    for child in children {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// A block goes and comes back while pages in it are written and merged.
fn while_used() -> Result<()> {
    const PAGES: usize = 2048;
    let map = Map::filled(&[0; PAGES])?;
    needed(&map)?;
    let away = AtomicUsize::new(0);
    let offline_and_online = || {
        for block in blocks(&map)? {
            // Some page in it may be busy for long, then another block is tried.
            match block.offline() {
                Ok(()) => {
                    block.online().context("cannot put the block back")?;
                    away.fetch_add(1, Relaxed);
                    break;
                }
                Err(error) => eprintln!("{block:?} stays: {error}"),
            }
        }
        Ok(())
    };
    let work = |done: &AtomicUsize| {
        let deadline = Instant::now() + Duration::from_secs(120);
        for round in 0.. {
            // A failure there ends this too.
            if away.load(Relaxed) > 0 || done.load(Relaxed) > usize::MAX / 4 {
                break;
            }
            if Instant::now() >= deadline {
                return skip(
                    "each block with such pages had some page that was busy for two minutes",
                );
            }
            count(&map, 0..PAGES, round)?;
            if round % 8 == 0 {
                map.merge()?;
            }
        }
        Ok(())
    };
    merging(|| beside(1, offline_and_online, work))
}
