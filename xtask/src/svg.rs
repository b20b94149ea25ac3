//! Pictures: groups of bars, and curves, one below the other.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 40.0;
/// Where the bars start and how long the longest is.
const BARS_X: f64 = 250.0;
pub const BARS_WIDTH: f64 = 380.0;
pub const BAR_HEIGHT: f64 = 30.0;
const BAR_GAP: f64 = 16.0;
/// Of bars that are many.
const DENSE_HEIGHT: f64 = 20.0;
const DENSE_GAP: f64 = 7.0;
/// The height of a plot of curves, and the gap between two beside each other.
const PLOT_HEIGHT: f64 = 210.0;
const PLOT_GAP: f64 = 70.0;

const BACKGROUND: &str = "#fbfbf9";
const INK: &str = "#1f2933";
const FAINT: &str = "#66727f";
const RULE: &str = "#dfe3e6";
pub const GREY: &str = "#a9b4c0";
pub const RED: &str = "#d8735a";
pub const GREEN: &str = "#16836b";
pub const PALE_GREEN: &str = "#79b8a8";
pub const BLUE: &str = "#3f6aa8";
pub const PALE_BLUE: &str = "#7c9cc4";

/// One bar: what it is called, how long it is, and what is written after it.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub shown: String,
    pub remark: String,
    pub colour: &'static str,
}

/// Curves over one axis, which is logarithmic, by powers of ten or two; the other one starts at zero.
pub struct Plot {
    pub title: String,
    pub across: String,
    pub base: u64,
    /// Writes a value of the upright axis.
    pub scale: fn(f64) -> String,
    pub curves: Vec<Curve>,
}

pub struct Curve {
    pub label: String,
    pub colour: &'static str,
    pub points: Vec<Point>,
}

/// A median, and the range that half of the values are in; a single value has none.
#[derive(Clone, Copy)]
pub struct Point {
    pub at: f64,
    pub median: f64,
    pub half: Option<(f64, f64)>,
}

/// What has been drawn so far, and how far down.
pub struct Svg {
    body: String,
    y: f64,
    bar: f64,
    gap: f64,
}

impl Svg {
    pub fn new() -> Self {
        Self {
            body: String::new(),
            y: 58.0,
            bar: BAR_HEIGHT,
            gap: BAR_GAP,
        }
    }

    /// For many bars.
    pub fn dense() -> Self {
        Self {
            bar: DENSE_HEIGHT,
            gap: DENSE_GAP,
            ..Self::new()
        }
    }

    pub fn title(&mut self, title: &str, setting: &str) {
        self.text(MARGIN, 26, INK, "bold", title);
        self.y += 26.0;
        self.text(MARGIN, 15, FAINT, "normal", setting);
        self.y += 48.0;
    }

    /// More under the title.
    pub fn remark(&mut self, text: &str) {
        self.y -= 26.0;
        self.text(MARGIN, 15, FAINT, "normal", text);
        self.y += 48.0;
    }

    /// Between two groups.
    pub fn space(&mut self) {
        self.y += 34.0;
    }

    pub fn group(&mut self, title: &str, bars: &[Bar]) {
        self.text(MARGIN, 16, INK, "bold", title);
        self.y += 18.0;
        self.bars(bars, longest(bars));
    }

    /// Several groups on one scale, under one title.
    pub fn groups(&mut self, title: &str, groups: &[Vec<Bar>]) {
        self.text(MARGIN, 16, INK, "bold", title);
        self.y += 18.0;
        let longest = longest(groups.iter().flatten());
        for bars in groups {
            self.bars(bars, longest);
            self.y += self.gap;
        }
        self.y -= self.gap;
    }

    fn bars(&mut self, bars: &[Bar], longest: f64) {
        for bar in bars {
            // Thin, but never invisible.
            let width = (bar.value / longest * BARS_WIDTH).max(2.0);
            let top = self.y;
            _ = writeln!(
                self.body,
                r#"<rect x="{BARS_X}" y="{top:.1}" width="{width:.1}" height="{}" rx="3" fill="{}"/>"#,
                self.bar, bar.colour
            );
            self.y = top + self.bar / 2.0 + 5.0;
            self.text_to(BARS_X - 14.0, &bar.label);
            let after = BARS_X + width + 12.0;
            _ = writeln!(
                self.body,
                r#"<text x="{after:.1}" y="{:.1}" font-size="15" fill="{INK}"><tspan font-weight="bold">{}</tspan><tspan dx="10" font-size="13" fill="{FAINT}">{}</tspan></text>"#,
                self.y,
                escape(&bar.shown),
                escape(&bar.remark)
            );
            self.y = top + self.bar + self.gap;
        }
    }

