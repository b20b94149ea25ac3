//! What is shown, and what keys do to it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::sample::{Process, Sample, Saved};

/// So many looks are plotted.
const HISTORY: usize = 1200;
pub const SHORTEST: Duration = Duration::from_millis(100);
pub const LONGEST: Duration = Duration::from_secs(3600);

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Merged memory
    Merged,
    /// Private memory
    Anonymous,
    /// Memory in all
    Resident,
    /// Number
    Pid,
    /// Name
    Name,
    /// Unit of systemd, or else the control group
    Unit,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    Draw,
    Suspend,
    Quit,
}

pub struct State {
    pub now: Sample,
    /// Seconds since the start, and what was saved then.
    pub history: VecDeque<(f64, Saved)>,
    pub sort: Sort,
    pub reversed: bool,
    /// The first process shown.
    pub first: usize,
    pub help: bool,
    pub interval: Duration,
    /// Only processes whose name or unit has this in it are shown.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// All processes, of which `now` has those that are shown.
    all: Vec<Process>,
    start: std::time::Instant,
}

impl State {
    pub fn new(sample: Sample, sort: Sort, interval: Duration) -> Self {
        let mut state = State {
            start: sample.at,
            history: VecDeque::new(),
            now: sample.clone(),
            sort,
            reversed: false,
            first: 0,
            help: false,
            interval,
            filter: String::new(),
            typing: false,
            all: Vec::new(),
        };
        state.add(sample);
        state
    }

    pub fn add(&mut self, sample: Sample) {
        let time = sample.at.saturating_duration_since(self.start);
        self.history.push_back((time.as_secs_f64(), sample.saved));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.all = sample.processes.clone();
        self.now = sample;
        self.arrange();
    }

    fn arrange(&mut self) {
        let fits = |process: &&Process| {
            let unit = process.unit.as_deref().unwrap_or_default();
            process.footprint.name.contains(&self.filter) || unit.contains(&self.filter)
        };
        self.now.processes = self.all.iter().filter(fits).cloned().collect();
        order(&mut self.now.processes, self.sort, self.reversed);
    }

