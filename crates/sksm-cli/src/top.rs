//! The verb `top`: a live view of what merging saves.

mod draw;
mod pane;
mod sample;
mod scanner;
mod screen;
mod state;
mod store;

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ratatui::crossterm::event::Event;

use crate::output;
use crate::target::Targets;
use sample::{Sample, Sampler};
use screen::{Caught, Screen, Signals};
use state::{Answer, Sort, State};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// Look every so many seconds, as in 0.5; less often where a look takes long
    #[arg(long, short, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// What processes are sorted by at first
    #[arg(long, value_enum, default_value_t = Sort::Merged)]
    sort: Sort,
}

fn interval(seconds: &str) -> Result<Duration, String> {
    let range = state::SHORTEST..=state::LONGEST;
    let found = seconds
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    found.filter(|found| range.contains(found)).ok_or_else(|| {
        let [least, most] = [range.start(), range.end()].map(Duration::as_secs_f64);
        format!("give seconds from {least} to {most}")
    })
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let targets = args.targets;
    if json {
        let mut sample = Sample::take(&targets)?;
        state::order(&mut sample.processes, args.sort, false);
        output::json(&sample)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !stdin().is_terminal() || !stdout().is_terminal() {
        bail!(
            "`sksm top` draws on a terminal, and this is none; \
             `sksm top --json` prints one look, `sksm stat` the counters"
        );
    }
    // What fails always is told before the terminal is taken.
    let state = State::new(Sample::take(&targets)?, args.sort, args.interval);
    let signals = Signals::catch().context("cannot catch signals")?;
    let mut screen = Screen::enter().context("cannot take the terminal")?;
    let ended = watch(state, targets, &signals, &mut screen);
    drop(screen);
    if let Some(Caught::End(signal)) = signals.caught() {
        screen::end_by(signal);
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// Until the user or a signal ends it.
fn watch(mut state: State, targets: Targets, signals: &Signals, screen: &mut Screen) -> Result<()> {
    let sampler = Sampler::start(state.interval, targets);
    loop {
        screen.draw(|frame| draw::draw(frame, &mut state))?;
        // Until something changes.
        loop {
            if let Some(signal) = signals.caught() {
                match signal {
                    Caught::End(_) => return Ok(()),
                    Caught::Stop => screen.suspend()?,
                    Caught::Resume => screen.resume()?,
                }
                break;
            }
            if let Some(sample) = sampler.next()? {
                state.add(sample);
                break;
            }
            match screen.event()? {
                Some(Event::Key(key)) => match state.press(key) {
                    Answer::Quit => return Ok(()),
                    Answer::Suspend => screen.suspend()?,
                    Answer::Draw => sampler.every(state.interval),
                    Answer::Nothing => continue,
                },
                Some(Event::Resize(..)) => {}
                _ => continue,
            }
            break;
        }
    }
}
