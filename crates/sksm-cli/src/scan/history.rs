//! What was saved over time, and what it took.

use sksm_chart::{Axis, BLUE, Curve, GREEN, Picture, Plot, Point, RED};

#[derive(Clone, Copy)]
pub struct Moment {
    pub seconds: f64,
    /// In bytes.
    pub saved: i64,
    pub huge: u64,
    /// In seconds.
    pub cpu: f64,
}

/// Of all the time, and never more than a picture can show.
#[derive(Default)]
pub struct History {
    moments: Vec<Moment>,
    /// One of so many is kept, and so many came since the last that was.
    each: usize,
    since: usize,
}

const MOST: usize = 512;

impl History {
    pub fn add(&mut self, moment: Moment) {
        self.since += 1;
        if self.since < self.each {
            return;
        }
        self.since = 0;
        self.moments.push(moment);
        if self.moments.len() == MOST {
            let mut number = 0;
            self.moments.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            self.each = self.each.max(1) * 2;
        }
    }

    /// An SVG.
    pub fn picture(&self) -> String {
        let most = |of: fn(&Moment) -> f64| self.moments.iter().map(of).fold(0.0, f64::max);
        let time = unit(&TIMES, most(|moment| moment.seconds));
        let size = unit(&SIZES, most(saved).max(most(huge)));
        let curve = |label: &str, colour, of: fn(&Moment) -> f64, unit: &Unit| Curve {
            label: label.into(),
            colour,
            points: (self.moments.iter())
                .map(|moment| Point {
                    at: moment.seconds / time.size,
                    median: of(moment) / unit.size,
                    half: None,
                })
                .collect(),
        };
        let plot = |title: String, curves| Plot {
            title,
            across: format!("{} since the start", time.name),
            axis: Axis::Even,
            mark: |time| time.to_string(),
            scale: value,
            curves,
        };
        let memory = plot(
            format!("Memory, {}", size.name),
            vec![
                curve("saved", GREEN, saved, size),
                curve("in huge pages", BLUE, huge, size),
            ],
        );
        let cpu = plot(
            "CPU time of the scanner, seconds".into(),
            vec![curve("in all", RED, |moment| moment.cpu, &TIMES[0])],
        );
        let mut picture = Picture::new();
        picture.title("sksm scan", "what it saves, and what it takes");
        picture.plots([&memory, &cpu]);
        picture.finish()
    }
}

fn saved(moment: &Moment) -> f64 {
    moment.saved.max(0) as f64
}

fn huge(moment: &Moment) -> f64 {
    moment.huge as f64
}

/// Axes have round numbers of it.
struct Unit {
    name: &'static str,
    size: f64,
    /// It is taken for what is at least so much of it.
    from: f64,
}

/// From small to large.
const TIMES: [Unit; 4] = [
    Unit::new("seconds", 1.0, 0.0),
    Unit::new("minutes", 60.0, 5.0),
    Unit::new("hours", 3600.0, 5.0),
    Unit::new("days", 86_400.0, 5.0),
];
const SIZES: [Unit; 3] = [
    Unit::new("KiB", 1024.0, 0.0),
    Unit::new("MiB", 1_048_576.0, 2.0),
    Unit::new("GiB", 1_073_741_824.0, 2.0),
];

impl Unit {
    const fn new(name: &'static str, size: f64, from: f64) -> Self {
        Unit { name, size, from }
    }
}

fn unit(units: &[Unit], most: f64) -> &Unit {
    let fits = |unit: &&Unit| most >= unit.from * unit.size;
    units.iter().rev().find(fits).unwrap_or(&units[0])
}

/// Without what a binary fraction adds to it. Where all is zero, so is the axis, and a line of it that is next to nothing has no number.
fn value(value: f64) -> String {
    let round = (value * 1000.0).round() / 1000.0;
    match round == 0.0 && value > 0.0 {
        true => String::new(),
        false => round.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut history = History::default();
        for second in 0..100_000 {
            history.add(Moment {
                seconds: f64::from(second),
                saved: 0,
                huge: 0,
                cpu: 0.0,
            });
        }
        let all = &history.moments;
        assert!((MOST / 4..MOST).contains(&all.len()), "{}", all.len());
        assert!(all.windows(2).all(|two| two[0].seconds < two[1].seconds));
        assert!(all[0].seconds < 1000.0 && all[all.len() - 1].seconds > 99_000.0);
    }

    /// Of so many seconds, with so much saved in the end.
    fn drawn(seconds: f64, saved: f64) -> String {
        let mut history = History::default();
        for moment in 0..=300 {
            let part = f64::from(moment) / 300.0;
            history.add(Moment {
                seconds: seconds * part,
                saved: (saved * (1.0 - (-6.0 * part).exp())) as i64,
                huge: (saved * 0.4 * (1.0 - 0.5 * part)) as u64,
                cpu: seconds * 0.05 * part.sqrt(),
            });
        }
        history.picture()
    }

    #[test]
    fn axes_have_round_numbers() {
        const GIB: f64 = 1_073_741_824.0;
        for (seconds, saved, across, title, marks) in [
            (100.0, 0.0, "seconds", "KiB", ["20", "40", "80"]),
            (600.0, GIB, "minutes", "MiB", ["2", "8", "500"]),
            (7920.0, 3.2 * GIB, "minutes", "GiB", ["50", "100", "3"]),
            (100_000.0, 40.0 * GIB, "hours", "GiB", ["5", "25", "40"]),
        ] {
            let text = drawn(seconds, saved);
            let words: Vec<&str> = text.split(['<', '>', '\n']).collect();
            assert!(
                words.contains(&&*format!("{across} since the start")),
                "{text}"
            );
            assert!(words.contains(&&*format!("Memory, {title}")), "{text}");
            for mark in marks {
                assert!(words.contains(&mark), "{seconds}: no {mark} in {text}");
            }
            // No number is longer than there is room for.
            let numbers = words.iter().filter(|word| word.parse::<f64>().is_ok());
            assert!(numbers.clone().count() > 5 && numbers.clone().all(|word| word.len() < 7));
        }
    }
}
