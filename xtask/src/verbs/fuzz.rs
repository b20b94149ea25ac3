//! The verb `fuzz`: makes up what processes do to merged memory, and learns from what of the kernel's code that reaches.

mod blocks;
mod coverage;
mod failure;
mod functions;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sksm_records::fuzz::{Line, Report, inputs};

use crate::{
    ground::{cache, project::Project},
    guest::{Boot, Cmd, End, Output, programs},
    kernel::{self, Arch, Base, Kernel, Origin},
    terminal::progress::Step,
};
use failure::Failure;

#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Begin with the same inputs as an earlier run [default: chosen from the clock and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep what was found in the repository: the inputs, and what they reach
    #[arg(long)]
    record: bool,
    /// Run the inputs of a file again, in place of all that
    #[arg(long, value_name = "FILE", conflicts_with_all = ["minutes", "seed", "record"])]
    replay: Option<PathBuf>,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1, requires = "replay", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    times: u64,
    /// The kernel to boot for that
    #[arg(long, default_value = "fuzz", requires = "replay")]
    arch: Arch,
}

/// For the inputs to begin with, and for choosing what to keep.
const WINDING_UP: Duration = Duration::from_secs(900);
/// The inputs that are kept, within the repository.
const CORPUS: &str = "testing/fuzz/corpus/inputs";
const CORPUS_BEGINS: &str = "# Inputs of sksm-fuzz, in hexadecimal digits: see README.md here.\n";

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    project.check_target()?;
    if args.record && origin.base != Base::default() {
        bail!(
            "--record: the inputs in the repository are those that reach most on Linux {}; leave --base out",
            Base::default()
        );
    }
    let good = match &args.replay {
        Some(file) => {
            let kernel = kernel::build(project, args.arch.of_this_machine()?, origin)?;
            replay(project, origin, &kernel, file, args.times)?
        }
        None => {
            let kernel = kernel::build(project, Arch::Fuzz, origin)?;
            fuzz(project, origin, &kernel, args)?
        }
    };
    Ok(match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs inputs again, and shows what each of their processes does.
fn replay(
    project: &Project,
    origin: &Origin,
    kernel: &Kernel,
    file: &Path,
    times: u64,
) -> Result<bool> {
    let text = fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    if let Err(error) = inputs(&text) {
        bail!("{}: {error}", file.display());
    }
    let program = programs::guest_programs(project)?.join("sksm-replay");
    // Where the guest can see it.
    let visible = results(project, origin)?.join("replay");
    cache::write(&visible, &text)?;
    let command = [
        program.to_string_lossy().into_owned(),
        "--tell".into(),
        "--times".into(),
        times.to_string(),
        "--inputs".into(),
        visible.to_string_lossy().into_owned(),
    ];
    let outcome = Boot::new(project, kernel).run(Cmd::new(&command))?;
    let good = outcome.end == End::Exited(0) && outcome.splats.is_empty();
    if !good {
        println!("{}", outcome.describe());
    }
    Ok(good)
}

/// What the fuzzer has told.
#[derive(Default)]
struct Told {
    /// Inputs that reached something new, as they came.
    new: Vec<String>,
    report: Option<Report>,
    failure: Option<Failure>,
}

impl Told {
    fn take(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(Line::New(input)) => self.new.push(input),
            Ok(Line::Report(report)) => self.report = Some(report),
            Ok(Line::Failure { inputs, reason }) => {
                self.failure = Some(Failure { inputs, reason });
            }
            // A panic's, or a library's.
            Err(_) => eprintln!("{line}"),
        }
    }
}

