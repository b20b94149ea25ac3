//! What is kept of a page, and what a look at it makes of that.

use std::time::Duration;

use crate::{Seen, Settings};

/// A moment, in ticks; they come round after thousands of stable times.
pub type Tick = u16;

/// The stable time, in ticks.
pub const STABLE: u32 = 64;
/// What comes apart before this has come apart soon.
const SOON: Duration = Duration::from_secs(60);
/// The longest waits: so many doublings.
const MOST_APART: u16 = 7;
const MOST_RESTLESS: u16 = 5;

/// How long things take, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    tick: Duration,
    soon: u32,
}

impl Terms {
    pub fn of(settings: &Settings) -> Self {
        let tick = settings.tick();
        let soon = SOON.as_nanos().div_ceil(tick.as_nanos());
        Terms {
            tick,
            soon: soon.clamp(4, 1 << 14) as u32,
        }
    }

    pub fn tick(&self, now: Duration) -> Tick {
        (now.as_nanos() / self.tick.as_nanos()) as Tick
    }

    pub fn time(&self, ticks: u32) -> Duration {
        self.tick * ticks
    }

    pub fn stable(&self) -> Duration {
        self.time(STABLE)
    }

    /// How long after the first look a page is ready that has stayed the same.
    pub fn matures(&self) -> Duration {
        self.time(STABLE + 1)
    }

    /// When a merged page is looked at, to see whether it came apart soon.
    fn check(&self) -> u32 {
        self.soon * 3 / 4
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not the same for long enough yet.
    Young,
    /// Ready to be merged.
    Stable,
    /// Was read in full, and has no twin: has to be stable for longer before it is read again.
    Tried,
    /// Has a twin, but is in a huge page that has too few such pages.
    Spared,
    /// Was merged, a short while ago.
    Merged,
    /// Was merged, and has stayed so.
    Kept,
    /// Others have it already, since a fork or by another's merge, and no other page is the same.
    Common,
}

const STATES: [State; 7] = [
    State::Young,
    State::Stable,
    State::Tried,
    State::Spared,
    State::Merged,
    State::Kept,
    State::Common,
];

/// A page of a block: 12 bytes, as there are many.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub sample: u32,
    /// When its sample was read first, or it was tried or merged.
    since: Tick,
    /// Of a page that was merged, part of the hash of all of it.
    pub content: u16,
    /// Its number within the block.
    pub offset: u16,
    /// The state, and two numbers of doublings: of the stable time, as it came apart soon; and of the wait for the next look, as
    /// it changes all the time.
    marks: u16,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing new.
    Same,
    /// It is ready to be merged from now on.
    Matured,
    /// It had this sample before.
    Changed(u32),
    /// It is merged no more, soon after it was; and had this sample before.
    CameApart(u32),
}

impl Page {
    pub fn new(offset: u16, sample: u32, now: Tick) -> Self {
        Page {
            sample,
            since: now,
            content: 0,
            offset,
            marks: 0,
        }
    }

    pub fn state(self) -> State {
        STATES[usize::from(self.marks & 7)]
    }

    pub fn merged(self) -> bool {
        matches!(self.state(), State::Merged | State::Kept)
    }

    /// Whether it need not be read while others have it.
    pub fn shared(self) -> bool {
        self.merged() || self.state() == State::Common
    }

    pub fn set(&mut self, state: State, now: Tick) {
        self.marks = self.marks & !7 | state as u16;
        self.since = now;
    }

    fn apart(self) -> u16 {
        self.marks >> 3 & 7
    }

    fn set_apart(&mut self, apart: u16) {
        self.marks = self.marks & !(7 << 3) | apart.min(MOST_APART) << 3;
    }

    fn restless(self) -> u16 {
        self.marks >> 6 & 7
    }

    fn set_restless(&mut self, restless: u16) {
        self.marks = self.marks & !(7 << 6) | restless.min(MOST_RESTLESS) << 6;
    }

    fn age(self, now: Tick) -> u32 {
        now.wrapping_sub(self.since).into()
    }

    /// How long it has to be the same: a tick more, as both ends are rounded down.
    fn patience(self) -> u32 {
        (STABLE << self.apart()) + 1
    }

