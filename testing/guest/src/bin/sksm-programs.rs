//! Programs that others wrote to try memory management, which say themselves when a byte is wrong, while all that they map is merged
//! again and again under them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sksm_guest::harness::report::{self, Options, Test, test};
use sksm_guest::machine::swap::Swap;
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::skip::skip;

/// Runs stress-ng's tests of memory, and trinity; one line each
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// How long each of stress-ng's
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// How many system calls trinity makes
    #[arg(long, default_value_t = 2000)]
    calls: u64,
}

const TESTS: &[Test] = &[
    test("stress-ng/vm", || stress_ng("vm", &["--vm-bytes", "24m"])),
    test("stress-ng/mremap", || {
        stress_ng("mremap", &["--mremap-bytes", "8m"])
    }),
    test("stress-ng/pagemove", || {
        stress_ng("pagemove", &["--pagemove-bytes", "4m"])
    }),
    test("stress-ng/remap", || stress_ng("remap", &[])),
    test("stress-ng/mmapfork", || stress_ng("mmapfork", &[])),
    test("stress-ng/userfaultfd", || {
        stress_ng("userfaultfd", &["--userfaultfd-bytes", "4m"])
    }),
    test("stress-ng/mlock", || stress_ng("mlock", &[])),
    test("stress-ng/vm-splice", || {
        stress_ng("vm-splice", &["--vm-splice-bytes", "64k"])
    }),
    test("trinity", trinity),
];

static ARGUMENTS: OnceLock<Arguments> = OnceLock::new();

fn main() -> ExitCode {
    let arguments = ARGUMENTS.get_or_init(Arguments::parse);
    report::run(TESTS, &arguments.options)
}

/// With all that it maps merged again and again. Skips the test where it is not installed.
fn merged(program: &str) -> Result<Command> {
    let found = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(program));
    let Some(program) = found.iter().find(|path| path.is_file()) else {
        return skip(format!("{program} is not installed"));
    };
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", object()?);
    Ok(command)
}

fn object() -> Result<PathBuf> {
    let object = std::env::current_exe()?.with_file_name("libsksm_merge_all.so");
    ensure!(object.is_file(), "{} is not there", object.display());
    Ok(object)
}

/// Runs it to its end.
fn run(command: &mut Command) -> Result<Ended> {
    let start = Counters::now()?;
    let output = command.output().context("it does not start")?;
    eprint!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let merged = start.change()?.pages_merged;
    eprintln!("{merged} pages were merged, {}", output.status);
    ensure!(merged > 0, "nothing was merged");
    Ok(Ended {
        content: output.status.success(),
        said: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

struct Ended {
    content: bool,
    said: String,
}

fn stress_ng(stressor: &str, more: &[&str]) -> Result<()> {
    let seconds = ARGUMENTS.get().context("main has set them")?.seconds;
    let _swap = Swap::on()?;
    let mut command = merged("stress-ng")?;
    command
        .args(["--verify", "--oomable", "--temp-path", "/tmp"])
        .args(["--timeout", &seconds.to_string()])
        .args([&format!("--{stressor}"), "2"])
        .args(more);
    ensure!(
        run(&mut command)?.content,
        "stress-ng found something wrong"
    );
    Ok(())
}

/// It makes whatever system calls of mm there are with whatever arguments. The kernel must go on, and keep nothing.
fn trinity() -> Result<()> {
    let calls = ARGUMENTS.get().context("main has set them")?.calls;
    let _swap = Swap::on()?;
    let mut command = merged("trinity")?;
    let dir = std::env::temp_dir().join(format!("sksm-trinity-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534))?;
    command
        .args([
            "-q",
            "-l",
            "off",
            "-C",
            "2",
            "-g",
            "vm",
            "--disable-fds=sockets",
        ])
        .args(["-N", &calls.to_string(), "-s", "1"])
        .current_dir(&dir);
    // As nobody, who can do least to the machine.
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    std::os::unix::process::CommandExt::gid(&mut command, 65534);
    let ended = run(&mut command);
    std::fs::remove_dir_all(&dir).ok();
    let said = ended?.said;
    ensure!(said.contains("Ran "), "it made no system calls: {said}");
    Ok(())
}