    pub fn press(&mut self, key: KeyEvent) -> Answer {
        if key.kind == KeyEventKind::Release {
            return Answer::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Answer::Quit,
                KeyCode::Char('z') => Answer::Suspend,
                // Draws all anew.
                KeyCode::Char('l') => Answer::Draw,
                _ => Answer::Nothing,
            };
        }
        if self.typing {
            self.type_filter(key.code);
            return Answer::Draw;
        }
        match key.code {
            KeyCode::Char('/') => self.typing = true,
            // First of all what is seen least.
            KeyCode::Esc if !self.filter.is_empty() && !self.help => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Answer::Quit,
            KeyCode::Char('h' | '?') => self.help = !self.help,
            KeyCode::Char('m') => self.by(Sort::Merged),
            KeyCode::Char('a') => self.by(Sort::Anonymous),
            KeyCode::Char('r') => self.by(Sort::Resident),
            KeyCode::Char('p') => self.by(Sort::Pid),
            KeyCode::Char('n') => self.by(Sort::Name),
            KeyCode::Char('u') => self.by(Sort::Unit),
            KeyCode::Char('i') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Char('+') => self.interval = longer(self.interval),
            KeyCode::Char('-') => self.interval = shorter(self.interval),
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::PageUp => self.first = self.first.saturating_sub(10),
            // Drawing knows where the end is.
            KeyCode::Down => self.first = self.first.saturating_add(1),
            KeyCode::PageDown => self.first = self.first.saturating_add(10),
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = usize::MAX,
            _ => return Answer::Nothing,
        }
        Answer::Draw
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
        self.first = 0;
        self.arrange();
    }

    fn by(&mut self, sort: Sort) {
        (self.sort, self.reversed, self.first) = (sort, false, 0);
        self.arrange();
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// By seconds; below one, twice as long.
fn longer(interval: Duration) -> Duration {
    match interval < SECOND {
        true => (interval * 2).min(SECOND),
        false => (interval + SECOND).min(LONGEST),
    }
}

fn shorter(interval: Duration) -> Duration {
    match interval > SECOND {
        true => interval.saturating_sub(SECOND).max(SECOND),
        false => (interval / 2).max(SHORTEST),
    }
}

/// The most first; names and numbers from the start.
pub fn order(processes: &mut [Process], sort: Sort, reversed: bool) {
    // Of equals, those with more memory, then those that are older.
    processes.sort_by_key(|process| {
        (
            Reverse(process.footprint.anonymous_bytes),
            process.footprint.pid,
        )
    });
    match sort {
        Sort::Merged => processes.sort_by_key(|process| Reverse(process.footprint.merged_bytes)),
        Sort::Anonymous => {}
        Sort::Resident => processes.sort_by_key(|process| Reverse(process.footprint.rss_bytes)),
        Sort::Pid => processes.sort_by_key(|process| process.footprint.pid),
        Sort::Name => processes.sort_by(|a, b| a.footprint.name.cmp(&b.footprint.name)),
        Sort::Unit => processes.sort_by(|a, b| a.unit.cmp(&b.unit)),
    }
    if reversed {
        processes.reverse();
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Instant;

    use super::*;
    use crate::footprint::Footprint;
    use crate::scan;
    use crate::store;
    use crate::system::System;
    use crate::top::sample::Domain;

    pub fn sample(seconds: u64, start: Instant) -> Sample {
        let process = |pid, name: &str, rss_bytes, anonymous_bytes, merged_bytes| Process {
            footprint: Footprint {
                pid,
                name: name.into(),
                rss_bytes,
                anonymous_bytes,
                merged_bytes,
                zero_bytes: Some(-4096),
                profit_bytes: Some(3 << 20),
                ..Footprint::default()
            },
            domain: Some("www-data".into()),
            unit: Some(format!("{name}.service")),
            apart: None,
        };
        Sample {
            at: start + Duration::from_secs(seconds),
            system: System {
                sksm: Some([("pages_shared", 2), ("pages_sharing", 300 + seconds as i64)].into()),
                ksm: Some([("run", 0), ("pages_sharing", 5)].into()),
            },
            scanner: scan::seen::Seen::default(),
            store: store::Seen::default(),
            saved: Saved {
                sksm_bytes: (300 + seconds as i64) << 12,
                ksm_bytes: 5 << 12,
                zero_bytes: 0,
                sksm_net_bytes: Some(1 << 20),
                ksm_net_bytes: Some(-8192),
            },
            missing: None,
            domain: Some("user"),
            domains: vec![Domain {
                name: "www-data".into(),
                processes: 3,
                anonymous_bytes: 60 << 20,
                merged_bytes: 30 << 20,
            }],
            processes: vec![
                process(3, "python3", 50 << 20, 10 << 20, 5 << 20),
                process(20, "apache2", 40 << 20, 30 << 20, 1 << 20),
                process(100, "zsh", 60 << 20, 20 << 20, 0),
            ],
            denied: 4,
        }
    }

    pub fn state() -> State {
        State::new(
            sample(0, Instant::now()),
            Sort::Merged,
            Duration::from_secs(2),
        )
    }

    pub fn press(state: &mut State, code: KeyCode) -> Answer {
        state.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn pids(state: &State) -> Vec<u32> {
        let processes = state.now.processes.iter();
        processes.map(|process| process.footprint.pid).collect()
    }

    #[test]
    fn keys_sort() {
        let mut state = state();
        assert_eq!(pids(&state), [3, 20, 100]);
        for (key, expected) in [
            ('a', [20, 100, 3]),
            ('r', [100, 3, 20]),
            ('n', [20, 3, 100]),
            ('i', [100, 3, 20]),
            ('p', [3, 20, 100]),
            ('i', [100, 20, 3]),
            ('m', [3, 20, 100]),
        ] {
            assert_eq!(press(&mut state, KeyCode::Char(key)), Answer::Draw);
            assert_eq!(pids(&state), expected, "after {key}");
        }
        // A later look is sorted as well.
        press(&mut state, KeyCode::Char('r'));
        state.add(sample(2, Instant::now()));
        assert_eq!(pids(&state), [100, 3, 20]);
    }

    #[test]
    fn a_filter_is_typed() {
        let mut state = state();
        let keys = |state: &mut State, text: &str| {
            text.chars()
                .for_each(|letter| _ = press(state, KeyCode::Char(letter)));
        };
        keys(&mut state, "/zq");
        assert!(state.typing && pids(&state).is_empty());
        press(&mut state, KeyCode::Backspace);
        assert_eq!(pids(&state), [100]);
        press(&mut state, KeyCode::Enter);
        // By the unit as well; and a later look is filtered.
        keys(&mut state, "/");
        press(&mut state, KeyCode::Backspace);
        keys(&mut state, "2.serv");
        press(&mut state, KeyCode::Enter);
        state.add(sample(2, Instant::now()));
        assert_eq!(pids(&state), [20]);
        // Keys are keys again.
        keys(&mut state, "u");
        assert_eq!(state.sort, Sort::Unit);
        assert_eq!(press(&mut state, KeyCode::Esc), Answer::Draw);
        assert_eq!(pids(&state), [20, 3, 100]);
        assert_eq!(press(&mut state, KeyCode::Esc), Answer::Quit);
    }

    #[test]
    fn keys_end_it() {
        let mut state = state();
        assert_eq!(press(&mut state, KeyCode::Char('q')), Answer::Quit);
        assert_eq!(press(&mut state, KeyCode::Esc), Answer::Quit);
        // Of the help first.
        press(&mut state, KeyCode::Char('?'));
        assert!(state.help);
        assert_eq!(press(&mut state, KeyCode::Esc), Answer::Draw);
        assert!(!state.help);
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert_eq!(state.press(control('c')), Answer::Quit);
        assert_eq!(state.press(control('z')), Answer::Suspend);
        assert_eq!(state.press(control('q')), Answer::Nothing);
        assert_eq!(press(&mut state, KeyCode::Char('x')), Answer::Nothing);
    }

    #[test]
    fn the_interval_stays_sensible() {
        let mut state = state();
        for milliseconds in [1000, 500, 250, 125, 100, 100] {
            press(&mut state, KeyCode::Char('-'));
            assert_eq!(state.interval, Duration::from_millis(milliseconds));
        }
        for milliseconds in [200, 400, 800, 1000, 2000] {
            press(&mut state, KeyCode::Char('+'));
            assert_eq!(state.interval, Duration::from_millis(milliseconds));
        }
        state.interval = LONGEST;
        press(&mut state, KeyCode::Char('+'));
        assert_eq!(state.interval, LONGEST);
    }

    #[test]
    fn history_is_bounded_and_keeps_the_latest() {
        let start = Instant::now();
        let mut state = State::new(sample(0, start), Sort::Merged, Duration::from_secs(2));
        for second in 1..2000 {
            state.add(sample(second, start));
        }
        assert_eq!(state.history.len(), HISTORY);
        let (time, saved) = state.history.back().unwrap();
        assert_eq!((*time, saved.sksm_bytes), (1999.0, 2299 << 12));
    }
}
