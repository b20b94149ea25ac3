//! The shapes that pictures are made of: the one place that knows the crate `svg`, which escapes text.

use svg::node::element::{Circle, Element, Line, Polygon, Polyline, Rectangle, TSpan, Text};

use crate::colours::{BACKGROUND, FAINT, INK, RULE};

/// Where a text's `x` is in it.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is written.
#[derive(Clone, Copy)]
pub struct Style {
    pub size: u32,
    pub bold: bool,
    pub colour: &'static str,
    pub anchor: Anchor,
}

impl Style {
    pub const fn new(size: u32, colour: &'static str) -> Self {
        Style {
            size,
            bold: false,
            colour,
            anchor: Anchor::Start,
        }
    }

    pub const fn bold(self) -> Self {
        Style { bold: true, ..self }
    }

    pub const fn anchored(self, anchor: Anchor) -> Self {
        Style { anchor, ..self }
    }

    /// So wide it is at most, in most fonts.
    pub fn most(self, text: &str) -> f64 {
        0.6 * f64::from(self.size) * text.chars().count() as f64
    }

    /// About so wide it is.
    pub fn width(self, text: &str) -> f64 {
        let letter = if self.bold { 0.55 } else { 0.52 };
        letter * f64::from(self.size) * text.chars().count() as f64
    }
}

pub const TITLE: Style = Style::new(26, INK).bold();
pub const REMARK: Style = Style::new(15, FAINT);
pub const HEADING: Style = Style::new(16, INK).bold();
pub const LABEL: Style = Style::new(15, INK).anchored(Anchor::End);
pub const VALUE: Style = Style::new(15, INK).bold();
pub const DETAIL: Style = Style::new(13, FAINT);
pub const LEGEND: Style = Style::new(13, INK);
pub const SCALE: Style = Style::new(12, FAINT);

/// A tenth of a pixel is enough.
fn tenths(value: f64) -> f64 {
    (10.0 * value).round() / 10.0
}

pub fn background(width: f64, height: f64) -> Element {
    Rectangle::new()
        .set("width", width)
        .set("height", height)
        .set("fill", BACKGROUND)
        .into()
}

pub fn bar(x: f64, y: f64, width: f64, height: f64, colour: &str) -> Element {
    Rectangle::new()
        .set("x", tenths(x))
        .set("y", tenths(y))
        .set("width", tenths(width))
        .set("height", tenths(height))
        .set("rx", 3)
        .set("fill", colour)
        .into()
}

pub fn text(x: f64, y: f64, style: Style, words: &str) -> Element {
    let anchor = match style.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    Text::new(words)
        .set("x", tenths(x))
        .set("y", tenths(y))
        .set("font-size", style.size)
        .set("font-weight", weight(style))
        .set("text-anchor", anchor)
        .set("fill", style.colour)
        .into()
}

/// A value, and a detail so far behind it.
pub fn value(x: f64, y: f64, value: &str, gap: f64, detail: &str) -> Element {
    let span = |style: Style, words: &str| {
        TSpan::new(words)
            .set("font-size", style.size)
            .set("font-weight", weight(style))
            .set("fill", style.colour)
    };
    let mut text = Text::new("")
        .set("x", tenths(x))
        .set("y", tenths(y))
        .add(span(VALUE, value));
    if !detail.is_empty() {
        text = text.add(span(DETAIL, detail).set("dx", gap));
    }
    text.into()
}

fn weight(style: Style) -> &'static str {
    if style.bold { "bold" } else { "normal" }
}

pub fn rule(x: f64, y: f64, width: f64) -> Element {
    Line::new()
        .set("x1", tenths(x))
        .set("x2", tenths(x + width))
        .set("y1", tenths(y))
        .set("y2", tenths(y))
        .set("stroke", RULE)
        .into()
}

/// A spot of colour before the name that it stands for.
pub fn spot(x: f64, y: f64, colour: &str) -> Element {
    Circle::new()
        .set("cx", tenths(x))
        .set("cy", tenths(y))
        .set("r", 5)
        .set("fill", colour)
        .into()
}

/// A point of a curve; hollow, it is a single value.
pub fn point(x: f64, y: f64, colour: &str, hollow: bool) -> Element {
    Circle::new()
        .set("cx", tenths(x))
        .set("cy", tenths(y))
        .set("r", 3.5)
        .set("fill", if hollow { BACKGROUND } else { colour })
        .set("stroke", colour)
        .set("stroke-width", 1.5)
        .into()
}

pub fn line(points: impl Iterator<Item = (f64, f64)>, colour: &str) -> Element {
    Polyline::new()
        .set("points", places(points))
        .set("fill", "none")
        .set("stroke", colour)
        .set("stroke-width", 2)
        .into()
}

pub fn shade(points: impl Iterator<Item = (f64, f64)>, colour: &str) -> Element {
    Polygon::new()
        .set("points", places(points))
        .set("fill", colour)
        .set("fill-opacity", 0.15)
        .into()
}

fn places(points: impl Iterator<Item = (f64, f64)>) -> String {
    let places: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    places.join(" ")
}
