//! A kernel that runs and takes commands.

use std::{
    env, fs,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::stdio::stdin;
use tempfile::TempDir;

use super::{
    channel::Channel,
    command::{Cmd, Limit, Sink, Stdin},
    console,
    cpu::Cpu,
    outcome::End,
    protocol::{Exec, Frame, WINDOW},
};
use crate::{
    ground::interrupt::Group,
    terminal::tty::{self, Raw},
};

/// How long it may take to kill everything, and to power off.
const WIND_DOWN: Duration = Duration::from_secs(60);
/// Complaints of the kernel that a report shows.
const SPLATS_SHOWN: usize = 10;
/// Lines of the first of them.
const SPLAT_LINES: usize = 80;

/// What the host's environment lends to the guest.
const LENT: &[&str] = &[
    "COLORTERM",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "PATH",
    "SHELL",
    "TERM",
];

/// A kernel that has been booted. Killed when dropped.
pub struct Guest {
    group: Group,
    pub(super) channel: Channel,
    pub(super) console: PathBuf,
    _scratch: TempDir,
    _cpu: Option<Cpu>,
}

impl Guest {
    /// It takes commands once the agent has greeted.
    pub(super) fn new(
        group: Group,
        channel: OwnedFd,
        console: PathBuf,
        scratch: TempDir,
        cpu: Option<Cpu>,
    ) -> Self {
        Self {
            group,
            channel: Channel::new(channel),
            console,
            _scratch: scratch,
            _cpu: cpu,
        }
    }

    /// Whether the kernel still answers.
    pub fn alive(&self) -> bool {
        !self.channel.gone()
    }

    /// The kernel's complaints so far.
    pub fn splats(&self) -> Result<Vec<String>> {
        Ok(console::splats(&self.log()?, SPLATS_SHOWN))
    }

    /// Runs a command to its end; returns what was captured too.
    pub fn exec(&mut self, cmd: Cmd, limit: Option<Limit>) -> Result<(End, Vec<u8>)> {
        if cmd.argv.is_empty() {
            bail!("no command given");
        }
        let interactive = cmd.stdin == Stdin::Inherit && tty::interactive();
        let cwd = match cmd.dir {
            Some(dir) => dir,
            None => {
                let own = env::current_dir().context("the current directory is gone")?;
                own.to_string_lossy().into_owned()
            }
        };
        self.channel.send(&Frame::Exec(Exec {
            argv: cmd.argv,
            env: environment(),
            cwd,
            tty: interactive.then(tty::size),
        }));
        let raw = if interactive {
            Some(Raw::enter()?)
        } else {
            None
        };
        let mut size = tty::size();
        let mut input = match cmd.stdin {
            Stdin::Inherit => Input::Open,
            Stdin::Null => {
                self.channel.send(&Frame::StdinEnd);
                Input::Ended
            }
        };
        let mut window = WINDOW;
        let mut stdout = Sink::new(cmd.stdout, false);
        let mut stderr = Sink::new(cmd.stderr, true);
        let mut deadline = limit.map(Limit::end);
        let mut timed_out = false;
        let mut end = None;
        while end.is_none() && !self.channel.gone() {
            let (from_guest, from_user) = self
                .channel
                .wait(input == Input::Open && window > 0, deadline)?;
            if interactive && size != tty::size() {
                size = tty::size();
                self.channel.send(&Frame::Resize(size.0, size.1));
            }
            if from_user {
                let mut chunk = vec![0; window.min(4096)];
                let count = rustix::io::read(stdin(), &mut chunk).unwrap_or(0);
                chunk.truncate(count);
                if count == 0 {
                    input = Input::Ended;
                    self.channel.send(&Frame::StdinEnd);
                } else {
                    window -= count;
                    self.channel.send(&Frame::Stdin(chunk));
                }
            }
            if from_guest {
                self.channel.fill()?;
                while let Some(frame) = self.channel.next()? {
                    match frame {
                        Frame::Stdout(data) => {
                            stdout.write(&data)?;
                            if matches!(limit, Some(Limit::Silence(_))) && !timed_out {
                                deadline = limit.map(Limit::end);
                            }
                        }
                        Frame::Stderr(data) => stderr.write(&data)?,
                        Frame::Taken(count) => window += count as usize,
                        Frame::Exit(status) => end = Some(End::Exited(status)),
                        _ => {}
                    }
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if timed_out {
                    // Not even killing works any more.
                    self.give_up();
                } else {
                    timed_out = true;
                    self.channel.send(&Frame::Kill);
                    deadline = Some(Instant::now() + WIND_DOWN);
                }
            }
        }
        drop(raw);
        let end = if timed_out {
            End::TimedOut
        } else if let Some(end) = end {
            end
        } else if console::panicked(&self.log()?) {
            End::Panicked
        } else {
            End::Died
        };
        stderr.finish();
        Ok((end, stdout.finish()))
    }

    /// Powers off; returns the kernel's complaints and the console log.
    pub fn finish(mut self) -> Result<(Vec<String>, PathBuf)> {
        self.channel.send(&Frame::PowerOff);
        let deadline = Instant::now() + WIND_DOWN;
        while !self.channel.gone() && Instant::now() < deadline {
            if self.channel.readable(Some(deadline))? {
                self.channel.fill()?;
                while self.channel.next()?.is_some() {}
            }
        }
        let mut splats = self.splats()?;
        if !splats.is_empty() {
            // The log may be out of reach for who reads this.
            splats.push("the first of them:".into());
            splats.extend(console::first_splat(&self.log()?, SPLAT_LINES));
        }
        if !self.channel.gone() {
            splats.push("the kernel did not power off".into());
        }
        Ok((splats, self.console.clone()))
    }

    pub(super) fn log(&self) -> Result<String> {
        let log = fs::read(&self.console)
            .with_context(|| format!("cannot read {}", self.console.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn give_up(&mut self) {
        self.group.kill();
        self.channel.hang_up();
    }
}

#[derive(PartialEq)]
enum Input {
    Open,
    Ended,
}

fn environment() -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = LENT
        .iter()
        .filter_map(|&name| Some((name.to_owned(), env::var(name).ok()?)))
        .collect();
    variables.push(("USER".into(), "root".into()));
    variables.push(("LOGNAME".into(), "root".into()));
    variables
}
