//! Pages that somebody has prepared to be slow: many that look alike to a checksum, at the expense of whoever merges.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::slow::checks_everything;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, become_user};
use sksm_guest::page::WORDS;

use crate::expect::apart;

pub const TESTS: &[Test] = &[
    test("crowd/prepared-pages", prepared_pages),
    test("domain/crowd-of-another", crowd_of_another),
];

const ID: u64 = 91;
/// Words of a line; the second of a page is in no sample.
const LINE: usize = 8;
/// Nor are the four before the last.
const LATE: usize = WORDS - 5 * LINE;

/// xxh64's, whose product of one and the inverse of the other is what undoes a change.
const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// The inverse of an odd number, by Newton's method.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |found, _| {
        found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)))
    })
}

/// A page that has one xxh64 with half of the others for any one pair, whatever the seed: the top bit of a word changes one bit of
/// its lane's state, and the lane's next word, four further, takes that back.
fn collide(map: &Map, page: usize) {
    let pairs = map.pages().ilog2() as usize;
    let undo = (1u64 << 30)
        .wrapping_mul(PRIME_1)
        .wrapping_mul(inverse(PRIME_2));
    for pair in 0..pairs {
        if page >> pair & 1 == 0 {
            continue;
        }
        // Each line has two words of each lane.
        let word = LATE + pair / 4 * LINE + pair % 4;
        map.put(page, word, content(ID, word) ^ 1 << 63);
        let next = word + 4;
        map.put(page, next, content(ID, next).wrapping_sub(undo));
    }
}

/// How long it takes to merge pages that are all of one content before `change` makes each another.
fn cost(pages: usize, change: impl Fn(&Map, usize)) -> Result<Duration> {
    let map = Map::anon(pages)?;
    map.no_huge();
    map.fill_all(|_| ID);
    (0..pages).for_each(|page| change(&map, page));
    let start = Instant::now();
    map.merge()?;
    let taken = start.elapsed();
    apart(&map.pfns()?).context("pages that differ have merged")?;
    Ok(taken)
}

/// They cost at most a few times what others cost that share a sample.
fn prepared_pages() -> Result<()> {
    let pages = if checks_everything()? { 2048 } else { 16384 };
    let quickest = |change: fn(&Map, usize)| -> Result<Duration> {
        let times = (0..3).map(|_| cost(pages, change));
        let times = times.collect::<Result<Vec<_>>>()?;
        times.into_iter().min().context("three times")
    };
    let others = quickest(|map, page| map.put(page, LINE, page as u64))?;
    let prepared = quickest(collide)?;
    eprintln!("{pages} pages of one sample: {others:?}; prepared: {prepared:?}");
    ensure!(
        prepared < others * 3,
        "{pages} prepared pages took {prepared:?}, others of one sample {others:?}"
    );
    Ok(())
}

/// Another user's pages are nothing to one's own, not even to the time that these take: a merge of pages whose sample the other has
/// often takes as long as one of pages that nobody has.
fn crowd_of_another() -> Result<()> {
    /// Contents, and pages of the other for each.
    const CONTENTS: usize = 256;
    const EACH: usize = 4;
    SKSM.write("domain", "user")?;
    let rounds = if checks_everything()? { 60 } else { 300 };
    let id = |base: usize, page: usize| (base + page) as u64;
    let theirs = Map::anon(CONTENTS * EACH)?;
    theirs.no_huge();
    let other = Child::spawn(|parent| {
        become_user(1001)?;
        theirs.fill_all(|page| id(1000, page / EACH));
        (0..theirs.pages()).for_each(|page| theirs.put(page, LINE, page as u64));
        theirs.merge()?;
        parent.meet()
    })?;
    other.pause()?;
    apart(&other.pagemap()?.pfns(theirs.addr(), theirs.pages())?)?;
    // As new each time, and with a word that the other's pages have not.
    let once = |base: usize| -> Result<Duration> {
        let map = Map::anon(CONTENTS)?;
        map.no_huge();
        map.fill_all(|page| id(base, page));
        (0..CONTENTS).for_each(|page| map.put(page, WORDS - LINE - 1, 1));
        let start = Instant::now();
        map.merge()?;
        Ok(start.elapsed())
    };
    let mut quickest = [Duration::MAX; 2];
    let mut slower = 0;
    // Whoever is first gets other frames, and UML maps neighbours with one call of the host: each is first in its turn.
    for round in 0..rounds {
        let mut times = [Duration::ZERO; 2];
        for which in [round % 2, 1 - round % 2] {
            times[which] = once([1000, 5000][which])?;
            quickest[which] = times[which].min(quickest[which]);
        }
        slower += usize::from(times[0] > times[1]);
    }
    let [known, unknown] = quickest;
    let found = format!(
        "{CONTENTS} pages that another user has alike: {known:?}; that nobody has: {unknown:?}; slower in {slower} of {rounds} \
         rounds"
    );
    eprintln!("{found}");
    // Reading the other fifteen sixteenths of each page doubles the time, and more, of every round. What else the machine does delays the one
    // as often as the other.
    ensure!(
        known * 4 < unknown * 5 || slower * 4 < rounds * 3,
        "{found}"
    );
    other.go()?;
    other.join()
}
