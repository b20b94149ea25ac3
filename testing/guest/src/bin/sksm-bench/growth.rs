//! Whether a page costs more when many pages have been published.

use anyhow::{Result, ensure};
use sksm_guest::memory::map::Map;
use sksm_guest::page::TABLE;
use sksm_records::bench::names::{MERGE, PUBLISH, PUBLISHED};

use crate::measure::{
    Bench, TABLE_PAGES, Wanted, affordable_pages, counting, filled, fresh, name, shortage,
    timed_merge,
};
use crate::pages::publish;

pub fn run(bench: &mut Bench) -> Result<()> {
    let pages = TABLE_PAGES;
    let repeats = bench.size(5, 21);
    let levels: &[usize] = match bench.quick {
        true => &[1_000, 10_000],
        false => &[1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000],
    };
    if bench.quick {
        bench.note("more than 10,000 pages: left out to be quick");
    }
    // One row of consecutive names, however many maps hold it.
    let most = levels.last().copied().unwrap_or(0);
    let first = fresh(most);
    let mut held: Vec<Map> = Vec::new();
    let mut count = 0;
    for &level in levels {
        let more = level - count;
        if affordable_pages(count)? < more + 8 * pages {
            bench.note(format!("{level} published pages: {}", shortage()?));
            break;
        }
        let map = filled(more, first + count as u64)?;
        bench.tell(&format!("{level} {PUBLISHED}"));
        counting(Wanted::publish(more), || map.merge())?;
        held.push(map);
        count = level;
        bench.per_page(name(PUBLISHED, PUBLISH).at(level), pages, repeats, || {
            publish(filled(pages, fresh(pages))?)
        })?;
        // From all over them, other ones each time: nothing that the CPU's caches hold.
        let mut round = 0;
        bench.per_page(name(PUBLISHED, MERGE).at(level), pages, repeats, || {
            round += 1;
            let map = Map::aligned(pages, TABLE, 0)?;
            map.fill_all(|page| {
                first + ((page * (level / pages).max(1) + round * 7) % level) as u64
            });
            counting(Wanted::merge(pages), || timed_merge(&map, 0..pages))
        })?;
    }
    ensure!(count > 0, "not even {} pages fit into memory", levels[0]);
    Ok(())
}
