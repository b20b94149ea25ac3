//! The experiment: many real `sleep` processes with a patched libc, merged by MADV_MERGE and, beside it, by KSM.
//!
//! Runs as root in a kernel of its own. After each phase it prints its report so far as a line of JSON on stdout (see
//! `sksm_records::demo`), and progress on stderr; the exit status is 0 if the expectations hold, 2 if they do not, 1 if it could
//! not run.

mod counters;
mod crew;
mod expect;
mod limits;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sksm::Support;
use sksm_guest::harness::json;
use sksm_guest::machine::ksmd::{self, Tuning};
use sksm_guest::machine::sysfs::{KSM, SKSM};
use sksm_guest::machine::system;
use sksm_guest::page::PAGE;
use sksm_records::demo::{Call, Counters, Kind, Phase, Report, Spread};
use sksm_records::ksmd::Ksm;

use crew::Crew;
use limits::Limits;
use text::Text;

/// What a sleeping process costs beside its libc: anonymous pages, page tables, kernel objects. Generous.
const KIB_PER_PROCESS: u64 = 512;

/// Run many sleep processes with a patched libc, merge them, and measure
#[derive(Parser)]
struct Args {
    /// How many processes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=30000))]
    processes: u32,
    /// The preload object, built for this; the one beside this program if not given
    #[arg(long, value_name = "FILE")]
    preload: Option<PathBuf>,
    /// How long to wait for ksmd in each of its phases
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    ksm_timeout: u64,
    /// Take no time for figures: for tests
    #[arg(long, hide = true)]
    smoke: bool,
    /// Run only these phases
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    phases: Vec<Kind>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what was expected holds.
fn run(args: &Args) -> Result<bool> {
    system::give_freed_memory_back();
    let experiment = Experiment::prepare(args)?;
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| args.phases.is_empty() || args.phases.contains(kind))
        .collect();
    experiment.check_kernel(&kinds)?;

    let ksm = kinds.iter().any(|kind| kind.by_ksmd());
    let limits = Limits::raise(experiment.processes, ksm)?;
    let mut report = Report {
        kernel: system::kernel()?,
        cpus: std::thread::available_parallelism()?.get(),
        memory_mib: system::memory_mib()?,
        processes: experiment.processes,
        command: crew::COMMAND.join(" "),
        library: experiment.text.library().to_owned(),
        text_pages: experiment.text.pages(),
        text_contents: experiment.text.contents(),
        page_size: PAGE,
        max_page_sharing: limits.list(),
        phases: Vec::new(),
        expected: None,
    };
    json::line(&report);
    for kind in kinds {
        let phase = experiment.phase(kind, &report);
        report
            .phases
            .push(phase.with_context(|| format!("phase {}", kind.name()))?);
        report.expected = expect::judge(&report);
        json::line(&report);
    }
    limits.restore()?;
    Ok(report.expected.is_none_or(|expected| expected.pass))
}

struct Experiment {
    processes: usize,
    preload: PathBuf,
    ksm_timeout: Duration,
    watched: bool,
    text: Text,
}

impl Experiment {
    fn prepare(args: &Args) -> Result<Self> {
        let preload = match &args.preload {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("libsksm_preload_demo.so"),
        };
        let preload = preload.canonicalize().with_context(|| {
            format!(
                "no preload object at {}: name it by --preload",
                preload.display()
            )
        })?;
        Ok(Self {
            processes: args.processes as usize,
            preload,
            ksm_timeout: Duration::from_secs(args.ksm_timeout),
            watched: !args.smoke,
            text: Text::of_libc()?,
        })
    }