    /// It was read in full, and nobody has the same.
    pub fn has_no_twin(&mut self, now: Tick) {
        self.set(State::Tried, now);
        self.set_apart(self.apart() + 1);
    }

    pub fn see(&mut self, seen: Seen, now: Tick, terms: &Terms) -> Event {
        let (sample, own) = match seen {
            Seen::Own(sample) | Seen::Written(sample) => (sample, true),
            Seen::Shared(sample) => (sample, false),
            Seen::Merged | Seen::Swapped | Seen::Unchanged => (self.sample, false),
        };
        // Also where the sample tells nothing of it.
        let changed = sample != self.sample || matches!(seen, Seen::Written(_));
        match self.state() {
            State::Merged | State::Kept | State::Common if own => {
                self.see_apart(sample, changed, now, terms)
            }
            State::Merged if self.age(now) >= terms.check() => {
                self.set(State::Kept, now);
                self.set_apart(self.apart().saturating_sub(1));
                Event::Same
            }
            State::Merged | State::Kept => Event::Same,
            State::Common if !changed => Event::Same,
            state if changed => {
                let restless = match state {
                    State::Young => self.restless() + 1,
                    _ => 0,
                };
                self.set_restless(restless);
                self.change(sample, now)
            }
            State::Young | State::Tried if self.age(now) >= self.patience() => {
                self.set(State::Stable, now);
                self.set_restless(0);
                Event::Matured
            }
            _ => Event::Same,
        }
    }

    fn see_apart(&mut self, sample: u32, changed: bool, now: Tick, terms: &Terms) -> Event {
        if self.state() == State::Merged && self.age(now) <= terms.soon {
            self.set_apart(self.apart() + 1);
            let before = self.sample;
            self.change(sample, now);
            return Event::CameApart(before);
        }
        if changed {
            return self.change(sample, now);
        }
        // Swapped in again, for instance.
        self.set(State::Stable, now);
        Event::Matured
    }

    fn change(&mut self, sample: u32, now: Tick) -> Event {
        let before = std::mem::replace(&mut self.sample, sample);
        self.set(State::Young, now);
        Event::Changed(before)
    }

    /// In how many ticks it should be looked at; none if that has time.
    pub fn wanted(self, now: Tick, terms: &Terms) -> Option<u32> {
        let left = |whole: u32| whole.saturating_sub(self.age(now));
        match self.state() {
            State::Young => {
                let wait = match self.restless() {
                    0 => 0,
                    restless => STABLE << restless,
                };
                Some(left(self.patience()).max(wait))
            }
            // Once early, and once before it is too late to tell.
            State::Merged if self.age(now) < STABLE => Some(left(STABLE.min(terms.check()))),
            State::Merged => Some(left(terms.check())),
            _ => None,
        }
    }
}

