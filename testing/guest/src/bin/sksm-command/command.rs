//! Runs the command, and reads what it and the kernel say.

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sksm_guest::harness::program::beside;

pub fn run(command: &mut Command) -> Result<Output> {
    Ok(command.stdin(Stdio::null()).output()?)
}

pub fn sksm(arguments: &[&str]) -> Result<Output> {
    run(Command::new(beside("sksm")?).args(arguments))
}

pub fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

pub fn text(arguments: &[&str]) -> Result<String> {
    let output = sksm(arguments)?;
    ensure!(output.status.success(), "sksm {arguments:?}: {output:?}");
    Ok(said(&output.stdout))
}

pub fn json(arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&text(
        &[arguments, &["--json"]].concat(),
    )?)?)
}

pub fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("{value} is no number"))
}

pub fn sysfs(counter: &str) -> Result<i64> {
    let text = fs::read_to_string(format!("/sys/kernel/mm/sksm/{counter}"))?;
    Ok(text.trim().parse()?)
}

/// Chosen for the test; what it was comes back after it.
pub fn set_domain(domain: &str) -> Result<()> {
    Ok(fs::write("/sys/kernel/mm/sksm/domain", domain)?)
}

pub fn check<'a>(doctor: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = doctor["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == name);
    found.with_context(|| format!("no {name} in {doctor}"))
}
