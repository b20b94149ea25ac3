//! Ctrl-C and friends: children are told to stop, then the ordinary error path cleans up.

use std::{
    cell::Cell,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command},
    sync::{
        Mutex,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM},
    iterator::Signals,
};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static GROUPS: Mutex<Vec<(Pid, Signal)>> = Mutex::new(Vec::new());
thread_local! {
    static KILLED: Cell<usize> = const { Cell::new(0) };
}

/// How long a child may take to clean up after itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who presses Ctrl-C once more after so long does not want to wait for that.
const INSISTENCE: Duration = Duration::from_secs(2);

/// Starts the thread that listens for signals.
pub fn install() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    std::thread::spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            if first.is_none() {
                first = Some(Instant::now());
                SIGNAL.store(signal, Ordering::SeqCst);
                signal_groups(None);
            } else if insists(signal, first) {
                signal_groups(Some(Signal::KILL));
                crate::terminal::tty::restore();
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
}

/// Whether a signal is meant to end the tool at once. Only a person does that: a terminal that is closed sends SIGHUP
/// several times, and a second signal would end `make` while it removes what is half made.
fn insists(signal: i32, first: Option<Instant>) -> bool {
    signal == SIGINT && first.is_some_and(|first| first.elapsed() >= INSISTENCE)
}

/// Sends each group the signal that it asked for, or this one.
fn signal_groups(signal: Option<Signal>) {
    for &(group, how) in GROUPS.lock().unwrap().iter() {
        let _ = kill_process_group(group, signal.unwrap_or(how));
    }
}

/// How many of this thread's children could not clean up, as they were killed.
pub fn killed() -> usize {
    KILLED.get()
}

/// The signal that arrived, if any.
pub fn signal() -> Option<i32> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}

/// Fails once a signal has arrived.
pub fn check() -> Result<()> {
    match signal() {
        None => Ok(()),
        Some(_) => bail!("interrupted"),
    }
}

/// A child in a process group of its own, which does not outlive this tool.
pub struct Group {
    pub child: Child,
    pid: Pid,
    how: Signal,
}

impl Group {
    /// `how` ends the child early: `TERM` for one that then removes its half-done files.
    pub fn spawn(command: &mut Command, how: Signal) -> Result<Self> {
        check()?;
        let name = command.get_program().to_string_lossy().into_owned();
        command.process_group(0);
        // SAFETY: the closure makes one async-signal-safe system call.
        unsafe {
            command.pre_exec(move || Ok(set_parent_process_death_signal(Some(how))?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let pid = Pid::from_child(&child);
        GROUPS.lock().unwrap().push((pid, how));
        // A signal between the check and the registration has missed the child.
        if signal().is_some() {
            let _ = kill_process_group(pid, how);
        }
        Ok(Self { child, pid, how })
    }

    /// Asks the child to end.
    pub fn stop(&self) {
        let _ = kill_process_group(self.pid, self.how);
    }

    pub fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let since = Instant::now();
        self.stop();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        // Also if somebody else has killed it.
        if self
            .child
            .wait()
            .map_or(true, |status| status.signal() == Some(SIGKILL))
        {
            KILLED.set(KILLED.get() + 1);
        }
        GROUPS.lock().unwrap().retain(|&(pid, _)| pid != self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_person_who_waited_ends_it_at_once() {
        let now = Instant::now();
        let before = now.checked_sub(INSISTENCE);
        assert!(insists(SIGINT, before));
        assert!(!insists(SIGINT, Some(now)));
        assert!(!insists(SIGINT, None));
        for signal in [SIGHUP, SIGTERM] {
            assert!(!insists(signal, before));
        }
    }

    #[test]
    fn children_that_had_to_be_killed_are_counted() {
        let sleep = |how| Group::spawn(Command::new("sleep").arg("1000"), how).unwrap();
        let before = killed();
        drop(sleep(Signal::TERM));
        assert_eq!(killed(), before);
        drop(sleep(Signal::KILL));
        assert_eq!(killed(), before + 1);
    }
}
