//! The measurements as text.

use sksm_records::{
    bench::{
        BesideKsm, Failure, Family, Report, Row, Unit,
        names::{DIFFERENT, DISTURBED, ONE_FOR_TWO, RACE, TASKS, family},
    },
    statistics::Summary,
};

use super::{
    published::{self, Published},
    unused::Unused,
};
use crate::terminal::{
    format::{seconds, thousands},
    table::Table,
};

/// The whole of it, for a terminal.
pub fn render(published: &Published) -> String {
    let report = &published.report;
    let mut text = format!("{}\n", published::setting(report));
    if report.quick {
        text += "quick: few repeats and small sizes, so rough figures\n";
    }
    if report.instructions {
        text += "figures are numbers of instructions\n";
    } else if let Some([memcmp, memcpy, xxh64]) = yardsticks(report) {
        text += &format!(
            "yardsticks in user space, taken after each row: memcmp of two equal pages {}, memcpy {}, xxh64 of one {}\n",
            with_range(&memcmp),
            with_range(&memcpy),
            with_range(&xxh64)
        );
    }
    for family in &report.families {
        text += &format!("\n{} ({})\n", family.title, family.name);
        if !family.rows.is_empty() {
            text += &rows(family, report.instructions);
        }
        if let Some(beside) = report
            .beside_ksm
            .as_ref()
            .filter(|_| family.name == family::KSM)
        {
            text += &beside_ksm(beside);
        }
        for note in &family.notes {
            text += &format!("note: {note}\n");
        }
    }
    if let Some(unused) = &published.unused {
        text += &format!("\n{UNUSED}, in instructions\n{}", without(unused));
    }
    if let Some(why) = &published.unused_left_out {
        text += &format!("\n{UNUSED}: left out: {why}\n");
    }
    text += &format!("\n{}\n", durations(published));
    for Failure { family, error } in &report.failed {
        text += &format!("FAILED: {family}: {error}\n");
    }
    text
}

pub const UNUSED: &str = "What the engine costs those who do not use it";

/// Nanoseconds of a memcmp, a memcpy and a checksum, over all rows.
pub fn yardsticks(report: &Report) -> Option<[Summary; 3]> {
    let all = || {
        report
            .families
            .iter()
            .flat_map(|family| &family.rows)
            .filter_map(|row| row.yardstick)
    };
    Some([
        Summary::of(all().map(|yardstick| yardstick.memcmp).collect())?,
        Summary::of(all().map(|yardstick| yardstick.memcpy).collect())?,
        Summary::of(all().map(|yardstick| yardstick.xxh64).collect())?,
    ])
}

fn with_range(ns: &Summary) -> String {
    format!("{} ({} to {})", time(ns.median), time(ns.min), time(ns.max))
}

fn rows(family: &Family, instructions: bool) -> String {
    let value = |unit, figure| value(instructions, unit, figure);
    let mut table = Table::new([
        "",
        "",
        "",
        "median",
        "half of them within",
        "relative",
        "repeats",
    ]);
    table.rule();
    let mut before = "";
    for row in in_order(&family.rows) {
        let what = if row.what == before { "" } else { &row.what };
        before = &row.what;
        table.row([
            what.to_owned(),
            row.variant.clone(),
            row.at.map_or(String::new(), |at| thousands(at as i64)),
            value(row.unit, row.value.median),
            format!(
                "{} to {}",
                value(row.unit, row.value.lower),
                value(row.unit, row.value.upper)
            ),
            match instructions {
                // A processor does not take as long for each.
                true => String::new(),
                false => relative(family, row),
            },
            row.value.count.to_string(),
        ]);
    }
    table.render()
}

/// Rows of one name together, and of those the ones of one variant, in the order in which names first come.
fn in_order(rows: &[Row]) -> Vec<&Row> {
    let first = |row: &Row| {
        let what = rows.iter().position(|other| other.what == row.what);
        let variant = rows
            .iter()
            .position(|other| (&other.what, &other.variant) == (&row.what, &row.variant));
        (what, variant)
    };
    let mut ordered: Vec<&Row> = rows.iter().collect();
    ordered.sort_by_key(|row| first(row));
    ordered
}

