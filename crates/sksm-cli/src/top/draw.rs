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
use super::{scanner, store};
use crate::output;
use crate::system::Counters;

const SKSM: Color = Color::Green;
const KSM: Color = Color::Yellow;
const KEYS: &str = "q quit  h help  m a r p n u sort  i invert  / filter  + - interval";
const HELP: &[&str] = &[
    "m  sort by merged memory",
    "a  by private (anonymous) memory",
    "r  by resident memory",
    "p  by number, n  by name, u  by unit",
    "/  only what has this in name or unit",
    "i  the other way round",
    "+ -  look less or more often",
    "Up Down PageUp PageDown Home End",
    "Ctrl-L  draw anew, Ctrl-Z  suspend",
    "h  this help, q  quit",
    "",
    "saved   memory that merging has freed,",
    "        never what a fork shares",
    "net     less what the kernel notes down",
    "copies  pages that several share",
    "in swap the same, in swap space only",
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
    let mut panes = Vec::new();
    if area.height >= 10 {
        panes = scanner::pane(&state.now.scanner, area.width);
        panes.extend(store::pane(&state.now.store, area.width));
    }
    let [title, why, middle, pane, table, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(missing),
        Constraint::Length(upper),
        Constraint::Length(panes.len() as u16),
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
            48.min(area.width / 2)
        };
        let [left, right] =
            Layout::horizontal([Constraint::Min(0), Constraint::Length(beside)]).areas(middle);
        plot(frame, state, left);
        if beside > 0 {
            let (table, height) = counters(state);
            let [upper, lower] =
                Layout::vertical([Constraint::Length(height + 1), Constraint::Min(0)]).areas(right);
            frame.render_widget(table, upper);
            domains(frame, state, lower);
        }
    }
    frame.render_widget(Paragraph::new(panes), pane);
    processes(frame, state, table);
    frame.render_widget(Line::from(KEYS).dim(), keys);
    if state.help {
        help(frame, area);
    }
}

fn headline(state: &State) -> Line<'static> {
    let mut text = format!(
        " every {} s, {} processes",
        state.interval.as_secs_f64(),
        state.now.processes.len()
    );
    if state.now.denied > 0 {
        text += &format!(", {} may not be looked at", state.now.denied);
    }
    if state.typing || !state.filter.is_empty() {
        let end = if state.typing { "_" } else { "" };
        text += &format!(", with: {}{end}", output::clean(&state.filter));
    }
    let title = Span::from("sksm top").add_modifier(Modifier::BOLD);
    Line::from(vec![title, text.into()])
}

