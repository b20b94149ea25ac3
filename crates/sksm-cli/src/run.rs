//! The verb `run`.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
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
    /// Merge again after this time: 500ms, 5s, 2m
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    after: Option<u64>,
    /// Merge again at this signal: USR1, USR2, HUP, or the number of a real-time signal
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    signal: Option<i32>,
    /// Say on standard error what was done
    #[arg(long, short)]
    verbose: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const OBJECT: &str = "libsksm_preload.so";

pub fn run(args: Args) -> Result<ExitCode> {
    let object = find()?;
    // The loader takes both for the end of a path, and has no way to quote them.
    if object
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b" :".contains(byte))
    {
        bail!(
            "{}: a path with a space or a colon in it cannot be preloaded; \
             move it, or have SKSM_PRELOAD name a link to it",
            object.display()
        );
    }
    let mut preload = OsString::from(object);
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
    if let Some(after) = args.after {
        command.env("SKSM_AFTER", format!("{after}ms"));
    }
    if let Some(signal) = args.signal {
        command.env("SKSM_SIGNAL", signal.to_string());
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

/// As the preload object reads it, which ignores what it does not understand.
fn milliseconds(time: &str) -> Result<u64, &'static str> {
    let digits = time.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &time[digits.len()..] {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    (digits.parse::<u64>().ok())
        .filter(|_| plain)
        .and_then(|number| number.checked_mul(unit?))
        .ok_or("give a whole number of ms, s or m, as in 5s")
}

/// Only signals that end a program which does not expect them, and that the kernel sends for no reason of its own.
fn signal(name: &str) -> Result<i32, &'static str> {
    let named = [
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("HUP", libc::SIGHUP),
    ];
    let short = name.strip_prefix("SIG").unwrap_or(name);
    let known = named
        .iter()
        .find(|(name, _)| *name == short)
        .map(|(_, signal)| *signal);
    let number = || short.parse::<i32>().ok();
    let usable = |signal: &i32| {
        named.iter().any(|(_, known)| known == signal)
            || (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(signal)
    };
    known
        .or_else(number)
        .filter(usable)
        .ok_or("give USR1, USR2, HUP, or the number of a real-time signal")
}

/// The preload object: where SKSM_PRELOAD says, beside this program, or where it is installed.
fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SKSM_PRELOAD") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("SKSM_PRELOAD names {}, which is no file", path.display());
        }
        // Not resolved: it may be a link for the sake of its path.
        return Ok(std::path::absolute(path)?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused() {
        for (text, time) in [
            ("5s", Some(5000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("7", Some(7000)),
            ("5x", None),
            ("", None),
            ("s", None),
            ("-5s", None),
            ("+5s", None),
            ("1.5s", None),
            ("5ss", None),
            ("99999999999999999999s", None),
            ("18446744073709551615m", None),
        ] {
            assert_eq!(milliseconds(text).ok(), time, "{text}");
        }
    }

    #[test]
    fn only_signals_that_the_object_takes() {
        assert_eq!(signal("USR2"), Ok(libc::SIGUSR2));
        assert_eq!(signal("SIGUSR1"), Ok(libc::SIGUSR1));
        assert_eq!(signal("12"), Ok(12));
        assert_eq!(signal("40"), Ok(40));
        for bad in ["KILL", "9", "11", "0", "99", "", "x", "usr1"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
