//! Draws the state. Where there is little room, the least important is left out.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Cell, Chart, Clear, Dataset, GraphType, Paragraph, Row, Table,
};

use super::sample::{Process, Saved};
use super::state::{Sort, State};
use crate::output;

const SKSM: Color = Color::Green;
const KSM: Color = Color::Yellow;
const KEYS: &str = "q quit  h help  m a r p n sort  i invert  + - interval";
const HELP: &[&str] = &[
    "m  sort by merged memory",
    "a  by private (anonymous) memory",
    "r  by resident memory",
    "p  by number, n  by name",
    "i  the other way round",
    "+ -  look less or more often",
    "Up Down PageUp PageDown Home End",
    "Ctrl-L  draw anew, Ctrl-Z  suspend",
    "h  this help, q  quit",
    "",
    "saved   memory that merging has freed",
    "copies  pages that several share",
    "merged  a process's pages that are",
    "        shared, or ready to be",
];

pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    // The plot and what stands beside it.
    let upper = match area.height {
        0..16 => 0,
        height => (height * 2 / 5).min(16),
    };
    let missing = u16::from(state.now.missing.is_some());
    let [title, why, middle, table, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(missing),
        Constraint::Length(upper),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(headline(state), title);
    if let Some(text) = state.now.missing {
        frame.render_widget(Line::from(text).fg(KSM), why);
    }
    if upper > 0 {
        let beside = if area.width < 72 {
            0
        } else {
            46.min(area.width / 2)
        };
        let [left, right] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(beside)]).areas(middle);
        plot(frame, state, left);
        if beside > 0 {
            let [upper, lower] =
                Layout::vertical([Constraint::Length(5), Constraint::Min(0)]).areas(right);
            frame.render_widget(counters(state), upper);
            domains(frame, state, lower);
        }
    }
    processes(frame, state, table);
    frame.render_widget(Line::from(KEYS).dim(), keys);
    if state.help {
        help(frame, area);
    }
}

fn headline(state: &State) -> Line<'static> {
    let mut text = format!(
        " every {} s, {} processes",
        state.interval,
        state.now.processes.len()
    );
    if state.now.denied > 0 {
        text += &format!(", {} refused: see `sksm doctor`", state.now.denied);
    }
    let title = Span::from("sksm top").add_modifier(Modifier::BOLD);
    Line::from(vec![title, text.into()])
}

fn plot(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let points = |value: fn(&Saved) -> u64| -> Vec<(f64, f64)> {
        let history = state.history.iter();
        history
            .map(|(time, saved)| (*time, value(saved) as f64))
            .collect()
    };
    let (sksm, ksm) = (
        points(|saved| saved.sksm_bytes),
        points(|saved| saved.ksm_bytes),
    );
    let ends = (state.history.front(), state.history.back());
    let (first, last) = (
        ends.0.map_or(0.0, |(time, _)| *time),
        ends.1.map_or(0.0, |(time, _)| *time),
    );
    // Of at least a minute, or the first looks would stretch over all.
    let first = first.min(last - 60.0);
    let most = sksm.iter().chain(&ksm).map(|(_, bytes)| *bytes);
    let most = most.fold(64.0 * 1024.0, f64::max) * 1.1;
    let line = |name: &'static str, colour, points| {
        Dataset::default()
            .name(name)
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(colour))
            .data(points)
    };
    let mut lines = vec![line("KSM", KSM, &ksm)];
    if state.now.system.sksm.is_some() {
        lines.push(line("SKSM", SKSM, &sksm));
    }
    let ago = last - first;
    let ago = if ago < 120.0 {
        format!("{ago:.0} s ago")
    } else {
        format!("{:.0} min ago", ago / 60.0)
    };
    let chart = Chart::new(lines)
        .block(Block::bordered().title("saved over time"))
        .x_axis(
            Axis::default()
                .bounds([first, last])
                .labels([Line::from(ago), Line::from("now")])
                .labels_alignment(Alignment::Right),
        )
        .y_axis(Axis::default().bounds([0.0, most]).labels([
            Line::from("0"),
            Line::from(output::bytes((most / 2.0) as i64)),
            Line::from(output::bytes(most as i64)),
        ]));
    frame.render_widget(chart, area);
}

fn counters(state: &State) -> Table<'static> {
    let saved = &state.now.saved;
    let system = &state.now.system;
    let shared = |counters: &Option<std::collections::BTreeMap<&str, u64>>| {
        let counter = counters.as_ref().and_then(|all| all.get("pages_shared"));
        counter.map_or("-".into(), u64::to_string)
    };
    let bytes = |there: bool, bytes| if there { size(bytes) } else { "-".into() };
    let rows = [
        [
            "saved".into(),
            bytes(system.sksm.is_some(), saved.sksm_bytes),
            bytes(system.ksm.is_some(), saved.ksm_bytes),
        ],
        ["copies".into(), shared(&system.sksm), shared(&system.ksm)],
        ["zero pages".into(), String::new(), size(saved.zero_bytes)],
    ];
    let head = Row::new([
        Cell::from(""),
        right("SKSM".into()).fg(SKSM),
        right("KSM".into()).fg(KSM),
    ]);
    let rows = rows.map(|[name, sksm, ksm]| Row::new([Cell::from(name), right(sksm), right(ksm)]));
    let widths = [
        Constraint::Min(10),
        Constraint::Length(12),
        Constraint::Length(12),
    ];
    Table::new(rows, widths).header(head)
}

