//! The measurements as a picture.

use sksm_chart::{
    Axis, BLUE, Bar, Curve, GREEN, GREY, PALE_BLUE, PALE_GREEN, Picture, Plot, Point,
};
use sksm_records::{
    bench::{
        BesideKsm, Family, Report, Row, Unit,
        names::{
            BACK, DIFFERENT, DISTURBED, DUPLICATE, EXIT, EXIT_MANY, FORK, FORK_MANY, HASHED, HUGE,
            IN_ONE_CALL, KERNEL_COMPARE, KERNEL_HASH, KSM_SLABS, MAPPINGS, MERGE, MERGED_ALREADY,
            NOT_PRESENT, OUT, OWN_COUNT, PUBLISH, PUBLISHED, RACE, SAME, SHARERS, SMALL, WRITE,
            ZEROS, family,
        },
    },
    statistics::Summary,
};

use crate::terminal::format::{seconds, thousands};

use super::{
    published::{self, Published},
    table::{self, time},
    unused::Unused,
};

/// What stands before the bars of a row: which row, and what it is called there.
type Called = (&'static str, &'static str);

/// The bars of one family.
const PAGES: [&str; 5] = [PUBLISH, DUPLICATE, ZEROS, MERGED_ALREADY, NOT_PRESENT];
const INSIDE: [&str; 2] = [KERNEL_HASH, KERNEL_COMPARE];
const AT_ONCE: [Called; 5] = [
    (DIFFERENT, "different content"),
    (DISTURBED, "disturbed"),
    (SAME, "the same content"),
    (PUBLISH, "publish different"),
    (RACE, "publish the same"),
];
const HASHING: [Called; 1] = [(HASHED, "hash")];
const FAULTS: [Called; 1] = [(WRITE, "")];
const PROCESSES: [Called; 4] = [
    (FORK, "fork"),
    (EXIT, "exit"),
    (FORK_MANY, "fork, many"),
    (EXIT_MANY, "exit, many"),
];
const RECLAIM: [Called; 2] = [(OUT, "out"), (BACK, "back")];

pub fn draw(published: &Published) -> String {
    let report = &published.report;
    let mut picture = Picture::dense();
    let setting = published::setting(report);
    let (kernel, machine) = setting.split_once("; ").unwrap_or((&setting, ""));
    picture.title("What MADV_MERGE costs", kernel);
    picture.remark(machine);
    picture.remark("medians; shaded: what half of the values are within; hollow: one value");
    group(
        &mut picture,
        "Time for a page of 4 KiB, in calls over whole page tables",
        pages(report),
    );
    if let Some(beside) = &report.beside_ksm {
        let saved = thousands(beside.saved as i64);
        let title = format!("CPU time for a page saved, of {saved} that can be, KSM beside");
        group(&mut picture, &title, beside_ksm(beside));
    }
    plots(&mut picture, by_length_and_published(report));
    plots(&mut picture, by_sharers_and_mappings(report));
    groups(
        &mut picture,
        "Tasks that merge at the same time; disturbed: while 2 others fault and copy on write",
        bars(report, family::CONCURRENCY, &AT_ONCE),
    );
    groups(
        &mut picture,
        "Tasks that hash in user space: what more of them can bring on this machine",
        bars(report, family::CONCURRENCY, &HASHING),
    );
    groups(
        &mut picture,
        "A write fault, by what is written to",
        bars(report, family::FAULTS, &FAULTS),
    );
    groups(
        &mut picture,
        &forks_and_exits(report),
        bars(report, family::PROCESSES, &PROCESSES),
    );
    groups(
        &mut picture,
        "Reclaim of a physical page to swap space, and reading a mapping back",
        bars(report, family::RECLAIM, &RECLAIM),
    );
    if let Some(unused) = &published.unused {
        let title = format!(
            "{}: instructions, beside a kernel without it",
            table::UNUSED
        );
        group(&mut picture, &title, without(unused));
    }
    picture.finish()
}

/// Draws nothing of what was not measured.
fn group(picture: &mut Picture, title: &str, bars: Vec<Bar>) {
    if !bars.is_empty() {
        picture.group(title, &bars);
        picture.space();
    }
}

fn groups(picture: &mut Picture, title: &str, groups: Vec<Vec<Bar>>) {
    if !groups.is_empty() {
        picture.groups(title, &groups);
        picture.space();
    }
}

fn plots(picture: &mut Picture, plots: [Plot; 2]) {
    if plots.iter().any(|plot| !plot.curves.is_empty()) {
        picture.plots([&plots[0], &plots[1]]);
        picture.space();
    }
}

fn by_length_and_published(report: &Report) -> [Plot; 2] {
    let both = [
        (PUBLISH, PUBLISH, BLUE, false),
        (MERGE, MERGE, GREEN, false),
    ];
    [
        Plot {
            title: "Time for a page, by the length of the call".to_owned(),
            across: IN_ONE_CALL.to_owned(),
            axis: Axis::Powers(8),
            mark,
            scale: time,
            curves: curves(report, family::CALLS, IN_ONE_CALL, &both),
        },
        Plot {
            title: "Time for a page, by what is published".to_owned(),
            across: "pages published already".to_owned(),
            axis: Axis::Powers(10),
            mark,
            scale: time,
            curves: curves(report, family::GROWTH, PUBLISHED, &both),
        },
    ]
}

