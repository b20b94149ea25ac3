use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::page::{State, Terms};
use crate::process::{Look, Process, mix};
use crate::search::Search;
use crate::turns::Turns;
use crate::{Budget, Filter, Found, Gone, Ledger, Seen, Settings, World};

/// The processes are listed so often, at least.
const LISTING: Duration = Duration::from_secs(10);
/// Keys of pages that are ready, at most, before a search for their twins.
const MOST_READY: usize = 1 << 16;
/// Pieces of work between two looks at the clock of CPU time, which costs as much as a small one.
const BETWEEN: u32 = 4;

/// A piece that took more is followed by a look at that clock.
const LARGE: Duration = Duration::from_millis(2);

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Something was done, and more may be to do.
    Worked,
    /// There is nothing to do for so long.
    Idle(Duration),
    /// There is, but the CPU time for it comes in so long.
    OutOfBudget(Duration),
}

impl Step {
    /// How long the next one can wait; none where something was done.
    #[must_use]
    pub const fn wait(self) -> Option<Duration> {
        match self {
            Step::Worked => None,
            Step::Idle(wait) | Step::OutOfBudget(wait) => Some(wait),
        }
    }
}

/// What is known of all processes, and what is to be done next.
pub struct Scanner {
    settings: Settings,
    terms: Terms,
    budget: Budget,
    processes: BTreeMap<u64, Process>,
    filter: Filter,
    /// Mixed keys of pages that have become ready, and may have a twin.
    ready: HashSet<u32>,
    search: Option<Search>,
    next_search: Duration,
    /// What the beginning of the last one took.
    search_cost: Duration,
    next_listing: Duration,
    /// When the processes were listed first.
    listed_first: Option<Duration>,
    turns: Turns,
    until_budget: u32,
    /// Of processes that have gone.
    gone: Ledger,
    /// Room for what a look sees.
    seen: Vec<(u16, Seen)>,
}

impl Scanner {
    /// One that knows nothing yet.
    pub fn new(settings: Settings, world: &impl World) -> Self {
        let now = world.now();
        Scanner {
            terms: Terms::of(&settings),
            budget: Budget::new(settings.cpu, now, world.cpu()),
            settings,
            processes: BTreeMap::new(),
            filter: Filter::default(),
            ready: HashSet::new(),
            search: None,
            next_search: now,
            search_cost: Duration::ZERO,
            next_listing: now,
            listed_first: None,
            turns: Turns::default(),
            until_budget: 0,
            gone: Ledger::default(),
            seen: Vec::new(),
        }
    }

    /// Other settings, from now on; what is known stays.
    pub fn set(&mut self, settings: Settings, world: &impl World) {
        if settings.cpu != self.settings.cpu {
            self.budget = Budget::new(settings.cpu, world.now(), world.cpu());
        }
        if settings.stable != self.settings.stable {
            // Ages are counted in parts of it: what is not ready yet begins anew.
            self.terms = Terms::of(&settings);
            let now = self.terms.tick(world.now());
            for (id, process) in &mut self.processes {
                process.begin_anew(now);
                self.turns.add(*id, process.due());
            }
        }
        self.settings = settings;
    }

    /// What was done for each process that is there.
    pub fn ledgers(&self) -> impl Iterator<Item = (u64, &Ledger)> {
        let all = self.processes.iter();
        all.map(|(id, process)| (*id, &process.ledger))
    }

    /// What was done for all, those that have gone as well.
    #[must_use]
    pub fn total(&self) -> Ledger {
        let mut total = self.gone;
        total.pages = 0;
        total.merged = 0;
        self.ledgers().for_each(|(_, ledger)| total.add(ledger));
        total
    }

