//! Curves over an axis.

use crate::ink::{self, Anchor, DETAIL, HEADING, SCALE};
use crate::picture::Picture;

const HEIGHT: f64 = 210.0;
/// More points than this have no circles.
const MANY: usize = 40;
/// For the values of the upright axis.
const SCALE_WIDTH: f64 = 44.0;

/// How an axis is divided.
#[derive(Clone, Copy, PartialEq)]
pub enum Axis {
    /// Logarithmic, with marks at the powers of this number.
    Powers(u64),
    /// Evenly, from zero.
    Even,
}

/// Curves over one axis; the other one starts at zero.
pub struct Plot {
    /// What it is about.
    pub title: String,
    /// What the axis across counts.
    pub across: String,
    /// How that axis is divided.
    pub axis: Axis,
    /// Writes a value of the axis across.
    pub mark: fn(u64) -> String,
    /// Writes a value of the upright axis.
    pub scale: fn(f64) -> String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// A line through points.
pub struct Curve {
    /// What it is called.
    pub label: String,
    /// Its colour.
    pub colour: &'static str,
    /// From left to right.
    pub points: Vec<Point>,
}

/// A median, and the range that half of the values are in; a single value has none.
#[derive(Clone, Copy)]
pub struct Point {
    /// Where on the axis.
    pub at: f64,
    /// The median.
    pub median: f64,
    /// The range.
    pub half: Option<(f64, f64)>,
}

pub fn draw(picture: &mut Picture, plot: &Plot, left: f64, width: f64) {
    let (x, width) = (left + SCALE_WIDTH, width - SCALE_WIDTH);
    picture.text(left, picture.y, HEADING, &plot.title);
    picture.y += 20.0;
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
        picture.y += 24.0;
        picture.text(x, picture.y, DETAIL, "not measured");
        return;
    }
    let step = round_step(highest / 4.0);
    let ceiling = step * (highest / step).ceil();
    let floor = picture.y + HEIGHT;
    let down = |value: f64| floor - value.min(ceiling) / ceiling * HEIGHT;
    let part = |at: f64| match plot.axis {
        Axis::Powers(_) => (at / first).ln() / (last / first).ln().max(f64::MIN_POSITIVE),
        Axis::Even => at / last,
    };
    let right = |at: f64| x + part(at) * width;
    for line in 0..=(ceiling / step).round() as u32 {
        let value = f64::from(line) * step;
        let y = down(value);
        picture.add(ink::rule(x, y, width));
        let style = SCALE.anchored(Anchor::End);
        picture.text(x - 8.0, y + 4.0, style, &(plot.scale)(value));
    }
    marks(picture, plot, first, last, floor, right);
    for curve in &plot.curves {
        draw_curve(picture, curve, right, down);
    }
    let style = DETAIL.anchored(Anchor::Middle);
    picture.text(x + width / 2.0, floor + 38.0, style, &plot.across);
    picture.y = floor + 62.0;
    let names = plot
        .curves
        .iter()
        .map(|curve| (curve.colour, &*curve.label));
    picture.spots(x, width, names);
    picture.y += 22.0;
}

/// The marks of the axis across: round numbers, so many that they do not touch.
fn marks(
    picture: &mut Picture,
    plot: &Plot,
    first: f64,
    last: f64,
    floor: f64,
    right: impl Fn(f64) -> f64,
) {
    let marks: Vec<u64> = match plot.axis {
        Axis::Powers(base) => {
            let all = std::iter::successors(Some(1u64), |power| power.checked_mul(base));
            let within = all.take_while(|power| *power as f64 <= last * 1.001);
            let marks: Vec<u64> = within
                .filter(|power| *power as f64 >= first * 0.999)
                .collect();
            let every = marks.len().div_ceil(7).max(1);
            marks.into_iter().step_by(every).collect()
        }
        Axis::Even => {
            let step = round_step(last / 6.0).max(1.0);
            let marks = (0..=6).map(|mark| (f64::from(mark) * step) as u64);
            marks
                .take_while(|mark| *mark as f64 <= last * 1.001)
                .collect()
        }
    };
    let style = SCALE.anchored(Anchor::Middle);
    for mark in marks {
        let x = right(mark as f64);
        picture.text(x, floor + 18.0, style, &(plot.mark)(mark));
    }
}

fn draw_curve(
    picture: &mut Picture,
    curve: &Curve,
    right: impl Fn(f64) -> f64,
    down: impl Fn(f64) -> f64,
) {
    let colour = curve.colour;
    let place = |at: f64, value: f64| (right(at), down(value));
    let known = |one: &Point, other: &Point| one.half.is_some() == other.half.is_some();
    for points in curve.points.chunk_by(known) {
        let halves = || {
            let halves = points.iter();
            halves.filter_map(|point| Some((point.at, point.half?)))
        };
        if halves().next().is_some() {
            let upper = halves().map(|(at, (_, upper))| place(at, upper));
            let lower = halves().map(|(at, (lower, _))| place(at, lower));
            picture.add(ink::shade(upper.chain(lower.rev()), colour));
        }
    }
    let points = curve.points.iter();
    let line = points.map(|point| place(point.at, point.median));
    picture.add(ink::line(line, colour));
    // Where they are many, only the line is seen.
    let few = curve.points.len() <= MANY;
    for point in curve.points.iter().filter(|_| few) {
        let (x, y) = place(point.at, point.median);
        picture.add(ink::point(x, y, colour, point.half.is_none()));
    }
}

