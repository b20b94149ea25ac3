//! What is known of one process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::moment::Moment;
use crate::page::{Event, Page, State, Terms, Tick};
use crate::{BLOCK, Filter, Gone, Known, Ledger, Range, Seen, Whole, World, layout};

/// What stays as it is is looked at after so many doublings of the stable time, at most.
const MOST_QUIET: u8 = 5;
/// So many pages are one piece of work, and a block costs as much as so many at least.
const PIECE: usize = BLOCK as usize;
const LEAST: usize = PIECE / 16;

pub struct Process {
    pub domain: u64,
    pub ledger: Ledger,
    blocks: BTreeMap<u64, Block>,
    ranges: Vec<Range>,
    /// When it was taken up, and when its layout was asked for first.
    came: Duration,
    first_layout: Option<Duration>,
    /// When its layout is asked for again, and how often it was found as it was.
    layout_due: Duration,
    layout_quiet: u8,
    /// When blocks are due, by their numbers; those are outdated of which the block says another time.
    dues: BinaryHeap<Reverse<(Moment, u64)>>,
}

#[derive(Default)]
pub struct Block {
    /// In the order of their offsets.
    pages: Vec<Page>,
    parts: Vec<std::ops::Range<u64>>,
    due: Moment,
    /// Before that, only a look that finds something new has any effect on its pages.
    changes: Moment,
    /// Whether one of them has to be looked at when it is due.
    wanted: bool,
    /// Whether it came later than what was there at first.
    late: bool,
    quiet: u8,
    /// Whether it is one huge page.
    pub huge: bool,
    /// How often splitting it brought little.
    pub in_vain: u8,
    /// When it was looked at first, and last.
    first: Option<Moment>,
    looked: Option<Moment>,
}

/// The key that pages of one content have in all processes of a domain, and hardly in others.
pub fn mix(domain: u64, sample: u32) -> u32 {
    let mixed =
        (domain ^ u64::from(sample) << 32 ^ u64::from(sample)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) as u32 ^ (mixed >> 32) as u32
}

/// What a look is told, and tells.
pub struct Look<'a, W> {
    pub world: &'a mut W,
    pub filter: &'a mut Filter,
    pub terms: Terms,
    /// Shown the samples of what has become ready to be merged.
    pub ready: &'a mut dyn FnMut(u32),
    /// Room for what is seen of a block.
    pub seen: &'a mut Vec<(u16, Seen)>,
}

impl Process {
    pub fn new(domain: u64, now: Duration) -> Self {
        Process {
            domain,
            came: now,
            first_layout: None,
            ledger: Ledger::default(),
            blocks: BTreeMap::new(),
            ranges: Vec::new(),
            layout_due: Duration::ZERO,
            layout_quiet: 0,
            dues: BinaryHeap::new(),
        }
    }

