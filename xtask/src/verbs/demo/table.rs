//! The experiment as text.

use std::fmt::Write;

use sksm_records::{
    demo::{Call, Check, Counters, Kind, Phase, Report, Spread},
    ksmd::KsmEnd,
};

use super::Published;
use crate::terminal::{
    format::{mib, seconds, thousands},
    table::Table,
};

/// The setting, and a row for each phase: with one more of them, the same text and one more line.
pub fn rows(published: &Published) -> String {
    let report = &published.report;
    let mut text = format!(
        "{} processes of `{}` in Linux {} with {} CPU{}; libc's text has {} pages\n",
        thousands(report.processes as i64),
        report.command,
        report.kernel,
        report.cpus,
        if report.cpus == 1 { "" } else { "s" },
        thousands(report.text_pages as i64),
    );
    for limit in report
        .max_page_sharing
        .iter()
        .filter(|limit| limit.raised_to != limit.default)
    {
        let (default, raised_to) = (thousands(limit.default), thousands(limit.raised_to));
        text += &format!(
            "max_page_sharing of {} was raised from {default} to {raised_to}\n",
            limit.engine
        );
    }
    text + &format!("\n{}", memory(published))
}

/// What follows the rows.
pub fn rest(report: &Report) -> String {
    let mut text = String::new();
    if report.phases.iter().any(|phase| phase.call.is_some()) {
        text += &format!("\n{}", work(report));
    }
    if let Some(counters) = report
        .phase(Kind::Merged)
        .and_then(|phase| phase.counters.as_ref())
    {
        text += &format!("\n{}", engine(counters));
    }
    if let Some(expected) = &report.expected {
        text += "\n";
        for check in &expected.checks {
            text += &verdict(check);
        }
    }
    text
}

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Plain => "plain",
        Kind::Idle => "preload object, idle",
        Kind::Patched => "libc's text written",
        Kind::Merged => "the same, MADV_MERGE",
        Kind::Ksm => "the same, KSM",
        Kind::KsmUnthrottled => "the same, KSM unthrottled",
    }
}

/// The name of a phase where it stands alone.
pub fn name(kind: Kind) -> &'static str {
    label(kind).trim_start_matches("the same, ")
}

fn memory(published: &Published) -> String {
    let report = &published.report;
    let patched = report
        .phase(Kind::Patched)
        .map(|phase| phase.nr_anon_pages as i64);
    let mut table = Table::new([
        "",
        "nr_anon_pages",
        "MiB",
        "private text pages",
        "physical copies",
        "MiB saved",
        "merged after",
    ]);
    table.row(["", "", "", "in each process", "of text pages", "", ""]);
    for kind in Kind::ALL {
        table.room_for([label(kind), "", "99,999", "", "", "", "the call: 99.9 ms"]);
    }
    table.rule();
    for phase in &report.phases {
        let merges = phase.kind == Kind::Merged || phase.kind.by_ksmd();
        let pages = phase.nr_anon_pages as i64;
        let saved = patched
            .filter(|_| merges)
            .map(|patched| mib(patched - pages, report.page_size));
        table.row([
            label(phase.kind).to_owned(),
            thousands(pages),
            mib(pages, report.page_size),
            spread(phase.private_text_pages),
            thousands(phase.copies as i64),
            saved.unwrap_or_default(),
            phase
                .call
                .as_ref()
                .map_or(String::new(), |call| merged_after(phase, call)),
        ]);
    }
    for phase in &published.left_out {
        let label = label(phase.kind);
        table.row([label, phase.why.short(), "", "", "", "", ""]);
    }
    table.render()
}

/// When the processes shared what they can: after their own calls, or when ksmd was done.
fn merged_after(phase: &Phase, call: &Call) -> String {
    match &phase.ksm {
        None => format!("the call: {}", seconds(call.median_ns as f64 / 1e9)),
        Some(ksm) => match ksm.end {
            KsmEnd::Reached => seconds(ksm.seconds),
            KsmEnd::Stalled | KsmEnd::TimedOut => "never".to_owned(),
        },
    }
}

fn work(report: &Report) -> String {
    let mut table = Table::new([
        "",
        "one call",
        "95 %",
        "per page",
        "CPU time",
        "pages scanned",
    ]);
    table.row(["", "(median)", "below", "", "", ""]);
    table.rule();
    let mut notes = String::new();
    for phase in &report.phases {
        let Some(call) = &phase.call else { continue };
        let time = |ns: f64| seconds(ns / 1e9);
        let (cpu, scanned) = match &phase.ksm {
            None => {
                let scanned = phase
                    .counters
                    .as_ref()
                    .map(|counters| grown(counters, "pages_scanned"));
                // By the clock: a call may be interrupted.
                let cpu = format!("≤ {}", time(call.total_ns as f64));
                (cpu, scanned.unwrap_or(0))
            }
            Some(ksm) => (
                ksm.cpu_seconds.map_or("unknown".to_owned(), seconds),
                ksm.pages_scanned,
            ),
        };
        notes += &ksm_note(phase);
        table.row([
            label(phase.kind).to_owned(),
            time(call.median_ns as f64),
            time(call.p95_ns as f64),
            time(call.median_ns_per_page),
            cpu,
            thousands(scanned),
        ]);
    }
    table.render() + &notes
}

