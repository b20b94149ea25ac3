//! Hands out the twin filter of each merge domain to programs that look at their own memory, VMMs above all.
//!
//! A peer may write what it likes into the filter of its own domain, and into no other one. So that it gets no other one, it has to be
//! who it was when it connected: the same process still, of the same user.
//!
//! Nothing is read from a peer and nobody is waited for, so that it does not matter how slow one is. What one user can have of the
//! service is bounded, and what all can.

mod room;

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sksm_scan::SharedFilter;

use crate::cpu_clock::CpuClock;
use crate::domain::{Domain, Mode, Owner};
use crate::output;
use room::Room;

/// A filter is begun anew so often, so that who has gone is in it no more.
const GENERATION: Duration = Duration::from_secs(600);
/// Filters of 4 MiB: so many for domains of one user, and for all.
const MOST_OF_USER: usize = 16;
const MOST: usize = 256;
/// How long nobody is answered where nobody can connect, and over which time CPU time is shared out.
const REST: Duration = Duration::from_secs(10);
/// The thread takes one part in so many of a CPU, however many connect.
const SHARE: u32 = 10;

/// CPU time of the thread, in nanoseconds, which is at the mercy of others.
static USED: AtomicU64 = AtomicU64::new(0);

/// What answering has taken so far. It is none of the scanner's budget.
pub fn cpu_time() -> Duration {
    Duration::from_nanos(USED.load(Ordering::Relaxed))
}

/// A socket at which a thread answers as long as the command runs. Its path, if it is to be removed.
pub struct Server(Option<PathBuf>);

impl Server {
    /// At a socket that systemd has made, if it has handed one over.
    /// One that was handed over, see [`is_handed`].
    pub fn handed() -> Result<Option<Self>> {
        match variable("LISTEN_FDS") {
            None | Some(0) => return Ok(None),
            Some(1) => {}
            Some(more) => {
                bail!("{more} sockets were handed over; there is use for one: see sksm-scan.socket")
            }
        }
        // SAFETY: the first after the three of every program, as sd_listen_fds(3) says; whoever says so has given it to this process.
        let socket = unsafe { OwnedFd::from_raw_fd(3) };
        let listener = listening(socket).context(
            "what was handed over is no socket that listens: ListenStream= of sksm-scan.socket is a path",
        )?;
        serve(listener)?;
        Ok(Some(Server(None)))
    }

    /// In place of one that was there before, or of nothing.
    pub fn listen(path: &Path, again: bool) -> Result<Self> {
        let shown = path.display();
        // Nobody listens any more at what one that was killed has left, nor at that of one that waits.
        let left = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
        if left && (again || UnixStream::connect(path).is_err()) {
            std::fs::remove_file(path).with_context(|| format!("cannot remove {shown}"))?;
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen at {shown}"))?;
        // Each gets its own domain's only; who may reach the socket, its directory says.
        open_to_all(path).with_context(|| format!("cannot open {shown} to others"))?;
        serve(listener)?;
        Ok(Server(Some(path.to_owned())))
    }
}

/// Whether sockets were handed to this process, and not to its parent, where it was not told to start a service.
pub fn is_handed() -> bool {
    variable("LISTEN_PID") == Some(std::process::id())
}

fn variable(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

fn serve(listener: UnixListener) -> Result<()> {
    let mut filters = Filters::default();
    let answer = move || {
        let mut begun = (Instant::now(), CpuClock::READER.read());
        for peer in listener.incoming() {
            match peer {
                // Whoever is refused sees its connection end; a note for each would be at its mercy.
                Ok(peer) => _ = filters.answer(peer),
                Err(error) => {
                    output::note(&format!("nobody can connect now: {error}"));
                    std::thread::sleep(REST);
                }
            }
            let used = CpuClock::READER.read();
            USED.store(used.as_nanos() as u64, Ordering::Relaxed);
            // Time that nobody wanted is not kept for a flood.
            if begun.0.elapsed() >= REST {
                begun = (Instant::now(), used);
            }
            std::thread::sleep(ahead(used - begun.1, begun.0.elapsed()));
        }
    };
    let thread = std::thread::Builder::new().name("serve".into());
    thread.spawn(answer).context("no thread for the socket")?;
    Ok(())
}

/// How long it has to rest, so that it has taken no more than its share.
fn ahead(used: Duration, elapsed: Duration) -> Duration {
    (used * SHARE).saturating_sub(elapsed)
}

fn listening(socket: OwnedFd) -> io::Result<UnixListener> {
    let listens: libc::c_int = option(&socket, libc::SO_ACCEPTCONN)?;
    let family: libc::c_int = option(&socket, libc::SO_DOMAIN)?;
    if (listens, family) != (1, libc::AF_UNIX) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // It came so that it outlived the start of this program, and waits where nobody connects.
    // SAFETY: changes flags of a descriptor that is this function's own.
    let set = unsafe {
        let fd = socket.as_raw_fd();
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0
            && libc::fcntl(fd, libc::F_SETFL, 0) == 0
    };
    set.then(|| socket.into())
        .ok_or_else(io::Error::last_os_error)
}

/// Whose directory it is may have put something else there since; not that is opened.
fn open_to_all(path: &Path) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let found = file.metadata()?;
    // SAFETY: takes nothing.
    if !found.file_type().is_socket() || found.uid() != unsafe { libc::geteuid() } {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(same, Permissions::from_mode(0o666))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may have been removed by whoever has its directory.
            _ = std::fs::remove_file(path);
        }
    }
}

#[derive(Default)]
struct Filters {
    of: HashMap<Domain, Filter>,
    room: Room,
}

