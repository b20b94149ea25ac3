//! The scanner that runs as a service, or did, as others see it: what `stat`, `top` and `doctor` tell of it.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::state::{self, State};
use crate::output;

/// In JSON, its state alone.
#[derive(Serialize, Clone, Debug, Default)]
#[serde(transparent)]
pub struct Seen {
    pub state: Option<State>,
    /// Why it cannot be told, where there is something to tell.
    #[serde(skip)]
    pub hidden: Option<String>,
}

impl Seen {
    pub fn now() -> Self {
        Self::of(State::read())
    }

    fn of(read: anyhow::Result<Option<State>>) -> Self {
        match read {
            Ok(state) => Seen {
                state,
                hidden: None,
            },
            Err(error) => {
                let denied = error
                    .downcast_ref::<io::Error>()
                    .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
                let hidden = match denied {
                    true => {
                        "`sksm scan` runs here, or did, but only root may see what it does".into()
                    }
                    false => format!("what `sksm scan` does cannot be told: {error:#}"),
                };
                Seen {
                    state: None,
                    hidden: Some(hidden),
                }
            }
        }
    }

    /// Whether one is known to run.
    pub fn runs(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.running)
    }
}

/// Whether it runs, and since when.
pub fn running(state: &State, now: u64) -> String {
    match state.running {
        true => format!("process {}, {}", state.pid, since(state.started, now)),
        false => format!("not any more, {}", since(state.updated, now)),
    }
}

/// As in `since 2025-01-31T12:00:00Z (2h 5m)`.
fn since(time: u64, now: u64) -> String {
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time));
    format!("since {at} ({})", ago(now.saturating_sub(time)))
}

/// The two largest units are enough.
fn ago(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let words: Vec<&str> = text.split(' ').take(2).collect();
    words.join(" ")
}

/// Its options, but for the choice of processes.
pub fn settings(state: &State) -> String {
    let settings = &state.settings;
    let mut text = format!(
        "stable {}, cpu {}%, when {}, huge-min {}",
        humantime::format_duration(
            Duration::try_from_secs_f64(settings.stable_seconds).unwrap_or_default()
        ),
        short(settings.cpu_percent),
        settings.when,
        settings.huge_min
    );
    if settings.opted_in {
        text += ", opted-in";
    }
    text
}

/// Without what a binary fraction adds to it.
fn short(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// All that is told of it in words, each with its name.
pub fn facts(state: &State, now: u64) -> Vec<(&'static str, String)> {
    let total = &state.total;
    let size = |bytes: u64| output::bytes(bytes as i64);
    let mut facts = vec![
        ("running", running(state, now)),
        ("settings", settings(state)),
        (
            "looked at",
            format!(
                "{} in {}",
                size(total.bytes),
                processes(state.processes_count)
            ),
        ),
        ("merged", size(total.merged_bytes)),
        ("saved", output::bytes(total.saved_bytes)),
        ("came apart", format!("{} pages", total.came_apart_pages)),
        (
            "huge pages",
            format!(
                "{} split, {} left",
                total.split_huge_pages,
                size(total.huge_bytes)
            ),
        ),
        ("CPU time", format!("{:.1} s", total.cpu_seconds)),
        (
            "reserve",
            format!(
                "{} left if all that is merged were written at once",
                output::bytes(state.reserve_bytes)
            ),
        ),
        (
            "own memory",
            format!(
                "{} at most, {} of it about pages",
                size(state.own_peak_bytes),
                size(state.table_bytes)
            ),
        ),
    ];
    if state.left_out_count > 0 {
        facts.push((
            "left out",
            format!("{}, see --json", processes(state.left_out_count)),
        ));
    }
    if let Some(why) = state.waiting.as_ref().filter(|_| state.running) {
        facts.push(("waits", format!("as {why}")));
    }
    facts
}

pub fn processes(count: usize) -> String {
    match count {
        1 => "1 process".into(),
        _ => format!("{count} processes"),
    }
}

/// As seen now.
pub fn facts_now(state: &State) -> Vec<(&'static str, String)> {
    facts(state, state::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::state::tests::example;

    #[test]
    fn all_is_told() {
        let mut state = example();
        state.waiting = Some("45 % of memory is available".into());
        let told = |state: &State| {
            let lines = facts(state, 1_700_007_505).into_iter();
            lines
                .map(|(name, what)| format!("{name}: {what}\n"))
                .collect::<String>()
        };
        let expected = "\
running: process 42, since 2023-11-14T22:13:20Z (2h 5m)
settings: stable 1m, cpu 5%, when available-below=20%, huge-min 64, opted-in
looked at: 12.0 GiB in 4 processes
merged: 3072.0 MiB
saved: 2048.0 MiB
came apart: 1234 pages
huge pages: 56 split, 1024.0 MiB left
CPU time: 78.2 s
reserve: -1024.0 MiB left if all that is merged were written at once
own memory: 62.0 MiB at most, 48.0 MiB of it about pages
left out: 1 process, see --json
waits: as 45 % of memory is available
";
        assert_eq!(told(&state), expected);
        // Who has ended waits for nothing.
        state.running = false;
        let ended = told(&state);
        assert!(
            ended.starts_with("running: not any more, since 2023-11-15T00:18:20Z (5s)\n"),
            "{ended}"
        );
        assert!(!ended.contains("waits"), "{ended}");
    }

    #[test]
    fn who_may_not_read_it_is_told_so() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let seen = Seen::of(Err(anyhow::Error::new(denied).context("cannot read it")));
        assert!(seen.state.is_none() && !seen.runs());
        assert!(seen.hidden.unwrap().contains("only root"));
        let seen = Seen::of(Err(anyhow::anyhow!("because")));
        assert!(seen.hidden.unwrap().ends_with(": because"));
        let seen = Seen::of(Ok(None));
        assert!(seen.state.is_none() && seen.hidden.is_none());
        assert!(Seen::of(Ok(Some(example()))).runs());
    }
}