/// How KSM was tuned, and what became of it if it did not do the job.
fn ksm_note(phase: &Phase) -> String {
    let Some(ksm) = &phase.ksm else {
        return String::new();
    };
    let mut note = format!(
        "{}: sleep_millisecs {}, pages_to_scan {}",
        label(phase.kind),
        ksm.sleep_millisecs,
        thousands(ksm.pages_to_scan)
    );
    let saved = phase
        .counters
        .as_ref()
        .and_then(|counters| counters.merged.get("pages_sharing"));
    let saved = thousands(*saved.unwrap_or(&0));
    let (target, time) = (thousands(ksm.target), seconds(ksm.seconds));
    match ksm.end {
        KsmEnd::Reached => {}
        KsmEnd::Stalled => {
            _ = write!(
                note,
                "; found no more after {time}, with {saved} of {target} pages saved"
            );
        }
        KsmEnd::TimedOut => {
            _ = write!(
                note,
                "; was not done after {time}, with {saved} of {target} pages saved"
            );
        }
    }
    note + "\n"
}

fn engine(counters: &Counters) -> String {
    let mut table = Table::new([
        "/sys/kernel/mm/sksm",
        "before",
        "merged",
        "all processes gone",
    ]);
    table.rule();
    let settings = ["domain", "max_page_sharing", "merge_across_nodes"];
    for (name, merged) in counters
        .merged
        .iter()
        .filter(|(name, _)| !settings.contains(&name.as_str()))
    {
        let value = |numbers: &std::collections::BTreeMap<String, i64>| {
            numbers
                .get(name)
                .map_or(String::new(), |number| thousands(*number))
        };
        table.row([
            name.clone(),
            value(&counters.before),
            thousands(*merged),
            value(&counters.after),
        ]);
    }
    table.render()
}

fn verdict(check: &Check) -> String {
    format!(
        "{} {}: {} (expected {}{})\n",
        if check.pass { "ok  " } else { "FAIL" },
        check.what,
        thousands(check.found),
        if check.at_most { "at most " } else { "" },
        thousands(check.wanted)
    )
}

fn grown(counters: &Counters, name: &str) -> i64 {
    let get =
        |numbers: &std::collections::BTreeMap<String, i64>| numbers.get(name).copied().unwrap_or(0);
    get(&counters.merged) - get(&counters.before)
}

fn spread(spread: Spread) -> String {
    let number = |number: u64| thousands(number as i64);
    if spread.min == spread.max {
        number(spread.median)
    } else {
        format!(
            "{} ({} to {})",
            number(spread.median),
            number(spread.min),
            number(spread.max)
        )
    }
}

#[cfg(test)]
pub mod tests {
    use sksm_records::{
        demo::{Expected, Limit},
        ksmd::Ksm,
    };

    use super::*;
    use crate::verbs::demo::{LeftOut, Why};

    /// What may be published, with round figures.
    pub fn sample() -> Published {
        Published::of("um", measured(), Vec::new())
    }

    /// The same, with the phases before ksmd's.
    pub fn without_ksm(why: Why) -> Published {
        let mut report = measured();
        report.phases.truncate(4);
        let kinds = [Kind::KsmUnthrottled, Kind::Ksm];
        let left_out = kinds.map(|kind| LeftOut { kind, why });
        Published::of("um", report, left_out.into())
    }