/// A step of an axis that is easy to read: 1, 2 or 5 and zeroes, and at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    // Rounding must not make the third power of ten a little more than 1000.
    let fits = |step: &f64| *step >= least * 0.999_999;
    steps.into_iter().find(fits).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colours::{BACKGROUND, GREEN};
    use crate::picture::tests::shapes;

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
        let mut picture = Picture::new();
        draw_curve(&mut picture, &curve, |at| at, |value| value);
        let text = picture.finish();
        let shades = shapes(&text, "polygon");
        assert_eq!(shades.len(), 1);
        assert_eq!(shades[0]["points"], "1.0,6.0 2.0,6.0 2.0,4.0 1.0,4.0");
        let points = shapes(&text, "circle");
        let fills: Vec<&str> = points.iter().map(|point| &*point["fill"]).collect();
        assert_eq!(fills, [GREEN, GREEN, BACKGROUND]);
    }

    #[test]
    fn an_even_axis_begins_at_zero() {
        let points = (1..=600u32).map(|second| Point {
            at: f64::from(second),
            median: 1.0,
            half: None,
        });
        let plot = Plot {
            title: "title".into(),
            across: "time".into(),
            axis: Axis::Even,
            mark: |second| format!("{second} s"),
            scale: |value| format!("{value}"),
            curves: vec![Curve {
                label: "curve".into(),
                colour: GREEN,
                points: points.collect(),
            }],
        };
        let mut picture = Picture::new();
        picture.plots([&plot, &plot]);
        let text = picture.finish();
        for mark in [">0 s<", ">100 s<", ">600 s<"] {
            assert!(text.contains(mark), "{mark}");
        }
        // But those of the legend.
        assert!(shapes(&text, "circle").len() <= 2);
    }

    #[test]
    fn names_stay_below_their_plot() {
        let names = [
            "a long name",
            "another one",
            "one more of them",
            "and the last one",
        ];
        let plot = |count: usize| Plot {
            title: "title".into(),
            across: "s".into(),
            axis: Axis::Even,
            mark: |at| format!("{at} s"),
            scale: |value| format!("{value}"),
            curves: (0..count)
                .map(|at| Curve {
                    label: names[at % names.len()].into(),
                    colour: GREEN,
                    points: vec![Point {
                        at: 1.0,
                        median: 1.0,
                        half: None,
                    }],
                })
                .collect(),
        };
        let mut picture = Picture::new();
        picture.plots([&plot(7), &plot(1)]);
        let text = picture.finish();
        let number = |shape: &std::collections::HashMap<String, String>, name: &str| {
            shape[name].parse::<f64>().unwrap()
        };
        let rules = shapes(&text, "line");
        let floor = rules
            .iter()
            .map(|rule| number(rule, "y1"))
            .fold(0.0, f64::max);
        let second = rules
            .iter()
            .map(|rule| number(rule, "x1"))
            .fold(0.0, f64::max);
        let mut spots = shapes(&text, "circle");
        spots.retain(|spot| number(spot, "cy") > floor);
        assert_eq!(spots.len(), 8);
        let beside = spots.iter().filter(|spot| number(spot, "cx") >= second);
        assert_eq!(beside.count(), 1);
        let mut lines: Vec<i64> = (spots.iter())
            .map(|spot| number(spot, "cy").round() as i64)
            .collect();
        lines.sort_unstable();
        lines.dedup();
        assert!(lines.len() >= 3, "{lines:?}");
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
            axis: Axis::Powers(10),
            mark: |power| format!("{power} pages"),
            scale: |value| format!("{value}"),
            curves: vec![Curve {
                label: "a <curve>".into(),
                colour: GREEN,
                points,
            }],
        };
        let mut picture = Picture::new();
        let full = plot(vec![point(1.0, 10.0), point(1000.0, 70.0)]);
        picture.plots([&full, &plot(Vec::new())]);
        let text = picture.finish();
        for words in ["a &lt;curve&gt;", "not measured", ">1000 pages<"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        // The last value and its spread: below the top line, at the right end.
        let lines = shapes(&text, "polyline");
        let end = lines[0]["points"].rsplit(' ').next().unwrap();
        let (x, y) = end.split_once(',').unwrap();
        let rules = shapes(&text, "line");
        assert_eq!(x.parse::<f64>(), rules[0]["x2"].parse::<f64>());
        let tops = rules.iter().map(|rule| rule["y1"].parse::<f64>().unwrap());
        assert!(y.parse::<f64>().unwrap() > tops.fold(f64::MAX, f64::min));
    }
}
