//! Memory in huge pages: what scanners save of it, and how many they leave whole.

use std::{ffi::OsString, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use sksm_chart::{Axis, Curve, Picture, Plot, Point};
use sksm_records::scan::{Moment, Part, Scanner};

use super::{COLOURS, cpu, mib, scanners};
use crate::{
    ground::project::Project,
    guest::{Boot, programs},
    kernel::{self, Arch, Origin},
    terminal::{format::seconds, table::Table},
    verbs::{
        bench::Args,
        shared::measurement::{self, Out},
    },
};

const MEMORY: &str = "1G";

/// One scanner.
#[derive(Serialize)]
struct Course {
    scanner: Scanner,
    /// Huge pages before it was started.
    huge_pages_before: u64,
    moments: Vec<Moment>,
}

pub fn run(project: &Project, args: &Args, origin: &Origin, out: &Out) -> Result<()> {
    let kernel = kernel::build(project, Arch::X86_64, origin)?;
    let programs = programs::guest_programs(project)?;
    let mut courses = Vec::new();
    for scanner in scanners(args) {
        let command: [OsString; 4] = [
            programs.join("sksm-vms").into(),
            "huge-pages".into(),
            "--scanner".into(),
            scanner.name().into(),
        ];
        let boot = Boot::new(project, &kernel)
            .mem(MEMORY)
            .parameters("")
            .timeout(Duration::from_secs(3600));
        let mut heard: Vec<Moment> = Vec::new();
        let doing = format!("watching {}", scanner.label());
        let outcome = measurement::follow(boot, doing, &command, &[0], |_, _, moment| {
            heard.push(moment);
        })?;
        outcome.check_splats()?;
        let course = Course::new(*scanner, heard)?;
        print!("{}", table(&[&course]));
        courses.push(course);
    }
    let all: Vec<&Course> = courses.iter().collect();
    print!("\n{}", table(&all));
    out.json("scan-huge.json", &courses)?;
    out.text("scan-huge.svg", &picture(&courses))
}

impl Course {
    fn new(scanner: Scanner, mut moments: Vec<Moment>) -> Result<Self> {
        let before = moments
            .iter()
            .position(|moment| moment.part == Part::Baseline);
        let before =
            moments.remove(before.context("nobody has looked before the scanner was started")?);
        moments
            .last()
            .context("nobody has looked since the scanner was started")?;
        Ok(Self {
            scanner,
            huge_pages_before: before.huge_pages,
            moments,
        })
    }

    fn end(&self) -> Moment {
        self.moments[self.moments.len() - 1]
    }

    /// When nine tenths of what it saves were saved.
    fn most(&self) -> Option<Moment> {
        let saved = self.end().saved_bytes;
        let mut moments = self.moments.iter().copied();
        moments.find(|moment| saved > 0 && moment.saved_bytes >= saved * 9 / 10)
    }
}

fn table(courses: &[&Course]) -> String {
    let mut table = Table::new([
        "",
        "saved",
        "huge pages left",
        "90 % of it after",
        "CPU time by then",
        "in all",
    ]);
    let told = |value: Option<String>| value.unwrap_or("-".into());
    for course in courses {
        let (end, most) = (course.end(), course.most());
        table.row([
            course.scanner.label().to_owned(),
            mib(end.saved_bytes as f64),
            format!("{} of {}", end.huge_pages, course.huge_pages_before),
            told(most.map(|moment| seconds(moment.seconds))),
            told(most.and_then(|moment| moment.cpu_seconds).map(cpu)),
            told(end.cpu_seconds.map(cpu)),
        ]);
    }
    table.render()
}

fn picture(courses: &[Course]) -> String {
    let scanning = (courses.iter()).filter(|course| course.scanner != Scanner::Nobody);
    let plot = |title: &str, scale: fn(f64) -> String, value: fn(&Moment) -> f64| Plot {
        title: title.into(),
        across: "since the scanner was started".into(),
        axis: Axis::Even,
        mark: |at| format!("{at} s"),
        scale,
        curves: (scanning.clone().zip(COLOURS))
            .map(|(course, colour)| Curve {
                label: course.scanner.label().to_owned(),
                colour,
                points: (course.moments.iter())
                    .map(|moment| Point {
                        at: moment.seconds.max(0.01),
                        median: value(moment),
                        half: None,
                    })
                    .collect(),
            })
            .collect(),
    };
    let mut picture = Picture::new();
    picture.title(
        "What scanners leave of huge pages",
        "four processes at rest with 32 MiB in huge pages and 32 MiB in small ones",
    );
    let saved = plot("Saved", mib, |moment| moment.saved_bytes as f64);
    let left = plot(
        "Huge pages",
        |count| format!("{count:.0}"),
        |moment| moment.huge_pages as f64,
    );
    picture.plots([&saved, &left]);
    picture.finish()
}
