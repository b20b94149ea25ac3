//! The measurements as a picture.

use sksm_guest::{
    bench::{
        Family, Report, Row, Unit,
        names::{
            BYTES, DIFFERENT, IN_ONE_CALL, MERGE, OUT, PUBLISH, PUBLISHED, SAME, SHARERS, SMALL,
            WRITE, family,
        },
    },
    statistics::Summary,
};

use crate::{
    format::{seconds, thousands},
    svg::{BLUE, Bar, Curve, GREEN, GREY, PALE_BLUE, Plot, Point, RED, Svg},
};

use super::{
    Published,
    table::{self, time},
    unused::Unused,
};

pub fn draw(published: &Published) -> String {
    let report = &published.report;
    let mut svg = Svg::new();
    let setting = super::setting(report);
    let (kernel, machine) = setting.split_once("; ").unwrap_or((&setting, ""));
    svg.title("What MADV_MERGE costs", kernel);
    svg.remark(machine);
    svg.remark("medians; shaded: what half of the values are within");
    group(
        &mut svg,
        "Time for a page of 4 KiB, in calls over whole page tables",
        page(report),
    );
    group(
        &mut svg,
        "CPU time for a page saved, KSM beside",
        beside_ksm(report),
    );
    let curves = |family: &str, what: &str, variants: &[(&str, &'static str)]| {
        let family = report.family(family);
        let curve = |&(variant, colour): &(&str, &'static str)| Curve {
            label: variant.to_owned(),
            colour,
            points: family.map_or(Vec::new(), |family| points(family, what, variant)),
        };
        let all = variants.iter().map(curve);
        all.filter(|curve| !curve.points.is_empty())
            .collect::<Vec<_>>()
    };
    let time_plot = |title: &str, across: &str, base, curves| Plot {
        title: title.to_owned(),
        across: across.to_owned(),
        base,
        scale: time,
        curves,
    };
    let both = [(PUBLISH, BLUE), (MERGE, GREEN)];
    let calls = time_plot(
        "Time for a page, by the length of the call",
        IN_ONE_CALL,
        8,
        curves(family::CALLS, IN_ONE_CALL, &both),
    );
    let growth = time_plot(
        "Time for a page, by what is published",
        "pages published already",
        10,
        curves(family::GROWTH, PUBLISHED, &both),
    );
    if !calls.curves.is_empty() || !growth.curves.is_empty() {
        svg.plots([&calls, &growth]);
        svg.space();
    }
    let times = time_plot(
        "Time for a page, by its sharers",
        SHARERS,
        2,
        curves(family::SHARERS, SHARERS, &both[1..]),
    );
    let bytes = Plot {
        title: "Kernel memory for a mapping".to_owned(),
        across: SHARERS.to_owned(),
        base: 2,
        scale: |bytes| format!("{bytes:.0} B"),
        curves: curves(family::SHARERS, SHARERS, &[(BYTES, RED)]),
    };
    if !times.curves.is_empty() {
        svg.plots([&times, &bytes]);
        svg.space();
    }
    let bars = |family: &str, what: &str| {
        report
            .family(family)
            .map_or(Vec::new(), |family| bars(family, what))
    };
    group(
        &mut svg,
        "Tasks that merge different content at the same time",
        bars(family::CONCURRENCY, DIFFERENT),
    );
    group(
        &mut svg,
        "Tasks that merge the same content at the same time",
        bars(family::CONCURRENCY, SAME),
    );
    group(
        &mut svg,
        "A write fault, by what is written to",
        bars(family::FAULTS, WRITE),
    );
    group(
        &mut svg,
        "Reclaim of a physical page to swap space",
        bars(family::RECLAIM, OUT),
    );
    if let Some(unused) = &published.unused {
        let title = format!(
            "{}: instructions, beside a kernel without it",
            table::UNUSED
        );
        group(&mut svg, &title, without(unused));
    }
    svg.finish()
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
        }
    })
    .collect()
}

