//! Builds the tool where one can see it, then becomes it.
//!
//! `cargo run` either hides the minutes that the tool's dependencies take, or comments on every exit
//! status that the tool passes through. This needs no dependencies, so it builds in a second, hidden.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

fn main() -> ExitCode {
    match launch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: cannot start xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only if the tool does not build.
fn launch() -> std::io::Result<ExitCode> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let xtask = manifest.parent().ok_or_else(missing)?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--package",
            "xtask",
            "--manifest-path",
        ])
        .arg(xtask.join("Cargo.toml"))
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(stderr) = build.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            // Said by every build, also by one that has nothing to do.
            if !line.trim_start().starts_with("Finished") {
                // Where nobody reads it, it is built all the same.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
    if !build.wait()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    // Both are in one target directory, each in its profile's.
    let own = env::current_exe()?;
    let profiles = own.ancestors().nth(2).ok_or_else(missing)?;
    Err(Command::new(profiles.join("release/xtask"))
        .args(env::args_os().skip(1))
        .env("CARGO_MANIFEST_DIR", xtask)
        .exec())
}
