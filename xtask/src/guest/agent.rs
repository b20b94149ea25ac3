//! The tool's hand inside the guest, which runs what it is told to: process 1 after the initramfs, or a service of the system there.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, wait},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    system::{RebootCommand, reboot},
    termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use signal_hook::consts::SIGCHLD;

use crate::guest::protocol::{Decoder, Exec, Frame, GREETING};

/// How long background processes may go on writing once the command itself has ended.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Serves the channel until told to power off; never returns in a guest. As a guest of the system there it leaves what else runs
/// alone.
pub fn serve(channel: &Path, guest: bool) -> Result<()> {
    let channel = OpenOptions::new()
        .read(true)
        .write(true)
        .open(channel)
        .with_context(|| format!("cannot open {}", channel.display()))?;
    if let Ok(mut settings) = tcgetattr(&channel) {
        settings.make_raw();
        tcsetattr(&channel, OptionalActions::Now, &settings)?;
    }
    let (signals, on_signal) = UnixStream::pair()?;
    signals.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(SIGCHLD, on_signal)?;
    let mut agent = Agent {
        channel,
        decoder: Decoder::new(),
        signals,
        guest,
    };
    agent.channel.write_all(GREETING)?;
    loop {
        match agent.receive()? {
            Frame::Exec(exec) => {
                let status = match Job::start(&exec) {
                    Ok(job) => agent.attend(job)?,
                    Err(error) => {
                        let text = format!("{}: {error}\n", exec.argv[0]);
                        agent.send(&Frame::Stderr(text.into()))?;
                        // As a shell reports it.
                        match error.kind() {
                            io::ErrorKind::NotFound => 127,
                            _ => 126,
                        }
                    }
                };
                agent.send(&Frame::Exit(status))?;
            }
            Frame::PowerOff => {
                rustix::fs::sync();
                reboot(RebootCommand::PowerOff).context("cannot power off")?;
            }
            // Input and resizes that were under way when the command ended.
            _ => {}
        }
    }
}

struct Agent {
    channel: File,
    decoder: Decoder,
    signals: UnixStream,
    guest: bool,
}

impl Agent {
    fn send(&mut self, frame: &Frame) -> Result<()> {
        frame
            .write(&mut self.channel)
            .context("the channel to the host broke")
    }