    fn measured() -> Report {
        let phase = |kind, pages, private, copies| Phase {
            kind,
            nr_anon_pages_before: 400,
            nr_anon_pages: pages,
            mem_available_mib: 2000,
            start_seconds: 15.0,
            anonymous_text_pages: Spread::of(vec![if copies == 0 { 0 } else { 342 }]),
            private_text_pages: Spread::of(vec![private; 3]),
            copies,
            call: None,
            counters: None,
            ksm: None,
        };
        let counters = |sharing| Counters {
            before: [
                ("pages_scanned".to_owned(), 5),
                ("pages_sharing".to_owned(), 0),
            ]
            .into(),
            merged: [
                ("pages_scanned".to_owned(), 342_005),
                ("pages_sharing".to_owned(), sharing),
            ]
            .into(),
            after: [
                ("pages_scanned".to_owned(), 342_005),
                ("pages_sharing".to_owned(), 0),
            ]
            .into(),
        };
        let ksm = |end, seconds, sleep_millisecs, pages_to_scan| Ksm {
            sleep_millisecs,
            pages_to_scan,
            target: 341_658,
            end,
            seconds,
            cpu_seconds: Some(4.5),
            pages_scanned: 1_028_000,
            full_scans: 3,
        };
        Report {
            kernel: "6.12.0".into(),
            cpus: 1,
            memory_mib: 3000,
            processes: 1000,
            command: "/bin/sleep 100000".into(),
            library: "/lib/libc.so.6".into(),
            text_pages: 342,
            text_contents: 342,
            page_size: 4096,
            max_page_sharing: vec![Limit {
                engine: "SKSM".into(),
                default: 256,
                raised_to: 1000,
            }],
            phases: vec![
                phase(Kind::Plain, 23_400, 0, 0),
                phase(Kind::Idle, 25_400, 0, 0),
                phase(Kind::Patched, 367_400, 342, 342_000),
                Phase {
                    call: Call::of(&[900_000, 400_000, 420_000], 342),
                    counters: Some(counters(341_658)),
                    ..phase(Kind::Merged, 25_742, 0, 342)
                },
                Phase {
                    call: Call::of(&[40_000], 342),
                    counters: Some(counters(300_000)),
                    ksm: Some(ksm(KsmEnd::TimedOut, 60.0, 0, 10_000)),
                    ..phase(Kind::KsmUnthrottled, 67_400, 42, 42_000)
                },
                Phase {
                    call: Call::of(&[40_000], 342),
                    counters: Some(counters(341_658)),
                    ksm: Some(ksm(KsmEnd::Reached, 308.0, 20, 100)),
                    ..phase(Kind::Ksm, 25_750, 0, 342)
                },
            ],
            expected: Some(Expected::of(vec![
                Check::exactly("copies", 342, 342),
                Check::at_most("pages", 25_900, 25_806),
            ])),
        }
    }

    #[test]
    fn the_text_says_what_was_measured() {
        let sample = sample();
        let text = rows(&sample) + &rest(&sample.report);
        println!("{text}");
        let line = |start: &str| {
            text.lines()
                .filter(|line| line.starts_with(start))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let cells = |start: &str| line(start).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.starts_with("1,000 processes of `/bin/sleep 100000` in Linux 6.12.0 with 1 CPU; libc's text has 342 pages\n"));
        assert!(text.contains("max_page_sharing of SKSM was raised from 256 to 1,000\n"));
        assert_eq!(
            cells("libc's text written"),
            "libc's text written 367,400 1,435 342 342,000"
        );
        assert_eq!(
            cells("the same, MADV_MERGE"),
            "the same, MADV_MERGE 25,742 101 0 342 1,335 the call: 420 µs \
             the same, MADV_MERGE 420 µs 900 µs 1.23 µs ≤ 1.72 ms 342,000"
        );
        assert!(line("the same, KSM ").contains("5 min 08 s"));
        assert!(line("the same, KSM unthrottled").contains("never"));
        assert!(text.contains("was not done after 60.0 s, with 300,000 of 341,658 pages saved"));
        assert!(text.contains("ok   copies: 342 (expected 342)\n"));
        assert!(text.contains("FAIL pages: 25,900 (expected at most 25,806)\n"));
    }

    #[test]
    fn a_row_that_is_printed_stays_as_it_is() {
        let whole = sample();
        let text = rows(&whole);
        for count in 0..=whole.report.phases.len() {
            let mut part = whole.clone();
            part.report.phases.truncate(count);
            let part = rows(&part);
            assert!(text.starts_with(&part), "{count} phases:\n{part}\n{text}");
        }
    }

    #[test]
    fn what_was_left_out_is_said_and_no_number() {
        let published = without_ksm(Why::WithoutKsm);
        let text = rows(&published);
        let last: Vec<_> = text.lines().rev().take(2).collect();
        for (line, label) in last.iter().zip(["KSM", "KSM unthrottled"]) {
            assert!(line.starts_with(&format!("the same, {label} ")), "{text}");
            assert!(line.ends_with("left out"), "{text}");
        }
        let rest = rest(&published.report);
        assert!(!rest.contains("KSM"), "{rest}");
        assert!(rest.contains("ok   copies: 342"), "{rest}");
        assert!(rows(&without_ksm(Why::Interrupted)).contains("interrupted\n"));
    }

    #[test]
    fn before_any_call_nothing_follows_the_rows() {
        let mut report = measured();
        report.phases.truncate(3);
        report.expected = None;
        assert_eq!(rest(&report), "");
    }
}
