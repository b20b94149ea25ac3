//! The pane of the scanner: what it brings, what it takes, and why it waits.

use ratatui::style::Color;
use ratatui::text::Line;

use super::pane::{GOOD, Part, WAITS, fitting, line};
use crate::output;
use crate::scan::seen::{Seen, processes};
use crate::scan::state::State;

const NAME: &str = "scanner";

/// Where none runs or ran, no line.
pub fn pane(seen: &Seen, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width);
    match (&seen.state, &seen.hidden) {
        (Some(state), _) => of(state, width),
        (None, Some(why)) => vec![line(NAME, std::slice::from_ref(why), WAITS)],
        (None, None) => Vec::new(),
    }
}

fn of(state: &State, width: usize) -> Vec<Line<'static>> {
    let total = &state.total;
    let size = |bytes: u64| output::bytes(bytes as i64);
    let waiting = state.waiting.as_ref().filter(|_| state.running);
    let (word, colour) = match (state.running, waiting) {
        (true, None) => ("runs", GOOD),
        (true, Some(_)) => ("waits", WAITS),
        (false, _) => ("has ended", WAITS),
    };
    let brings = vec![
        Part(0, word.into()),
        Part(1, format!("saved {}", output::bytes(total.saved_bytes))),
        Part(2, format!("merged {}", size(total.merged_bytes))),
        Part(3, format!("looked at {}", size(total.bytes))),
        Part(4, processes(state.processes_count)),
        Part(6, format!("stable {} s", state.settings.stable_seconds)),
        Part(5, format!("{} left out", state.left_out_count)),
    ];
    let takes = vec![
        Part(0, format!("CPU {:.1} s", total.cpu_seconds)),
        Part(1, format!("came apart {}", total.came_apart_pages)),
        Part(2, format!("split {}", total.split_huge_pages)),
        Part(3, format!("in huge pages {}", size(total.huge_bytes))),
        Part(4, format!("own memory {}", size(state.own_peak_bytes))),
    ];
    let mut lines = vec![
        line(NAME, &fitting(brings, width), colour),
        line("", &fitting(takes, width), Color::Reset),
    ];
    if let Some(why) = waiting {
        // Of words the start will do, but not of figures.
        let why = fitting(
            vec![Part(1, format!("waits, as {}", output::clean(why)))],
            width,
        );
        if !why.is_empty() {
            lines.push(line("", &why, WAITS));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::state::tests::example;

    fn told(state: State, width: u16) -> Vec<String> {
        let seen = Seen {
            state: Some(state),
            hidden: None,
        };
        let lines = pane(&seen, width).into_iter();
        lines.map(|line| line.to_string()).collect()
    }

    #[test]
    fn all_is_there_where_there_is_room() {
        let mut state = example();
        state.waiting = Some("45 % of memory is available".into());
        let expected = [
            "scanner  waits  saved 2048.0 MiB  merged 3072.0 MiB  looked at 12.0 GiB  4 processes  stable 60 s  1 left out",
            "         CPU 78.2 s  came apart 1234  split 56  in huge pages 1024.0 MiB  own memory 62.0 MiB",
            "         waits, as 45 % of memory is available",
        ];
        assert_eq!(told(state.clone(), 120), expected);
        state.running = false;
        let lines = told(state, 120);
        assert!(
            lines.len() == 2 && lines[0].starts_with("scanner  has ended  "),
            "{lines:?}"
        );
    }

    #[test]
    fn a_narrow_terminal_has_whole_figures() {
        let mut state = example();
        state.waiting = Some("45 % of memory is available".into());
        let expected = [
            "scanner  waits  saved 2048.0 MiB",
            "         CPU 78.2 s  came apart 1234",
        ];
        assert_eq!(told(state.clone(), 40), expected);
        let wide = told(state.clone(), 200).join(" ");
        let whole: Vec<&str> = wide.split_whitespace().collect();
        for width in 8..200 {
            for line in told(state.clone(), width) {
                assert!(
                    line.chars().count() <= usize::from(width) || line.trim() == NAME,
                    "{width}: {line}"
                );
                assert!(
                    line.split_whitespace().all(|word| whole.contains(&word)),
                    "{width}: {line}"
                );
            }
        }
    }

    #[test]
    fn who_may_not_see_it_is_told_so() {
        assert!(pane(&Seen::default(), 80).is_empty());
        let seen = Seen {
            state: None,
            hidden: Some("because".into()),
        };
        assert_eq!(pane(&seen, 80)[0].to_string(), "scanner  because");
    }
}