    /// Two plots beside each other.
    pub fn plots(&mut self, plots: [&Plot; 2]) {
        let top = self.y;
        let width = (WIDTH - 2.0 * MARGIN - PLOT_GAP) / 2.0;
        let mut bottom = top;
        for (plot, x) in plots.into_iter().zip([MARGIN, MARGIN + width + PLOT_GAP]) {
            self.y = top;
            self.plot(plot, x + 44.0, width - 44.0);
            bottom = f64::max(bottom, self.y);
        }
        self.y = bottom;
    }

    fn plot(&mut self, plot: &Plot, x: f64, width: f64) {
        self.text(x - 44.0, 16, INK, "bold", &plot.title);
        self.y += 20.0;
        let all = || plot.curves.iter().flat_map(|curve| &curve.points);
        let (mut first, mut last, mut highest) = (f64::MAX, f64::MIN_POSITIVE, f64::MIN_POSITIVE);
        for point in all() {
            (first, last) = (first.min(point.at), last.max(point.at));
            highest = highest.max(point.median);
        }
        // One disturbed measurement is not to flatten all others.
        let upper = all().filter_map(|point| point.half).map(|(_, upper)| upper);
        let shaded = upper.map(|upper| upper.min(1.5 * highest));
        highest = shaded.fold(highest, f64::max);
        if all().next().is_none() {
            self.y += 24.0;
            self.text(x, 13, FAINT, "normal", "not measured");
            return;
        }
        let step = round_step(highest / 4.0);
        let ceiling = step * (highest / step).ceil();
        let floor = self.y + PLOT_HEIGHT;
        let down = |value: f64| floor - value.min(ceiling) / ceiling * PLOT_HEIGHT;
        let span = (last / first).ln().max(f64::MIN_POSITIVE);
        let right = |at: f64| x + (at / first).ln() / span * width;
        for line in 0..=(ceiling / step).round() as u32 {
            let value = f64::from(line) * step;
            let y = down(value);
            _ = writeln!(
                self.body,
                r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{RULE}"/><text x="{:.1}" y="{:.1}" font-size="12" text-anchor="end" fill="{FAINT}">{}</text>"#,
                x + width,
                x - 8.0,
                y + 4.0,
                escape(&(plot.scale)(value))
            );
        }
        self.marks(plot.base, first, last, floor, right);
        for curve in &plot.curves {
            self.curve(curve, right, down);
        }
        _ = writeln!(
            self.body,
            r#"<text x="{:.1}" y="{:.1}" font-size="13" text-anchor="middle" fill="{FAINT}">{}</text>"#,
            x + width / 2.0,
            floor + 38.0,
            escape(&plot.across)
        );
        let mut at = x;
        for curve in &plot.curves {
            _ = writeln!(
                self.body,
                r#"<circle cx="{:.1}" cy="{:.1}" r="5" fill="{}"/><text x="{:.1}" y="{:.1}" font-size="13" fill="{INK}">{}</text>"#,
                at + 5.0,
                floor + 57.5,
                curve.colour,
                at + 15.0,
                floor + 62.0,
                escape(&curve.label)
            );
            at += 36.0 + 7.0 * curve.label.chars().count() as f64;
        }
        self.y = floor + 84.0;
    }

    /// The marks of the axis across: powers of the base, so many that they do not touch.
    fn marks(&mut self, base: u64, first: f64, last: f64, floor: f64, right: impl Fn(f64) -> f64) {
        let powers = || {
            std::iter::successors(Some(1u64), |power| power.checked_mul(base))
                .take_while(|power| *power as f64 <= last * 1.001)
                .filter(|power| *power as f64 >= first * 0.999)
        };
        let every = powers().count().div_ceil(7).max(1);
        for power in powers().step_by(every) {
            _ = writeln!(
                self.body,
                r#"<text x="{:.1}" y="{:.1}" font-size="12" text-anchor="middle" fill="{FAINT}">{}</text>"#,
                right(power as f64),
                floor + 18.0,
                crate::format::thousands(power as i64)
            );
        }
    }