/// Draws nothing of what was not measured.
fn group(svg: &mut Svg, title: &str, bars: Vec<Bar>) {
    if !bars.is_empty() {
        svg.group(title, &bars);
        svg.space();
    }
}

fn page(report: &Report) -> Vec<Bar> {
    let Some(family) = report.family(family::PAGES) else {
        return Vec::new();
    };
    let of_4_kib = family.rows.iter().filter(|row| row.variant == SMALL);
    let mut bars: Vec<Bar> = of_4_kib.map(|row| bar(&row.what, row, GREEN)).collect();
    if let Some([memcmp, memcpy, xxh64]) = table::yardsticks(report) {
        for (name, ns) in [
            ("memcmp in user space", memcmp),
            ("memcpy in user space", memcpy),
            ("xxh64 in user space", xxh64),
        ] {
            bars.push(Bar {
                label: name.to_owned(),
                value: ns.median,
                shown: time(ns.median),
                remark: String::new(),
                colour: GREY,
            });
        }
    }
    bars
}

fn beside_ksm(report: &Report) -> Vec<Bar> {
    let Some(beside) = &report.beside_ksm else {
        return Vec::new();
    };
    let saved = beside.saved as f64;
    let bar = |label: &str, cpu: &Summary, after: &Summary, colour| Bar {
        label: label.to_owned(),
        value: cpu.median / saved,
        shown: seconds(cpu.median / saved),
        remark: format!(
            "{} pages saved after {}; {}",
            thousands(beside.saved as i64),
            seconds(after.median),
            match after.count {
                1 => "1 run".to_owned(),
                runs => format!("median of {runs} runs"),
            }
        ),
        colour,
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

fn points(family: &Family, what: &str, variant: &str) -> Vec<Point> {
    let point = |row: &Row| {
        Some(Point {
            at: row.at? as f64,
            lower: row.value.lower,
            median: row.value.median,
            upper: row.value.upper,
        })
    };
    family.rows(what, variant).filter_map(point).collect()
}

/// A bar for each variant.
fn bars(family: &Family, what: &str) -> Vec<Bar> {
    let colour = |row: &Row| match &*row.variant {
        variant if variant.starts_with("KSM") => PALE_BLUE,
        variant if variant.contains("merged") || row.unit == Unit::PagesPerSecond => GREEN,
        _ => GREY,
    };
    let rows = family.rows.iter().filter(|row| row.what == what);
    rows.map(|row| bar(&row.variant, row, colour(row)))
        .collect()
}

fn bar(label: &str, row: &Row, colour: &'static str) -> Bar {
    let remark = match row.in_memcmps() {
        Some(times) => format!("{} × memcmp", table::digits(times)),
        None => String::new(),
    };
    let (label, detail) = label.split_once(": ").unwrap_or((label, ""));
    let remark = [detail, &remark]
        .into_iter()
        .filter(|part| !part.is_empty());
    Bar {
        label: label.to_owned(),
        value: row.value.median,
        shown: match row.unit {
            Unit::NsPerPage => time(row.value.median),
            unit => table::value(false, unit, row.value.median),
        },
        remark: remark.collect::<Vec<_>>().join(", "),
        colour,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::sample;

    #[test]
    fn every_measurement_that_is_there_is_drawn() {
        let svg = draw(&sample());
        // Background; two kinds of page and three yardsticks; SKSM and the KSM run whose CPU time is known; 1 and 2 tasks;
        // unmapping in either kernel.
        assert_eq!(svg.matches("<rect").count(), 1 + 5 + 2 + 2 + 1);
        assert_eq!(svg.matches("<polyline").count(), 1);
        for text in [
            "3.00 × memcmp",
            "700 pages saved after 12.0 s",
            "190,000 pages/s",
            "emulated by QEMU",
            "+0.10 %",
        ] {
            assert!(svg.contains(text), "{text} is missing in\n{svg}");
        }
    }
}