fn plot(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let points = |value: fn(&Saved) -> i64| -> Vec<(f64, f64)> {
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
    let most = most.fold(0.0, f64::max);
    // Of what was never there nothing is drawn but the line at 0.
    let heights = match most > 0.0 {
        true => [most * 0.55, most * 1.1].map(|bytes| output::bytes(bytes as i64)),
        false => Default::default(),
    };
    let most = most.max(1.0) * 1.1;
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
        .y_axis(
            Axis::default()
                .bounds([0.0, most])
                .labels(std::iter::once("0".into()).chain(heights)),
        );
    frame.render_widget(chart, area);
}

/// And how many lines it takes.
fn counters(state: &State) -> (Table<'static>, u16) {
    let saved = &state.now.saved;
    let system = &state.now.system;
    let pages = |counters: &Option<Counters>, name| {
        let counter = counters.as_ref().and_then(|all| all.get(name));
        counter.map_or("-".into(), i64::to_string)
    };
    let bytes = |there: bool, bytes| told(there.then_some(bytes));
    let mut rows = vec![
        [
            "saved".into(),
            bytes(system.sksm.is_some(), saved.sksm_bytes),
            bytes(system.ksm.is_some(), saved.ksm_bytes),
        ],
        [
            "copies".into(),
            pages(&system.sksm, "pages_shared"),
            pages(&system.ksm, "pages_shared"),
        ],
        [
            "zero pages".into(),
            String::new(),
            output::bytes(saved.zero_bytes),
        ],
        [
            "all, net".into(),
            told(saved.sksm_net_bytes),
            told(saved.ksm_net_bytes),
        ],
    ];
    let asleep = system.sksm.as_ref().and_then(|all| all.get("pages_asleep"));
    if asleep.is_some_and(|pages| *pages > 0) {
        let pages = pages(&system.sksm, "pages_asleep");
        rows.insert(2, ["in swap".into(), pages, String::new()]);
    }
    let height = rows.len() as u16 + 1;
    let head = Row::new([
        Cell::from(""),
        right("SKSM".into()).fg(SKSM),
        right("KSM".into()).fg(KSM),
    ]);
    let rows = rows
        .into_iter()
        .map(|[name, sksm, ksm]| Row::new([Cell::from(name), right(sksm), right(ksm)]));
    let widths = [
        Constraint::Min(10),
        Constraint::Length(12),
        Constraint::Length(12),
    ];
    (Table::new(rows, widths).header(head), height)
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
    let shown = (state.now.processes.iter()).skip(state.first).take(room);
    let columns = columns(area.width);
    let sort = state.sort;
    let head = columns.iter().map(|column| {
        let cell = match column.left {
            true => Cell::from(column.name),
            false => right(column.name.into()),
        };
        match column.sort == Some(sort) {
            true => cell.reversed(),
            false => cell.bold(),
        }
    });
    let head = Row::new(head.collect::<Vec<_>>());
    let shown = shown.map(|process| {
        let cells = columns.iter().map(|column| (column.cell)(process));
        Row::new(cells.collect::<Vec<_>>())
    });
    let widths = columns.iter().map(|column| match column.last {
        true => Constraint::Min(column.width),
        false => Constraint::Length(column.width),
    });
    let widths: Vec<Constraint> = widths.collect();
    frame.render_widget(Table::new(shown, widths).header(head), area);
}

/// A column of the processes' table.
struct Column {
    name: &'static str,
    width: u16,
    /// Those with the largest number are left out first.
    rank: u8,
    left: bool,
    /// It takes what room there is besides.
    last: bool,
    sort: Option<Sort>,
    cell: fn(&Process) -> Cell<'static>,
}

/// Those that are as wide as they have to be, so that no digit is lost: the most important of them.
fn columns(width: u16) -> Vec<Column> {
    let column = |name, width, rank, sort, cell| Column {
        name,
        width,
        rank,
        left: false,
        last: false,
        sort,
        cell,
    };
    let words = |column: Column, last| Column {
        left: true,
        last,
        ..column
    };
    let mut columns = vec![
        column("pid", 8, 1, Some(Sort::Pid), |of| {
            right(of.footprint.pid.to_string())
        }),
        words(
            column("name", 16, 2, Some(Sort::Name), |of| {
                Cell::from(of.footprint.name.clone())
            }),
            false,
        ),
        column("resident", 10, 5, Some(Sort::Resident), |of| {
            right(size(of.footprint.rss_bytes))
        }),
        column("private", 10, 4, Some(Sort::Anonymous), |of| {
            right(size(of.footprint.anonymous_bytes))
        }),
        column("merged", 10, 3, Some(Sort::Merged), |of| {
            right(size(of.footprint.merged_bytes))
        }),
        column("of it", 6, 8, None, share),
        column("zero pages", 10, 7, None, |of| {
            right(told(of.footprint.zero_bytes))
        }),
        column("saved net", 10, 6, None, |of| {
            right(told(of.footprint.profit_bytes))
        }),
        words(
            column("unit", 20, 10, Some(Sort::Unit), |of| {
                Cell::from(of.unit.clone().unwrap_or_default())
            }),
            false,
        ),
        words(column("domain", 12, 9, None, domain), true),
    ];
    // One between each two.
    let all = |columns: &[Column]| columns.iter().map(|column| column.width + 1).sum::<u16>();
    while columns.len() > 1 && all(&columns) > width + 1 {
        let least = columns.iter().map(|column| column.rank).max();
        columns.retain(|column| Some(column.rank) != least);
    }
    columns
}

fn share(process: &Process) -> Cell<'static> {
    let footprint = &process.footprint;
    right(match footprint.anonymous_bytes {
        0 => "-".into(),
        all => format!("{} %", footprint.merged_bytes * 100 / all),
    })
}

fn domain(process: &Process) -> Cell<'static> {
    match (&process.domain, &process.apart) {
        (Some(domain), _) => Cell::from(domain.clone()),
        (None, Some(apart)) => Cell::from(format!("none: {apart}")).fg(KSM),
        (None, None) => Cell::from(""),
    }
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