fn by_sharers_and_mappings(report: &Report) -> [Plot; 2] {
    let merge = [(MERGE, MERGE, GREEN, false)];
    let engines = [
        (OWN_COUNT, "SKSM", GREEN, true),
        (KSM_SLABS, "KSM", PALE_BLUE, true),
    ];
    [
        Plot {
            title: "Time for a page, by its sharers".to_owned(),
            across: SHARERS.to_owned(),
            axis: Axis::Powers(2),
            mark,
            scale: time,
            curves: curves(report, family::SHARERS, SHARERS, &merge),
        },
        Plot {
            title: "Kernel memory for a mapping".to_owned(),
            across: "mappings of each page".to_owned(),
            axis: Axis::Powers(2),
            mark,
            scale: |bytes| format!("{bytes:.0} B"),
            curves: curves(report, family::METADATA, MAPPINGS, &engines),
        },
    ]
}

/// A power on the axis across.
fn mark(power: u64) -> String {
    thousands(power as i64)
}

/// Curves of one row, as far as they were measured: variant, label, colour, and whether a value is of all that the place on
/// the axis counts.
fn curves(
    report: &Report,
    family: &str,
    what: &str,
    wanted: &[(&str, &str, &'static str, bool)],
) -> Vec<Curve> {
    let Some(family) = report.family(family) else {
        return Vec::new();
    };
    let curve = |&(variant, label, colour, of_all): &(&str, &str, &'static str, bool)| {
        let point = |row: &Row| {
            let at = row.at? as f64;
            let share = if of_all { at } else { 1.0 };
            let value = &row.value;
            Some(Point {
                at,
                median: value.median / share,
                half: (value.count > 1).then_some((value.lower / share, value.upper / share)),
            })
        };
        Curve {
            label: label.to_owned(),
            colour,
            points: family.rows(what, variant).filter_map(point).collect(),
        }
    };
    let all = wanted.iter().map(curve);
    all.filter(|curve| !curve.points.is_empty()).collect()
}

fn pages(report: &Report) -> Vec<Bar> {
    let Some(family) = report.family(family::PAGES) else {
        return Vec::new();
    };
    let mut bars = Vec::new();
    for what in PAGES {
        let small = family.rows(what, SMALL).map(|row| (what, row, GREEN));
        let huge = family
            .rows(what, HUGE)
            .map(|row| ("in huge pages", row, PALE_GREEN));
        for (label, row, colour) in small.chain(huge) {
            bars.push(bar(label, "", family, row, colour));
        }
    }
    for what in INSIDE {
        let rows = family.rows(what, SMALL);
        bars.extend(rows.map(|row| bar(what, "", family, row, GREY)));
    }
    let yardsticks = table::yardsticks(report).filter(|_| !bars.is_empty());
    let names = [
        "memcmp in user space",
        "memcpy in user space",
        "xxh64 in user space",
    ];
    for (name, ns) in names.into_iter().zip(yardsticks.into_iter().flatten()) {
        bars.push(Bar {
            label: name.to_owned(),
            value: ns.median,
            shown: time(ns.median),
            remark: String::new(),
            colour: GREY,
            end: None,
        });
    }
    bars
}

fn beside_ksm(beside: &BesideKsm) -> Vec<Bar> {
    let saved = beside.saved as f64;
    let bar = |label: &str, cpu: &Summary, after: &Summary, colour| Bar {
        label: label.to_owned(),
        value: cpu.median / saved,
        shown: seconds(cpu.median / saved),
        remark: format!(
            "after {}, {}",
            seconds(after.median),
            match after.count {
                1 => "1 run".to_owned(),
                runs => format!("{runs} runs"),
            }
        ),
        colour,
        end: None,
    };
    let sksm = &beside.sksm_seconds;
    let mut bars = vec![bar("MADV_MERGE", sksm, sksm, GREEN)];
    for ksm in beside.by_tuning() {
        let label = if ksm.sleep_millisecs == 0 {
            "KSM at full speed"
        } else {
            "KSM"
        };
        // Nothing is drawn of what nobody knows.
        bars.extend(
            ksm.cpu_seconds
                .map(|cpu| bar(label, &cpu, &ksm.seconds, PALE_BLUE)),
        );
    }
    bars
}

/// A bar for each variant of each of these rows; the first of a row says what it is called.
fn bars(report: &Report, family: &str, rows: &[Called]) -> Vec<Vec<Bar>> {
    let Some(family) = report.family(family) else {
        return Vec::new();
    };
    let colour = |row: &Row| match row.variant.as_str() {
        _ if row.what == HASHED => GREY,
        variant if variant.starts_with("KSM") => PALE_BLUE,
        variant if variant.contains("merged") || row.unit == Unit::PagesPerSecond => GREEN,
        _ => GREY,
    };
    let of_row = |&(what, called): &Called| {
        let variants = family.rows.iter().filter(|row| row.what == what);
        let bars = variants.enumerate().map(|(index, row)| {
            let variant = row.variant.as_str();
            let (variant, detail) = variant.split_once(": ").unwrap_or((variant, ""));
            let label = match index {
                0 if !called.is_empty() => format!("{called}: {variant}"),
                _ => variant.to_owned(),
            };
            bar(&label, detail, family, row, colour(row))
        });
        bars.collect::<Vec<_>>()
    };
    let all = rows.iter().map(of_row);
    all.filter(|bars| !bars.is_empty()).collect()
}

fn bar(label: &str, detail: &str, family: &Family, row: &Row, colour: &'static str) -> Bar {
    let remark = [detail.to_owned(), table::relative(family, row)];
    let remark: Vec<String> = remark.into_iter().filter(|part| !part.is_empty()).collect();
    Bar {
        label: label.to_owned(),
        value: row.value.median,
        shown: match row.unit {
            Unit::NsPerPage => time(row.value.median),
            unit => table::value(false, unit, row.value.median),
        },
        remark: remark.join(", "),
        colour,
        end: None,
    }
}

/// The title of that group: how many pages and children there are depends on how long it may take.
fn forks_and_exits(report: &Report) -> String {
    let rows = report
        .family(family::PROCESSES)
        .map_or(&[][..], |family| &family.rows);
    let number = |what: &str| {
        let at = rows.iter().find(|row| row.what == what)?.at?;
        Some(thousands(at as i64))
    };
    format!(
        "Fork and exit with {} pages; many: each of {} children with a page table",
        number(FORK).unwrap_or_default(),
        number(FORK_MANY).unwrap_or_default()
    )
}

/// The rows that both kernels have.
fn without(unused: &Unused) -> Vec<Bar> {
    let both = unused
        .rows
        .iter()
        .filter(|row| !row.variant.contains("merged"));
    both.map(|row| {
        let (label, remark) = match row.what.split_once(", ") {
            Some((label, rest)) => (label, rest),
            None => (&*row.what, &*row.variant),
        };
        Bar {
            label: label.to_owned(),
            value: row.ratio(),
            shown: format!("{:+.2} %", 100.0 * (row.ratio() - 1.0)).replace('-', "−"),
            remark: remark.to_owned(),
            colour: GREEN,
            end: None,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use sksm_records::bench::names::ROWS;

    use super::*;
    use crate::verbs::bench::table::tests::{family, row, sample};

    #[test]
    fn every_measurement_that_is_there_is_drawn() {
        let svg = draw(&sample());
        // Background; two kinds of page and three yardsticks; SKSM and the KSM runs whose CPU time is known; 1 and 2 tasks,
        // disturbed and not; unmapping in either kernel.
        assert_eq!(svg.matches("<rect").count(), 1 + 5 + 2 + 4 + 1);
        assert_eq!(svg.matches("<polyline").count(), 1);
        for text in [
            "3.00 × memcmp",
            "after 12.0 s, 2 runs",
            "190,000 pages/s",
            "emulated by QEMU",
            "+0.10 %",
        ] {
            assert!(svg.contains(text), "{text} is missing in\n{svg}");
        }
    }

    /// A report with all rows that there are.
    fn full() -> Report {
        let mut report = sample().report;
        report.families = family::ALL.map(|name| family(name, Vec::new())).into();
        for rows in ROWS {
            let unit = match rows.family {
                family::CONCURRENCY => Unit::PagesPerSecond,
                _ => Unit::NsPerPage,
            };
            let of_one_name = rows
                .variants
                .iter()
                .flat_map(|variant| [1, 8].map(|at| row(rows.what, variant, Some(at), unit, 50.0)));
            let mut families = report.families.iter_mut();
            let family = families.find(|family| family.name == rows.family);
            family.unwrap().rows.extend(of_one_name);
        }
        report
    }

    #[test]
    fn what_is_to_be_drawn_is_measured_by_that_name() {
        let report = full();
        assert_eq!(
            pages(&report).len(),
            2 * (2 * PAGES.len() + INSIDE.len()) + 3
        );
        for (family, rows) in [
            (family::CONCURRENCY, &AT_ONCE[..]),
            (family::CONCURRENCY, &HASHING),
            (family::FAULTS, &FAULTS),
            (family::PROCESSES, &PROCESSES),
            (family::RECLAIM, &RECLAIM),
        ] {
            for row in rows {
                let bars = bars(&report, family, &[*row]);
                assert!(!bars.is_empty(), "{}", row.0);
            }
        }
        let plots = [
            by_length_and_published(&report),
            by_sharers_and_mappings(&report),
        ];
        let curves: Vec<usize> = plots
            .iter()
            .flatten()
            .map(|plot| plot.curves.len())
            .collect();
        assert_eq!(curves, [2, 2, 1, 2]);
        assert!(forks_and_exits(&report).contains("with 1 pages; many: each of 1 children"));
    }
}
