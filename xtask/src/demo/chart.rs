//! The experiment as a picture: two groups of bars, how much memory and how long.

use sksm_guest::{
    demo::{Kind, Phase, Report},
    ksmd::KsmEnd,
};

use crate::{
    format::{mib, seconds, thousands},
    svg::{Bar, GREEN, GREY, PALE_BLUE, RED, Svg},
};

pub fn draw(report: &Report) -> String {
    let memory: Vec<Bar> = report
        .phases
        .iter()
        .filter_map(|phase| memory_bar(report, phase))
        .collect();
    let times: Vec<Bar> = report.phases.iter().filter_map(time_bar).collect();
    let mut svg = Svg::new();
    let processes = thousands(report.processes as i64);
    let setting = format!(
        "{processes} × sleep on Linux {}; each writes once to all {} pages of libc's text",
        report.kernel,
        thousands(report.text_pages as i64)
    );
    svg.title(
        &format!("{processes} processes that each patch libc"),
        &setting,
    );
    svg.group("Anonymous memory in the whole system", &memory);
    if !times.is_empty() {
        svg.space();
        svg.group("Time until that memory is shared", &times);
    }
    svg.finish()
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
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::table::tests::sample;
    use crate::svg::{BAR_HEIGHT, BARS_WIDTH};

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
    }

    #[test]
    fn the_longest_bar_has_the_full_width() {
        let svg = draw(&sample());
        assert!(svg.contains(&format!(
            r#"width="{BARS_WIDTH:.1}" height="{BAR_HEIGHT}" rx="3" fill="{RED}""#
        )));
        assert!(svg.contains(&format!(
            r#"width="{BARS_WIDTH:.1}" height="{BAR_HEIGHT}" rx="3" fill="{PALE_BLUE}""#
        )));
    }

    #[test]
    fn markup_in_a_kernels_name_stays_text() {
        let mut report = sample();
        report.kernel = "6.12<&>".into();
        assert!(draw(&report).contains("Linux 6.12&lt;&amp;&gt;;"));
    }
}
