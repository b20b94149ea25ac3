//! What a scanner took, from what the guest saw and what its host read of the CPU time of all of the guest.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use sksm_records::scan::{Moment, Part, STOP_GOES_ON_SECONDS, Scanner};

/// A line of the guest's, when it came, and the CPU time by then.
pub struct Heard {
    pub at: Instant,
    pub moment: Moment,
    pub cpu_seconds: f64,
}

/// One scanner.
#[derive(Serialize)]
pub struct Course {
    pub scanner: Scanner,
    /// From its start on, with machines that are stopped.
    pub stopped: Vec<Seen>,
    /// From its start on, with machines that run.
    pub live: Vec<Moment>,
    /// After that.
    pub steady: Option<Steady>,
}

#[derive(Serialize, Clone, Copy)]
pub struct Seen {
    pub seconds: f64,
    pub saved_bytes: i64,
    /// The scanner's.
    pub cpu_seconds: f64,
}

/// What it takes once it has saved what there is to save, and machines go on writing.
#[derive(Serialize, Clone, Copy)]
pub struct Steady {
    /// So long it was watched with stopped machines; and what it took then.
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// Stops whose lines came too late to be sure of.
    pub late_stops: usize,
    /// So long machines ran and were stopped in turn, and so many merged pages were copied meanwhile.
    pub turns_seconds: f64,
    pub copied_pages: u64,
}

impl Course {
    pub fn new(scanner: Scanner, heard: &[Heard]) -> Result<Self> {
        let of = |part: Part| heard.iter().filter(move |heard| heard.moment.part == part);
        let baseline: Vec<&Heard> = of(Part::Baseline).collect();
        let (first, last) =
            (baseline.first().zip(baseline.last())).context("the kernel was not watched alone")?;
        let idle =
            (last.cpu_seconds - first.cpu_seconds) / seconds_between(first, last).max(f64::EPSILON);
        let beyond = |first: &Heard, last: &Heard| {
            last.cpu_seconds - first.cpu_seconds - idle * seconds_between(first, last)
        };
        // From before its start.
        let stopped = of(Part::Stopped).map(|heard| Seen {
            seconds: heard.moment.seconds,
            saved_bytes: heard.moment.saved_bytes,
            cpu_seconds: beyond(last, heard),
        });
        Ok(Course {
            scanner,
            stopped: stopped.collect(),
            live: of(Part::Live).map(|heard| heard.moment).collect(),
            steady: steady(heard, beyond),
        })
    }

    /// The last look with stopped machines.
    pub fn end(&self) -> Option<Seen> {
        self.stopped.last().copied()
    }

    /// When nine tenths of what it saves of stopped machines were saved.
    pub fn most(&self) -> Option<Seen> {
        let saved = self.end()?.saved_bytes;
        let mut seen = self.stopped.iter();
        let most = seen.find(|seen| seen.saved_bytes >= saved * 9 / 10);
        most.copied().filter(|_| saved > 0)
    }
}

impl Steady {
    pub fn cpu_seconds_a_minute(&self) -> f64 {
        self.cpu_seconds / self.seconds * 60.0
    }

    pub fn copied_a_minute(&self) -> f64 {
        self.copied_pages as f64 / self.turns_seconds * 60.0
    }
}

fn seconds_between(first: &Heard, last: &Heard) -> f64 {
    (last.at - first.at).as_secs_f64()
}

fn steady(heard: &[Heard], beyond: impl Fn(&Heard, &Heard) -> f64) -> Option<Steady> {
    // The guest's clock says when a line was printed, and the one that took the least time how much it is behind the host's.
    let start = heard.first()?.at;
    let behind = |heard: &Heard| (heard.at - start).as_secs_f64() - heard.moment.clock;
    let least = heard.iter().map(behind).fold(f64::INFINITY, f64::min);
    let late = |heard: &Heard| behind(heard) - least > STOP_GOES_ON_SECONDS / 2.0;

    let is = |heard: &Heard, part: Part| heard.moment.part == part;
    let stops: Vec<&[Heard]> = heard
        .windows(2)
        .filter(|pair| is(&pair[0], Part::StopBegins) && is(&pair[1], Part::StopEnds))
        .collect();
    let (first, last) = (&stops.first()?[0], &stops.last()?[1]);
    let mut steady = Steady {
        seconds: 0.0,
        cpu_seconds: 0.0,
        late_stops: 0,
        turns_seconds: last.moment.seconds - first.moment.seconds,
        copied_pages: last.moment.copied_pages - first.moment.copied_pages,
    };
    for stop in stops {
        // A beginning that is read late shortens the stop, and no more.
        if late(&stop[1]) {
            steady.late_stops += 1;
            continue;
        }
        steady.seconds += seconds_between(&stop[0], &stop[1]);
        steady.cpu_seconds += beyond(&stop[0], &stop[1]);
    }
    (steady.seconds > 0.0).then_some(steady)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A guest that takes a tenth of a CPU by itself, machines that take half of one while they run, and a scanner that takes 2 s in
    /// its first 4 s, and then a twentieth.
    struct Guest {
        start: Instant,
        at: f64,
        cpu: f64,
        heard: Vec<Heard>,
    }

    impl Guest {
        fn pass(&mut self, seconds: f64, share: f64) {
            self.at += seconds;
            self.cpu += seconds * (0.1 + share);
        }

        fn look(&mut self, part: Part, seconds: f64, saved: i64, late: f64) {
            let moment = Moment {
                part,
                seconds,
                clock: self.at,
                saved_bytes: saved,
                copied_pages: (self.at * 10.0) as u64,
                huge_pages: 0,
                cpu_seconds: None,
            };
            self.heard.push(Heard {
                at: self.start + Duration::from_secs_f64(self.at + late),
                moment,
                cpu_seconds: self.cpu + late * 0.6,
            });
        }
    }

    #[test]
    fn only_the_scanner_is_counted() {
        let mut guest = Guest {
            start: Instant::now(),
            at: 5.0,
            cpu: 40.0,
            heard: Vec::new(),
        };
        for second in 0..=10 {
            guest.look(Part::Baseline, f64::from(second), 0, 0.0);
            guest.pass(1.0, 0.0);
        }
        for second in 0..=9 {
            guest.look(
                Part::Stopped,
                f64::from(second),
                i64::from(second.min(8)) << 20,
                0.0,
            );
            guest.pass(1.0, if second < 4 { 0.5 } else { 0.05 });
        }
        for second in 0..=9 {
            guest.look(Part::Live, f64::from(second), 7 << 20, 0.0);
            guest.pass(1.0, 0.55);
        }
        for turn in 0..10 {
            guest.pass(3.0, 0.55);
            guest.look(Part::StopBegins, f64::from(turn) * 5.0, 7 << 20, 0.0);
            guest.pass(2.0, 0.05);
            // One line comes when the machines run again.
            let late = if turn == 4 { 1.0 } else { 0.0 };
            guest.look(Part::StopEnds, f64::from(turn) * 5.0 + 2.0, 7 << 20, late);
        }
        let course = Course::new(Scanner::Sksm, &guest.heard).unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a}, not {b}");
        let most = course.most().unwrap();
        near(most.seconds, 8.0);
        near(most.cpu_seconds, 2.2);
        near(course.end().unwrap().cpu_seconds, 2.25);
        assert_eq!(course.live.len(), 10);
        let steady = course.steady.unwrap();
        assert_eq!(steady.late_stops, 1);
        near(steady.seconds, 18.0);
        near(steady.cpu_seconds_a_minute(), 3.0);
        near(steady.copied_a_minute().round(), 600.0);
    }
}