/// A figure with its unit.
pub fn value(instructions: bool, unit: Unit, value: f64) -> String {
    let time = if instructions { count } else { time };
    match unit {
        Unit::NsPerPage => format!("{} a page", time(value)),
        Unit::Ns => time(value),
        Unit::PagesPerSecond => format!("{} pages/s", thousands(value as i64)),
        Unit::Bytes => format!("{value:.1} B"),
        Unit::Count if value.fract() == 0.0 => thousands(value as i64),
        Unit::Count => format!("{value:.2}"),
    }
}

/// Instructions.
pub fn count(number: f64) -> String {
    match number {
        ..99.95 => format!("{number:.1}"),
        _ => thousands(number.round() as i64),
    }
}

/// In yardsticks; what several tasks do, in what one does, who publish the same, also in what one does that does the work of two,
/// and what disturbed ones do, in what as many others do.
pub fn relative(family: &Family, row: &Row) -> String {
    if row.unit == Unit::PagesPerSecond {
        let one = TASKS[0].1;
        let mut others = vec![(row.what.as_str(), one, one)];
        if row.what == DISTURBED {
            others.push((DIFFERENT, &row.variant, "undisturbed"));
        }
        if row.what == RACE {
            others.push((RACE, ONE_FOR_TWO, ONE_FOR_TWO));
        }
        others.retain(|(what, variant, _)| (*what, *variant) != (&row.what, &row.variant));
        let ratios = others.into_iter().filter_map(|(what, variant, called)| {
            let other = family.rows(what, variant).next()?;
            let ratio = row.value.median / other.value.median;
            Some(format!("{ratio:.2} × {called}"))
        });
        return ratios.collect::<Vec<_>>().join(", ");
    }
    row.in_memcmps()
        .map_or(String::new(), |times| format!("{} × memcmp", digits(times)))
}

/// A ratio.
pub fn digits(number: f64) -> String {
    match number {
        ..0.0995 => format!("{number:.3}"),
        ..9.95 => format!("{number:.2}"),
        ..99.5 => format!("{number:.1}"),
        _ => thousands(number.round() as i64),
    }
}

pub fn time(ns: f64) -> String {
    seconds(ns / 1e9)
}

/// A median, and what half of the values are within, if there are several.
fn spread(values: &Summary) -> String {
    match values.count {
        1 => seconds(values.median),
        _ => format!(
            "{} ({} to {})",
            seconds(values.median),
            seconds(values.lower),
            seconds(values.upper)
        ),
    }
}

fn beside_ksm(beside: &BesideKsm) -> String {
    let mut table = Table::new([
        "",
        "merged after",
        "CPU time",
        "for a page saved",
        "relative",
        "pages scanned",
        "runs",
    ]);
    table.row(["", "", "", "", "", "for a page saved", ""]);
    table.rule();
    let saved = beside.saved as f64;
    let of_sksm = beside.sksm_seconds.median;
    let scanned = |pages: f64| format!("{:.2}", pages / saved);
    table.row([
        "SKSM".to_owned(),
        spread(&beside.sksm_seconds),
        // By the clock: a call may be interrupted.
        format!("≤ {}", seconds(of_sksm)),
        seconds(of_sksm / saved),
        String::new(),
        scanned(beside.sksm_scanned as f64),
        beside.sksm_seconds.count.to_string(),
    ]);
    for ksm in beside.by_tuning() {
        let name = if ksm.sleep_millisecs == 0 {
            "KSM, unthrottled"
        } else {
            "KSM, default"
        };
        let cpu = ksm.cpu_seconds;
        table.row([
            name.to_owned(),
            spread(&ksm.seconds),
            cpu.map_or("unknown".to_owned(), |cpu| spread(&cpu)),
            cpu.map_or(String::new(), |cpu| seconds(cpu.median / saved)),
            cpu.map_or(String::new(), |cpu| {
                format!("{} × SKSM", digits(cpu.median / of_sksm))
            }),
            scanned(ksm.pages_scanned.median),
            ksm.seconds.count.to_string(),
        ]);
    }
    format!(
        "{} pages, of which {} can be saved\n{}",
        thousands(beside.pages as i64),
        thousands(beside.saved as i64),
        table.render()
    )
}