    /// Memory that is held for what is known, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let blocks = self.processes.values().flat_map(Process::blocks);
        let blocks: usize = blocks
            .map(|(_, block)| size_of_val(block) + 32 + size_of_val(block.pages()))
            .sum();
        blocks + self.filter.size() + self.ready.capacity() * 5 + self.turns.size()
    }

    /// Whether all that was there at first, or came within the stable time, was looked at twice, and nothing is left to do about it.
    /// However long that takes.
    #[must_use]
    pub fn seen_twice(&self) -> bool {
        let Some(first) = self.listed_first else {
            return false;
        };
        let by = first + self.terms.stable();
        let mut processes = self.processes.values();
        self.search.is_none()
            && self.ready.is_empty()
            && processes.all(|process| process.seen_twice(by, &self.terms))
    }

    /// Does one piece of work.
    pub fn step<W: World>(&mut self, world: &mut W) -> Step {
        let now = world.now();
        if self.until_budget == 0 {
            let wait = self.budget.wait(now, world.cpu());
            if !wait.is_zero() {
                return Step::OutOfBudget(wait);
            }
            self.until_budget = BETWEEN;
        }
        self.until_budget -= 1;
        if self.next_listing <= now {
            self.until_budget = 0;
            self.list(world);
            return Step::Worked;
        }
        if let Some(search) = &mut self.search {
            self.until_budget = 0;
            let worked = search.work(&mut self.processes, world, &self.settings, &self.terms);
            // What was merged is looked at soon.
            if let Some((id, process)) = search
                .merged_last
                .take()
                .and_then(|id| Some((id, self.processes.get(&id)?)))
            {
                self.turns.add(id, process.due());
            }
            if !worked {
                self.ready = std::mem::take(&mut search.left);
                self.search = None;
                let rest = self.terms.stable() / 8;
                self.next_search = now + rest.max(self.search_cost * 100);
            }
            return Step::Worked;
        }
        let full = self.ready.len() >= MOST_READY;
        if full || !self.ready.is_empty() && self.next_search <= now {
            self.until_budget = 0;
            let ready = std::mem::take(&mut self.ready);
            let started = world.cpu();
            self.search = Some(Search::begin(&self.processes, ready, world));
            // It goes through all pages, of which there may be many.
            self.search_cost = world.cpu().saturating_sub(started);
            return Step::Worked;
        }
        if self.look(world) {
            return Step::Worked;
        }
        let mut next = self.turns.by().min(self.next_listing);
        if !self.ready.is_empty() {
            next = next.min(self.next_search);
        }
        match next.saturating_sub(now) {
            Duration::ZERO => Step::Worked,
            wait => Step::Idle(wait),
        }
    }

    /// Shows the samples of all pages that have not changed for the stable time, merged ones among them, each with its process.
    pub fn each_stable(&self, mut see: impl FnMut(u64, u32)) {
        for (id, process) in &self.processes {
            let pages = process.blocks().flat_map(|(_, block)| block.pages());
            (pages.filter(|page| page.state() != State::Young))
                .for_each(|page| see(*id, page.sample));
        }
    }

    /// Takes up again what had no twin when it became ready, and [needs none](World::needs_no_twin) by now.
    pub fn ask_again(&mut self, world: &impl World) {
        for (id, process) in &self.processes {
            let pages = process.blocks().flat_map(|(_, block)| block.pages());
            let wanted = pages.filter(|page| {
                page.state() == State::Stable && world.needs_no_twin(*id, page.sample)
            });
            let room = MOST_READY.saturating_sub(self.ready.len());
            self.ready.extend(
                wanted
                    .map(|page| mix(process.domain, page.sample))
                    .take(room),
            );
        }
    }

    /// Takes up processes that are new, and forgets those that have gone.
    fn list<W: World>(&mut self, world: &mut W) {
        let (now, started) = (world.now(), world.cpu());
        self.listed_first.get_or_insert(now);
        let mut found: BTreeMap<u64, u64> = BTreeMap::new();
        world.processes(&mut |Found { id, domain }| {
            found.insert(id, domain);
        });
        let gone = |(id, process): &(&u64, &Process)| found.get(id) != Some(&process.domain);
        let gone: Vec<u64> = self
            .processes
            .iter()
            .filter(gone)
            .map(|(id, _)| *id)
            .collect();
        let any_gone = !gone.is_empty();
        gone.into_iter().for_each(|id| self.forget(id));
        if any_gone {
            self.turns.keep(|id| self.processes.contains_key(&id));
        }
        for (id, domain) in found {
            self.processes.entry(id).or_insert_with(|| {
                self.turns.add(id, Duration::ZERO);
                Process::new(domain, now)
            });
        }
        if self.filter.outgrown() {
            let pages = self.ledgers().map(|(_, ledger)| ledger.pages).sum::<u64>();
            self.filter = Filter::for_samples(pages as usize);
            let filter = &mut self.filter;
            self.processes
                .values()
                .for_each(|process| process.count(filter));
        }
        // Of ten thousand processes it takes long.
        let cost = world.cpu().saturating_sub(started);
        let rest = LISTING
            .min(self.terms.stable() / 4)
            .max(Duration::from_millis(100));
        self.next_listing = world.now() + rest.max(cost * 200);
    }

    fn forget(&mut self, id: u64) {
        if let Some(process) = self.processes.remove(&id) {
            process.leave(&mut self.filter);
            self.gone.add(&process.ledger);
        }
    }

    /// Looks at one block of the next process in turn that has one due.
    fn look<W: World>(&mut self, world: &mut W) -> bool {
        let now = world.now();
        let zero = world.zero();
        while let Some(id) = self.turns.next(now) {
            let Some(process) = self.processes.get_mut(&id) else {
                continue;
            };
            if process.due() > now {
                continue;
            }
            let started = world.cpu();
            let key_of_zeros = mix(process.domain, zero);
            let mut found = Vec::new();
            let worked = process.work(
                id,
                &mut Look {
                    world,
                    filter: &mut self.filter,
                    terms: self.terms,
                    ready: &mut |sample| found.push(sample),
                    seen: &mut self.seen,
                },
            );
            let took = world.cpu().saturating_sub(started);
            process.ledger.cpu += took;
            if took > LARGE {
                self.until_budget = 0;
            }
            self.turns.add(id, process.due());
            let domain = process.domain;
            for sample in found {
                world.ready(id, sample);
                let key = mix(domain, sample);
                let wanted = key == key_of_zeros || self.filter.twice(key);
                if wanted || world.needs_no_twin(id, sample) {
                    self.ready.insert(key);
                }
            }
            match worked {
                Ok(false) => {}
                Ok(true) => return true,
                Err(Gone) => {
                    self.forget(id);
                    return true;
                }
            }
        }
        false
    }
}
