//! What scanners save: ksmd in four ways and `sksm scan` in two, each in a boot of its own, of virtual machines in User-Mode Linux, or
//! of memory in huge pages, which that has none of, in x86_64.

mod account;
mod huge;

use std::{
    ffi::OsString,
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use sksm_chart::{
    Axis, BLUE, Curve, GREEN, GREY, PALE_BLUE, PALE_GREEN, Picture, Plot, Point, RED,
};
use sksm_records::scan::{Moment, Scanner};

use super::{Args, results};
use crate::{
    ground::{project::Project, qemu},
    guest::{self, Boot, programs},
    kernel::{self, Arch, Origin},
    terminal::{
        format::{seconds, thousands},
        table::Table,
    },
    verbs::shared::{
        ksmd_watch::cpu_seconds_of_descendants,
        measurement::{self, Out},
    },
};
use account::{Course, Heard};

/// As it is called beside the families of the other benchmark.
pub const NAME: &str = "scan";

const MEMORY: &str = "2G";

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    type Of = fn(&Project, &Args, &Origin, &Out) -> Result<()>;
    let (directory, of): (&str, Of) = match args.arch {
        Arch::Um => (NAME, machines),
        Arch::X86_64 => ("scan-huge", huge::run),
        _ => bail!(
            "scanners are compared over machines with --arch um, and over huge pages with --arch x86_64"
        ),
    };
    let out = Out::create(match &args.out {
        Some(out) => out.clone(),
        None => results(project, origin).join(directory),
    })?;
    of(project, args, origin, &out)?;
    Ok(ExitCode::SUCCESS)
}

/// All of them, or those that need the least time.
fn scanners(args: &Args) -> &'static [Scanner] {
    match args.quick {
        true => &[Scanner::Nobody, Scanner::KsmdFast, Scanner::SksmSoon],
        false => &Scanner::ALL,
    }
}

fn machines(project: &Project, args: &Args, origin: &Origin, out: &Out) -> Result<()> {
    let um = kernel::build(project, Arch::Um, origin)?;
    let machine = kernel::build(project, Arch::X86_64, origin)?;
    let programs = programs::guest_programs(project)?;
    let initrd = project.target.join("sksm/machine.cpio");
    fs::write(&initrd, guest::machine()?)
        .with_context(|| format!("cannot write {}", initrd.display()))?;
    let mut courses = Vec::new();
    for scanner in scanners(args) {
        let mut command: Vec<OsString> = vec![
            programs.join("sksm-vms").into(),
            "machines".into(),
            "--scanner".into(),
            scanner.name().into(),
            "--machines".into(),
            args.guests.to_string().into(),
            "--kernel".into(),
            machine.image.clone().into(),
            "--initrd".into(),
            initrd.clone().into(),
        ];
        if args.quick {
            let lengths = ["--stopped", "60", "--live", "40", "--turns", "40"];
            command.extend(lengths.map(OsString::from));
        }
        command.push("--".into());
        let emulator = qemu::X86_64.command(project);
        command.push(emulator.get_program().into());
        command.extend(emulator.get_args().map(OsString::from));
        let boot = Boot::new(project, &um)
            .mem(MEMORY)
            .parameters("")
            .timeout(Duration::from_secs(3600));
        let mut heard = Vec::new();
        let doing = format!("watching {}", scanner.label());
        let outcome = measurement::follow(boot, doing, &command, &[0], |_, _, moment: Moment| {
            let cpu_seconds = cpu_seconds_of_descendants().unwrap_or(f64::NAN);
            let at = Instant::now();
            heard.push(Heard {
                at,
                moment,
                cpu_seconds,
            });
        })?;
        outcome.check_splats()?;
        let course = Course::new(*scanner, &heard)?;
        print!("{}", table(&[&course]));
        courses.push(course);
    }
    let all: Vec<&Course> = courses.iter().collect();
    print!("\n{}", table(&all));
    out.json("scan.json", &courses)?;
    out.text("scan.svg", &picture(&courses, args.guests))
}

fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// Also of what is next to nothing.
fn cpu(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

fn table(courses: &[&Course]) -> String {
    let mut table = Table::new([
        "",
        "saved",
        "of stopped ones",
        "90 % of it after",
        "CPU time by then",
        "in all",
        "then a minute",
        "copied a minute",
    ]);
    let told = |value: Option<String>| value.unwrap_or("-".into());
    for course in courses {
        let (end, most, steady) = (course.end(), course.most(), course.steady);
        let live = course.live.last();
        table.row([
            course.scanner.label().to_owned(),
            told(live.map(|moment| mib(moment.saved_bytes as f64))),
            told(end.map(|seen| mib(seen.saved_bytes as f64))),
            told(most.map(|seen| seconds(seen.seconds))),
            told(most.map(|seen| cpu(seen.cpu_seconds))),
            told(end.map(|seen| cpu(seen.cpu_seconds))),
            told(steady.map(|steady| cpu(steady.cpu_seconds_a_minute()))),
            told(steady.map(|steady| {
                let pages = steady.copied_a_minute().round() as i64;
                format!("{} pages", thousands(pages))
            })),
        ]);
    }
    table.render()
}

/// One for each scanner.
const COLOURS: [&str; 6] = [GREY, PALE_BLUE, BLUE, RED, GREEN, PALE_GREEN];

fn picture(courses: &[Course], guests: usize) -> String {
    let scanning = courses
        .iter()
        .filter(|course| course.scanner != Scanner::Nobody);
    let curves = |points: fn(&Course) -> Vec<(f64, f64)>| {
        let all = scanning.clone().zip(COLOURS);
        all.map(|(course, colour)| Curve {
            label: course.scanner.label().to_owned(),
            colour,
            points: (points(course).into_iter())
                .map(|(at, median)| Point {
                    at: at.max(0.01),
                    median: median.max(0.0),
                    half: None,
                })
                .collect(),
        })
        .collect()
    };
    let plot = |title: &str, across: &str, curves| Plot {
        title: title.into(),
        across: across.into(),
        axis: Axis::Even,
        mark: |at| format!("{at} s"),
        scale: mib,
        curves,
    };
    let mut picture = Picture::new();
    picture.title(
        "What scanners save of virtual machines",
        &format!("{guests} machines of 192 MiB under QEMU: one rewrites memory, one boots again, the others are idle"),
    );
    let live = plot(
        "Saved while they run",
        "since the scanner was started",
        curves(|course| {
            let live = course.live.iter();
            live.map(|moment| (moment.seconds, moment.saved_bytes as f64))
                .collect()
        }),
    );
    let stopped = plot(
        "Saved while they are stopped",
        "CPU time of the scanner",
        curves(|course| {
            let stopped = course.stopped.iter();
            stopped
                .map(|seen| (seen.cpu_seconds, seen.saved_bytes as f64))
                .collect()
        }),
    );
    picture.plots([&live, &stopped]);
    picture.finish()
}
