//! The search for twins: from pages that are ready, by their samples, to ranges that are worth merging.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::page::{Page, State, Terms, Tick};
use crate::process::{Block, Process, mix};
use crate::{BLOCK, Content, Gone, Settings, World};

/// So many pages are read at once, and merged by one call.
const AT_ONCE: usize = 256;
/// So many candidates are looked into by one search, at most. What is left is for the next.
const MOST: usize = 1 << 15;

/// Pages of huge pages lose their twins one after the other, at worst. What is left after so many rounds costs a few publications.
const MOST_ROUNDS: usize = 16;

/// A search on its way.
pub struct Search {
    /// In the order of their processes and numbers, until they are read.
    candidates: Vec<Candidate>,
    /// The contents of merged pages of the same samples, and of those that were read once and had no twin then.
    merged: HashSet<(u32, u16)>,
    tried: HashSet<(u32, u16)>,
    read: usize,
    /// What is to be merged, the next call last; none before all are read.
    calls: Option<Vec<Call>>,
    /// The process in which pages were merged by the last piece of work.
    pub merged_last: Option<u64>,
    /// Keys that it has not done with.
    pub left: HashSet<u32>,
}

struct Candidate {
    id: u64,
    page: u64,
    key: u32,
    needs_twin: bool,
    content: Option<Content>,
}

/// One call for one process.
struct Call {
    id: u64,
    /// The pages, and parts of the hashes of their contents.
    pages: Vec<(u64, u16)>,
}

/// A small part of a hash.
fn part(hash: u128) -> u16 {
    hash as u16
}

type Processes = BTreeMap<u64, Process>;

/// Shows all pages that have one of these keys, in order, each with its process, its number and its key.
fn each_of(processes: &Processes, keys: &HashSet<u32>, mut see: impl FnMut(u64, u64, u32, &Page)) {
    // Nearly all pages have none of them, which should be known soon.
    let bits = (keys.len() * 32).next_power_of_two().max(1 << 12);
    let mut some = vec![0u64; bits / 64];
    let place = |key: u32| {
        let bit = (key as usize).wrapping_mul(0x9e37_79b1) >> 4 & (bits - 1);
        (bit / 64, 1u64 << (bit % 64))
    };
    for key in keys {
        let (word, bit) = place(*key);
        some[word] |= bit;
    }
    for (id, process) in processes {
        for (block, pages) in process.blocks() {
            for page in pages.pages() {
                let key = mix(process.domain, page.sample);
                let (word, bit) = place(key);
                if some[word] & bit != 0 && keys.contains(&key) {
                    see(*id, block * BLOCK + u64::from(page.offset), key, page);
                }
            }
        }
    }
}

impl Search {
    /// Looks for all pages that are ready and have one of these keys.
    pub fn begin(processes: &Processes, keys: HashSet<u32>, world: &impl World) -> Self {
        // Pages of each key: those that are ready, and those that have been shared before.
        let mut counts: HashMap<u32, [usize; 2]> = HashMap::new();
        let (mut hits, mut all_of_them) = (Vec::new(), true);
        each_of(processes, &keys, |id, number, key, page| {
            match page.state() {
                State::Stable => counts.entry(key).or_default()[0] += 1,
                State::Common => counts.entry(key).or_default()[1] += 1,
                _ => {}
            }
            match hits.len() < MOST {
                true => hits.push((id, number, key, *page)),
                false => all_of_them = false,
            }
        });
        // All pages of a key together, and so many keys as there is room for.
        let mut search = Search {
            candidates: Vec::new(),
            merged: HashSet::new(),
            tried: HashSet::new(),
            read: 0,
            calls: None,
            merged_last: None,
            left: HashSet::new(),
        };
        let mut now = HashSet::new();
        let mut room = MOST;
        for (key, [ready, common]) in counts.iter().filter(|(_, [ready, _])| *ready > 0) {
            if room == 0 {
                search.left.insert(*key);
                continue;
            }
            // What is ready is so no more after a search, so that the rest has its turn.
            if *ready > MOST {
                search.left.insert(*key);
            }
            room = room.saturating_sub(ready + common);
            now.insert(*key);
        }
        let mut taken: HashMap<u32, usize> = HashMap::new();
        let mut take = |id: u64, number: u64, key: u32, page: &Page| {
            match page.state() {
                State::Merged | State::Kept if search.merged.len() < MOST => {
                    search.merged.insert((key, page.content));
                }
                State::Tried if search.tried.len() < MOST => {
                    search.tried.insert((key, page.content));
                }
                state @ (State::Stable | State::Common) => {
                    let taken = taken.entry(key).or_default();
                    // What is ready has a place in any case.
                    let first = counts[&key][0].min(MOST);
                    if *taken < MOST && (state == State::Stable || first < MOST / 2) {
                        *taken += 1;
                        search.candidates.push(Candidate {
                            id,
                            page: number,
                            key,
                            needs_twin: !world.needs_no_twin(id, page.sample),
                            content: None,
                        });
                    }
                }
                _ => {}
            }
        };
        // Mostly few pages have one of the keys, and the others need not be gone through again.
        if all_of_them {
            let hits = hits.iter().filter(|(_, _, key, _)| now.contains(key));
            hits.for_each(|(id, number, key, page)| take(*id, *number, *key, page));
        } else {
            each_of(processes, &now, take);
        }
        search.leave_those_alone(processes, world.zero());
        search
    }