    pub fn blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(number, block)| (*number, block))
    }

    pub fn block(&mut self, number: u64) -> Option<&mut Block> {
        self.blocks.get_mut(&number)
    }

    /// Sets pages to another state where these are.
    pub fn set_where(&mut self, state: State, now: Tick, is: impl Fn(&Page) -> bool) {
        for block in self.blocks.values_mut() {
            if block.pages.iter().any(&is) {
                let pages = block.pages_mut().iter_mut();
                pages
                    .filter(|page| is(page))
                    .for_each(|page| page.set(state, now));
            }
        }
    }

    pub fn page(&mut self, number: u64) -> Option<&mut Page> {
        let block = self.blocks.get_mut(&(number / BLOCK))?;
        block.page(number)
    }

    /// All ages are 0 from now on, and all is due: the clock has changed.
    pub fn begin_anew(&mut self, now: Tick) {
        self.dues.clear();
        for (number, block) in &mut self.blocks {
            block.due = Moment::START;
            self.dues.push(Reverse((block.due, *number)));
            let pages = block.pages_mut().iter_mut();
            pages.for_each(|page| page.set(page.state(), now));
        }
        self.layout_due = Duration::ZERO;
    }

    /// When there is something to do for it.
    pub fn due(&self) -> Duration {
        let block = self.dues.peek().map(|Reverse((due, _))| due.time());
        self.layout_due.min(block.unwrap_or(Duration::MAX))
    }

    /// Whether all that it had at first was looked at twice, the stable time apart; also if it came later than that.
    pub fn seen_twice(&self, by: Duration, terms: &Terms) -> bool {
        let twice = |block: &Block| match (block.first, block.looked) {
            (Some(first), Some(looked)) => looked.time() >= first.time() + terms.matures(),
            _ => false,
        };
        let mut blocks = self.blocks.values();
        self.came > by
            || self.first_layout.is_some() && blocks.all(|block| block.late || twice(block))
    }

    /// Forgets its pages.
    pub fn leave(&self, filter: &mut Filter) {
        for block in self.blocks.values() {
            block.leave(self.domain, filter);
        }
    }

    /// Has all of its pages counted, as in a new filter none is.
    pub fn count(&self, filter: &mut Filter) {
        let pages = self.blocks.values().flat_map(|block| &block.pages);
        pages.for_each(|page| filter.add(mix(self.domain, page.sample)));
    }

    /// Does one piece of what is due; false if nothing is.
    pub fn work<W: World>(&mut self, id: u64, look: &mut Look<'_, W>) -> Result<bool, Gone> {
        let now = look.world.now();
        if self.layout_due <= now {
            self.ask_for_layout(id, look)?;
            return Ok(true);
        }
        let Some(mut number) = self.next_due(now, now) else {
            return Ok(false);
        };
        let mut left = PIECE;
        loop {
            let looked = self.look_at(id, number, look)?;
            left = left.saturating_sub(looked.max(LEAST));
            if left == 0 {
                return Ok(true);
            }
            // Where it can as well be a bit sooner, nobody is woken for each.
            match self.next_due(now, now + look.terms.time(1)) {
                Some(next) => number = next,
                None => return Ok(true),
            }
        }
    }

    /// The block that has been due for longest; or one that is due soon, if no page of it waits for that very time.
    fn next_due(&mut self, now: Duration, soon: Duration) -> Option<u64> {
        while let Some(Reverse((due, number))) = self.dues.peek().copied() {
            let block = self.blocks.get(&number).filter(|block| block.due == due);
            let wanted = block.is_some_and(|block| block.wanted);
            if due > if wanted { now } else { soon }.into() {
                return None;
            }
            let is_there = block.is_some();
            self.dues.pop();
            if is_there {
                return Some(number);
            }
        }
        None
    }

    fn ask_for_layout<W: World>(&mut self, id: u64, look: &mut Look<'_, W>) -> Result<(), Gone> {
        let started = look.world.cpu();
        let mut ranges = Vec::new();
        look.world.layout(id, &mut |range| ranges.push(range))?;
        let now = look.world.now();
        self.layout_quiet = match ranges == self.ranges {
            true => {
                // Of one that has nothing that is looked at.
                self.first_layout.get_or_insert(now);
                (self.layout_quiet + 1).min(MOST_QUIET)
            }
            false => {
                self.take_up(ranges, now, look);
                0
            }
        };
        // Asking costs by the size of a process, too.
        let cost = look.world.cpu().saturating_sub(started);
        let rest = look.terms.stable() * (1 << self.layout_quiet);
        self.layout_due = now + rest.max(cost * 200);
        Ok(())
    }

    /// Its pages are there from now on.
    fn take_up<W>(&mut self, ranges: Vec<Range>, now: Duration, look: &mut Look<'_, W>) {
        let first = *self.first_layout.get_or_insert(now);
        let late = now > first + look.terms.stable();
        let parts = layout::blocks(&ranges);
        let (domain, ledger) = (self.domain, &mut self.ledger);
        self.blocks.retain(|number, block| {
            let stays = parts.contains_key(number);
            if !stays {
                block.leave(domain, look.filter);
                let had = (block.pages.len(), merged(&block.pages));
                counted(ledger, had, (0, 0));
            }
            stays
        });
        for (number, parts) in parts {
            let block = self.blocks.entry(number).or_insert_with(|| Block {
                late,
                ..Block::default()
            });
            let changed = |part| layout::changed(&self.ranges, &ranges, part);
            if block.parts != parts || parts.iter().any(changed) {
                block.quiet = 0;
                // What is being waited for there is not looked at sooner for that.
                let soon = block
                    .looked
                    .map_or(now, |looked| looked.time() + look.terms.matures());
                block.due = block.due.min(soon.into());
                block.parts = parts;
                self.dues.push(Reverse((block.due, number)));
            }
        }
        self.ranges = ranges;
    }

    /// Tells how many pages were looked at one by one.
    fn look_at<W: World>(
        &mut self,
        id: u64,
        number: u64,
        look: &mut Look<'_, W>,
    ) -> Result<usize, Gone> {
        let Some(block) = self.blocks.get_mut(&number) else {
            return Ok(0);
        };
        let time = look.world.now();
        let whole = block.ask(id, number, look)?;
        let mut changes = 0;
        if whole != Whole::Unchanged || block.wanted || block.changes <= time.into() {
            let before = (block.pages.len(), merged(&block.pages));
            if whole != Whole::Unchanged {
                changes += block.align(self.domain, look.terms.tick(time), look);
            }
            let unchanged = whole == Whole::Unchanged;
            changes += block.see(self.domain, unchanged, time, look, &mut self.ledger);
            counted(
                &mut self.ledger,
                before,
                (block.pages.len(), merged(&block.pages)),
            );
        }
        self.ledger.looked += block.pages.len() as u64;
        block.huge = whole == Whole::HugePage;
        block.quiet = match changes {
            0 => (block.quiet + 1).min(MOST_QUIET),
            _ => 0,
        };
        block.first.get_or_insert(time.into());
        block.looked = Some(time.into());
        // What never stays the same says itself how long it can wait.
        if !block.wanted {
            block.due = (time + look.terms.stable() * (1 << block.quiet)).into();
        }
        self.dues.push(Reverse((block.due, number)));
        Ok(match whole {
            Whole::Unchanged => 0,
            Whole::Pages | Whole::HugePage => block.pages.len(),
        })
    }
}

