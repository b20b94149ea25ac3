use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sksm::{Error, Kind, Kinds, Support, maps};

use crate::report::Line;
use crate::settings::Settings;

/// What to merge, kept for the times after the first: set once before main, read by a thread or a signal handler.
pub static WANTED: Wanted = Wanted::new();

pub struct Wanted {
    kinds: AtomicU64,
    min_pages: AtomicUsize,
    verbose: AtomicBool,
    filter_allows: AtomicBool,
}

impl Wanted {
    const fn new() -> Self {
        Wanted {
            kinds: AtomicU64::new(0),
            min_pages: AtomicUsize::new(0),
            verbose: AtomicBool::new(false),
            filter_allows: AtomicBool::new(false),
        }
    }

    pub fn set(&self, kinds: Kinds, settings: &Settings) {
        let mut set = 0;
        for kind in Kind::MERGEABLE {
            if kinds.has(kind) {
                set |= kind as u64;
            }
        }
        self.kinds.store(set, Ordering::Relaxed);
        self.min_pages.store(settings.min_pages, Ordering::Relaxed);
        self.verbose.store(settings.verbose, Ordering::Relaxed);
        self.filter_allows
            .store(settings.filter_allows, Ordering::Relaxed);
    }

    /// Merges, and says so if it is to; whether it can. It makes only calls that a signal handler may make.
    pub fn merge(&self, when: &[u8]) -> bool {
        let filtered = !self.filter_allows.load(Ordering::Relaxed) && filtered();
        let merges = !filtered && sksm::support() == Support::Merge;
        self.say(when, |line| {
            if filtered {
                line.text(b"nothing done under a seccomp filter; see SKSM_SECCOMP");
            } else if !merges {
                line.text(b"nothing done, this kernel has no MADV_MERGE");
            } else {
                self.merge_mappings(line);
            }
        });
        merges
    }

    /// Says something if it is to.
    pub fn say(&self, when: &[u8], what: impl FnOnce(&mut Line)) {
        let mut line = Line::default();
        line.text(b"sksm: process ");
        // SAFETY: getpid cannot fail.
        line.number(unsafe { libc::getpid() } as u64);
        line.text(b" ").text(when).text(b": ");
        what(&mut line);
        if self.verbose.load(Ordering::Relaxed) {
            line.write(libc::STDERR_FILENO);
        }
    }

    fn wants(&self, mapping: &maps::Line<'_>) -> bool {
        let min = (self.min_pages.load(Ordering::Relaxed)).saturating_mul(sksm::page_size());
        let kinds = self.kinds.load(Ordering::Relaxed);
        kinds & mapping.kind() as u64 != 0 && mapping.region.len >= min
    }

    fn merge_mappings(&self, line: &mut Line) {
        let (mut advised, mut mappings, mut refused) = (0, 0, 0);
        let read = maps::each_own(|mapping| {
            if self.wants(mapping) {
                match sksm::merge_exact(mapping.region.start, mapping.region.len) {
                    Ok(()) => {
                        mappings += 1;
                        advised += mapping.region.len;
                    }
                    Err(Error::Interrupted { .. }) => return false,
                    Err(_) => refused += 1,
                }
            }
            true
        });
        line.text(b"merged ").number(mappings).text(b" mappings, ");
        line.number(advised as u64 / 1024).text(b" KiB");
        if refused > 0 {
            line.text(b"; ").number(refused).text(b" refused");
        }
        if read.is_err() {
            line.text(b"; cannot read /proc/self/maps");
        }
    }
}

/// Whether a seccomp filter is in force for this thread; yes if that cannot be found out.
///
/// Not by prctl(PR_GET_SECCOMP), for which a filter may kill, as strict mode does: to read a file is what the loader has just
/// done. Of a filter that comes later no call can tell that it might not kill for.
fn filtered() -> bool {
    // SAFETY: a path that ends in a nul byte.
    let fd = unsafe {
        libc::open(
            c"/proc/thread-self/status".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return true;
    }
    let mut mode = Mode::default();
    let mut text = [0; 512];
    loop {
        // SAFETY: the buffer is valid for writes of its length.
        let count = unsafe { libc::read(fd, text.as_mut_ptr().cast(), text.len()) };
        let count = usize::try_from(count).unwrap_or(0);
        for byte in text.get(..count).unwrap_or_default() {
            mode.see(*byte);
        }
        if count == 0 || mode.found.is_some() {
            break;
        }
    }
    // SAFETY: opened above, and closed by nobody else.
    unsafe { libc::close(fd) };
    mode.found != Some(b'0')
}

/// Finds seccomp's mode in `/proc/PID/status` byte by byte: the groups that stand before it may fill many pages.
#[derive(Default)]
struct Mode {
    /// So much of the line's start has just been seen.
    matched: usize,
    found: Option<u8>,
}

impl Mode {
    fn see(&mut self, byte: u8) {
        const START: &[u8] = b"\nSeccomp:\t";
        match START.get(self.matched) {
            Some(next) if *next == byte => self.matched += 1,
            // It may begin anew; its first byte does not come again in it.
            Some(_) => self.matched = usize::from(byte == b'\n'),
            None => _ = self.found.get_or_insert(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_shows() {
        for (status, found) in [
            ("Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n", Some(b'0')),
            ("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n", Some(b'2')),
            ("Name:\tSeccomp:\t0\n\nSecc\nSeccomp:\t2\n", Some(b'2')),
            // Without the line nobody knows.
            ("Name:\tx\n", None),
            ("Name:\tx\nSeccomp:\t", None),
        ] {
            let mut mode = Mode::default();
            status.bytes().for_each(|byte| mode.see(byte));
            assert_eq!(mode.found, found, "{status}");
        }
    }

    #[test]
    fn small_mappings_are_left_alone() {
        let settings = |min_pages| Settings {
            min_pages,
            ..Settings::default()
        };
        let wanted = Wanted::new();
        let page = sksm::page_size();
        let mapping = |pages: usize| {
            let end = 0x10000 + pages * page;
            format!("10000-{end:x} rw-p 00000000 00:00 0")
        };
        let wants = |pages| wanted.wants(&maps::Line::parse(mapping(pages).as_bytes()).unwrap());
        for (min, expected) in [
            (0, [true, true, true]),
            (3, [false, true, true]),
            (4, [false, false, true]),
            (usize::MAX, [false; 3]),
        ] {
            wanted.set(Kinds::of(&[Kind::Heap]), &settings(min));
            assert_eq!([1, 3, 4].map(wants), expected, "at least {min}");
        }
        wanted.set(Kinds::of(&[Kind::Text]), &settings(0));
        assert!(!wants(4));
    }
}
