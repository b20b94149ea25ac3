//! Makes up inputs for [`Runner`], learns from what of the kernel's code each of them reaches, and tells of what goes wrong.

use std::fs;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use libafl::corpus::{Corpus, InMemoryCorpus};
use libafl::events::SimpleEventManager;
use libafl::feedbacks::{CrashFeedback, MaxMapFeedback};
use libafl::fuzzer::{Evaluator, Fuzzer, StdFuzzer};
use libafl::inputs::BytesInput;
use libafl::monitors::NopMonitor;
use libafl::mutators::{StdScheduledMutator, havoc_mutations};
use libafl::observers::{CanTrack, HitcountsMapObserver, StdMapObserver};
use libafl::schedulers::{IndexesLenTimeMinimizerScheduler, QueueScheduler};
use libafl::stages::StdMutationalStage;
use libafl::state::{HasCorpus, HasMaxSize, StdState};
use libafl_bolts::rands::StdRand;
use libafl_bolts::tuples::tuple_list;
use sksm_guest::exercise::corpus;
use sksm_guest::exercise::runner::Runner;
use sksm_guest::machine::sysfs::Counters;
use sksm_records::fuzz::{Line, Report, encode};

mod beginnings;
mod keep;
mod target;

use target::Target;

/// Fuzzes MADV_MERGE and everything that can be done to merged pages
#[derive(Parser)]
struct Options {
    /// Begin with the same inputs as an earlier run [default: chosen from the clock and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Take the first input that merges as one after which something is wrong, which must be told
    #[arg(long, hide = true)]
    plant: bool,
}

/// Longer ones are cut: the kernel's log takes lines of up to 1000 characters.
const MOST_BYTES: usize = 400;
/// Made of one that was kept before it is the next one's turn.
const MOST_MUTATIONS: usize = 12;
/// Between two lines that tell how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let options = Options::parse();
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let from_clock = clock.map_or(1, |time| time.as_micros() as u64 % 1_000_000_007);
    let seed = options.seed.unwrap_or(from_clock);
    eprintln!("--seed {seed} begins with the same inputs");
    match fuzz(&options, seed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sksm-fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Tells of each input that is worth it, and in the end of all; false if something went wrong.
fn fuzz(options: &Options, seed: u64) -> Result<bool> {
    let started = Instant::now();
    // Or the kernel leaves lines out.
    fs::write("/proc/sys/kernel/printk_devkmsg", "on\n").context("printk_devkmsg")?;
    let counters = Counters::now()?;
    let mut runner = Runner::new()?;
    ensure!(
        runner.listen()?,
        "this kernel does not tell which of its code ran (CONFIG_KCOV)"
    );
    for (operation, reason) in runner.left_out() {
        eprintln!("left out: {operation:?}: {reason}");
    }
    let (counts, places) = runner.coverage().context("it is listening")?.counts();
    // SAFETY: shared memory that is never unmapped; this process looks at it between inputs only, when nobody writes.
    let map = unsafe { StdMapObserver::from_mut_ptr("blocks", counts, places) };
    let observer = HitcountsMapObserver::new(map).track_indices();
    let mut feedback = MaxMapFeedback::new(&observer);
    let mut objective = CrashFeedback::new();
    let mut state = StdState::new(
        StdRand::with_seed(seed),
        InMemoryCorpus::<BytesInput>::new(),
        InMemoryCorpus::new(),
        &mut feedback,
        &mut objective,
    )
    .map_err(of_libafl)?;
    state.set_max_size(MOST_BYTES);
    let scheduler = IndexesLenTimeMinimizerScheduler::new(&observer, QueueScheduler::new());
    let mut fuzzer = StdFuzzer::new(scheduler, feedback, objective);
    let mut events = SimpleEventManager::new(NopMonitor::new());
    let mut target = Target::new(runner, tuple_list!(observer), options.plant)?;
    let most = NonZeroUsize::new(MOST_MUTATIONS).context("a number of mutations")?;
    let mutator = StdScheduledMutator::new(havoc_mutations());
    let mut stages = tuple_list!(StdMutationalStage::with_max_iterations(mutator, most));

    let time = Duration::from_secs(options.seconds);
    let first = corpus::inputs()?.into_iter().chain(beginnings::of(seed));
    for input in first {
        if target.failed() || started.elapsed() >= time {
            break;
        }
        let input = BytesInput::new(input);
        (fuzzer.evaluate_input(&mut state, &mut target, &mut events, &input)).map_err(of_libafl)?;
    }
    ensure!(
        target.failed() || state.corpus().count() > 0,
        "no input reaches anything"
    );
    let (mut told, mut kept) = (Instant::now(), 0);
    while !target.failed() && started.elapsed() < time {
        fuzzer
            .fuzz_one(&mut stages, &mut target, &mut state, &mut events)
            .map_err(of_libafl)?;
        kept = tell_new(state.corpus(), kept)?;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let left = time.saturating_sub(started.elapsed()).as_secs();
            eprintln!(
                "{left} s left, {} inputs, {kept} kept, {} blocks reached",
                target.inputs(),
                target.reached().len()
            );
        }
    }
    tell_new(state.corpus(), kept)?;
    let report = Report {
        seed,
        seconds: started.elapsed().as_secs(),
        inputs: target.inputs(),
        operations: target.runner.operations(),
        pages_merged: u64::try_from(counters.change()?.pages_merged)?,
        pages_compared: target.runner.compared(),
        kept: state.corpus().count() as u64,
        corpus: (keep::smallest(state.corpus())?.iter())
            .map(|input| encode(input))
            .collect(),
        reached: target.reached(),
        done: (target.runner.done().into_iter())
            .map(|(operation, count)| (format!("{operation:?}"), count))
            .collect(),
    };
    print(&Line::Report(report))?;
    let failure = target.failure();
    if let Some(failure) = &failure {
        print(failure)?;
    }
    Ok(failure.is_none())
}

/// Tells of the inputs that came to the corpus since there were so many; returns how many there are.
fn tell_new(corpus: &InMemoryCorpus<BytesInput>, before: usize) -> Result<usize> {
    for id in corpus.ids().skip(before) {
        let testcase = corpus.get(id).map_err(of_libafl)?.borrow();
        if let Some(input) = testcase.input() {
            print(&Line::New(encode(input.as_ref())))?;
        }
    }
    Ok(corpus.count())
}

fn print(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

fn of_libafl(error: libafl::Error) -> anyhow::Error {
    anyhow!("LibAFL: {error}")
}