fn domains(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let Some(mode) = state.now.domain else {
        return;
    };
    let rows = state.now.domains.iter().map(|domain| {
        Row::new([
            Cell::from(domain.name.clone()),
            right(domain.processes.to_string()),
            right(size(domain.anonymous_bytes)),
            right(size(domain.merged_bytes)),
        ])
    });
    let head = Row::new([
        Cell::from(format!("domain ({mode})")),
        right("processes".into()),
        right("private".into()),
        right("merged".into()),
    ]);
    let widths = [
        Constraint::Min(10),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let table = Table::new(rows, widths).header(head.bold());
    frame.render_widget(table, area);
}

fn processes(frame: &mut Frame<'_>, state: &mut State, area: Rect) {
    let room = usize::from(area.height.saturating_sub(1));
    let all = state.now.processes.len();
    state.first = state.first.min(all.saturating_sub(room));
    let shown = (state.now.processes.iter())
        .skip(state.first)
        .take(room)
        .map(process);
    let sort = state.sort;
    let head = |text: &'static str, by| {
        let cell = if by == Sort::Name {
            Cell::from(text)
        } else {
            right(text.into())
        };
        if by == sort {
            cell.reversed()
        } else {
            cell.bold()
        }
    };
    let head = Row::new([
        head("pid", Sort::Pid),
        head("name", Sort::Name),
        head("resident", Sort::Resident),
        head("private", Sort::Anonymous),
        head("merged", Sort::Merged),
        right("of it".into()).bold(),
        right("zero pages".into()).bold(),
        Cell::from("domain").bold(),
    ]);
    let widths = [
        Constraint::Length(8),
        Constraint::Length(16),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Min(0),
    ];
    frame.render_widget(Table::new(shown, widths).header(head), area);
}

fn process(process: &Process) -> Row<'static> {
    let row = &process.row;
    let share = match row.anonymous_bytes {
        0 => "-".into(),
        all => format!("{} %", row.merged_bytes * 100 / all),
    };
    Row::new([
        right(row.pid.to_string()),
        Cell::from(row.name.clone()),
        right(size(row.rss_bytes)),
        right(size(row.anonymous_bytes)),
        right(size(row.merged_bytes)),
        right(share),
        right(process.zero_bytes.map_or("-".into(), size)),
        Cell::from(process.domain.clone().unwrap_or_default()),
    ])
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (42.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let area = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title("help")),
        area,
    );
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

fn size(bytes: u64) -> String {
    output::bytes(bytes as i64)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::*;
    use crate::top::state::tests::{press, sample, state};

    /// The lines that a terminal of this size shows.
    fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells = buffer.content.chunks(usize::from(width).max(1));
        cells
            .map(|line| line.iter().map(|cell| cell.symbol()).collect())
            .collect()
    }

    fn has(lines: &[String], words: &[&str]) -> bool {
        lines
            .iter()
            .any(|line| line.split_whitespace().collect::<Vec<_>>() == words)
    }

    #[test]
    fn everything_is_there() {
        let mut state = state();
        state.add(sample(20, state.now.at));
        let lines = screen(&mut state, 120, 40);
        let text = lines.join("\n");
        for part in [
            "every 2 s, 3 processes, 4 refused",
            "saved over time",
            "60 s ago",
            "domain (user)",
            "q quit",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        let plotted = |letter: char| ('\u{2801}'..='\u{28ff}').contains(&letter);
        assert!(text.chars().filter(|letter| plotted(*letter)).count() > 5);
        let beside = |name: &str| {
            let line = lines.iter().find_map(|line| Some(line.split_once(name)?.1));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        // 320 pages and 5.
        assert_eq!(beside("│saved"), "1280 KiB 20 KiB");
        assert_eq!(beside("│copies"), "2 -");
        assert_eq!(beside("│www-data"), "3 60.0 MiB 30.0 MiB");
        let line = "3 python3 50.0 MiB 10.0 MiB 5120 KiB 50 % 4 KiB www-data";
        assert!(has(&lines, &line.split(' ').collect::<Vec<_>>()), "{text}");
    }

    #[test]
    fn a_kernel_without_sksm_says_so() {
        let mut state = state();
        state.now.system.sksm = None;
        state.now.missing = Some("KSM only: because");
        state.now.domain = None;
        let lines = screen(&mut state, 120, 40);
        let text = lines.join("\n");
        assert!(has(&lines, &["KSM", "only:", "because"]), "{text}");
        assert!(text.contains("saved") && text.contains("20 KiB"), "{text}");
        assert!(
            !text.contains("domain (") && !text.contains("1200 KiB"),
            "{text}"
        );
    }

    #[test]
    fn the_end_of_a_long_list_is_the_last() {
        let mut state = state();
        press(&mut state, KeyCode::End);
        let lines = screen(&mut state, 80, 4);
        assert!(
            lines.join("").contains("zsh") && !lines.join("").contains("python3"),
            "{lines:?}"
        );
        press(&mut state, KeyCode::Up);
        assert!(screen(&mut state, 80, 4).join("").contains("apache2"));
        press(&mut state, KeyCode::Home);
        assert!(screen(&mut state, 80, 4).join("").contains("python3"));
    }

    #[test]
    fn help_comes_and_goes() {
        let mut state = state();
        let shown = |state: &mut State| screen(state, 80, 24).join("").contains("sort by merged");
        assert!(!shown(&mut state));
        press(&mut state, KeyCode::Char('h'));
        assert!(shown(&mut state));
        press(&mut state, KeyCode::Char('h'));
        assert!(!shown(&mut state));
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut state = state();
        for help in [false, true] {
            state.help = help;
            state.first = 0;
            for width in [0, 1, 2, 3, 8, 20, 40, 71, 72, 80, 120] {
                for height in [0, 1, 2, 3, 4, 8, 15, 16, 17, 24, 50] {
                    screen(&mut state, width, height);
                }
            }
        }
    }
}