fn fuzz(project: &Project, origin: &Origin, kernel: &Kernel, args: &Args) -> Result<bool> {
    let time = Duration::from_secs(60 * args.minutes);
    let program = programs::fuzzer(project)?;
    let mut command = vec![program.to_string_lossy().into_owned()];
    command.extend(["--seconds".to_owned(), time.as_secs().to_string()]);
    if let Some(seed) = args.seed {
        command.extend(["--seed".to_owned(), seed.to_string()]);
    }
    let mut told = Told::default();
    let step = Step::begin("fuzzing");
    let outcome = Boot::new(project, kernel).timeout(time + WINDING_UP).run(
        Cmd::new(&command)
            .stdout(Output::Lines(Box::new(|line| told.take(line))))
            .stderr(Output::Lines(Box::new(|line| {
                match line.contains(" s left, ") {
                    true => step.detail(line),
                    false => step.print(line),
                }
            }))),
    )?;
    let dir = results(project, origin)?;
    let corpus = told
        .report
        .as_ref()
        .map_or(&told.new, |report| &report.corpus);
    let corpus = format!("{CORPUS_BEGINS}{}\n", corpus.join("\n"));
    cache::write(&dir.join("corpus"), &corpus)?;
    let good = outcome.end == End::Exited(0) && outcome.splats.is_empty();
    if !good {
        let log = fs::read(&outcome.console)?;
        let log = String::from_utf8_lossy(&log);
        let failure = told.failure.or_else(|| Failure::in_log(&log));
        println!("{}", outcome.describe());
        if let Some(failure) = failure {
            let file = failure.write(&dir)?;
            println!("{}", failure.describe(&file));
        }
    }
    let Some(report) = told.report else {
        println!(
            "fuzz FAILED; what it had found: {}",
            dir.join("corpus").display()
        );
        return Ok(false);
    };
    // For whoever wants to look at it in another way.
    cache::write(&dir.join("report.json"), serde_json::to_string(&report)?)?;
    let table = coverage::of(
        &project.kernel().join("mm/sksm"),
        &kernel.symbols(),
        &report.reached,
    )?;
    let summary = summary(&report, &table);
    let text = format!("{summary}\n{}", table.markdown());
    cache::write(&dir.join("coverage.md"), &text)?;
    println!("{}", operations(&report));
    println!("{summary}");
    if args.record && good {
        cache::write(&project.root.join(CORPUS), corpus)?;
        record(&project.root.join("docs/fuzz.md"), &text)?;
    }
    println!(
        "fuzz {}: what the inputs reach is in {}",
        if good { "passed" } else { "FAILED" },
        dir.join("coverage.md").display()
    );
    Ok(good)
}

/// Where a run leaves what it has found.
fn results(project: &Project, origin: &Origin) -> Result<PathBuf> {
    let dir = origin.base.within(project.target.join("sksm/fuzz"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn summary(report: &Report, table: &coverage::Table) -> String {
    format!(
        "Seed {}: {} inputs in {} min {:02} s, {} operations that made {} merges of pages and compared {} pages; {} inputs reached \
         something new, and {} of them reach all of it. Of the engine's {} functions they reach {}, of its {} blocks {}.\n",
        report.seed,
        report.inputs,
        report.seconds / 60,
        report.seconds % 60,
        report.operations,
        report.pages_merged,
        report.pages_compared,
        report.kept,
        report.corpus.len(),
        table.functions(),
        table.functions_reached(),
        table.blocks(),
        table.blocks_reached(),
    )
}

fn operations(report: &Report) -> String {
    let cells = report
        .done
        .iter()
        .map(|(name, count)| format!("  {name:<14} {count:>8}"));
    let cells: Vec<_> = cells.collect();
    let lines: Vec<_> = cells.chunks(4).map(<[String]>::concat).collect();
    format!("operations that had an effect:\n{}", lines.join("\n"))
}

/// Above this line a page is written by hand.
const WRITTEN: &str = "<!-- What follows is written by `cargo xtask fuzz --record`. -->\n";

fn record(page: &Path, text: &str) -> Result<()> {
    let old =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let (by_hand, _) = old
        .split_once(WRITTEN)
        .with_context(|| format!("{} has no place for what was reached", page.display()))?;
    cache::write(page, format!("{by_hand}{WRITTEN}\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_hand_stays() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.md");
        fs::write(&page, format!("# By hand\n\n{WRITTEN}\nold\n")).unwrap();
        record(&page, "new\n").unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert_eq!(text, format!("# By hand\n\n{WRITTEN}\nnew\n"));
        fs::write(&page, "# By hand\n").unwrap();
        assert!(record(&page, "new\n").is_err());
    }

    #[test]
    fn lines_of_the_fuzzer_are_taken() {
        let mut told = Told::default();
        for line in [
            Line::New("00".into()),
            Line::Failure {
                inputs: vec!["01".into()],
                reason: "wrong".into(),
            },
        ] {
            told.take(&serde_json::to_string(&line).unwrap());
        }
        told.take("thread 'main' panicked");
        assert_eq!(told.new, ["00"]);
        assert_eq!(told.failure.unwrap().reason, "wrong");
        assert!(told.report.is_none());
    }
}
