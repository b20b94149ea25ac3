//! Whether the programs that measure run, in small: that they measure all they name, and say so in a form that is understood.
//! No figure is judged.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::de::DeserializeOwned;
use sksm_guest::bench::{self, names};
use sksm_guest::report::{self, Test, test};
use sksm_guest::{demo, system};

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

/// Runs a program that lies beside this one, and reads its report.
fn measured<R: DeserializeOwned>(program: &str, arguments: &[&str]) -> Result<R> {
    let path: PathBuf = std::env::current_exe()?.with_file_name(program);
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {program} printed"))
}

fn benchmark() -> Result<()> {
    let report: bench::Report = measured("sksm-bench", &["--smoke"])?;
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

fn experiment() -> Result<()> {
    let report: demo::Report = measured("sksm-demo", &["--smoke", "--processes", "5"])?;
    let expected = report.expected.context("nothing was expected")?;
    ensure!(expected.pass && report.phases.len() == 6, "{expected:?}");
    Ok(())
}
