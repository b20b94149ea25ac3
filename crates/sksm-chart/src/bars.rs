//! Bars beside each other's labels and values.

use crate::ink::{self, DETAIL, LABEL, VALUE};
use crate::picture::Picture;

/// How long the longest bar is.
const LONGEST: f64 = 380.0;
/// Between the label and the bar, between the bar and the value, and between the value and the detail.
const BEFORE: f64 = 14.0;
const AFTER: f64 = 12.0;
const BETWEEN: f64 = 10.0;

/// One bar.
pub struct Bar {
    /// What it is called.
    pub label: String,
    /// How long it is; on the scale of its group.
    pub value: f64,
    /// What is written after it.
    pub shown: String,
    /// And behind that, smaller.
    pub remark: String,
    /// Its colour.
    pub colour: &'static str,
    /// So much of the value, at the bar's end, has another one.
    pub end: Option<(f64, &'static str)>,
}

/// The value of the longest, which the others are drawn by.
pub fn longest<'a>(bars: impl IntoIterator<Item = &'a Bar>) -> f64 {
    let values = bars.into_iter().map(|bar| bar.value);
    values.fold(f64::MIN_POSITIVE, f64::max)
}

/// So much room the labels take.
pub fn labels<'a>(bars: impl IntoIterator<Item = &'a Bar>) -> f64 {
    let widths = bars.into_iter().map(|bar| LABEL.most(&bar.label));
    widths.fold(0.0, f64::max) + BEFORE
}

pub fn draw(picture: &mut Picture, bars: &[Bar], longest: f64) {
    let (x, height) = (picture.bars_x, picture.bar);
    for bar in bars {
        // Thin, but never invisible.
        let long = |value: f64| (value / longest * LONGEST).max(2.0);
        let (top, width) = (picture.y, long(bar.value));
        match bar.end {
            None => picture.add(ink::bar(x, top, width, height, bar.colour)),
            Some((end, colour)) => {
                picture.add(ink::bar(x, top, width, height, colour));
                let rest = bar.value - end;
                if rest > 0.0 {
                    picture.add(ink::bar(x, top, long(rest), height, bar.colour));
                }
            }
        }
        let line = top + height / 2.0 + 5.0;
        picture.add(ink::text(x - BEFORE, line, LABEL, &bar.label));
        let after = x + width + AFTER;
        picture.add(ink::value(after, line, &bar.shown, BETWEEN, &bar.remark));
        picture.reaches(after + VALUE.width(&bar.shown) + BETWEEN + DETAIL.width(&bar.remark));
        picture.y = top + height + picture.gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colours::{GREEN, GREY};
    use crate::picture::tests::shapes;

    fn bar(value: f64) -> Bar {
        Bar {
            label: "bar".into(),
            value,
            shown: "4".into(),
            remark: String::new(),
            colour: GREY,
            end: None,
        }
    }

    fn widths(picture: Picture, colour: &str) -> Vec<f64> {
        let all = shapes(&picture.finish(), "rect");
        let own = all.into_iter().filter(|rect| rect["fill"] == *colour);
        own.map(|rect| rect["width"].parse().unwrap()).collect()
    }

    #[test]
    fn groups_have_one_scale() {
        let mut picture = Picture::dense();
        picture.groups("title", &[vec![bar(1.0)], vec![bar(4.0)]]);
        assert_eq!(widths(picture, GREY), [LONGEST / 4.0, LONGEST]);
    }

    #[test]
    fn a_part_has_its_share_of_the_bar() {
        let mut picture = Picture::new();
        let end = Some((1.0, GREEN));
        let all = Some((4.0, GREEN));
        let bars = [end, all].map(|end| Bar { end, ..bar(4.0) });
        picture.group("title", &bars);
        let text = picture.finish();
        let of = |colour: &str| {
            let all = shapes(&text, "rect").into_iter();
            all.filter(|rect| rect["fill"] == *colour).count()
        };
        assert_eq!((of(GREEN), of(GREY)), (2, 1));
        let rest = &shapes(&text, "rect")[2];
        assert_eq!(rest["width"].parse::<f64>().unwrap(), LONGEST * 0.75);
    }

    #[test]
    fn no_label_is_cut() {
        for letters in [3, 26, 40] {
            let label = "0".repeat(letters);
            let mut picture = Picture::new();
            picture.group("title", &[Bar { label, ..bar(1.0) }]);
            let texts = shapes(&picture.finish(), "text");
            let label = texts
                .iter()
                .find(|text| text.get("text-anchor").is_some_and(|at| at == "end"));
            let end: f64 = label.unwrap()["x"].parse().unwrap();
            // What a digit of DejaVu Sans takes, and the margin.
            assert!(end - 15.0 * 0.6 * letters as f64 > 0.0, "{letters}: {end}");
        }
    }

    #[test]
    fn nothing_is_no_longest_bar() {
        let mut picture = Picture::new();
        picture.group("title", &[bar(0.0)]);
        assert_eq!(widths(picture, GREY), [2.0]);
    }
}
