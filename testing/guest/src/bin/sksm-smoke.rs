//! Whether the programs that measure run, in small: that they measure all they name, and say so in a form that is understood.
//! No figure is judged but what must come out.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::de::DeserializeOwned;
use sksm_guest::harness::report::{self, Test, test};
use sksm_guest::machine::system;
use sksm_records::bench::{self, names};
use sksm_records::demo;

const TESTS: &[Test] = &[test("bench", benchmark), test("demo", experiment)];

/// Run the programs that measure, in small
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: report::Options,
}

fn main() -> ExitCode {
    report::run(TESTS, &Arguments::parse().options)
}

/// Runs a program that lies beside this one, and returns what it printed.
fn printed(program: &str, arguments: &[&str]) -> Result<String> {
    let path: PathBuf = std::env::current_exe()?.with_file_name(program);
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("what {program} printed"))
}

fn read<R: DeserializeOwned>(text: &str) -> Result<R> {
    serde_json::from_str(text).context("what it printed")
}

fn benchmark() -> Result<()> {
    let report: bench::Report = read(&printed("sksm-bench", &["--smoke"])?)?;
    let on_uml = system::processor()? == "UML";
    let mut missing = Vec::new();
    for rows in names::ROWS.iter().filter(|rows| rows.on_uml || !on_uml) {
        for variant in rows.variants {
            let family = report.family(rows.family);
            if family.is_none_or(|family| family.rows(rows.what, variant).next().is_none()) {
                missing.push(format!("{}: {}, {variant}", rows.family, rows.what));
            }
        }
    }
    ensure!(missing.is_empty(), "not measured: {}", missing.join("; "));
    let beside = report.beside_ksm.context("nothing is beside KSM")?;
    ensure!(beside.by_tuning().len() == 2, "KSM has two tunings");
    Ok(())
}

/// So many that a page more in each is more than noise.
const MANY: &str = "80";

fn experiment() -> Result<()> {
    let printed = printed("sksm-demo", &["--smoke", "--processes", MANY])?;
    let reports: Vec<demo::Report> = printed.lines().map(read).collect::<Result<_>>()?;
    let phases: Vec<_> = reports.iter().map(|report| report.phases.len()).collect();
    ensure!(phases == [0, 1, 2, 3, 4, 5, 6], "phases: {phases:?}");
    let report = reports.last().context("nothing was printed")?;
    let expected = report.expected.as_ref().context("nothing was expected")?;
    ensure!(expected.pass, "{expected:?}");
    Ok(())
}
