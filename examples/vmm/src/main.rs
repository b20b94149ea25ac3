//! VMMs that merge their guests' memory while the guests run, and are told by nobody when it is at rest: each has a [`Tracker`] for it,
//! in a thread of its own.
//!
//! Three guests hold the same image; one is idle, one writes now and then, one all the time. They merge all that is stable, or with
//! `--service SOCKET` only what has a twin, as `sksm scan --serve SOCKET` tells. `sksm-vmm measure` tells what looking at a page costs.

mod guest;
mod measure;
mod vm;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guest::{PAGES, Rate};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Longer than it takes, even where a machine is emulated.
const PATIENCE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [] => host(None),
        ["--service", socket] => host(Some(socket)),
        ["vm", rate] => vm::run(rate, None),
        ["vm", rate, socket] => vm::run(rate, Some(socket)),
        ["measure"] => measure::run(),
        _ => Err("usage: sksm-vmm [measure | --service SOCKET]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A VMM, which answers each line with a line.
struct Vm {
    rate: Rate,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Vm {
    fn start(rate: Rate, service: Option<&str>) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["vm", rate.name()])
            .args(service)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Vm {
            rate,
            child,
            input,
            output: BufReader::new(output.ok_or("no output")?),
        })
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim() {
            "" => Err(format!("the VMM of the {} guest has ended", self.rate.name()).into()),
            line => Ok(line.to_owned()),
        }
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        let input = self.input.as_mut().ok_or("no input")?;
        writeln!(input, "{what}")?;
        self.hear()
    }

    /// Asks for numbers.
    fn numbers(&mut self, what: &str) -> Result<Vec<u64>> {
        let answer = self.ask(what)?;
        let numbers = answer.split_whitespace().map(str::parse);
        numbers
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| answer.into())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Its end of input is its end; whoever fails does not leave it behind.
        drop(self.input.take());
        _ = self.child.wait();
    }
}

fn host(service: Option<&str>) -> Result<()> {
    let mut vms = Rate::ALL
        .into_iter()
        .map(|rate| Vm::start(rate, service))
        .collect::<Result<Vec<Vm>>>()?;
    for vm in &mut vms {
        let first = vm.hear()?;
        if let Some(reason) = first.strip_prefix("unsupported: ") {
            println!("nothing is tracked: {reason}");
            return Ok(());
        }
    }
    wait(&mut vms, service.is_some())?;
    for vm in &mut vms {
        println!("the {} guest: {}", vm.rate.name(), vm.ask("report")?);
    }
    println!("{}", frames(&mut vms)?);
    // For a snapshot, say: nobody looks, and what is merged stays so.
    for vm in &mut vms {
        vm.ask("pause")?;
        let before = vm.numbers("looked")?;
        std::thread::sleep(Duration::from_secs(2));
        if vm.numbers("looked")? != before {
            return Err("looked at while paused".into());
        }
    }
    println!("paused: {}", saved(&mut vms)?);
    for vm in &mut vms {
        vm.ask("resume")?;
    }
    wait(&mut vms, service.is_some())?;
    println!("resumed: {}", saved(&mut vms)?);
    for vm in &mut vms {
        vm.ask("unmerge")?;
    }
    println!("taken apart: {}", saved(&mut vms)?);
    for vm in &mut vms {
        vm.ask("check")?;
    }
    println!("each guest's memory is as it wrote it");
    Ok(())
}

/// Until all that the guests leave alone is merged.
fn wait(vms: &mut [Vm], with_twins: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for vm in vms {
        loop {
            let counts = vm.numbers("counts")?;
            let [merged, zero] = counts[..] else {
                return Err("not two numbers".into());
            };
            let [wanted, wanted_zero] = vm.rate.at_rest(with_twins);
            if merged >= wanted && zero >= wanted_zero {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "of the {} guest {merged} pages are merged, not {wanted}, and {zero} zero pages, not {wanted_zero}",
                    vm.rate.name()
                )
                .into());
            }
            vm.ask("check")?;
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

/// What all of them save, in pages.
fn saved(vms: &mut [Vm]) -> Result<String> {
    let mut sum = 0;
    for vm in vms {
        vm.ask("check")?;
        sum += vm.numbers("counts")?.iter().sum::<u64>();
    }
    Ok(format!(
        "{sum} of {} pages are merged",
        PAGES * Rate::ALL.len()
    ))
}

/// Of the image's pages, those that are one physical page in two guests: what the first has and the second.
fn frames(vms: &mut [Vm]) -> Result<String> {
    let [one, other, ..] = vms else {
        return Err("not two guests".into());
    };
    let (one, other) = (one.numbers("frames")?, other.numbers("frames")?);
    if one.contains(&0) {
        return Ok("physical pages are told to root alone".into());
    }
    let same = one.iter().zip(&other).filter(|(one, other)| one == other);
    Ok(format!(
        "{} of {} pages of the image are one in two guests",
        same.count(),
        one.len()
    ))
}
