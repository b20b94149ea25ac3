//! Child processes and the talk with them: every wait is for a message, an end of file, or an exit, never for time.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::memory::map::Map;
use crate::memory::oom;
use crate::memory::pagemap::Pagemap;
use crate::syscall::check;

/// Forks; 0 in the child.
pub fn fork() -> Result<i32> {
    // SAFETY: glibc keeps its locks usable in the child, and children end by `exit_now` or a signal, never by returning.
    check(unsafe { libc::fork() }).context("fork")
}

/// Ends this process at once; what the parent registered to run at exit does not run here.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Another process that shares this one's memory (CLONE_VM) calls `body` and exits; meanwhile this thread waits. All that `body`
/// may do is to make system calls.
pub fn sharing_memory(body: fn(usize), argument: usize) -> Result<Ended> {
    extern "C" fn begin(call: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what is passed below, by one who waits.
        let (body, argument) = unsafe { *call.cast::<(fn(usize), usize)>() };
        body(argument);
        exit_now(0)
    }
    let stack = Map::anon(16)?;
    let mut call = (body, argument);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let top = (stack.addr() + stack.len()) as *mut libc::c_void;
    // SAFETY: a stack of its own, and what it works on outlives it, as this thread waits.
    let pid = check(unsafe { libc::clone(begin, top, flags, (&raw mut call).cast()) });
    wait(pid.context("clone")?)
}

/// A pipe: its end to read from, and its end to write into.
pub fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: two new descriptors that nothing else owns.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// Keeps this thread, and those that it starts, on one CPU: what that CPU keeps for itself it can then find again.
pub fn stay_on_one_cpu() -> Result<()> {
    stay_on(0)
}

/// The same, on this CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is valid when it is all zeros.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid, and a number beyond it panics.
    unsafe { libc::CPU_SET(cpu, &mut cpus) };
    // SAFETY: a valid set of that size.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &cpus) })
        .with_context(|| format!("cannot run on CPU {cpu}"))
        .map(drop)
}

/// Lets this thread run before all ordinary ones of its CPU, the kernel's too. For a fraction of a second: after that the
/// kernel gives the others their turn.
pub fn before_others(on: bool) -> Result<()> {
    let policy = if on {
        libc::SCHED_FIFO
    } else {
        libc::SCHED_OTHER
    };
    let parameters = libc::sched_param {
        sched_priority: i32::from(on),
    };
    // SAFETY: valid parameters.
    check(unsafe { libc::sched_setscheduler(0, policy, &parameters) })
        .context("sched_setscheduler")
        .map(drop)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// Waits for a child's end.
pub fn wait(pid: i32) -> Result<Ended> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for it.
    check(unsafe { libc::waitpid(pid, &mut status, 0) }).context("waitpid")?;
    Ok(if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Exit(libc::WEXITSTATUS(status))
    })
}

/// Waits until no child is left.
pub fn reap_all(timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            -1 => return Ok(()),
            0 if Instant::now() > deadline => {
                bail!(
                    "a killed process is still there after {} s",
                    timeout.as_secs()
                )
            }
            0 => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
    }
}

/// Makes this process the parent of its descendants whose own parent dies.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Puts a process (0: this one) into a process group of its own. It is called on both sides of a fork, and one may be late.
pub fn own_group(pid: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::setpgid(pid, pid) };
}

pub fn kill_group(leader: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::kill(-leader, libc::SIGKILL) };
}

/// Makes this process one of an ordinary user, for good.
pub fn become_user(uid: u32) -> Result<()> {
    if uid != 0 {
        // SAFETY: takes numbers only.
        check(unsafe { libc::setgroups(0, std::ptr::null()) }).context("setgroups")?;
        // SAFETY: as above.
        check(unsafe { libc::setgid(uid) }).context("setgid")?;
        // SAFETY: as above.
        check(unsafe { libc::setuid(uid) }).context("setuid")?;
        // As open to its own user as a process that this user has started.
        // SAFETY: as above.
        check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }).context("dumpable")?;
    }
    Ok(())
}

/// A handle on a process.
pub struct Pidfd(OwnedFd);

impl Pidfd {
    pub fn open(pid: i32) -> Result<Self> {
        Self::open_with(pid, 0)
    }