    /// Refuses what cannot work before anything is started.
    fn check_kernel(&self, kinds: &[Kind]) -> Result<()> {
        if kinds.contains(&Kind::Merged) {
            ensure!(
                sksm::support() == Support::Merge,
                "this kernel has no MADV_MERGE: boot one built with CONFIG_SKSM, or leave the phase `merged` out by --phases"
            );
        }
        if kinds.iter().any(|kind| kind.by_ksmd()) {
            ensure!(
                KSM.exists(),
                "this kernel has no KSM: leave its phases out by --phases"
            );
        }
        let text_kib = (self.text.pages() * PAGE / 1024) as u64;
        let needed = self.processes as u64 * (text_kib + KIB_PER_PROCESS) / 1024;
        let available = system::memory_available_mib()?;
        ensure!(
            available >= needed,
            "{} processes need {needed} MiB, but only {available} MiB are available: boot with more memory, or take fewer \
             processes by --processes",
            self.processes
        );
        Ok(())
    }

    /// Runs one phase, from no process to no process.
    fn phase(&self, kind: Kind, so_far: &Report) -> Result<Phase> {
        let (step, engine) = match kind {
            Kind::Plain => (None, None),
            Kind::Idle => (Some("idle"), None),
            Kind::Patched => (Some("patch"), None),
            Kind::Merged => (Some("merge"), Some(SKSM)),
            Kind::Ksm | Kind::KsmUnthrottled => (Some("ksm"), Some(KSM)),
        };
        let progress = |text: String| eprintln!("{}: {text}", kind.name());
        let nr_anon_pages_before = system::nr_anon_pages()?;
        let before = engine.map(counters::read).transpose()?;

        let start = Instant::now();
        let mut crew = Crew::default();
        for number in 1..=self.processes {
            crew.start(step, &self.preload)?;
            if number % 50 == 0 {
                progress(format!("{number} of {} processes started", self.processes));
            }
        }
        crew.wait_until_asleep()?;
        let start_seconds = start.elapsed().as_secs_f64();
        if step.is_some_and(|step| step != "idle") {
            crew.check_pages(self.text.pages())?;
        }

        let ksm = match kind {
            Kind::Ksm => Some(self.run_ksmd(Tuning::Default, so_far, &progress)?),
            Kind::KsmUnthrottled => Some(self.run_ksmd(Tuning::Unthrottled, so_far, &progress)?),
            _ => None,
        };

        // Before the page tables are read: that takes memory of its own.
        let nr_anon_pages = system::nr_anon_pages()?;
        let mem_available_mib = system::memory_available_mib()?;
        let merged = engine.map(counters::read).transpose()?;
        progress("looking at every page of libc's text in every process".to_owned());
        let found = self.text.look_at(&crew.pids())?;
        if engine.is_some() {
            progress("comparing libc's text in every process with the file".to_owned());
            self.text.compare_with_file(&crew.pids())?;
        }

        let call = engine.and_then(|_| Call::of(&crew.call_times(), self.text.pages()));
        progress("ending the processes".to_owned());
        crew.end()?;
        if ksm.is_some() {
            ksmd::forget()?;
        }
        let counters = match (engine, before, merged) {
            (Some(engine), Some(before), Some(merged)) => {
                let after = counters::read_settled(engine, &before)?;
                Some(Counters {
                    before,
                    merged,
                    after,
                })
            }
            _ => None,
        };
        Ok(Phase {
            kind,
            nr_anon_pages_before,
            nr_anon_pages,
            mem_available_mib,
            start_seconds,
            anonymous_text_pages: Spread::of(found.anonymous),
            private_text_pages: Spread::of(found.private),
            copies: found.copies,
            call,
            counters,
            ksm,
        })
    }

    /// Lets ksmd merge until it has saved as much as MADV_MERGE did.
    fn run_ksmd(&self, tuning: Tuning, so_far: &Report, progress: &dyn Fn(String)) -> Result<Ksm> {
        let copies = so_far
            .phase(Kind::Merged)
            .map_or(self.text.contents(), |phase| phase.copies);
        let target = self.processes * self.text.pages() - copies;
        ksmd::run(
            tuning,
            target as i64,
            self.ksm_timeout,
            self.watched,
            progress,
        )
    }
}
