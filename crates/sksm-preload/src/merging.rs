use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sksm::{Error, Kind, Kinds, Support, maps};

use crate::report::Line;
use crate::settings::Settings;

/// What to merge, kept for the times after the first: set once before main, read by a thread or a signal handler.
pub static WANTED: Wanted = Wanted {
    kinds: AtomicU64::new(0),
    min_pages: AtomicUsize::new(0),
    verbose: AtomicBool::new(false),
    filter_allows: AtomicBool::new(false),
};

pub struct Wanted {
    kinds: AtomicU64,
    min_pages: AtomicUsize,
    verbose: AtomicBool,
    filter_allows: AtomicBool,
}

impl Wanted {
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

    /// Merges, and says so if it is to. It makes only calls that a signal handler may make.
    pub fn merge(&self, when: &[u8]) {
        let mut line = Line::default();
        line.text(b"sksm: process ");
        // SAFETY: getpid cannot fail.
        line.number(unsafe { libc::getpid() } as u64);
        line.text(b" ").text(when).text(b": ");
        if !self.filter_allows.load(Ordering::Relaxed) && filtered() {
            line.text(b"nothing done under a seccomp filter; see SKSM_SECCOMP");
        } else if sksm::support() != Support::Merge {
            line.text(b"nothing done, this kernel has no MADV_MERGE");
        } else {
            self.merge_mappings(&mut line);
        }
        if self.verbose.load(Ordering::Relaxed) {
            line.write(libc::STDERR_FILENO);
        }
    }

    fn merge_mappings(&self, line: &mut Line) {
        let kinds = self.kinds.load(Ordering::Relaxed);
        let min = (self.min_pages.load(Ordering::Relaxed)).saturating_mul(sksm::page_size());
        let (mut advised, mut mappings, mut refused) = (0, 0, 0);
        let read = maps::each_own(|mapping| {
            let wanted = kinds & mapping.kind() as u64 != 0;
            if wanted && mapping.region.len >= min {
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
    let mut text = [0; 4096];
    // SAFETY: the buffer is valid for writes of its length; the descriptor is closed by nobody else.
    let count = unsafe {
        let count = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        count
    };
    let text = usize::try_from(count).ok().and_then(|len| text.get(..len));
    !text.is_some_and(unfiltered)
}

fn unfiltered(status: &[u8]) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    let seccomp = lines.find_map(|line| line.strip_prefix(b"Seccomp:"));
    seccomp.is_some_and(|mode| mode.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_shows() {
        assert!(unfiltered(b"Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
        assert!(!unfiltered(b"Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        // Without the line nobody knows.
        assert!(!unfiltered(b"Name:\tx\n"));
    }
}
