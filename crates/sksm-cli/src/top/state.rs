//! What is shown, and what keys do to it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::sample::{Process, Sample, Saved};

/// So many looks are plotted.
const HISTORY: usize = 1200;
/// The longest interval, in seconds.
pub const LONGEST: u64 = 3600;

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
    /// In seconds.
    pub interval: u64,
    start: std::time::Instant,
}

impl State {
    pub fn new(sample: Sample, sort: Sort, interval: u64) -> Self {
        let mut state = State {
            start: sample.at,
            history: VecDeque::new(),
            now: sample.clone(),
            sort,
            reversed: false,
            first: 0,
            help: false,
            interval,
        };
        state.add(sample);
        state
    }

    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval)
    }

    pub fn add(&mut self, sample: Sample) {
        let time = sample.at.saturating_duration_since(self.start);
        self.history.push_back((time.as_secs_f64(), sample.saved));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.now = sample;
        self.arrange();
    }

    fn arrange(&mut self) {
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
        match key.code {
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Answer::Quit,
            KeyCode::Char('h' | '?') => self.help = !self.help,
            KeyCode::Char('m') => self.by(Sort::Merged),
            KeyCode::Char('a') => self.by(Sort::Anonymous),
            KeyCode::Char('r') => self.by(Sort::Resident),
            KeyCode::Char('p') => self.by(Sort::Pid),
            KeyCode::Char('n') => self.by(Sort::Name),
            KeyCode::Char('i') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Char('+') => self.interval = (self.interval + 1).min(LONGEST),
            KeyCode::Char('-') => self.interval = (self.interval - 1).max(1),
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

    fn by(&mut self, sort: Sort) {
        (self.sort, self.reversed, self.first) = (sort, false, 0);
        self.arrange();
    }
}

/// The most first; names and numbers from the start.
pub fn order(processes: &mut [Process], sort: Sort, reversed: bool) {
    // Of equals, those with more memory, then those that are older.
    processes.sort_by_key(|process| (Reverse(process.row.anonymous_bytes), process.row.pid));
    match sort {
        Sort::Merged => processes.sort_by_key(|process| Reverse(process.row.merged_bytes)),
        Sort::Anonymous => {}
        Sort::Resident => processes.sort_by_key(|process| Reverse(process.row.rss_bytes)),
        Sort::Pid => processes.sort_by_key(|process| process.row.pid),
        Sort::Name => processes.sort_by(|a, b| a.row.name.cmp(&b.row.name)),
    }
    if reversed {
        processes.reverse();
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Instant;

    use super::*;
    use crate::stat::{Row, System};
    use crate::top::sample::Domain;

    pub fn sample(seconds: u64, start: Instant) -> Sample {
        let process = |pid, name: &str, rss_bytes, anonymous_bytes, merged_bytes| Process {
            row: Row {
                pid,
                name: name.into(),
                rss_bytes,
                anonymous_bytes,
                merged_bytes,
            },
            zero_bytes: Some(4096),
            domain: Some("www-data".into()),
        };
        Sample {
            at: start + Duration::from_secs(seconds),
            system: System {
                sksm: Some([("pages_shared", 2), ("pages_sharing", 300 + seconds)].into()),
                ksm: Some([("run", 0), ("pages_sharing", 5)].into()),
            },
            saved: Saved {
                sksm_bytes: (300 + seconds) << 12,
                ksm_bytes: 5 << 12,
                zero_bytes: 0,
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
        State::new(sample(0, Instant::now()), Sort::Merged, 2)
    }

    pub fn press(state: &mut State, code: KeyCode) -> Answer {
        state.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn pids(state: &State) -> Vec<u32> {
        let processes = state.now.processes.iter();
        processes.map(|process| process.row.pid).collect()
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
        for _ in 0..5 {
            press(&mut state, KeyCode::Char('-'));
        }
        assert_eq!(state.interval(), Duration::from_secs(1));
        press(&mut state, KeyCode::Char('+'));
        assert_eq!(state.interval(), Duration::from_secs(2));
        state.interval = LONGEST;
        press(&mut state, KeyCode::Char('+'));
        assert_eq!(state.interval, LONGEST);
    }

    #[test]
    fn history_is_bounded_and_keeps_the_latest() {
        let start = Instant::now();
        let mut state = State::new(sample(0, start), Sort::Merged, 2);
        for second in 1..2000 {
            state.add(sample(second, start));
        }
        assert_eq!(state.history.len(), HISTORY);
        let (time, saved) = state.history.back().unwrap();
        assert_eq!((*time, saved.sksm_bytes), (1999.0, 2299 << 12));
    }
}
