//! A scanner at work, until a signal or its own end.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use sksm::{MergeStatistics, SystemStatistics};
use sksm_scan::Scanner;

use super::config;
use super::history::{History, Moment};
use super::remote::Remote;
use super::report;
use super::state::{self, LeftOut, Row, State, Totals};
use super::wake::Wakes;
use super::watchdog::Watchdog;
use super::when::{Gate, Memory};
use super::{Args, Parse};
use crate::estimate::cpu_time;
use crate::estimate::nodes::Nodes;
use crate::{hung, output, target};

pub struct Session {
    args: Args,
    json: bool,
    scanner: Scanner,
    remote: Remote,
    gate: Gate,
    started: u64,
    begun: Instant,
    history: History,
    next_report: Duration,
    next_check: Duration,
    interval: Duration,
    state_file: Option<PathBuf>,
    /// Whether it could not be written the last time, which was said then.
    state_failed: bool,
    waiting: Option<String>,
    bar: ProgressBar,
    warned: bool,
    watchdog: Watchdog,
    again: bool,
}

/// While memory is plenty, this is looked at so often.
const GATE: Duration = Duration::from_secs(5);
/// Whether all is done, with `--once`.
const CHECK: Duration = Duration::from_millis(200);
/// Processes that are named in the state.
const NAMED: usize = 1000;

impl Session {
    /// In place of one that waits for ever, or as the first.
    pub fn new(
        args: Args,
        remote: Remote,
        watchdog: Watchdog,
        again: bool,
        json: bool,
    ) -> Result<Self> {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        let mut session = Session {
            scanner: Scanner::new(args.settings(), &remote),
            state_file: None,
            state_failed: false,
            args,
            json,
            remote,
            gate: Gate::default(),
            started: state::now(),
            begun: Instant::now(),
            history: History::default(),
            next_report: Duration::ZERO,
            next_check: Duration::ZERO,
            interval: Duration::from_secs(state::EVERY),
            waiting: None,
            bar,
            warned: false,
            watchdog,
            again,
        };
        session.choose_file()?;
        session.gate.closed(session.args.when)?;
        Ok(session)
    }

    /// Where the state goes. Where nobody has asked for it, it need not be.
    fn choose_file(&mut self) -> Result<()> {
        self.state_file = self.args.state.clone();
        if let Some(file) = self.state_file.clone() {
            let state = self.watched(|session| session.state(true));
            (state.write(&file)).with_context(|| format!("cannot write {}", file.display()))?;
        } else if !self.args.once {
            match State::read() {
                // The one before is no other one.
                Ok(Some(other)) if !self.again && other.of_another() => output::note(&format!(
                    "process {} scans, too, and `sksm stat` tells of that one",
                    other.pid
                )),
                _ => self.state_file = Some(state::DEFAULT.into()),
            }
        }
        Ok(())
    }

    /// Until a signal, or until all has been looked at twice.
    pub fn work(&mut self, wakes: &Wakes, parse: Parse) -> Result<()> {
        while !wakes.ended() {
            if wakes.reload() {
                self.reload(parse);
            }
            let now = self.begun.elapsed();
            if now >= self.next_report {
                self.report(now);
            }
            self.waiting = self.gate.closed_by(self.args.when)?;
            if self.waiting.is_some() {
                wakes.wait(GATE);
                continue;
            }
            let step = self.watched(|session| session.scanner.step(&mut session.remote));
            match step.wait() {
                // Where one round takes longer than any wait there is always something due.
                None => {
                    if self.args.once && now >= self.next_check {
                        let started = Instant::now();
                        if self.scanner.seen_twice() {
                            return Ok(());
                        }
                        self.next_check = now + CHECK.max(started.elapsed() * 50);
                    }
                }
                Some(wait) => {
                    if self.args.once && self.scanner.seen_twice() {
                        return Ok(());
                    }
                    self.bar.tick();
                    wakes.wait(wait.min(self.next_report.saturating_sub(now)));
                }
            }
        }
        Ok(())
    }

    /// Whether it is being looked at.
    pub fn looks_at(&self, pid: u32) -> bool {
        self.remote.looks_at(pid)
    }

    /// Merged pages stay merged. Tells what was done.
    pub fn end(mut self, once: bool) -> Result<()> {
        self.bar.finish_and_clear();
        let state = self.watched(|session| session.state(false));
        self.keep(&state);
        self.draw()?;
        if let Some(sentence) = Nodes::of_this_look().sentence() {
            output::note(&sentence);
        }
        if self.json {
            return output::json(&state);
        }
        report::show(&state, once && self.args.verbose)
    }