fn without(unused: &Unused) -> String {
    let boots = format!("of {} boots", unused.boots);
    let mut table = Table::new(["", "", "CONFIG_SKSM=n", "=y", "=y / =n", "spread"]);
    table.row(["", "", "", "", "", &boots]);
    table.rule();
    let mut before = "";
    for row in &unused.rows {
        let what = if row.what == before { "" } else { &row.what };
        before = &row.what;
        table.row([
            what.to_owned(),
            row.variant.clone(),
            count(row.without.median),
            count(row.with.median),
            format!("{:.4}", row.ratio()),
            format!("{:.2} %", 100.0 * row.spread()),
        ]);
    }
    table.render()
        + "both kernels are of the patched sources; merged pages are beside ordinary ones of the kernel that cannot merge\n\
           spread: the medians of equal boots\n"
}

/// How long it all took.
fn durations(published: &Published) -> String {
    let mut parts: Vec<String> = (published.report.families.iter())
        .map(|family| format!("{} {}", family.name, seconds(family.seconds)))
        .collect();
    if let Some(unused) = &published.unused {
        parts.push(format!("both kernels {}", seconds(unused.seconds)));
    }
    format!(
        "it took {}: {}",
        seconds(published.seconds),
        parts.join(", ")
    )
}

#[cfg(test)]
pub mod tests {
    use sksm_records::{
        bench::Yardstick,
        ksmd::{Ksm, KsmEnd},
    };

    use super::*;
    use crate::verbs::bench::unused::Compared;

    pub fn row(what: &str, variant: &str, at: Option<u64>, unit: Unit, median: f64) -> Row {
        Row {
            what: what.into(),
            variant: variant.into(),
            at,
            unit,
            value: Summary::of(vec![median * 0.9, median, median * 1.1]).unwrap(),
            yardstick: Some(Yardstick {
                memcmp: 200.0,
                memcpy: 300.0,
                xxh64: 500.0,
            }),
        }
    }

    pub fn family(name: &str, rows: Vec<Row>) -> Family {
        Family {
            name: name.into(),
            title: format!("the family {name}"),
            seconds: 3.0,
            rows,
            notes: vec!["something to know".into()],
        }
    }

