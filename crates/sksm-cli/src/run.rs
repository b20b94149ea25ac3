//! The verb `run`.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::merge::What;
use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// What to merge: a list of text, data, heap, stack
    #[arg(long, default_value = "text")]
    what: What,
    /// Merge again after this time, as in 5s
    #[arg(long, value_name = "TIME")]
    after: Option<String>,
    /// Merge again at this signal, as in USR2
    #[arg(long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Say on standard error what was done
    #[arg(long, short)]
    verbose: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const OBJECT: &str = "libsksm_preload.so";

pub fn run(args: Args) -> Result<ExitCode> {
    let mut preload = OsString::from(find()?);
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let (program, rest) = args
        .command
        .split_first()
        .context("there is no program to run")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("LD_PRELOAD", preload)
        .env("SKSM", &args.what.list);
    if let Some(after) = &args.after {
        command.env("SKSM_AFTER", after);
    }
    if let Some(signal) = &args.signal {
        command.env("SKSM_SIGNAL", signal);
    }
    if args.verbose {
        command.env("SKSM_VERBOSE", "1");
    }
    // It only returns if it fails.
    let error = command.exec();
    let found = error.kind() != std::io::ErrorKind::NotFound;
    let error =
        anyhow::Error::from(error).context(format!("cannot run {}", program.to_string_lossy()));
    output::error(&error);
    Ok(ExitCode::from(if found { 126 } else { 127 }))
}

/// The preload object: where SKSM_PRELOAD says, beside this program, or where it is installed.
fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SKSM_PRELOAD") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("SKSM_PRELOAD names {}, which is no file", path.display());
        }
        return Ok(path.canonicalize()?);
    }
    let own = env::current_exe()?.canonicalize()?;
    let dir = own.parent().context("this program has no directory")?;
    let places = [
        dir.join(OBJECT),
        dir.join("../lib/sksm").join(OBJECT),
        dir.join("../lib").join(OBJECT),
    ];
    for place in &places {
        if place.is_file() {
            return Ok(place.canonicalize()?);
        }
    }
    bail!(
        "cannot find {OBJECT} in {}; SKSM_PRELOAD can name it",
        places.map(|place| place.display().to_string()).join(", ")
    )
}