    pub fn open_with(pid: i32, flags: i32) -> Result<Self> {
        // SAFETY: takes numbers only.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
            .with_context(|| format!("pidfd_open of process {pid}"))?;
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Waits for the end of the process; false if it does not come in time.
    pub fn ends_within(&self, timeout: Duration) -> Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        Ok(check(unsafe { libc::poll(&mut poll, 1, millis) }).context("poll")? == 1)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of the talk between parent and child. A message is a number; "ready" and "go on" are 0.
pub struct Link(UnixStream);

const NUMBER: u8 = 0;
const ERROR: u8 = 1;

impl Link {
    pub fn send(&self, number: u64) -> Result<()> {
        let mut message = vec![NUMBER];
        message.extend(number.to_ne_bytes());
        (&self.0)
            .write_all(&message)
            .context("the other side has gone")
    }

    /// The next number; the other side's error if it failed.
    pub fn receive(&self) -> Result<u64> {
        let mut kind = [0];
        (&self.0)
            .read_exact(&mut kind)
            .context("the other side has gone")?;
        if kind[0] == ERROR {
            let mut reason = String::new();
            (&self.0).read_to_string(&mut reason)?;
            bail!("{reason}");
        }
        let mut number = [0; 8];
        (&self.0).read_exact(&mut number)?;
        Ok(u64::from_ne_bytes(number))
    }

    /// Tells the other side that it may go on.
    pub fn go(&self) -> Result<()> {
        self.send(0)
    }

    /// Waits until the other side says so.
    pub fn pause(&self) -> Result<()> {
        self.receive().map(drop)
    }

    /// Says "ready" and waits for "go on": a place where the parent looks around.
    pub fn meet(&self) -> Result<()> {
        self.go()?;
        self.pause()
    }

    fn fail(&self, error: &anyhow::Error) -> io::Result<()> {
        let mut message = vec![ERROR];
        message.extend(format!("{error:#}").as_bytes());
        (&self.0).write_all(&message)
    }
}

/// A forked child; killed when dropped.
pub struct Child {
    pid: i32,
    link: Link,
    reaped: bool,
}

impl Child {
    /// Forks a child that runs `body` and exits.
    pub fn spawn(body: impl FnOnce(&Link) -> Result<()>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let pid = fork()?;
        if pid == 0 {
            drop(ours);
            let link = Link(theirs);
            let result = body(&link);
            // With the parent gone there is nobody to tell.
            let told = result.as_ref().err().map(|error| link.fail(error));
            drop(told);
            exit_now(i32::from(result.is_err()));
        }
        Ok(Self {
            pid,
            link: Link(ours),
            reaped: false,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn pidfd(&self) -> Result<Pidfd> {
        Pidfd::open(self.pid)
    }

    pub fn pagemap(&self) -> Result<Pagemap> {
        Pagemap::of(self.pid)
    }

    pub fn kill(&self) {
        // SAFETY: our own child, not waited for yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Waits for its end, however it comes.
    pub fn ended(mut self) -> Result<Ended> {
        self.reaped = true;
        wait(self.pid)
    }

    /// Waits for its end, which must be a good one.
    pub fn join(mut self) -> Result<()> {
        let mut rest = Vec::new();
        (&self.link.0).read_to_end(&mut rest)?;
        self.reaped = true;
        let ended = wait(self.pid)?;
        if let Some(error) = rest.iter().position(|byte| *byte == ERROR) {
            bail!("{}", String::from_utf8_lossy(&rest[error + 1..]));
        }
        if ended == Ended::Signal(libc::SIGKILL) {
            if let Some(report) = oom::report(self.pid) {
                bail!("child: {ended} for want of memory: {report}");
            }
        }
        ensure!(ended == Ended::Exit(0), "child: {ended}");
        Ok(())
    }
}

impl std::ops::Deref for Child {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            // Dropping cannot report, and a child that is not there needs no waiting.
            wait(self.pid).ok();
        }
    }
}

/// A gate that any number of processes wait at and that opens for all at once.
pub struct Gate {
    waiting: UnixStream,
    keeper: UnixStream,
}

impl Gate {
    pub fn closed() -> Result<Self> {
        let (waiting, keeper) = UnixStream::pair()?;
        Ok(Self { waiting, keeper })
    }

    /// Waits in a forked child until the parent opens the gate.
    pub fn wait(&self) -> Result<()> {
        // A shutdown concerns the connection, so it does not matter that this child holds the keeper's end too.
        let read = (&self.waiting).read(&mut [0])?;
        ensure!(read == 0, "nobody writes here");
        Ok(())
    }

    pub fn open(&self) -> Result<()> {
        Ok(self.keeper.shutdown(std::net::Shutdown::Write)?)
    }
}
