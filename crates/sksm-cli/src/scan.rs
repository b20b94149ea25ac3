//! The verb `scan`: looks at memory of other processes for as long as it runs, and merges what stays the same and has a twin.

mod config;
mod history;
mod quantity;
mod remote;
mod report;
pub mod seen;
mod serve;
mod session;
pub mod state;
mod wake;
mod watchdog;
mod when;
mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use sksm_scan::Settings;

use crate::descriptors;
use crate::system::System;
use crate::target::{Targets, missing};
use crate::what::What;
use crate::{exit, hung, output, rights, support};
use quantity::{Share, duration, patience, share};
use remote::{Remote, Wanted};
use session::Session;
use watchdog::Watchdog;
use when::When;
use worker::Turn;

#[derive(clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    targets: Targets,
    /// Only mappings that KSM would scan; so it is where no processes are chosen
    ///
    /// Those of programs that asked for it by MADV_MERGEABLE, as QEMU does for its guests' memory, or were started for it: by
    /// MemoryKSM=yes in a unit of systemd, or `sksm run --ksm`.
    #[arg(long)]
    opted_in: bool,
    /// What to look at: a list of text, data, heap, stack
    ///
    /// Of programs that run already data and heap are written. `sksm run`, which merges before `main`, takes text alone if nothing is said.
    #[arg(long, default_value = What::DEFAULT)]
    what: What,
    /// Merge what has stayed the same for so long, as in 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    stable: Duration,
    /// Take at most so much of one CPU over any minute; 100% is no limit
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = share)]
    cpu: Share,
    /// Work only then: always, available-below=20% (of all memory), or pressure=10 (per cent of the last ten seconds, as in
    /// /proc/pressure/memory)
    #[arg(long, value_name = "CONDITION", default_value = "always")]
    when: When,
    /// Split a huge page if at least so many of its 512 pages have a twin
    #[arg(long, value_name = "PAGES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    huge_min: u32,
    /// Look at all of it twice, the stable time apart, merge, report, and end
    #[arg(long)]
    once: bool,
    /// With --once, tell also what it took
    #[arg(long, requires = "once")]
    verbose: bool,
    /// Write what was done to this file every ten seconds, for `sksm stat` and `sksm top`, which look for the default
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Draw saved memory, CPU time and huge pages over time
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Tell programs that look at their own memory, at this socket, which samples others of their merge domain have as well
    ///
    /// For VMMs that link the crate sksm-scan. The socket is open to all who reach its directory: each gets what is of its own domain. One
    /// that systemd hands over, as sksm-scan.socket has it, is served without this option.
    #[arg(long, value_name = "SOCKET", conflicts_with = "once")]
    serve: Option<PathBuf>,
    /// Leave a process alone once it has made this wait for so long for its memory
    ///
    /// Memory may be of a file system in user space that does not answer. It is left alone for a day; all of a user or container that had two
    /// of them are. Without --once they are noted in hung.json, beside the file of --state: remove that, and start this anew, to have them
    /// looked at before.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = patience)]
    patience: Duration,
    /// Options from this file too, a line for each as in `stable = 5m`; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.stable = self.stable;
        settings.cpu = self.cpu.limit();
        settings.huge_min = self.huge_min;
        settings
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            kinds: self.what.kinds,
            opted_in: self.opted_in || self.targets.nobody(),
        }
    }

    fn remote(&self) -> (Box<dyn FnMut() -> Vec<u32>>, Wanted) {
        let targets = self.targets.clone();
        // That nobody fits may be different later.
        let choose = move || targets.choose().map_or(Vec::new(), |chosen| chosen.pids);
        (Box::new(choose), self.wanted())
    }
}

/// Understands a command line of this verb.
pub type Parse = fn(Vec<OsString>) -> Result<Args, clap::Error>;

pub fn run(args: Args, json: bool, parse: Parse) -> Result<ExitCode> {
    let args = match &args.config {
        Some(file) => config::with(file, parse)?,
        None => args,
    };
    support::require()?;
    let state = args.state.as_deref().unwrap_or(Path::new(state::DEFAULT));
    let list = hung::beside(state);
    if let Err(error) = hung::learn(&list) {
        output::note(&format!(
            "{error:#}: who made an earlier scanner wait for ever is not known"
        ));
    }
    let is_handed = serve::is_handed();
    // One look more or less is no reason to have all others leave somebody alone.
    let (line, wakes, again) = match worker::begin(Some(&*list).filter(|_| !args.once))? {
        Turn::Scan { line, wakes, again } => (line, wakes, again),
        Turn::Ended(code) => return Ok(code),
    };
    // It may have been read again since.
    let args = match &args.config {
        Some(file) if again => config::with(file, parse).unwrap_or(args),
        _ => args,
    };
    let _server = match &args.serve {
        Some(path) => Some(serve::Server::listen(path, again)?),
        None if args.once || !is_handed => None,
        None => serve::Server::handed()?,
    };
    let watchdog = Watchdog::start(args.patience, line);
    watchdog.begin();
    let chosen = args.targets.choose();
    watchdog.end();
    let chosen = match chosen {
        Ok(chosen) => Some(chosen),
        Err(nobody) if args.once => return Err(nobody),
        Err(nobody) => {
            output::note(&format!("{nobody:#}; looks again every ten seconds"));
            None
        }
    };
    let missing: Vec<(u32, String)> = (chosen.iter().flat_map(|chosen| &chosen.pids))
        .filter_map(|pid| Some((*pid, missing(*pid)?)))
        .collect();
    for (_, why) in &missing {
        output::note(why);
    }
    warn();
    descriptors::raise();
    let (choose, wanted) = args.remote();
    let remote = Remote::new(choose, wanted);
    let once = args.once;
    let mut session = Session::new(args, remote, watchdog, again, json)?;
    session.work(&wakes, parse)?;
    let must = |pid: &u32| {
        let gone = missing.iter().any(|(missing, _)| missing == pid);
        let chosen = chosen.as_ref().filter(|_| once);
        chosen.is_some_and(|chosen| chosen.must(*pid, gone)) && !session.looks_at(*pid)
    };
    let pids = chosen.iter().flat_map(|chosen| &chosen.pids);
    let partly = pids.filter(|pid| must(pid)).count() > 0;
    session.end(once)?;
    Ok(match partly {
        true => ExitCode::from(exit::PARTLY),
        false => ExitCode::SUCCESS,
    })
}

/// What is in the way, or does the same.
fn warn() {
    let running = System::read()
        .ksm
        .is_some_and(|ksm| ksm.get("run") == Some(&1));
    if running {
        output::note(
            "ksmd scans the same memory; to leave it to this command: echo 0 > /sys/kernel/mm/ksm/run \
             (what it has merged stays merged)",
        );
    }
    if !rights::has(rights::CAP_SYS_NICE) {
        output::note("without CAP_SYS_NICE nothing of others can be merged; see `sksm doctor`");
    }
}
