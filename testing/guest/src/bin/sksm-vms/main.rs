//! Memory of many, and a scanner that looks at it: a line of JSON for each look at what it saves.

mod huge;
mod machines;
mod running;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_records::scan::{Part, STOP_GOES_ON_SECONDS, Scanner};

use machines::Machines;
use running::Running;
use watch::Watch;

/// Starts a scanner beside those who have memory in common, and prints what is saved
#[derive(Parser)]
enum Arguments {
    /// Boots machines under QEMU
    Machines(OfMachines),
    /// Processes with memory in huge pages, whose owners are at rest
    HugePages {
        /// Who scans
        #[arg(long, value_parser = scanner)]
        scanner: Scanner,
        /// How long it is watched, in seconds, at most
        #[arg(long, default_value_t = 600)]
        most: u64,
    },
}

#[derive(clap::Args)]
struct OfMachines {
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
    let ran = match Arguments::parse() {
        Arguments::Machines(arguments) => beside_machines(&arguments),
        Arguments::HugePages { scanner, most } => huge::watch(scanner, Duration::from_secs(most)),
    };
    match ran {
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

fn beside_machines(arguments: &OfMachines) -> Result<()> {
    SKSM.write("domain", "user")?;
    let scanner = arguments.scanner;
    let mut watch = Watch::new();
    watch.begin(&format!("booting {} machines", arguments.machines));
    let mut machines = Machines::boot(
        arguments.machines,
        &arguments.qemu,
        &arguments.kernel,
        &arguments.initrd,
    )?;
    machines.until_ready()?;
    sleep(Duration::from_secs(arguments.settle));

    machines.stop()?;
    watch.begin("machines stopped, nobody scans");
    watch.look_for(Part::Baseline, BASELINE, EVERY_STOPPED)?;
    watch.begin(&format!("machines stopped, {} at work", scanner.label()));
    let running = Running::start(scanner)?;
    let most = Duration::from_secs(arguments.stopped);
    watch.look_until_settled(&running, most, EVERY_STOPPED)?;
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
    while watch.elapsed() < Duration::from_secs(arguments.turns) {
        sleep(RUNS);
        machines.stop()?;
        watch.look(Part::StopBegins, None)?;
        let goes_on = Duration::from_secs_f64(STOP_GOES_ON_SECONDS);
        sleep(STOPS - goes_on);
        watch.look(Part::StopEnds, None)?;
        sleep(goes_on);
        machines.go_on();
    }
    drop(running);
    KSM.write("run", 0)
}