fn told(bytes: Option<i64>) -> String {
    bytes.map_or("-".into(), output::bytes)
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
            "every 2 s, 3 processes, 4 may not be looked at",
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
        assert_eq!(beside("│all, net"), "1024 KiB -8 KiB");
        assert_eq!(beside("│copies"), "2 -");
        assert!(!text.contains("in swap"), "{text}");
        assert_eq!(beside("│www-data"), "3 60.0 MiB 30.0 MiB");
        let line = "3 python3 50.0 MiB 10.0 MiB 5120 KiB 50 % -4 KiB 3072 KiB www-data";
        assert!(has(&lines, &line.split(' ').collect::<Vec<_>>()), "{text}");
    }

    #[test]
    fn what_sleeps_in_swap_space_is_told() {
        let mut state = state();
        let counters = state.now.system.sksm.as_mut().unwrap();
        counters.insert("pages_asleep", 7);
        let lines = screen(&mut state, 120, 40);
        let line = |text: &str| lines.iter().position(|line| line.contains(text));
        let at = line("│in swap").unwrap();
        assert!(lines[at].ends_with(" 7             "), "{lines:?}");
        // Nothing is cut off for it.
        let (last, domains) = (line("│all, net").unwrap(), line("domain (user)").unwrap());
        assert!(at < last && last < domains, "{lines:?}");
    }

    /// Whole columns are left out, and no digit.
    #[test]
    fn figures_are_whole_in_every_width() {
        let mut state = state();
        let footprint = state.now.processes[0].footprint.clone();
        let figures = [
            footprint.rss_bytes,
            footprint.anonymous_bytes,
            footprint.merged_bytes,
        ];
        let whole: Vec<String> = figures.map(size).into();
        for width in 8..160 {
            let lines = screen(&mut state, width, 4);
            // Below the headline and the names of the columns.
            let line = &lines[2];
            assert!(line.trim_start().starts_with("3"), "{width}: {line}");
            let rest = line
                .replace("50 %", "")
                .replace("-4 KiB", "")
                .replace("3072 KiB", "");
            let mut words = rest
                .split_whitespace()
                .skip(1)
                .filter(|word| word.starts_with(|first: char| first.is_ascii_digit()));
            assert!(
                words.all(|word| whole
                    .iter()
                    .any(|figure| figure.split(' ').next() == Some(word))),
                "{width}: {line}"
            );
        }
        let lines = screen(&mut state, 40, 4);
        assert!(has(&lines, &["3", "python3", "5120", "KiB"]), "{lines:?}");
        let lines = screen(&mut state, 160, 4);
        assert!(lines[2].contains(" python3.service "), "{lines:?}");
    }

    /// Its axis has no size that nothing ever had.
    #[test]
    fn the_plot_of_nothing_has_no_sizes() {
        let mut state = state();
        state.now.saved = Saved::default();
        for (_, saved) in &mut state.history {
            *saved = Saved::default();
        }
        let sizes = |state: &mut State| {
            // Of the plot, which stands to the left of the counters.
            let lines = screen(state, 120, 40);
            let left = lines.iter().take(17).map(|line| line.chars().take(40));
            let left: String = left.flat_map(|line| line.chain(['\n'])).collect();
            assert!(left.contains("│0") || left.contains(" 0│"), "{left}");
            left.matches("iB").count()
        };
        assert_eq!(sizes(&mut state), 0);
        state.history[0].1.ksm_bytes = 4096;
        assert_eq!(sizes(&mut state), 2);
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
    fn scanner_and_store_have_a_pane_where_there_is_one() {
        let mut state = state();
        let shown = |state: &mut State, width, height| screen(state, width, height).join("\n");
        let without = shown(&mut state, 80, 24);
        assert!(!without.contains("scanner") && !without.contains("store"));
        state.now.store = crate::store::tests::seen();
        state.now.scanner.state = Some(crate::scan::state::tests::example());
        let text = shown(&mut state, 80, 24);
        for part in [
            "scanner  runs  saved 2048.0 MiB  merged 3072.0 MiB",
            "store    saved 60.0 MiB  mapped 64.0 MiB",
            "  came apart 1234  split 56",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(text.contains("python3"), "{text}");
        let narrow = shown(&mut state, 40, 16);
        assert!(
            narrow.contains("scanner  runs  saved 2048.0 MiB  "),
            "{narrow}"
        );
        // The processes come first.
        assert!(!shown(&mut state, 80, 8).contains("scanner"));
    }

    #[test]
    fn who_is_in_no_domain_is_told_why() {
        let mut state = state();
        state.now.processes[0].domain = None;
        state.now.processes[0].apart = Some("because".into());
        let text = screen(&mut state, 140, 40).join("\n");
        assert!(text.contains("none: because"), "{text}");
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
        state.now.scanner.state = Some(crate::scan::state::tests::example());
        state.now.store = crate::store::tests::seen();
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
