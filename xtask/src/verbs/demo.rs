//! The verb `demo`: the experiment in a freshly booted kernel, as a table, as JSON and as a picture.
//!
//! The table grows while the experiment runs. What has been measured when it ends early is published all the same, once
//! SKSM's row is there: all that ksmd does comes after it, and takes most of the time.

mod chart;
mod store;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sksm_records::demo::{Kind, Report};

use crate::{
    ground::{interrupt, project::Project},
    guest::{Boot, programs},
    kernel::{self, Arch, Origin},
    terminal::format,
    verbs::shared::measurement::{self, Out},
};

#[derive(clap::Args)]
pub struct Args {
    /// Which engine: the kernel's, in a kernel of its own, or the store, on this machine's
    #[arg(long, value_enum, default_value = "kernel")]
    engine: Engine,
    /// How many processes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=30000))]
    processes: u32,
    /// The kernel to boot
    #[arg(long, default_value = "um")]
    arch: Arch,
    /// Where demo.json and demo.svg go; target/sksm/demo if not given, with another base a directory in it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long to wait for KSM, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    ksm_timeout: u64,
    /// Leave out the rows of KSM, which take the longest. Ctrl-C does the same to those that are not there yet
    #[arg(long, conflicts_with = "ksm_timeout")]
    without_ksm: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    /// MADV_MERGE, beside KSM
    Kernel,
    /// One file in memory for all processes of a user; nothing is booted, and no rights are needed
    Store,
}

/// What goes into demo.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Published {
    arch: String,
    #[serde(flatten)]
    report: Report,
    /// The phases that are not among those of the report.
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct LeftOut {
    kind: Kind,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Why {
    WithoutKsm,
    Interrupted,
    /// The run ended with an error.
    Failed,
}

impl Why {
    /// For a cell of a table.
    fn short(self) -> &'static str {
        match self {
            Why::WithoutKsm => "left out",
            Why::Interrupted => "interrupted",
            Why::Failed => "failed",
        }
    }

    fn long(self) -> &'static str {
        match self {
            Why::WithoutKsm => "left out by --without-ksm",
            Why::Interrupted => "interrupted",
            Why::Failed => "the run failed",
        }
    }
}

impl Published {
    fn of(arch: impl ToString, report: Report, left_out: Vec<LeftOut>) -> Self {
        Self {
            arch: arch.to_string(),
            report,
            left_out,
        }
    }

    /// Notes each phase that was not measured.
    fn lacks(&mut self, why: Why) {
        for kind in Kind::ALL {
            if self.report.phase(kind).is_none() {
                self.left_out.push(LeftOut { kind, why });
            }
        }
    }

    /// What was not measured and why, if anything.
    fn missing(&self) -> Option<String> {
        let why = self.left_out.first()?.why.long();
        let names: Vec<_> = (self.left_out.iter())
            .map(|phase| table::name(phase.kind))
            .collect();
        Some(format!("{} ({why})", names.join(", ")))
    }
}

/// Prints what there is more of in a text that only grows.
#[derive(Default)]
struct Printed(usize);

impl Printed {
    fn more<'a>(&mut self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let before = std::mem::replace(&mut self.0, text.lines().count());
        text.lines().skip(before)
    }
}

pub fn run(project: &Project, args: Args, origin: &Origin) -> Result<ExitCode> {
    let dir = args.out.clone();
    let out =
        Out::create(dir.unwrap_or_else(|| origin.base.within(project.target.join("sksm/demo"))))?;
    project.check_target()?;
    if args.engine == Engine::Store {
        return store::run(project, &args, &out);
    }
    let kernel = kernel::build(project, args.arch.of_this_machine()?, origin)?;
    let program = programs::demo(project)?;
    let preload = programs::preload_for_demo(project)?;

    let mut command = vec![
        program.into_os_string(),
        "--processes".into(),
        args.processes.to_string().into(),
        "--ksm-timeout".into(),
        args.ksm_timeout.to_string().into(),
        "--preload".into(),
        preload.into_os_string(),
    ];
    if args.without_ksm {
        let kinds = Kind::ALL.into_iter().filter(|kind| !kind.by_ksmd());
        let names: Vec<_> = kinds.map(Kind::name).collect();
        command.extend(["--phases".into(), names.join(",").into()]);
    }
    let boot = Boot::new(project, &kernel)
        .mem(&memory(args.processes))
        // As on most machines.
        .parameters("")
        .timeout(Duration::from_secs(
            900 + u64::from(args.processes) + 2 * args.ksm_timeout,
        ));
    let doing = format!("running {} processes", format::thousands(args.processes));
    let mut printed = Printed::default();
    let mut latest = None;
    // 2: it ran, and its expectations do not hold.
    let outcome = measurement::follow(
        boot,
        doing,
        &command,
        &[0, 2],
        |step, ksmd, mut report: Report| {
            let phases = report.phases.iter_mut();
            ksmd.fill_in(phases.filter_map(|phase| phase.ksm.as_mut()));
            let published = Published::of(args.arch, report, Vec::new());
            for line in printed.more(&table::rows(&published)) {
                step.print(line);
            }
            latest = Some(published);
        },
    );
    // Without SKSM's row an earlier run's files are worth more.
    let worth = |published: &Published| published.report.phase(Kind::Merged).is_some();
    let Some(mut published) = latest.filter(worth) else {
        outcome?;
        bail!("the guest measured nothing");
    };
    published.lacks(match &outcome {
        Ok(_) => Why::WithoutKsm,
        Err(_) if interrupt::signal().is_some() => Why::Interrupted,
        Err(_) => Why::Failed,
    });
    for line in printed.more(&table::rows(&published)) {
        println!("{line}");
    }
    print!("{}", table::rest(&published.report));
    out.json("demo.json", &published)?;
    out.text("demo.svg", &chart::draw(&published))?;
    if let Some(missing) = published.missing() {
        eprintln!("not measured: {missing}");
    }
    outcome?.check_splats()?;

    if !published
        .report
        .expected
        .is_some_and(|expected| expected.pass)
    {
        bail!("the kernel ran, but did not merge as expected: see above");
    }
    Ok(ExitCode::SUCCESS)
}

/// The guest's memory: libc's text is some 1.4 MiB, and each process needs some more.
fn memory(processes: u32) -> String {
    format!("{}M", 512 + 2 * processes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{table::tests::sample, *};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn each_line_is_printed_once() {
        let mut printed = Printed::default();
        let mut said = Vec::new();
        for text in ["", "a\n", "a\n", "a\nb\nc\n"] {
            said.push(printed.more(text).collect::<Vec<_>>().join(" "));
        }
        assert_eq!(said, ["", "a", "", "b c"]);
    }

    #[test]
    fn what_is_missing_is_in_the_json_too() {
        let mut published = sample();
        published.lacks(Why::Failed);
        assert_eq!(published.missing(), None);
        published.report.phases.truncate(5);
        published.lacks(Why::Interrupted);
        assert_eq!(published.missing().unwrap(), "KSM (interrupted)");
        let json = serde_json::to_value(&published).unwrap();
        let left_out = serde_json::json!([{"kind": "ksm", "why": "interrupted"}]);
        assert_eq!(json["left_out"], left_out);
        assert_eq!(json["phases"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn ksm_is_either_waited_for_or_left_out() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["demo"], words].concat());
        assert!(parse(&["--without-ksm"]).unwrap().args.without_ksm);
        let refused = parse(&["--without-ksm", "--ksm-timeout", "60"]);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("--ksm-timeout"), "{text}");
    }
}
