//! Ctrl-C and friends: children are killed, then the ordinary error path cleans up.

use std::{
    os::unix::process::CommandExt,
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
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static GROUPS: Mutex<Vec<(Pid, Signal)>> = Mutex::new(Vec::new());

/// How long a child may take to clean up after itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the thread that listens for signals. A second signal ends the tool at once.
pub fn install() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let again = SIGNAL.swap(signal, Ordering::SeqCst) != 0;
            for &(group, how) in GROUPS.lock().unwrap().iter() {
                let _ = kill_process_group(group, if again { Signal::KILL } else { how });
            }
            if again {
                crate::terminal::restore();
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
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

    pub fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let since = Instant::now();
        let _ = kill_process_group(self.pid, self.how);
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        let _ = self.child.wait();
        GROUPS.lock().unwrap().retain(|&(pid, _)| pid != self.pid);
    }
}