struct Filter {
    filter: SharedFilter,
    begun: Instant,
    /// Who asked first.
    user: u32,
}

impl Filters {
    fn answer(&mut self, peer: UnixStream) -> io::Result<()> {
        let who: libc::ucred = option(&peer, libc::SO_PEERCRED)?;
        let now = Instant::now();
        // Before anything is looked up, so that a refusal costs less than the attempt.
        if !self.room.takes(who.uid, now) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let domain = domain_of(&peer, &who)?;
        self.filter(who.uid, domain, now)?.send(&peer)?;
        self.room.answered(who.uid, peer);
        Ok(())
    }

    fn filter(&mut self, user: u32, domain: Domain, now: Instant) -> io::Result<&SharedFilter> {
        self.of.retain(|_, filter| now - filter.begun < GENERATION);
        let of_user = self.of.values().filter(|filter| filter.user == user);
        let room = self.of.len() < MOST && of_user.count() < MOST_OF_USER;
        match self.of.entry(domain) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(&known.into_mut().filter),
            std::collections::hash_map::Entry::Vacant(_) if !room => {
                Err(io::ErrorKind::QuotaExceeded.into())
            }
            std::collections::hash_map::Entry::Vacant(new) => {
                let filter = Filter {
                    filter: SharedFilter::create()?,
                    begun: now,
                    user,
                };
                Ok(&new.insert(filter).filter)
            }
        }
    }
}

/// The merge domain of who connected.
fn domain_of(peer: &UnixStream, who: &libc::ucred) -> io::Result<Domain> {
    let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
    // Its number may be another's by now, so it is held; kernels that track writes know this.
    let pidfd: libc::c_int = option(peer, SO_PEERPIDFD)?;
    // SAFETY: a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = u32::try_from(who.pid).map_err(|_| refused())?;
    let owner = Owner::of(pid)?;
    let mode = Mode::read().unwrap_or(Mode::Cgroup);
    let domain = owner.domain(mode).map_err(|_| refused())?;
    // A set-uid program that runs in it since is in a domain that is none of the one who connected.
    if owner.user() != who.uid || ended(&pidfd)? {
        return Err(refused());
    }
    Ok(domain)
}

/// Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;

/// An option of a socket, which is a structure of numbers.
fn option<T: Copy>(socket: &impl AsRawFd, name: libc::c_int) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: writes at most as much as there is room for.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: of numbers, all of which may be 0 or what the kernel wrote.
    Ok(unsafe { value.assume_init() })
}

fn ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid structure.
    match unsafe { libc::poll(&mut poll, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> Domain {
        let owner = Owner::of(std::process::id()).unwrap();
        owner.domain(Mode::User).unwrap()
    }

    fn other_domain(number: u64) -> Domain {
        let mut owner = Owner::of(std::process::id()).unwrap();
        owner.user_namespace = number;
        owner.domain(Mode::User).unwrap()
    }

    #[test]
    fn those_of_a_domain_have_one_filter_for_a_while() {
        let mut filters = Filters::default();
        let now = Instant::now();
        let hand_out = |filters: &mut Filters, domain, now| {
            let (here, there) = UnixStream::pair().unwrap();
            filters.filter(1, domain, now).unwrap().send(&here).unwrap();
            SharedFilter::receive(&there).unwrap()
        };
        let first = hand_out(&mut filters, domain(), now);
        let soon = hand_out(&mut filters, domain(), now + GENERATION / 2);
        let later = hand_out(&mut filters, domain(), now + GENERATION);
        let other = hand_out(&mut filters, other_domain(7), now + GENERATION);
        assert!(first.same(&soon).unwrap());
        assert!(!first.same(&later).unwrap() && !later.same(&other).unwrap());
    }

    #[test]
    fn nobody_has_more_than_a_few() {
        let mut filters = Filters::default();
        let now = Instant::now();
        let mut given = |user, number| filters.filter(user, other_domain(number), now).is_ok();
        let of_one = (0..100).filter(|number| given(1, *number)).count();
        assert_eq!(of_one, MOST_OF_USER);
        assert!(given(1, 0) && given(2, 1000) && !given(1, 1001));
    }

    #[test]
    fn it_rests_after_what_it_has_taken() {
        let ms = Duration::from_millis;
        assert_eq!(ahead(ms(5), ms(100)), Duration::ZERO);
        assert_eq!(ahead(ms(50), ms(100)), ms(400));
    }

    #[test]
    fn what_is_handed_over_must_listen() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("twins")).unwrap();
        // systemd's would not wait.
        listener.set_nonblocking(true).unwrap();
        let listener = listening(listener.into()).unwrap();
        // SAFETY: asks for flags of a descriptor that is open.
        let flags = unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        let (one, _) = UnixStream::pair().unwrap();
        assert!(listening(one.into()).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening(tcp.into()).is_err());
        let file = File::open("/dev/null").unwrap();
        assert!(listening(file.into()).is_err());
    }

    #[test]
    fn who_connects_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("twins");
        let ask = || {
            let stream = UnixStream::connect(&path).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(120)))
                .unwrap();
            SharedFilter::receive(&stream)
        };
        let server = Server::listen(&path, false).unwrap();
        match (ask(), ask()) {
            (Ok(one), Ok(other)) => assert!(one.same(&other).unwrap()),
            // An old kernel, or one whose control groups put this process into no domain.
            (one, other) => assert!(one.is_err() && other.is_err()),
        }
        drop(server);
        assert!(!path.exists());
        // What was left by one that was killed is no obstacle.
        drop(UnixListener::bind(&path).unwrap());
        drop(Server::listen(&path, false).unwrap());
    }
}
