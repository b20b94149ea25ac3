//! The processes of one phase.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use procfs::process::Process;
use sksm_guest::harness::patience::PATIENCE;
use sksm_guest::syscall::check;

pub const COMMAND: [&str; 2] = ["/bin/sleep", "100000"];

/// Sleeping processes; killed when dropped.
#[derive(Default)]
pub struct Crew {
    members: Vec<Child>,
    reports: Vec<Report>,
}

/// What the preload object did in one process.
struct Report {
    pages: usize,
    ns: u64,
}

impl Crew {
    /// Starts one more process, with the preload object if a step is asked of it, and waits for its report. So the processes
    /// start one after the other and do not disturb each other's times.
    pub fn start(&mut self, step: Option<&str>, preload: &Path) -> Result<()> {
        let mut command = Command::new(COMMAND[0]);
        // The same environment for all, and nothing of the user's: a locale, say, would be more private pages.
        command.args(&COMMAND[1..]).env_clear();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Some(step) = step else {
            self.members
                .push(command.spawn().context("cannot start a process")?);
            return Ok(());
        };
        let (reports, end) = pipe()?;
        command
            .env("LD_PRELOAD", preload)
            .env("SKSM_EXPERIMENT", step)
            .env("SKSM_EXPERIMENT_FD", end.as_raw_fd().to_string());
        self.members
            .push(command.spawn().context("cannot start a process")?);
        drop(end);
        self.reports.push(receive(reports, step)?);
        Ok(())
    }

    pub fn pids(&self) -> Vec<i32> {
        self.members
            .iter()
            .map(|member| member.id() as i32)
            .collect()
    }

    /// How long the advice took in each process, in the order of their start.
    pub fn call_times(&self) -> Vec<u64> {
        self.reports.iter().map(|report| report.ns).collect()
    }

    pub fn check_pages(&self, pages: usize) -> Result<()> {
        match self.reports.iter().find(|report| report.pages != pages) {
            None => Ok(()),
            Some(report) => {
                bail!(
                    "a process wrote {} pages of libc's text instead of {pages}",
                    report.pages
                )
            }
        }
    }

    /// Waits until each process has reached its nanosleep: no state but that is an interruptible sleep here.
    pub fn wait_until_asleep(&self) -> Result<()> {
        let name = COMMAND[0].rsplit('/').next();
        for pid in self.pids() {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let stat = Process::new(pid)
                    .and_then(|process| process.stat())
                    .with_context(|| format!("process {pid} is gone"))?;
                // Before its exec it bears this program's name.
                match stat.state {
                    'S' if Some(stat.comm.as_str()) == name => break,
                    'Z' | 'X' => bail!("process {pid} died instead of sleeping"),
                    state if Instant::now() > deadline => bail!(
                        "process {pid} is not asleep after {} s, but in state {state}",
                        PATIENCE.as_secs()
                    ),
                    _ => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        }
        Ok(())
    }

    /// Ends all processes, which must all have lived till now.
    pub fn end(mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(status) = member.try_wait().context("wait")? {
                bail!(
                    "process {} died while it should have slept: {status}",
                    member.id()
                );
            }
        }
        self.kill();
        Ok(())
    }

    fn kill(&mut self) {
        for member in &mut self.members {
            // It fails only for a process that has ended already.
            member.kill().ok();
        }
        for mut member in self.members.drain(..) {
            member.wait().ok();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pipe whose ends are inherited; the reading end is of no use to a child, and harmless.
fn pipe() -> Result<(File, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe writes two descriptors, into ours.
    check(unsafe { libc::pipe(ends.as_mut_ptr()) }).context("pipe")?;
    // SAFETY: both are new, and owned here alone.
    Ok(unsafe { (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// The line that the preload object writes; the pipe's end if its process dies before.
fn receive(reports: File, step: &str) -> Result<Report> {
    let mut poll = libc::pollfd {
        fd: reports.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    let ready = check(unsafe { libc::poll(&mut poll, 1, PATIENCE.as_millis() as i32) })?;
    let mut line = String::new();
    if ready == 1 {
        BufReader::new(reports)
            .read_line(&mut line)
            .context("report")?;
    }
    ensure!(
        !line.is_empty(),
        "a process died, or did not load the preload object, before it reported"
    );
    let field = |name: &str| -> Result<&str> {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .with_context(|| format!("the preload object reported no {name}: {line:?}"))
    };
    if field("failed")? != "nothing" {
        let errno = std::io::Error::from_raw_os_error(field("errno")?.parse()?);
        bail!(
            "the step {step} failed in a process, at {}: {errno}",
            field("failed")?
        );
    }
    Ok(Report {
        pages: field("pages")?.parse()?,
        ns: field("ns")?.parse()?,
    })
}