    /// Waits for the next frame.
    fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        match self.decoder.fill(&mut self.channel) {
            // A virtio port reads 0 while the host's end is closed; so does a hung up tty.
            Ok(0) => {
                std::thread::sleep(Duration::from_millis(20));
                Ok(())
            }
            Ok(count) => self.send(&Frame::Arrived(u32::try_from(count)?)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error).context("the channel to the host broke"),
        }
    }

    /// Relays until the command has ended and its output is drained.
    fn attend(&mut self, mut job: Job) -> Result<i32> {
        let mut ended: Option<Instant> = None;
        let mut status = 0;
        loop {
            if job.outputs.is_empty() && ended.is_some() {
                break;
            }
            let over = ended.is_some_and(|at| at.elapsed() > LAST_WORDS);
            if over && !self.guest {
                kill_everything();
            }
            // Frames may have come together with the one that started the command.
            while let Some(frame) = self.decoder.next()? {
                match frame {
                    Frame::Stdin(data) => job.pending.extend(data),
                    Frame::StdinEnd => job.input_ended = true,
                    Frame::Resize(rows, columns) => job.resize(rows, columns),
                    Frame::Kill => {
                        let report = processes();
                        self.send(&Frame::Stderr(report.into_bytes()))?;
                        match self.guest {
                            true => _ = kill_process(job.pid, Signal::KILL),
                            false => kill_everything(),
                        }
                    }
                    _ => {}
                }
            }
            let taken = job.feed();
            if taken > 0 {
                self.send(&Frame::Taken(u32::try_from(taken)?))?;
            }
            let ready = self.wait(&job)?;
            if ready.signal {
                // Content is of no interest.
                let _ = self.signals.read(&mut [0; 64]);
            }
            while let Some((pid, ending)) = reap() {
                if pid == job.pid {
                    status = ending;
                    ended = Some(Instant::now());
                    job.close_input();
                }
            }
            if ready.channel {
                self.fill()?;
            }
            if over && self.guest && ready.outputs.is_empty() {
                // What it has started may hold its outputs for ever.
                break;
            }
            for index in ready.outputs.into_iter().rev() {
                match job.outputs[index].read() {
                    Some(frame) => self.send(&frame)?,
                    None => drop(job.outputs.remove(index)),
                }
            }
        }
        if !self.guest {
            kill_everything();
        }
        while reap().is_some() {}
        Ok(status)
    }

    fn wait(&self, job: &Job) -> Result<Ready> {
        let mut fds = vec![
            PollFd::new(&self.channel, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        for output in &job.outputs {
            fds.push(PollFd::new(&output.from, PollFlags::IN));
        }
        if let Some(input) = job.input.as_ref().filter(|_| !job.pending.is_empty()) {
            fds.push(PollFd::new(input, PollFlags::OUT));
        }
        // The signal pipe wakes us for everything that matters; the timeout is for `LAST_WORDS`.
        match poll(&mut fds, Some(&LAST_WORDS.try_into()?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let set = |fd: &PollFd| !fd.revents().is_empty();
        Ok(Ready {
            channel: set(&fds[0]),
            signal: set(&fds[1]),
            outputs: (0..job.outputs.len())
                .filter(|&index| set(&fds[2 + index]))
                .collect(),
        })
    }
}

struct Ready {
    channel: bool,
    signal: bool,
    outputs: Vec<usize>,
}

/// One output of the command.
struct Output {
    from: File,
    stderr: bool,
}

impl Output {
    /// The next piece, or nothing at the end (which a terminal reports as an error).
    fn read(&mut self) -> Option<Frame> {
        let mut chunk = vec![0; 16 * 1024];
        let count = self.from.read(&mut chunk).ok().filter(|&count| count > 0)?;
        chunk.truncate(count);
        Some(if self.stderr {
            Frame::Stderr(chunk)
        } else {
            Frame::Stdout(chunk)
        })
    }
}

/// The command that runs.
struct Job {
    pid: Pid,
    input: Option<File>,
    pending: VecDeque<u8>,
    input_ended: bool,
    outputs: Vec<Output>,
    terminal: Option<OwnedFd>,
}

impl Job {
    fn start(exec: &Exec) -> io::Result<Self> {
        let mut command = Command::new(&exec.argv[0]);
        command
            .args(&exec.argv[1..])
            .env_clear()
            .envs(exec.env.iter().cloned());
        if let Err(error) = std::env::set_current_dir(&exec.cwd) {
            return Err(io::Error::other(format!("cd {}: {error}", exec.cwd)));
        }
        match exec.tty {
            None => Self::start_on_pipes(command),
            Some((rows, columns)) => Self::start_on_terminal(command, rows, columns),
        }
    }

    fn start_on_pipes(mut command: Command) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let input: Option<File> = child.stdin.take().map(|end| OwnedFd::from(end).into());
        if let Some(input) = &input {
            rustix::io::ioctl_fionbio(input, true)?;
        }
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let outputs = [(stdout, false), (stderr, true)]
            .into_iter()
            .filter_map(|(fd, stderr)| {
                fd.map(|fd| Output {
                    from: fd.into(),
                    stderr,
                })
            })
            .collect();
        Ok(Self {
            pid: Pid::from_child(&child),
            input,
            pending: VecDeque::new(),
            input_ended: false,
            outputs,
            terminal: None,
        })
    }

    fn start_on_terminal(mut command: Command, rows: u16, columns: u16) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().map_err(io::Error::other)?)?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        // SAFETY: the closure makes two async-signal-safe system calls.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn()?;
        let job = Self {
            pid: Pid::from_child(&child),
            input: Some(master.try_clone()?.into()),
            pending: VecDeque::new(),
            input_ended: false,
            outputs: vec![Output {
                from: master.try_clone()?.into(),
                stderr: false,
            }],
            terminal: Some(master),
        };
        job.resize(rows, columns);
        Ok(job)
    }

    fn resize(&self, rows: u16, columns: u16) {
        if let Some(terminal) = &self.terminal {
            let size = Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = tcsetwinsize(terminal, size);
        }
    }

    /// Hands pending input to the command; returns how much is dealt with.
    fn feed(&mut self) -> usize {
        let Some(input) = self.input.as_mut() else {
            // Nobody will read it.
            let dropped = self.pending.len();
            self.pending.clear();
            return dropped;
        };
        let mut taken = 0;
        while !self.pending.is_empty() {
            if self.terminal.is_some() && !writable(input) {
                break;
            }
            let (front, _) = self.pending.as_slices();
            match input.write(&front[..front.len().min(1024)]) {
                Ok(count) => {
                    self.pending.drain(..count);
                    taken += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    taken += self.pending.len();
                    self.pending.clear();
                }
            }
        }
        if self.input_ended && self.pending.is_empty() && self.terminal.is_none() {
            self.input = None;
        }
        taken
    }

    fn close_input(&mut self) {
        self.input = None;
        self.pending.clear();
    }
}

/// A terminal's descriptor is shared with its reader, so it cannot be made non-blocking.
fn writable(file: &File) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::OUT)];
    let now = Duration::ZERO.try_into().expect("zero fits");
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}

/// The next process that has ended, and its status as a shell shows it.
fn reap() -> Option<(Pid, i32)> {
    let (pid, status) = wait(WaitOptions::NOHANG).ok()??;
    let status = status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(0);
    Some((pid, status))
}

fn pids() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != 1)
        .filter_map(Pid::from_raw)
}

/// As process 1; kernel threads do not mind.
fn kill_everything() {
    for pid in pids() {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// What each process was doing, for the report of one that took too long.
fn processes() -> String {
    let mut text = String::from("processes when the time was over:\n");
    for pid in pids() {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default()
        };
        let command = read("cmdline").replace('\0', " ");
        if command.is_empty() {
            continue;
        }
        let status = read("status");
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .unwrap_or_default();
        text += &format!(
            "{:>6} {} {} {}\n",
            pid.as_raw_nonzero(),
            state.trim(),
            read("wchan"),
            command.trim()
        );
        for line in read("stack").lines() {
            text += &format!("         {line}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(argv: &[&str]) -> Exec {
        Exec {
            argv: argv.iter().map(|&word| word.into()).collect(),
            env: Vec::new(),
            cwd: "/".into(),
            tty: None,
        }
    }

    #[test]
    fn a_missing_command_is_not_found() {
        let error = Job::start(&exec(&["/no/such/command"])).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn input_reaches_the_command_and_output_comes_back() {
        let mut job = Job::start(&exec(&["/bin/cat"])).unwrap();
        job.pending.extend(b"hello");
        job.input_ended = true;
        assert_eq!(job.feed(), 5);
        assert_eq!(
            job.outputs[0].read(),
            Some(Frame::Stdout(b"hello".to_vec()))
        );
        assert_eq!(job.outputs[0].read(), None);
    }
}