    /// A report as a kernel might give it, with round figures.
    pub fn sample() -> Published {
        let ksm = |sleep_millisecs, cpu_seconds| Ksm {
            sleep_millisecs,
            pages_to_scan: 100,
            target: 700,
            end: KsmEnd::Reached,
            seconds: 12.0,
            cpu_seconds,
            pages_scanned: 2100,
            full_scans: 3,
        };
        let report = Report {
            kernel: "6.12.0".into(),
            processor: "QEMU TCG CPU version 2.5+".into(),
            cpus: 2,
            memory_mib: 6000,
            quick: false,
            instructions: false,
            families: vec![
                family(
                    "pages",
                    vec![
                        row(
                            "publish unique content",
                            "4 KiB pages",
                            None,
                            Unit::NsPerPage,
                            400.0,
                        ),
                        row(
                            "merge a duplicate",
                            "4 KiB pages",
                            None,
                            Unit::NsPerPage,
                            600.0,
                        ),
                    ],
                ),
                family(
                    "growth",
                    vec![
                        row(
                            "pages published",
                            "merge duplicates",
                            Some(1000),
                            Unit::NsPerPage,
                            600.0,
                        ),
                        row(
                            "pages published",
                            "merge duplicates",
                            Some(100_000),
                            Unit::NsPerPage,
                            700.0,
                        ),
                    ],
                ),
                family(
                    "concurrency",
                    vec![
                        row(
                            "merge different content",
                            "1 task",
                            None,
                            Unit::PagesPerSecond,
                            100_000.0,
                        ),
                        row(
                            "merge different content",
                            "2 tasks",
                            None,
                            Unit::PagesPerSecond,
                            190_000.0,
                        ),
                        row(DISTURBED, "1 task", None, Unit::PagesPerSecond, 50_000.0),
                        row(DISTURBED, "2 tasks", None, Unit::PagesPerSecond, 95_000.0),
                    ],
                ),
                family("ksm", Vec::new()),
            ],
            failed: vec![Failure {
                family: family::RECLAIM.into(),
                error: "no page went".into(),
            }],
            beside_ksm: Some(BesideKsm {
                pages: 800,
                saved: 700,
                sksm_seconds: Summary::of(vec![0.01]).unwrap(),
                sksm_scanned: 800,
                ksm: vec![ksm(20, None), ksm(0, Some(0.07)), ksm(0, Some(0.08))],
            }),
        };
        let boots = |median: f64| Summary::of(vec![median - 2.0, median, median + 2.0]).unwrap();
        let compared = |variant: &str, with| Compared {
            what: "munmap".into(),
            variant: variant.into(),
            without: boots(1000.0),
            with: boots(with),
        };
        Published {
            report,
            unused: Some(Unused {
                boots: 3,
                seconds: 70.0,
                rows: vec![
                    compared("ordinary pages", 1001.0),
                    compared("merged pages, shared", 900.0),
                ],
            }),
            unused_left_out: None,
            seconds: 400.0,
        }
    }

    #[test]
    fn rows_of_one_name_stand_together() {
        let row = |what, variant, at| row(what, variant, Some(at), Unit::Count, 1.0);
        let rows = [
            row("out", "a", 1),
            row("back", "a", 1),
            row("out", "b", 1),
            row("out", "a", 2),
        ];
        let found: Vec<_> = in_order(&rows)
            .into_iter()
            .map(|row| (row.what.as_str(), row.variant.as_str(), row.at))
            .collect();
        assert_eq!(
            found,
            [
                ("out", "a", Some(1)),
                ("out", "a", Some(2)),
                ("out", "b", Some(1)),
                ("back", "a", Some(1)),
            ]
        );
    }

    #[test]
    fn the_text_says_what_was_measured() {
        let text = render(&sample());
        println!("{text}");
        let cells = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            let words = line.unwrap_or("").split_whitespace();
            words.collect::<Vec<_>>().join(" ")
        };
        assert!(text.starts_with("Linux 6.12.0 with 2 CPUs and 6,000 MiB; emulated by QEMU"));
        assert!(text.contains("memcmp of two equal pages 200 ns (200 ns to 200 ns)"));
        assert_eq!(
            cells("merge a duplicate"),
            "merge a duplicate 4 KiB pages 600 ns a page 540 ns a page to 660 ns a page 3.00 × memcmp 3"
        );
        assert!(text.contains("1.90 × 1 task "), "{text}");
        assert!(text.contains("1.90 × 1 task, 0.50 × undisturbed"), "{text}");
        assert_eq!(cells("SKSM"), "SKSM 10.0 ms ≤ 10.0 ms 14.3 µs 1.14 1");
        assert_eq!(cells("KSM, default"), "KSM, default 12.0 s unknown 3.00 1");
        assert_eq!(
            cells("KSM, unthrottled"),
            "KSM, unthrottled 12.0 s (12.0 s to 12.0 s) 70.0 ms (70.0 ms to 80.0 ms) 100 µs 7.00 × SKSM 3.00 2"
        );
        assert_eq!(
            cells("munmap"),
            "munmap ordinary pages 1,000 1,001 1.0010 0.40 %"
        );
        assert!(text.contains("0.9000       0.44 %"), "{text}");
        assert!(text.contains("it took 6 min 40 s: pages 3.00 s"), "{text}");
        assert_eq!(text.matches("note: something to know").count(), 4);
        assert!(text.ends_with("FAILED: reclaim: no page went\n"), "{text}");
    }
}