    fn curve(&mut self, curve: &Curve, right: impl Fn(f64) -> f64, down: impl Fn(f64) -> f64) {
        let colour = curve.colour;
        let place = |at: f64, value: f64| format!("{:.1},{:.1}", right(at), down(value));
        let known = |one: &Point, other: &Point| one.half.is_some() == other.half.is_some();
        for points in curve.points.chunk_by(known) {
            let halves = points
                .iter()
                .filter_map(|point| Some((point.at, point.half?)));
            let upper = halves.clone().map(|(at, (_, upper))| place(at, upper));
            let lower = halves.map(|(at, (lower, _))| place(at, lower));
            let around: Vec<String> = upper.chain(lower.rev()).collect();
            if !around.is_empty() {
                _ = writeln!(
                    self.body,
                    r#"<polygon points="{}" fill="{colour}" fill-opacity="0.15"/>"#,
                    around.join(" ")
                );
            }
        }
        let line: Vec<String> = (curve.points.iter())
            .map(|point| place(point.at, point.median))
            .collect();
        _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            line.join(" ")
        );
        for point in &curve.points {
            let inside = if point.half.is_some() {
                colour
            } else {
                BACKGROUND
            };
            _ = writeln!(
                self.body,
                r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{inside}" stroke="{colour}" stroke-width="1.5"/>"#,
                right(point.at),
                down(point.median)
            );
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

    pub fn finish(self) -> String {
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

fn longest<'a>(bars: impl IntoIterator<Item = &'a Bar>) -> f64 {
    let values = bars.into_iter().map(|bar| bar.value);
    values.fold(f64::MIN_POSITIVE, f64::max)
}

/// A step of an axis that is easy to read: 1, 2 or 5 and zeroes, and at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    // Rounding must not make the third power of ten a little more than 1000.
    let fits = |step: &f64| *step >= least * 0.999_999;
    steps.into_iter().find(fits).unwrap_or(10.0 * power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (least, step) in [
            (0.7, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (230.0, 500.0),
            (999.0, 1000.0),
        ] {
            let found = round_step(least);
            assert!((found / step - 1.0).abs() < 1e-9, "{least}: {found}");
        }
    }

    #[test]
    fn groups_have_one_scale() {
        let bar = |value| Bar {
            label: "bar".into(),
            value,
            shown: String::new(),
            remark: String::new(),
            colour: GREEN,
        };
        let mut svg = Svg::dense();
        svg.groups("title", &[vec![bar(1.0)], vec![bar(4.0)]]);
        let text = svg.finish();
        for width in [BARS_WIDTH / 4.0, BARS_WIDTH] {
            let wanted = format!(r#"width="{width:.1}" height="{DENSE_HEIGHT}""#);
            assert!(text.contains(&wanted), "{text}");
        }
    }

    #[test]
    fn a_single_value_is_hollow_and_without_shade() {
        let point = |at, half| Point {
            at,
            median: 5.0,
            half,
        };
        let half = Some((4.0, 6.0));
        let curve = Curve {
            label: "curve".into(),
            colour: GREEN,
            points: vec![point(1.0, half), point(2.0, half), point(4.0, None)],
        };
        let mut svg = Svg::new();
        svg.curve(&curve, |at| at, |value| value);
        let text = svg.finish();
        let shade = r#"<polygon points="1.0,6.0 2.0,6.0 2.0,4.0 1.0,4.0""#;
        assert!(text.contains(shade), "{text}");
        assert_eq!(text.matches("<polygon").count(), 1, "{text}");
        let hollow = format!(r#"cx="4.0" cy="5.0" r="3.5" fill="{BACKGROUND}""#);
        assert!(text.contains(&hollow), "{text}");
    }

    #[test]
    fn curves_stay_inside_their_plot() {
        let point = |at, median| Point {
            at,
            median,
            half: Some((median, median * 1.1)),
        };
        let plot = |points| Plot {
            title: "title".into(),
            across: "pages".into(),
            base: 10,
            scale: |value| format!("{value}"),
            curves: vec![Curve {
                label: "a <curve>".into(),
                colour: GREEN,
                points,
            }],
        };
        let mut svg = Svg::new();
        let full = plot(vec![point(1.0, 10.0), point(1000.0, 70.0)]);
        svg.plots([&full, &plot(Vec::new())]);
        let text = svg.finish();
        assert!(
            text.contains("a &lt;curve&gt;") && text.contains("not measured"),
            "{text}"
        );
        assert!(text.contains(">1,000</text>"), "{text}");
        // The last value and its spread: below the top line, at the right end.
        let line = text
            .lines()
            .find(|line| line.contains("<polyline"))
            .unwrap();
        let end = line
            .rsplit("points=\"")
            .next()
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let (x, y) = end.rsplit(' ').next().unwrap().split_once(',').unwrap();
        let width = (WIDTH - 2.0 * MARGIN - PLOT_GAP) / 2.0;
        assert_eq!(x.parse::<f64>().unwrap(), MARGIN + width);
        assert!(y.parse::<f64>().unwrap() > 58.0 + 12.0, "{y}");
    }
}
