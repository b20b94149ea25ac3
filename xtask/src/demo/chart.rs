//! The experiment as a picture: two groups of bars, how much memory and how long.

use std::fmt::Write;

use sksm_guest::demo::{Kind, KsmEnd, Phase, Report};

use super::format::{mib, seconds, thousands};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 40.0;
/// Where the bars start and how long the longest is.
const BARS_X: f64 = 250.0;
const BARS_WIDTH: f64 = 380.0;
const BAR_HEIGHT: f64 = 30.0;
const BAR_STEP: f64 = 46.0;

const BACKGROUND: &str = "#fbfbf9";
const INK: &str = "#1f2933";
const FAINT: &str = "#66727f";
const PLAIN: &str = "#a9b4c0";
const PATCHED: &str = "#d8735a";
const MERGED: &str = "#16836b";
const KSM: &str = "#7c9cc4";

/// One bar: what it is called, how long it is, and what is written after it.
struct Bar {
    label: String,
    value: f64,
    shown: String,
    remark: String,
    colour: &'static str,
}

pub fn draw(report: &Report) -> String {
    let memory: Vec<Bar> = report
        .phases
        .iter()
        .filter_map(|phase| memory_bar(report, phase))
        .collect();
    let times: Vec<Bar> = report.phases.iter().filter_map(time_bar).collect();
    let mut svg = Svg {
        body: String::new(),
        y: 58.0,
    };
    let processes = thousands(report.processes as i64);
    svg.text(
        MARGIN,
        26,
        INK,
        "bold",
        &format!("{processes} processes that each patch libc"),
    );
    svg.y += 26.0;
    let setting = format!(
        "{processes} × sleep on Linux {}; each writes once to all {} pages of libc's text",
        report.kernel,
        thousands(report.text_pages as i64)
    );
    svg.text(MARGIN, 15, FAINT, "normal", &setting);
    svg.y += 48.0;
    svg.group("Anonymous memory in the whole system", &memory);
    if !times.is_empty() {
        svg.y += 34.0;
        svg.group("Time until that memory is shared", &times);
    }
    svg.finish()
}

fn memory_bar(report: &Report, phase: &Phase) -> Option<Bar> {
    let (label, colour) = match phase.kind {
        Kind::Plain => ("not patched", PLAIN),
        // Hardly more than plain: the table tells.
        Kind::Idle => return None,
        Kind::Patched => ("patched", PATCHED),
        Kind::Merged => ("patched, MADV_MERGE", MERGED),
        Kind::Ksm => ("patched, KSM", KSM),
        Kind::KsmUnthrottled => ("patched, KSM at full speed", KSM),
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
            colour: MERGED,
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
                colour: KSM,
            }
        }
    })
}

/// What has been drawn so far, and how far down.
struct Svg {
    body: String,
    y: f64,
}

impl Svg {
    fn group(&mut self, title: &str, bars: &[Bar]) {
        self.text(MARGIN, 16, INK, "bold", title);
        self.y += 18.0;
        let longest = bars
            .iter()
            .map(|bar| bar.value)
            .fold(f64::MIN_POSITIVE, f64::max);
        for bar in bars {
            // Thin, but never invisible.
            let width = (bar.value / longest * BARS_WIDTH).max(2.0);
            let top = self.y;
            _ = writeln!(
                self.body,
                r#"<rect x="{BARS_X}" y="{top:.1}" width="{width:.1}" height="{BAR_HEIGHT}" rx="3" fill="{}"/>"#,
                bar.colour
            );
            self.y = top + BAR_HEIGHT / 2.0 + 5.0;
            self.text_to(BARS_X - 14.0, &bar.label);
            let after = BARS_X + width + 12.0;
            _ = writeln!(
                self.body,
                r#"<text x="{after:.1}" y="{:.1}" font-size="15" fill="{INK}"><tspan font-weight="bold">{}</tspan><tspan dx="10" font-size="13" fill="{FAINT}">{}</tspan></text>"#,
                self.y,
                escape(&bar.shown),
                escape(&bar.remark)
            );
            self.y = top + BAR_STEP;
        }
    }

    fn text(&mut self, x: f64, size: u32, colour: &str, weight: &str, text: &str) {
        _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{:.1}" font-size="{size}" font-weight="{weight}" fill="{colour}">{}</text>"#,
            self.y,
            escape(text)
        );
    }

    /// Text that ends at `x`.
    fn text_to(&mut self, x: f64, text: &str) {
        _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{:.1}" font-size="15" text-anchor="end" fill="{INK}">{}</text>"#,
            self.y,
            escape(text)
        );
    }

    fn finish(self) -> String {
        let height = self.y + MARGIN / 2.0;
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" font-family="Helvetica, Arial, 'Liberation Sans', sans-serif">
<rect width="100%" height="100%" fill="{BACKGROUND}"/>
{}</svg>
"#,
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::table::tests::sample;

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
            r#"width="{BARS_WIDTH:.1}" height="{BAR_HEIGHT}" rx="3" fill="{PATCHED}""#
        )));
        assert!(svg.contains(&format!(
            r#"width="{BARS_WIDTH:.1}" height="{BAR_HEIGHT}" rx="3" fill="{KSM}""#
        )));
    }

    #[test]
    fn markup_in_a_kernels_name_stays_text() {
        let mut report = sample();
        report.kernel = "6.12<&>".into();
        assert!(draw(&report).contains("Linux 6.12&lt;&amp;&gt;;"));
    }
}