    /// Whose sample nobody else has, that is known, need not be read. What has the sample of zeros needs no twin.
    fn leave_those_alone(&mut self, processes: &Processes, zero: u32) {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for candidate in &self.candidates {
            *counts.entry(candidate.key).or_default() += 1;
        }
        for (key, _) in self.merged.iter().chain(&self.tried) {
            *counts.entry(*key).or_default() += 1;
        }
        let domain = |id: &u64| processes.get(id).map(|process| process.domain);
        self.candidates.retain(|one| {
            counts[&one.key] > 1
                || !one.needs_twin
                || domain(&one.id).is_some_and(|domain| mix(domain, zero) == one.key)
        });
    }

    /// Does the next piece of it; false at its end.
    pub fn work<W: World>(
        &mut self,
        processes: &mut Processes,
        world: &mut W,
        settings: &Settings,
        terms: &Terms,
    ) -> bool {
        if self.read < self.candidates.len() {
            self.read_some(processes, world, terms);
            return true;
        }
        let calls = match &mut self.calls {
            Some(calls) => calls,
            None => {
                let calls = self.decide(processes, world.now(), settings, terms);
                self.calls.insert(calls)
            }
        };
        let Some(call) = calls.pop() else {
            return false;
        };
        merge(&call, processes, world, settings, terms);
        self.merged_last = Some(call.id);
        true
    }

    fn read_some<W: World>(&mut self, processes: &mut Processes, world: &mut W, terms: &Terms) {
        let rest = &mut self.candidates[self.read..];
        let id = rest[0].id;
        let count = rest
            .iter()
            .take(AT_ONCE)
            .take_while(|one| one.id == id)
            .count();
        let some = &mut rest[..count];
        self.read += count;
        let Some(process) = processes.get_mut(&id) else {
            return;
        };
        let started = world.cpu();
        let pages: Vec<u64> = some.iter().map(|one| one.page).collect();
        let mut next = some.iter_mut();
        let read = world.read(id, &pages, &mut |page, content| {
            if let Some(one) = next.find(|one| one.page == page) {
                one.content = Some(content);
            }
        });
        let now = terms.tick(world.now());
        for one in some {
            let Some(page) = process.page(one.page) else {
                one.content = None;
                continue;
            };
            // It has changed since the last look, which will see that.
            let same =
                |content: &Content| page.state() == State::Stable && content.sample == page.sample;
            if !one.content.as_ref().is_some_and(same) {
                one.content = None;
                if page.state() == State::Stable {
                    page.set(State::Young, now);
                }
            }
        }
        process.ledger.read += count as u64;
        process.ledger.cpu += world.cpu().saturating_sub(started);
        // The next list of processes does not have it.
        let (Ok(()) | Err(Gone)) = read;
    }

    /// Of the pages that were read, those with a twin, in calls.
    fn decide(
        &mut self,
        processes: &mut Processes,
        time: Duration,
        settings: &Settings,
        terms: &Terms,
    ) -> Vec<Call> {
        let now = terms.tick(time);
        let domain = |id: u64| processes.get(&id).map(|process| process.domain);
        let mut read: Vec<Read> = (self.candidates.drain(..))
            .filter_map(|one| {
                Some(Read {
                    domain: domain(one.id)?,
                    id: one.id,
                    page: one.page,
                    key: one.key,
                    needs_twin: one.needs_twin,
                    content: one.content?,
                })
            })
            .collect();
        self.read = 0;
        read.sort_unstable_by_key(|one| (one.domain, one.content.hash, one.content.frame));
        let mut again = HashSet::new();
        // Whose twin stays in its huge page has none any more: so until nothing changes.
        for _ in 0..MOST_ROUNDS {
            let before = read.len();
            self.leave_without_twin(&mut read, processes, now, &mut again);
            leave_in_huge_pages(&mut read, processes, now, settings);
            if read.len() == before {
                break;
            }
        }
        if !again.is_empty() {
            self.left.extend(again.iter().map(|(key, _)| *key));
            try_again(processes, &again, now);
        }
        calls(&mut read, processes)
    }

