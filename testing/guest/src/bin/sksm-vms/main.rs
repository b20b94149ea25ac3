//! Virtual machines, and a scanner that looks at their memory: a line of JSON for each look at what it saves.

mod machines;
mod running;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::page::PAGE;
use sksm_records::scan::{Moment, Part, STOP_GOES_ON_SECONDS, Scanner};

use machines::Machines;
use running::Running;

/// Boots machines under QEMU, starts a scanner, and prints what is saved
#[derive(Parser)]
struct Arguments {
    /// Who scans
    #[arg(long, value_parser = scanner)]
    scanner: Scanner,
    #[arg(long, default_value_t = 4)]
    machines: usize,
    /// How long the machines run alone first, in seconds
    #[arg(long, default_value_t = 20)]
    settle: u64,
    /// How long the scanner is watched while they are stopped, at most
    #[arg(long, default_value_t = 900)]
    stopped: u64,
    /// While they run
    #[arg(long, default_value_t = 240)]
    live: u64,
    /// And then while they are stopped and run in turn
    #[arg(long, default_value_t = 240)]
    turns: u64,
    /// What the machines boot
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    /// QEMU, and what it needs on this machine
    #[arg(last = true, required = true)]
    qemu: Vec<String>,
}

fn scanner(name: &str) -> Result<Scanner, String> {
    let found = Scanner::ALL
        .into_iter()
        .find(|scanner| scanner.name() == name);
    found.ok_or_else(|| format!("there is no {name}"))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The kernel's own share is known well after so long.
const BASELINE: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(2);
/// Stopped machines do not mind looks; some scanners are done soon.
const EVERY_STOPPED: Duration = Duration::from_millis(200);
/// No multiples of each other, nor together of the times that scanners wait.
const RUNS: Duration = Duration::from_millis(3100);
const STOPS: Duration = Duration::from_millis(2600);
/// So many rounds without more than a hundredth, and there is no more to come.
const ROUNDS_WITHOUT_PROGRESS: f64 = 2.0;

/// Prints what there is to be seen.
struct Watch {
    program: Instant,
    part: Instant,
}

impl Watch {
    fn begin(&mut self, doing: &str) {
        eprintln!("{doing}");
        self.part = Instant::now();
    }

    fn look(&self, part: Part) -> Result<Moment> {
        // KSM's count of zero pages is of both.
        let shared = SKSM.number("pages_sharing")? + KSM.number("pages_sharing")?;
        let pages = shared + KSM.number("ksm_zero_pages")?;
        let moment = Moment {
            part,
            seconds: self.part.elapsed().as_secs_f64(),
            clock: self.program.elapsed().as_secs_f64(),
            saved_bytes: pages * PAGE as i64,
            copied_pages: vmstat("cow_ksm"),
        };
        println!("{}", serde_json::to_string(&moment)?);
        Ok(moment)
    }

    fn look_for(&self, part: Part, length: Duration, every: Duration) -> Result<()> {
        while self.part.elapsed() < length {
            self.look(part)?;
            std::thread::sleep(every);
        }
        self.look(part).map(drop)
    }

    /// Until no more of note is saved.
    fn look_until_settled(
        &self,
        running: &Running,
        scanner: Scanner,
        most: Duration,
    ) -> Result<()> {
        let mut seen: Vec<(f64, i64)> = Vec::new();
        loop {
            let moment = self.look(Part::Stopped)?;
            let rounds = running.rounds(moment.seconds)?;
            seen.push((rounds, moment.saved_bytes));
            let before = seen
                .iter()
                .rev()
                .find(|(round, _)| *round <= rounds - ROUNDS_WITHOUT_PROGRESS);
            let grown = before.map(|(_, saved)| moment.saved_bytes - saved);
            let begun = moment.saved_bytes > 0 || scanner == Scanner::Nobody;
            let settled = grown.is_some_and(|grown| grown <= moment.saved_bytes / 100);
            if begun && settled || self.part.elapsed() >= most {
                return Ok(());
            }
            std::thread::sleep(EVERY_STOPPED);
        }
    }
}

fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn run(arguments: &Arguments) -> Result<()> {
    SKSM.write("domain", "user")?;
    let scanner = arguments.scanner;
    let now = Instant::now();
    let mut watch = Watch {
        program: now,
        part: now,
    };
    watch.begin(&format!("booting {} machines", arguments.machines));
    let mut machines = Machines::boot(
        arguments.machines,
        &arguments.qemu,
        &arguments.kernel,
        &arguments.initrd,
    )?;
    machines.until_ready()?;
    std::thread::sleep(Duration::from_secs(arguments.settle));

    machines.stop()?;
    watch.begin("machines stopped, nobody scans");
    watch.look_for(Part::Baseline, BASELINE, EVERY_STOPPED)?;
    watch.begin(&format!("machines stopped, {} at work", scanner.label()));
    let running = Running::start(scanner)?;
    watch.look_until_settled(&running, scanner, Duration::from_secs(arguments.stopped))?;
    drop(running);
    running::forget()?;
    machines.go_on();

    watch.begin(&format!("machines running, {} at work", scanner.label()));
    let running = Running::start(scanner)?;
    watch.look_for(Part::Live, Duration::from_secs(arguments.live), EVERY)?;
    watch.begin(&format!(
        "machines stopped in turn, {} at work",
        scanner.label()
    ));
    while watch.part.elapsed() < Duration::from_secs(arguments.turns) {
        std::thread::sleep(RUNS);
        machines.stop()?;
        watch.look(Part::StopBegins)?;
        let goes_on = Duration::from_secs_f64(STOP_GOES_ON_SECONDS);
        std::thread::sleep(STOPS - goes_on);
        watch.look(Part::StopEnds)?;
        std::thread::sleep(goes_on);
        machines.go_on();
    }
    drop(running);
    KSM.write("run", 0)
}
