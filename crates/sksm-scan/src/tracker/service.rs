use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::SharedFilter;

/// Twins in other processes of the same merge domain, by a filter that a service hands out.
pub struct Service {
    path: PathBuf,
    filter: Option<SharedFilter>,
    /// The one before: it is full, while the new one is being filled by all.
    before: Option<SharedFilter>,
    /// The places of the filter at which this program has counted: a bit for each.
    added: Vec<u64>,
    /// When it is asked for again.
    pub due: Duration,
    /// Why there is none, or no new one.
    pub trouble: Option<io::Error>,
}

/// The service answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(1);

impl Service {
    pub fn new(path: PathBuf) -> Self {
        Service {
            path,
            filter: None,
            before: None,
            added: Vec::new(),
            due: Duration::ZERO,
            trouble: None,
        }
    }

    /// Asks for the filter; whether it is a new one. A service that is away leaves the old one.
    pub fn ask(&mut self) -> bool {
        let (new, trouble) = match self.receive() {
            Ok(new) => (new, None),
            Err(error) => (false, Some(error)),
        };
        self.trouble = trouble;
        new
    }

    fn receive(&mut self) -> io::Result<bool> {
        // One that is stopped has its queue full in the end; nobody waits for that.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let filter = SharedFilter::receive(&stream)?;
        if let Some(known) = &self.filter {
            if known.same(&filter)? {
                return Ok(false);
            }
        }
        self.before = self.filter.replace(filter);
        self.added = vec![0; SharedFilter::PLACES / 64];
        Ok(true)
    }

    /// A page with this sample is stable. It counts once, however often and of however many pages that is told: twins among its own
    /// this program finds itself.
    pub fn add(&mut self, sample: u32) {
        let Some(filter) = &self.filter else {
            return;
        };
        let place = SharedFilter::place(sample);
        let bit = 1 << (place % 64);
        if self.added[place / 64] & bit == 0 {
            self.added[place / 64] |= bit;
            filter.add(sample);
        }
    }

    pub fn twice(&self, sample: u32) -> bool {
        let mut both = self.filter.iter().chain(&self.before);
        both.any(|filter| filter.twice(sample))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_new_filter_is_filled_before_the_old_one_is_forgotten() {
        let name = format!("sksm-scan-{}.socket", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let filters = [(); 3].map(|()| SharedFilter::create().unwrap());
        let mut service = Service::new(path.clone());
        let ask = |service: &mut Service, filter: &SharedFilter| {
            std::thread::scope(|scope| {
                scope.spawn(|| filter.send(&listener.accept().unwrap().0).unwrap());
                service.ask()
            })
        };
        assert!(!service.twice(7));
        assert!(ask(&mut service, &filters[0]) && !ask(&mut service, &filters[0]));
        (0..3).for_each(|_| service.add(7));
        assert!(!service.twice(7));
        filters[0].add(7);
        assert!(service.twice(7));
        assert!(ask(&mut service, &filters[1]) && service.twice(7));
        assert!(ask(&mut service, &filters[2]) && !service.twice(7));
        drop(listener);
        assert!(!service.ask() && service.trouble.is_some());
        std::fs::remove_file(path).unwrap();
    }
}