fn merged(pages: &[Page]) -> usize {
    pages.iter().filter(|page| page.merged()).count()
}

impl Block {
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// For those who change their states: the next look goes through them.
    fn pages_mut(&mut self) -> &mut [Page] {
        self.changes = Moment::START;
        &mut self.pages
    }

    pub fn page(&mut self, number: u64) -> Option<&mut Page> {
        let offset = (number % BLOCK) as u16;
        let at = self.pages.binary_search_by_key(&offset, |page| page.offset);
        self.pages_mut().get_mut(at.ok()?)
    }

    /// Has the world look. What it sees is put into the room for it, unless all is as it was.
    fn ask<W: World>(&self, id: u64, number: u64, look: &mut Look<'_, W>) -> Result<Whole, Gone> {
        let mut known = Known::default();
        (self.pages.iter()).for_each(|page| known.add(page.offset, page.shared()));
        let seen = &mut *look.seen;
        seen.clear();
        let mut whole = Whole::Pages;
        let (mut unchanged, mut inside) = (Vec::new(), 0);
        for part in &self.parts {
            let mut see = |page: u64, is: Seen| seen.push(((page - number * BLOCK) as u16, is));
            let found = look.world.look(id, part.clone(), &known, &mut see)?;
            if found == Whole::Unchanged {
                let pages = self.within(part);
                inside += pages.len();
                unchanged.push(pages);
            } else if found == Whole::HugePage && part.end - part.start == BLOCK {
                whole = found;
            }
        }
        // What is in none of the parts any more has gone.
        if unchanged.len() == self.parts.len() && inside == self.pages.len() {
            return Ok(Whole::Unchanged);
        }
        if !unchanged.is_empty() {
            let as_they_were = unchanged.into_iter().flatten();
            seen.extend(as_they_were.map(|page| (page.offset, Seen::Unchanged)));
            seen.sort_unstable_by_key(|(offset, _)| *offset);
        }
        Ok(whole)
    }

    /// Its pages in this part of it.
    fn within(&self, part: &std::ops::Range<u64>) -> &[Page] {
        let before = |end: u64| {
            let offset = |page: &Page| u64::from(page.offset);
            self.pages
                .partition_point(|page| offset(page) < end - part.start / BLOCK * BLOCK)
        };
        &self.pages[before(part.start)..before(part.end)]
    }