    /// Does what may read others' memory, or wait for their locks.
    fn watched<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.watchdog.begin();
        let done = work(self);
        self.watchdog.end();
        done
    }

    fn reload(&mut self, parse: Parse) {
        let Some(file) = self.args.config.clone() else {
            output::note("SIGHUP reads the configuration again, and there is none: see --config");
            return;
        };
        let read = config::with(&file, parse).and_then(|args| {
            // Its condition may be one that this kernel cannot tell.
            Gate::default().closed(args.when)?;
            let before = std::mem::replace(&mut self.args, args);
            if self.args.serve != before.serve {
                output::note("where it serves changes when it is started again");
            }
            if self.args.patience != before.patience {
                output::note("its patience changes when it is started again");
            }
            if self.args.state == before.state {
                return Ok(());
            }
            self.choose_file().inspect_err(|_| self.args = before)
        });
        match read {
            Ok(()) => {
                self.scanner.set(self.args.settings(), &self.remote);
                let (choose, wanted) = self.args.remote();
                self.remote.set(choose, wanted);
                output::note(&format!("{} was read again", file.display()));
            }
            Err(error) => output::note(&format!("{error:#}; all stays as it was")),
        }
    }

    fn report(&mut self, now: Duration) {
        let started = cpu_time();
        let state = self.watched(|session| session.state(true));
        self.keep(&state);
        self.history.add(Moment {
            seconds: now.as_secs_f64(),
            saved: state.total.saved_bytes,
            huge: state.total.huge_bytes,
            cpu: state.total.cpu_seconds,
        });
        if self.draw().is_err() && !self.warned {
            self.warned = true;
            output::note("the picture cannot be written");
        }
        self.bar.set_message(report::line(&state));
        // Of thousands of processes it takes time, too.
        let cost = Duration::from_secs_f64((cpu_time() - started).max(0.0));
        let least = Duration::from_secs(state::EVERY);
        self.interval = (cost * 200).clamp(least, Duration::from_secs(state::AT_LEAST_EVERY));
        self.next_report = now + self.interval;
    }

    fn keep(&mut self, state: &State) {
        let Some(file) = &self.state_file else {
            return;
        };
        let written = state.write(file);
        let failed_before = std::mem::replace(&mut self.state_failed, written.is_err());
        let Err(error) = written else {
            return;
        };
        // The directory of the service is nobody else's business.
        let unasked = self.args.state.is_none();
        let expected = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
        if unasked && expected.contains(&error.kind()) {
            self.state_file = None;
        } else if !failed_before {
            // There may be room again by the next time.
            output::note(&format!("cannot write {}: {error}", file.display()));
        }
    }

    fn draw(&self) -> Result<()> {
        let Some(file) = &self.args.plot else {
            return Ok(());
        };
        state::replace(file, &self.history.picture())
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn state(&self, running: bool) -> State {
        let mut rows: Vec<Row> = Vec::new();
        let (mut saved, mut huge, mut looked_at) = (0, 0, 0);
        let page = sksm::page_size() as i64;
        let mut ledgers: Vec<_> = self.scanner.ledgers().collect();
        ledgers.sort_by_key(|(_, ledger)| std::cmp::Reverse(ledger.pages));
        for (number, (id, ledger)) in ledgers.into_iter().enumerate() {
            let Some(watched) = self.remote.watched(id).filter(|watched| watched.has_pages) else {
                continue;
            };
            looked_at += 1;
            hung::reads(watched.pid);
            let counts = MergeStatistics::of(watched.pid).unwrap_or_default();
            let net = counts.profit.unwrap_or(0) + counts.zero_pages.unwrap_or(0) * page;
            saved += net;
            huge += watched.huge_bytes;
            if number < NAMED {
                rows.push(Row {
                    pid: watched.pid,
                    name: watched.name.clone(),
                    totals: Totals {
                        saved_bytes: net,
                        huge_bytes: watched.huge_bytes,
                        ..Totals::of(ledger)
                    },
                });
            }
        }
        let memory = Memory::read();
        let mut total = Totals::of(&self.scanner.total());
        // A page whose publisher has gone from it still counts as saved for each that it was merged for; in all it is not.
        let machine = SystemStatistics::sksm().and_then(|all| {
            let zero = all.get("pages_zero")? * page;
            Some(all.get("general_profit")? + zero)
        });
        let saved = machine.map_or(saved, |machine| saved.min(machine));
        (total.saved_bytes, total.huge_bytes) = (saved, huge);
        // With what belongs to none of them.
        total.cpu_seconds = cpu_time();
        let left_out = self.remote.left_out();
        let left_out: Vec<LeftOut> = left_out
            .map(|(pid, reason)| LeftOut {
                pid,
                reason: reason.into(),
            })
            .collect();
        State {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: self.started,
            updated: state::now(),
            interval_seconds: self.interval.as_secs_f64(),
            running,
            waiting: self.waiting.clone(),
            settings: state::Settings {
                stable_seconds: self.args.stable.as_secs_f64(),
                cpu_percent: self.args.cpu.percent(),
                when: self.args.when.to_string(),
                huge_min: self.args.huge_min,
                opted_in: self.args.wanted().opted_in,
            },
            total,
            own_peak_bytes: target::bytes_of(std::process::id(), "VmHWM:"),
            table_bytes: self.scanner.size() as u64,
            reserve_bytes: (memory.available + memory.swap_free) as i64 - saved,
            processes_count: looked_at,
            processes: rows,
            left_out_count: left_out.len(),
            left_out: left_out.into_iter().take(NAMED).collect(),
        }
    }
}
