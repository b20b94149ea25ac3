//! A picture, and how far down it is drawn.

use svg::Document;
use svg::node::element::Element;

use crate::bars::{self, Bar};
use crate::ink::{self, HEADING, LEGEND, REMARK, Style, TITLE};
use crate::plot::{self, Plot};

/// What a picture is wide, unless something in it needs more.
const WIDTH: f64 = 960.0;
pub const MARGIN: f64 = 40.0;
/// Where the bars start, unless their labels need more.
const BARS_X: f64 = 250.0;
const BAR_HEIGHT: f64 = 30.0;
const BAR_GAP: f64 = 16.0;
/// Of bars that are many.
const DENSE_HEIGHT: f64 = 20.0;
const DENSE_GAP: f64 = 7.0;
/// Between two plots beside each other.
const PLOT_GAP: f64 = 70.0;
const FONTS: &str = "Helvetica, Arial, 'Liberation Sans', sans-serif";

/// What has been drawn so far.
pub struct Picture {
    elements: Vec<Element>,
    /// How far down.
    pub(crate) y: f64,
    /// How far to the right.
    right: f64,
    pub(crate) bars_x: f64,
    pub(crate) bar: f64,
    pub(crate) gap: f64,
}

impl Default for Picture {
    fn default() -> Self {
        Self::new()
    }
}

impl Picture {
    /// For a few bars.
    pub fn new() -> Self {
        Self {
            elements: Vec::new(),
            y: 58.0,
            right: WIDTH - MARGIN / 2.0,
            bars_x: BARS_X,
            bar: BAR_HEIGHT,
            gap: BAR_GAP,
        }
    }

    /// For many bars, and curves.
    pub fn dense() -> Self {
        Self {
            bar: DENSE_HEIGHT,
            gap: DENSE_GAP,
            ..Self::new()
        }
    }

    /// What it is about, and where that was measured.
    pub fn title(&mut self, title: &str, setting: &str) {
        self.line(TITLE, title);
        self.y += 26.0;
        self.line(REMARK, setting);
        self.y += 48.0;
    }

    /// More under the title.
    pub fn remark(&mut self, text: &str) {
        self.y -= 26.0;
        self.line(REMARK, text);
        self.y += 48.0;
    }

