//! Memory that is taken away: blocks with merged pages go offline, and the pages move elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::blocks::{Block, Ground};
use sksm_guest::machine::numa;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Child;

use crate::expect::{copies, merging};
use crate::writers::{beside, count};

pub const TESTS: &[Test] = &[
    test("offline/merged-pages", merged_pages),
    test("offline/while-used", while_used),
];

/// Blocks that can be emptied and have some of these pages, those with most first.
fn blocks_with(map: &Map) -> Result<Vec<Block>> {
    // Those that are on the move just now are nowhere.
    let entries = Pagemap::own()?.entries(map.addr(), map.pages())?;
    let pfns: Vec<u64> = entries.iter().filter_map(|entry| entry.pfn()).collect();
    let mut blocks = Block::that_can_go()?;
    blocks.retain(|block| block.held(&pfns) > 0);
    blocks.sort_by_key(|block| std::cmp::Reverse(block.held(&pfns)));
    Ok(blocks)
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
    let ground = Ground::find(PAGES)?;
    let map = &ground.map;
    map.fill_all(id);
    map.merge()?;
    let blocks = blocks_with(map)?;
    let before = map.pfns()?;
    ensure!(copies(&before) == PAGES / 4, "not merged");
    let body = |own: bool| {
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
    eprintln!("{} mappings were in {block:?}", block.held(&before));
    ensure!(block.held(&after) == 0, "pages are still in the block");
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
    let ground = Ground::find(PAGES)?;
    let map = &ground.map;
    let away = AtomicUsize::new(0);
    let offline_and_online = || {
        for block in blocks_with(map)? {
            // Some page in it may be busy for long, then another block is tried.
            match block.offline() {
                Ok(()) => {
                    block.online().context("cannot put the block back")?;
                    away.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Err(error) => eprintln!("{block:?} stays: {error}"),
            }
        }
        // The attempt may have emptied the block all the same.
        numa::try_move(0, map, ground.node)
    };
    let work = |done: &AtomicUsize| {
        let deadline = deadline();
        for round in 0.. {
            // A failure there ends this too.
            if away.load(Relaxed) > 0 || done.load(Relaxed) > usize::MAX / 4 {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "in two minutes no block with such pages went away"
            );
            count(map, 0..PAGES, round)?;
            if round % 8 == 0 {
                map.merge()?;
            }
        }
        Ok(())
    };
    merging(|| beside(1, offline_and_online, work))
}
