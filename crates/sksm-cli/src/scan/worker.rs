//! Scanning is done by a child of the command, which begins another one when the first is made to wait for ever: where that is for a
//! file system in user space, no signal ends such a wait.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::wake::Wakes;
use crate::hung::{self, Hung};
use crate::output;

/// By what the child and the command tell each other: read and written as a file, which any filter of system calls lets pass.
pub struct Line(File);

/// What is to be done after [`begin`], which returns in two processes.
pub enum Turn {
    /// In the child: to scan.
    Scan {
        line: Line,
        wakes: Wakes,
        /// It takes the place of one that waits.
        again: bool,
    },
    /// In the command: a child has ended so.
    Ended(ExitCode),
}

impl Line {
    /// Says who makes this process wait for ever, if that is known. Another one takes its place then.
    pub fn give_up(&mut self, on: Option<&Hung>) -> Result<()> {
        Ok(self.0.write_all(Hung::encode(on)?.as_bytes())?)
    }

    /// Waits so long. Signals to the command are raised here meanwhile, and one to end when it has ended.
    pub fn listen(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !readable([&self.0], left.as_millis().try_into().unwrap_or(i32::MAX))[0] {
                return;
            }
            let mut signal = [0];
            let said = self.0.read(&mut signal).is_ok_and(|count| count > 0);
            let signal = if said {
                signal[0].into()
            } else {
                libc::SIGTERM
            };
            // SAFETY: takes a number; signals that are handled.
            unsafe { libc::raise(signal) };
            if !said {
                return std::thread::sleep(left);
            }
        }
    }
}

/// Which of these can be read, or have ended; none of them after so many milliseconds, for ever where that is negative.
fn readable<const COUNT: usize>(files: [&File; COUNT], time: i32) -> [bool; COUNT] {
    let mut all = files.map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: as many structures as are named.
    unsafe { libc::poll(all.as_mut_ptr(), COUNT as _, time) };
    all.map(|one| one.revents != 0)
}

/// Who made children wait goes into this file. To be called while there is one thread only.
pub fn begin(list: Option<&Path>) -> Result<Turn> {
    let signals = Signals::hold().context("cannot wait for signals")?;
    let mut again = false;
    // How they end is to be known, whatever whoever started this one has said.
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // Those that wait.
    let mut left: Vec<libc::pid_t> = Vec::new();
    loop {
        let (told, tell) = UnixStream::pair().context("cannot make a socket")?;
        // SAFETY: this process has one thread, so that the child may do anything.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err(io::Error::last_os_error()).context("cannot begin to scan"),
            0 => {
                drop(told);
                let wakes = Wakes::catch().context("cannot catch signals")?;
                signals.release()?;
                let line = Line(File::from(OwnedFd::from(tell)));
                return Ok(Turn::Scan { line, wakes, again });
            }
            _ => {}
        }
        drop(tell);
        let (line, ends) = match watch(File::from(OwnedFd::from(told)), &signals, &mut left)? {
            Said::Nothing => return Ok(Turn::Ended(status(child)?)),
            Said::Waits { line, ends } => (line, ends),
        };
        tell_of(Hung::decode(&line)?, list);
        if ends {
            return Ok(Turn::Ended(ExitCode::FAILURE));
        }
        left.push(child);
        again = true;
    }
}

fn tell_of(hung: Option<Hung>, list: Option<&Path>) {
    let Some(hung) = hung else {
        output::note("waits for ever, for what is not known; begins anew");
        return;
    };
    output::note(&format!(
        "process {} ({}) makes whoever reads its memory wait for ever; goes on without it",
        hung.pid, hung.name
    ));
    hung::add(hung);
    let Some(list) = list else {
        return;
    };
    // It is known here in any case.
    if let Err(error) = hung::write(list) {
        output::note(&format!(
            "cannot write {}: {error:#}; started anew, it will wait for it again",
            list.display()
        ));
    }
}

/// What a child says in the end.
enum Said {
    /// It has ended by itself.
    Nothing,
    /// It has given up, and whether it was told to end before.
    Waits { line: Vec<u8>, ends: bool },
}

/// Hands signals on until the child ends or gives up. Looks after those before it, which end some time.
fn watch(mut child: File, signals: &Signals, left: &mut Vec<libc::pid_t>) -> Result<Said> {
    const LOOK: i32 = 60_000;
    let mut line = Vec::new();
    let mut ends = false;
    loop {
        left.retain(|child| !has_ended(*child));
        let time = if left.is_empty() { -1 } else { LOOK };
        let [said, signalled] = readable([&child, &signals.file], time);
        if signalled {
            let signal = signals.next()?;
            ends |= i32::from(signal) != libc::SIGHUP;
            // That it has ended is to be read.
            child.write_all(&[signal]).ok();
        }
        if said {
            let mut part = [0; 512];
            let count = child.read(&mut part).unwrap_or(0);
            if count == 0 {
                return Ok(Said::Nothing);
            }
            line.extend_from_slice(&part[..count]);
            if line.ends_with(b"\n") {
                return Ok(Said::Waits { line, ends });
            }
        }
    }
}

/// Waits for its end, which has come.
fn status(child: libc::pid_t) -> Result<ExitCode> {
    let mut status = 0;
    // SAFETY: writes a number, into ours.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("cannot wait for the scanner's end");
        }
    }
    // As a shell tells it.
    let code = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    Ok(ExitCode::from(code as u8))
}

fn has_ended(child: libc::pid_t) -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) != 0 }
}

/// Signals that end the scanner, or have it read its configuration: kept until somebody takes them, so that none is lost.
struct Signals {
    file: File,
    before: libc::sigset_t,
}

impl Signals {
    fn hold() -> io::Result<Self> {
        let (mut set, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the sets are written before they are read; a new descriptor belongs to nobody else.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals {
                file: File::from_raw_fd(fd),
                before: before.assume_init(),
            })
        }
    }

    fn next(&self) -> io::Result<u8> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut bytes = [0; SIZE];
        (&self.file).read_exact(&mut bytes)?;
        // The number is what the structure begins with.
        let [a, b, c, d, ..] = bytes;
        Ok(u32::from_ne_bytes([a, b, c, d]) as u8)
    }

    /// Lets those come that have been kept.
    fn release(&self) -> io::Result<()> {
        // SAFETY: a set that was filled.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
        match failed {
            0 => Ok(()),
            failed => Err(io::Error::from_raw_os_error(failed)),
        }
    }
}