    /// Takes out what has no twin; or has one that was read before, which is noted, to be read again with it.
    fn leave_without_twin(
        &self,
        read: &mut Vec<Read>,
        processes: &mut Processes,
        now: Tick,
        again: &mut HashSet<(u32, u16)>,
    ) {
        let mut with_twin = Vec::with_capacity(read.len());
        for group in read.chunk_by(|a, b| (a.domain, a.content.hash) == (b.domain, b.content.hash))
        {
            let one = |a: &Read, b: &Read| {
                a.content.frame.is_some() && a.content.frame == b.content.frame
            };
            let frames = group.chunk_by(one).count();
            for read in group {
                let content = (read.key, part(read.content.hash));
                let found = frames > 1 || self.merged.contains(&content);
                if found || read.content.zero || !read.needs_twin {
                    with_twin.push(*read);
                } else if self.tried.contains(&content) {
                    again.insert(content);
                } else if read.content.frame.is_some() {
                    // Who has it with others saves already what there is to save.
                    if let Some(page) = page_of(processes, read) {
                        page.set(State::Common, now);
                    }
                } else if let Some(page) = page_of(processes, read) {
                    page.has_no_twin(now);
                    page.content = content.1;
                }
            }
        }
        *read = with_twin;
    }
}

/// A candidate that was read.
#[derive(Clone, Copy)]
struct Read {
    domain: u64,
    id: u64,
    page: u64,
    key: u32,
    needs_twin: bool,
    content: Content,
}

fn page_of<'a>(processes: &'a mut Processes, read: &Read) -> Option<&'a mut Page> {
    processes.get_mut(&read.id)?.page(read.page)
}

/// Has pages that had no twin ready again, as one of the same content has come.
fn try_again(processes: &mut Processes, contents: &HashSet<(u32, u16)>, now: Tick) {
    for process in processes.values_mut() {
        let domain = process.domain;
        process.set_where(State::Stable, now, |page| {
            page.state() == State::Tried
                && contents.contains(&(mix(domain, page.sample), page.content))
        });
    }
}

/// So many pages of a huge page have to have a twin.
fn least(block: &Block, settings: &Settings) -> u64 {
    (u64::from(settings.huge_min) << block.in_vain.min(8)).min(BLOCK)
}

/// Takes out what is in huge pages that have too few such pages, which are kept in mind.
fn leave_in_huge_pages(
    read: &mut Vec<Read>,
    processes: &mut Processes,
    now: Tick,
    settings: &Settings,
) {
    let mut counts: HashMap<(u64, u64), u64> = HashMap::new();
    for one in &*read {
        *counts.entry((one.id, one.page / BLOCK)).or_default() += 1;
    }
    let mut stays = |read: &Read| {
        let number = read.page / BLOCK;
        let block = processes.get_mut(&read.id)?.block(number)?;
        if !block.huge {
            return Some(());
        }
        let spared = block.spared().count() as u64;
        // Those of this search that were spared before this one count in both.
        let count = counts.get_mut(&(read.id, number))?;
        if *count + spared >= least(block, settings) {
            return Some(());
        }
        *count = count.saturating_sub(1);
        let page = block.page(read.page)?;
        page.set(State::Spared, now);
        page.content = part(read.content.hash);
        None
    };
    read.retain(|read| stays(read).is_some());
}

/// What is left, with what was spared before in the same huge pages.
fn calls(read: &mut [Read], processes: &mut Processes) -> Vec<Call> {
    read.sort_unstable_by_key(|one| (one.id, one.page));
    let mut calls = Vec::new();
    for of_one in read.chunk_by(|a, b| a.id == b.id) {
        let id = of_one[0].id;
        let Some(process) = processes.get_mut(&id) else {
            continue;
        };
        let mut pages = Vec::new();
        for of_block in of_one.chunk_by(|a, b| a.page / BLOCK == b.page / BLOCK) {
            let first = of_block[0].page / BLOCK * BLOCK;
            let block = process.block(first / BLOCK).filter(|block| block.huge);
            let spared = block.iter().flat_map(|block| block.spared());
            let start = pages.len();
            pages.extend(spared.map(|page| (first + u64::from(page.offset), page.content)));
            pages.extend(
                of_block
                    .iter()
                    .map(|one| (one.page, part(one.content.hash))),
            );
            pages[start..].sort_unstable();
        }
        calls.extend(pages.chunks(AT_ONCE).map(|pages| Call {
            id,
            pages: pages.to_vec(),
        }));
    }
    calls
}

fn merge<W: World>(
    call: &Call,
    processes: &mut Processes,
    world: &mut W,
    settings: &Settings,
    terms: &Terms,
) {
    let Some(process) = processes.get_mut(&call.id) else {
        return;
    };
    let started = world.cpu();
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for (page, _) in &call.pages {
        match ranges.last_mut() {
            Some(last) if last.end == *page => last.end += 1,
            _ => ranges.push(*page..*page + 1),
        }
    }
    if let Ok(done) = world.merge(call.id, &ranges) {
        process.note_merged(call.pages.iter().copied(), world.now(), terms);
        let blocks = call.pages.chunk_by(|a, b| a.0 / BLOCK == b.0 / BLOCK);
        for pages in blocks {
            let Some(block) = process.block(pages[0].0 / BLOCK) else {
                continue;
            };
            if std::mem::take(&mut block.huge) {
                // Of a call for several blocks it is not known which of them it was.
                let brought = done.shared + done.published;
                if brought * 2 < u64::from(settings.huge_min) {
                    block.in_vain += 1;
                }
                process.ledger.split += 1;
            }
        }
    }
    process.ledger.cpu += world.cpu().saturating_sub(started);
}
