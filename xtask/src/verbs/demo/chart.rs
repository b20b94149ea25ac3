//! The experiment as a picture: two groups of bars, how much memory and how long.

use sksm_records::{
    demo::{Kind, Phase, Report},
    ksmd::KsmEnd,
};

use sksm_chart::{Bar, GREEN, GREY, PALE_BLUE, Picture, RED};

use super::Published;
use crate::terminal::format::{mib, seconds, thousands};

pub fn draw(published: &Published) -> String {
    let report = &published.report;
    let memory: Vec<Bar> = report
        .phases
        .iter()
        .filter_map(|phase| memory_bar(report, phase))
        .collect();
    let times: Vec<Bar> = report.phases.iter().filter_map(time_bar).collect();
    let mut picture = Picture::new();
    let processes = thousands(report.processes as i64);
    let setting = format!(
        "{processes} × sleep on Linux {}; each writes once to all {} pages of libc's text",
        report.kernel,
        thousands(report.text_pages as i64)
    );
    picture.title(
        &format!("{processes} processes that each patch libc"),
        &setting,
    );
    if let Some(missing) = published.missing() {
        picture.remark(&format!("Not measured: {missing}"));
    }
    picture.group("Anonymous memory in the whole system", &memory);
    if !times.is_empty() {
        picture.space();
        picture.group("Time until that memory is shared", &times);
    }
    picture.finish()
}

fn memory_bar(report: &Report, phase: &Phase) -> Option<Bar> {
    let (label, colour) = match phase.kind {
        Kind::Plain => ("not patched", GREY),
        // Hardly more than plain: the table tells.
        Kind::Idle => return None,
        Kind::Patched => ("patched", RED),
        Kind::Merged => ("patched, MADV_MERGE", GREEN),
        Kind::Ksm => ("patched, KSM", PALE_BLUE),
        Kind::KsmUnthrottled => ("patched, KSM at full speed", PALE_BLUE),
    };
    let remark = match phase.copies {
        0 => "libc's pages are the file's".to_owned(),
        copies if copies == report.text_contents => "one copy of each of libc's pages".to_owned(),
        copies => format!("{} copies of libc's pages", thousands(copies as i64)),
    };
    Some(Bar {
        label: label.to_owned(),
        value: phase.nr_anon_pages as f64,
        shown: format!("{} MiB", mib(phase.nr_anon_pages as i64, report.page_size)),
        remark,
        colour,
        end: None,
    })
}

fn time_bar(phase: &Phase) -> Option<Bar> {
    let call = phase.call.as_ref()?;
    Some(match &phase.ksm {
        None => Bar {
            label: "MADV_MERGE".to_owned(),
            value: call.total_ns as f64 / 1e9,
            shown: seconds(call.total_ns as f64 / 1e9),
            remark: format!(
                "in all: {} in each process, once",
                seconds(call.median_ns as f64 / 1e9)
            ),
            colour: GREEN,
            end: None,
        },
        Some(ksm) => {
            let cpu = ksm
                .cpu_seconds
                .map_or(String::new(), |cpu| format!("{} of CPU time", seconds(cpu)));
            Bar {
                label: if ksm.sleep_millisecs == 0 {
                    "KSM at full speed"
                } else {
                    "KSM"
                }
                .to_owned(),
                value: ksm.seconds,
                shown: match ksm.end {
                    KsmEnd::Reached => seconds(ksm.seconds),
                    KsmEnd::Stalled | KsmEnd::TimedOut => {
                        format!("gave up after {}", seconds(ksm.seconds))
                    }
                },
                remark: cpu,
                colour: PALE_BLUE,
                end: None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::demo::{
        Why,
        table::tests::{sample, without_ksm},
    };

    #[test]
    fn every_phase_but_idle_has_its_bars_and_values() {
        let svg = draw(&sample());
        // The background is a rectangle, too.
        assert_eq!(svg.matches("<rect").count(), 1 + 5 + 3);
        for text in [
            "1,435 MiB",
            "101 MiB",
            "342,000 copies of libc's pages",
            "5 min 08 s",
            "gave up after 60.0 s",
        ] {
            assert!(svg.contains(text), "{text} is missing in\n{svg}");
        }
        assert!(!svg.contains("Not measured"), "{svg}");
    }

    #[test]
    fn what_was_left_out_is_said_and_has_no_bar() {
        let svg = draw(&without_ksm(Why::WithoutKsm));
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 1);
        let said = "Not measured: KSM unthrottled, KSM (left out by --without-ksm)";
        assert!(svg.contains(said), "{svg}");
    }

    #[test]
    fn markup_in_a_kernels_name_stays_text() {
        let mut published = sample();
        published.report.kernel = "6.12<&>".into();
        assert!(draw(&published).contains("Linux 6.12&lt;&amp;&gt;;"));
    }
}