    /// Takes up what has come and drops what has gone: each of its pages has been seen then, and nothing else. Tells how many those
    /// were.
    fn align<W>(&mut self, domain: u64, now: Tick, look: &mut Look<'_, W>) -> usize {
        let Look { filter, seen, .. } = look;
        let stays = |(page, (offset, seen)): (&Page, &(u16, Seen))| {
            page.offset == *offset && (*seen != Seen::Swapped || page.shared())
        };
        if self.pages.len() == seen.len() && self.pages.iter().zip(&**seen).all(stays) {
            return 0;
        }
        let mut old = self.pages.iter().peekable();
        let mut pages = Vec::with_capacity(seen.len());
        let mut changes = 0;
        seen.retain(|(offset, seen)| {
            while let Some(gone) = old.next_if(|page| page.offset < *offset) {
                filter.remove(mix(domain, gone.sample));
                changes += 1;
            }
            let known = old.next_if(|page| page.offset == *offset);
            let page = match (known, *seen) {
                // What was shared will be so again.
                (Some(page), Seen::Swapped) if !page.shared() => {
                    filter.remove(mix(domain, page.sample));
                    changes += 1;
                    None
                }
                (Some(page), _) => Some(*page),
                (None, Seen::Own(sample) | Seen::Shared(sample) | Seen::Written(sample)) => {
                    filter.add(mix(domain, sample));
                    changes += 1;
                    Some(Page::new(*offset, sample, now))
                }
                (None, Seen::Merged | Seen::Unchanged | Seen::Swapped) => None,
            };
            pages.extend(page);
            page.is_some()
        });
        for gone in old {
            filter.remove(mix(domain, gone.sample));
            changes += 1;
        }
        pages.shrink_to_fit();
        self.pages = pages;
        changes
    }

    /// Has its pages become what a look makes of them: all that was seen, or nothing new. Tells how many have changed.
    fn see<W>(
        &mut self,
        domain: u64,
        unchanged: bool,
        time: Duration,
        look: &mut Look<'_, W>,
        ledger: &mut Ledger,
    ) -> usize {
        let terms = look.terms;
        let now = terms.tick(time);
        let soonest = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let (mut wanted, mut changes_in, mut changes) = (None, None, 0);
        for (at, page) in self.pages.iter_mut().enumerate() {
            let seen = match unchanged {
                true => Seen::Unchanged,
                false => look.seen[at].1,
            };
            let sampled = matches!(seen, Seen::Own(_) | Seen::Shared(_) | Seen::Written(_));
            ledger.sampled += u64::from(sampled);
            match page.see(seen, now, &terms) {
                Event::Same => {}
                Event::Matured => (look.ready)(page.sample),
                event @ (Event::Changed(before) | Event::CameApart(before)) => {
                    look.filter.remove(mix(domain, before));
                    look.filter.add(mix(domain, page.sample));
                    changes += 1;
                    ledger.came_apart += u64::from(matches!(event, Event::CameApart(_)));
                }
            }
            wanted = soonest(wanted, page.wanted(now, &terms));
            changes_in = soonest(changes_in, page.changes_in(now, &terms));
        }
        let at = |ticks: u32| Moment::from(time + terms.time(ticks.max(1)));
        self.changes = changes_in.map_or(Moment::NEVER, at);
        self.wanted = wanted.is_some();
        if let Some(ticks) = wanted {
            self.due = at(ticks);
        }
        changes
    }
    pub fn spared(&self) -> impl Iterator<Item = &Page> {
        self.pages
            .iter()
            .filter(|page| page.state() == State::Spared)
    }

    fn leave(&self, domain: u64, filter: &mut Filter) {
        (self.pages.iter()).for_each(|page| filter.remove(mix(domain, page.sample)));
    }
}

/// A block has so many pages now, and so many of them merged.
fn counted(ledger: &mut Ledger, before: (usize, usize), now: (usize, usize)) {
    let changed =
        |sum: u64, before: usize, now: usize| (sum + now as u64).saturating_sub(before as u64);
    ledger.pages = changed(ledger.pages, before.0, now.0);
    ledger.merged = changed(ledger.merged, before.1, now.1);
}

impl Process {
    /// These pages were merged.
    pub fn note_merged(
        &mut self,
        pages: impl Iterator<Item = (u64, u16)>,
        time: Duration,
        terms: &Terms,
    ) {
        let now = terms.tick(time);
        for (number, content) in pages {
            let Some(block) = self.blocks.get_mut(&(number / BLOCK)) else {
                continue;
            };
            let Some(page) = block.page(number) else {
                continue;
            };
            self.ledger.merged += u64::from(!page.merged());
            self.ledger.merges += 1;
            page.set(State::Merged, now);
            page.content = content;
            let check = page.wanted(now, terms).unwrap_or_default();
            let check = Moment::from(time + terms.time(check + 1));
            if check < block.due {
                block.due = check;
                self.dues.push(Reverse((check, number / BLOCK)));
            }
        }
    }
}