    /// What colours stand for, under the title.
    pub fn legend(&mut self, names: &[(&'static str, &str)]) {
        self.y -= 26.0;
        self.spots(MARGIN, WIDTH - 2.0 * MARGIN, names.iter().copied());
        self.y += 48.0;
    }

    /// Between two groups.
    pub fn space(&mut self) {
        self.y += 34.0;
    }

    /// Bars on a scale of their own.
    pub fn group(&mut self, title: &str, bars: &[Bar]) {
        self.heading(title, bars);
        bars::draw(self, bars, bars::longest(bars));
    }

    /// Several groups on one scale, under one title.
    pub fn groups(&mut self, title: &str, groups: &[Vec<Bar>]) {
        self.heading(title, groups.iter().flatten());
        let longest = bars::longest(groups.iter().flatten());
        for bars in groups {
            bars::draw(self, bars, longest);
            self.y += self.gap;
        }
        self.y -= self.gap;
    }

    /// Before bars, which start where all labels have room. To take the margin for it is less bad than bars that start elsewhere
    /// than those of the next group.
    fn heading<'a>(&mut self, title: &str, bars: impl IntoIterator<Item = &'a Bar>) {
        self.line(HEADING, title);
        self.y += 18.0;
        let labels = bars::labels(bars);
        self.bars_x = match labels > BARS_X {
            true => labels + MARGIN / 2.0,
            false => BARS_X,
        };
    }

    /// Two plots beside each other.
    pub fn plots(&mut self, plots: [&Plot; 2]) {
        let top = self.y;
        let width = (WIDTH - 2.0 * MARGIN - PLOT_GAP) / 2.0;
        let mut bottom = top;
        for (plot, x) in plots.into_iter().zip([MARGIN, MARGIN + width + PLOT_GAP]) {
            self.y = top;
            plot::draw(self, plot, x, width);
            bottom = f64::max(bottom, self.y);
        }
        self.y = bottom;
    }

    /// The text of the SVG.
    pub fn finish(self) -> String {
        let width = (self.right + MARGIN / 2.0).ceil();
        let height = (self.y + MARGIN / 2.0).round();
        let mut document = Document::new()
            .set("viewBox", (0, 0, width, height))
            .set("width", width)
            .set("height", height)
            .set("font-family", FONTS)
            .add(ink::background(width, height));
        for element in self.elements {
            document = document.add(element);
        }
        format!("{document}\n")
    }

    pub(crate) fn add(&mut self, element: Element) {
        self.elements.push(element);
    }

    /// The picture is at least so wide.
    pub(crate) fn reaches(&mut self, x: f64) {
        self.right = self.right.max(x);
    }

    /// Text at the left.
    fn line(&mut self, style: Style, text: &str) {
        self.text(MARGIN, self.y, style, text);
        self.reaches(MARGIN + style.width(text));
    }

    pub(crate) fn text(&mut self, x: f64, y: f64, style: Style, text: &str) {
        self.add(ink::text(x, y, style, text));
    }

    /// Spots of colour, each before its name, beside each other, and below where they would be wider than this.
    pub(crate) fn spots<'a>(
        &mut self,
        left: f64,
        width: f64,
        names: impl Iterator<Item = (&'static str, &'a str)>,
    ) {
        let mut x = left;
        for (colour, name) in names {
            let long = 7.0 * name.chars().count() as f64;
            if x > left && x + 15.0 + long > left + width {
                x = left;
                self.y += 20.0;
            }
            self.add(ink::spot(x + 5.0, self.y - 4.5, colour));
            self.text(x + 15.0, self.y, LEGEND, name);
            x += 36.0 + long;
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;

    use svg::parser::Event;

    use super::*;
    use crate::colours::GREEN;

    /// The attributes of all elements of this name, in order.
    pub fn shapes(text: &str, wanted: &str) -> Vec<HashMap<String, String>> {
        let mut found = Vec::new();
        for event in svg::read(text).unwrap() {
            match event {
                Event::Tag(name, _, attributes) if name == wanted => {
                    let owned = attributes.into_iter();
                    let owned = owned.map(|(name, value)| (name, String::from(value)));
                    found.push(owned.collect::<HashMap<_, _>>());
                }
                Event::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        // Closing tags have none.
        found.retain(|attributes| !attributes.is_empty());
        found
    }

    #[test]
    fn text_is_no_markup() {
        let mut picture = Picture::new();
        picture.title("<b>&", "a < b");
        let text = picture.finish();
        assert!(text.contains("&lt;b&gt;&amp;") && text.contains("a &lt; b"));
    }

    #[test]
    fn it_is_as_wide_as_what_is_written() {
        let width = |picture: Picture| {
            let width = &shapes(&picture.finish(), "svg")[0]["width"];
            width.parse::<f64>().unwrap()
        };
        assert_eq!(width(Picture::new()), WIDTH);
        let bar = |label: &str, remark: &str| Bar {
            label: label.into(),
            value: 1.0,
            shown: "1 MiB".into(),
            remark: remark.into(),
            colour: GREEN,
            end: None,
        };
        let mut short = Picture::new();
        short.group("title", &[bar("a", "b")]);
        assert_eq!(width(short), WIDTH);
        let long = "a long label, or another text".repeat(4);
        for bar in [bar(&long, "b"), bar("a", &long)] {
            let mut picture = Picture::new();
            picture.group("title", &[bar]);
            assert!(width(picture) > WIDTH);
        }
        let mut picture = Picture::new();
        picture.title("title", &long.repeat(2));
        assert!(width(picture) > WIDTH);
    }
}
