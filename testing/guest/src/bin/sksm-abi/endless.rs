//! A merged page whose mappings have become swap entries knows each place that it was mapped at, for as long as it is in the swap
//! cache. Whoever keeps it there and maps it at ever new places must not make that list longer and longer.

use anyhow::{Result, ensure};
use libc::{MADV_DONTNEED, MADV_PAGEOUT};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::quarter_where_slow;
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::pipe;

use crate::pins::splice;

pub const TESTS: &[Test] = &[test("rmap/page-in-swap-cache-has-a-bound", bound)];

fn bound() -> Result<()> {
    const ID: u64 = 9;
    const EACH: usize = 200;
    /// Bytes of a node, and of a place in a reverse map.
    const NODE: i64 = 96;
    const PLACE: i64 = 16;
    let rounds = quarter_where_slow(200)?;
    let _swap = Swap::on()?;
    let most = SKSM.number("max_page_sharing")?;
    let start = Counters::now()?;
    let page = Map::filled(&[ID])?;
    page.merge()?;
    // A pipe keeps it in memory, and a swap entry in the swap cache.
    let (_out, into) = pipe()?;
    splice(&page, 1, &into)?;
    page.advise(MADV_PAGEOUT)?;
    let room = Map::anon(EACH * rounds)?;
    room.no_huge();
    let mut largest = 0;
    for round in 0..rounds {
        let map = room.part(round * EACH..(round + 1) * EACH);
        map.fill_all(|_| ID);
        map.merge()?;
        map.expect(round % EACH, ID)?;
        largest = largest.max(start.change()?.bytes_metadata);
        map.advise(MADV_DONTNEED)?;
    }
    // What has no room in a page's list is another page, with a list of its own, and lists grow by more than one place.
    let allowed = 4 * (NODE + PLACE * (2 * most + 64));
    eprintln!(
        "at most {largest} bytes for one content, of {} mappings",
        EACH * rounds
    );
    ensure!(
        largest <= allowed,
        "{largest} bytes for one content that was mapped at {} places; {allowed} are enough",
        EACH * rounds
    );
    page.expect(0, ID)?;
    page.merge()?;
    page.expect(0, ID)
}