impl Page {
    /// In how many ticks it will be another state if nothing happens to it; none if never.
    pub fn changes_in(self, now: Tick, terms: &Terms) -> Option<u32> {
        let left = |whole: u32| whole.saturating_sub(self.age(now));
        match self.state() {
            State::Young | State::Tried => Some(left(self.patience())),
            State::Merged => Some(left(terms.check())),
            State::Stable | State::Spared | State::Kept | State::Common => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms::of(&Settings::default())
    }

    #[test]
    fn a_page_is_small() {
        assert_eq!(size_of::<Page>(), 12);
    }

    #[test]
    fn what_stays_the_same_matures() {
        let terms = terms();
        let mut page = Page::new(3, 7, 65530);
        for age in 0..65u16 {
            let now = 65530u16.wrapping_add(age);
            assert_eq!(page.see(Seen::Own(7), now, &terms), Event::Same);
            assert_eq!(page.wanted(now, &terms), Some(65 - u32::from(age)));
        }
        assert_eq!(page.see(Seen::Own(7), 59, &terms), Event::Matured);
        assert_eq!(page.wanted(59, &terms), None);
        assert_eq!(page.see(Seen::Own(7), 60, &terms), Event::Same);
        assert_eq!(page.see(Seen::Own(8), 61, &terms), Event::Changed(7));
        assert_eq!(page.state(), State::Young);
    }

    #[test]
    fn what_never_stays_is_looked_at_rarely() {
        let terms = terms();
        let mut page = Page::new(0, 0, 0);
        let waits = (1..9u32).map(|round| {
            page.see(Seen::Own(round), round as Tick, &terms);
            page.wanted(round as Tick, &terms).unwrap()
        });
        assert!(waits.eq([128, 256, 512, 1024, 2048, 2048, 2048, 2048]));
    }

    #[test]
    fn what_nobody_wrote_to_matures_unread() {
        let terms = terms();
        let mut page = Page::new(0, 7, 0);
        assert_eq!(page.see(Seen::Unchanged, 64, &terms), Event::Same);
        assert_eq!(page.see(Seen::Unchanged, 65, &terms), Event::Matured);
        page.set(State::Merged, 65);
        assert_eq!(page.see(Seen::Unchanged, 120, &terms), Event::Same);
        assert_eq!(page.state(), State::Kept);
    }

    /// Its sample is only a small part of it.
    #[test]
    fn what_is_written_has_changed_whatever_its_sample_is() {
        let terms = terms();
        let mut page = Page::new(0, 7, 0);
        assert_eq!(page.see(Seen::Written(7), 60, &terms), Event::Changed(7));
        assert_eq!(page.see(Seen::Unchanged, 70, &terms), Event::Same);
        page.set(State::Merged, 70);
        assert_eq!(page.see(Seen::Written(7), 71, &terms), Event::CameApart(7));
        page.set(State::Kept, 80);
        assert_eq!(page.see(Seen::Written(7), 90, &terms), Event::Changed(7));
        assert_eq!(page.state(), State::Young);
    }

    /// Each time it takes twice as long until it is merged again.
    #[test]
    fn what_comes_apart_soon_waits_longer() {
        let terms = terms();
        let (mut page, mut now) = (Page::new(0, 7, 0), 0);
        for doublings in 1..10u32 {
            page.set(State::Merged, now);
            now += 4;
            assert_eq!(page.see(Seen::Own(7), now, &terms), Event::CameApart(7));
            let wait = (64 << doublings.min(7)) + 1;
            assert_eq!(page.wanted(now, &terms), Some(wait));
            now = now.wrapping_add((wait - 1) as Tick);
            assert_eq!(page.see(Seen::Own(7), now, &terms), Event::Same);
            now = now.wrapping_add(1);
            assert_eq!(page.see(Seen::Own(7), now, &terms), Event::Matured);
        }
    }

    /// It was swapped out and in again, say.
    #[test]
    fn what_comes_apart_late_is_ready_at_once() {
        let terms = terms();
        let mut page = Page::new(0, 7, 0);
        page.set(State::Merged, 0);
        assert_eq!(page.wanted(0, &terms), Some(48));
        assert_eq!(page.see(Seen::Merged, 48, &terms), Event::Same);
        assert_eq!(page.state(), State::Kept);
        assert_eq!(page.see(Seen::Swapped, 49, &terms), Event::Same);
        assert_eq!(page.see(Seen::Own(7), 50, &terms), Event::Matured);
        page.set(State::Merged, 50);
        assert_eq!(page.see(Seen::Own(9), 400, &terms), Event::Changed(7));
    }

    #[test]
    fn what_others_have_already_is_not_read_before_it_is_alone() {
        let terms = terms();
        let mut page = Page::new(0, 7, 0);
        page.set(State::Common, 0);
        assert!(page.shared() && !page.merged());
        assert_eq!(page.see(Seen::Merged, 9, &terms), Event::Same);
        // The others have gone, or it was written where no sample is.
        assert_eq!(page.see(Seen::Own(7), 10, &terms), Event::Matured);
        page.set(State::Common, 10);
        assert_eq!(page.see(Seen::Own(8), 11, &terms), Event::Changed(7));
    }

    #[test]
    fn what_has_no_twin_is_tried_ever_more_rarely() {
        let terms = terms();
        let mut page = Page::new(0, 7, 0);
        page.has_no_twin(0);
        assert_eq!(page.see(Seen::Own(7), 128, &terms), Event::Same);
        assert_eq!(page.see(Seen::Own(7), 129, &terms), Event::Matured);
        page.has_no_twin(129);
        assert_eq!(page.see(Seen::Own(7), 129 + 256, &terms), Event::Same);
        assert_eq!(page.see(Seen::Own(7), 129 + 257, &terms), Event::Matured);
    }
}
