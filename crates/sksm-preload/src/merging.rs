use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use sksm::{Error, Kind, maps};

use crate::filter::{self, Tried};
use crate::refused;
use crate::report::{Line, StandardError};
use crate::settings::Settings;

/// What to merge, kept for the times after the first: set once before main, read by a signal handler.
pub static WANTED: Wanted = Wanted::new();

pub struct Wanted {
    kinds: AtomicU64,
    min_pages: AtomicUsize,
    verbose: AtomicBool,
    filter_allows: AtomicBool,
    /// The filters before main, as [`filter::in_force`] tells them; [`UNKNOWN`] where it does not.
    filters: AtomicU32,
    /// An [`Obstacle`]; 0: none.
    obstacle: AtomicU8,
    stderr: StandardError,
}

const UNKNOWN: u32 = u32::MAX;

/// What stands against merging here.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Obstacle {
    /// What to merge is not understood.
    Settings = 1,
    /// The kernel.
    Support,
    /// The kernel, or a filter that answers as if it were one without.
    Refused,
    /// Nobody knows, as a filter refuses to ask the kernel.
    Unasked,
    /// Nobody knows, for want of memory or a descriptor.
    Undecided,
    /// A filter ends the program for it.
    Kills,
    /// A filter that nothing can be tried under.
    Untried,
    /// A filter that has come since.
    Later,
    /// Whether one has come since is not known, for want of memory or a descriptor.
    Unseen,
    /// Nobody asked for it: the store was asked for.
    NotAsked,
}

/// How far a merge has come.
#[derive(Clone, Copy, Default)]
pub struct Progress {
    /// All mappings below this address are done.
    pub next: usize,
    pub bytes: usize,
    pub mappings: u64,
    pub refused: u64,
    /// Pages that were passed over before it began, where that is known.
    pub passed_over: Option<u64>,
    pub unreadable: bool,
}

impl Progress {
    /// Nothing is done yet.
    pub fn begin() -> Self {
        Progress {
            // Asked for where it is told only.
            passed_over: WANTED.is_verbose().then(refused::pages).flatten(),
            ..Self::default()
        }
    }

    pub fn tell(&self, line: &mut Line) {
        line.text(b"merged ")
            .number(self.mappings)
            .text(b" mappings, ");
        line.number(self.bytes as u64 / 1024).text(b" KiB");
        if self.refused > 0 {
            line.text(b"; ").number(self.refused).text(b" refused");
        }
        let pages = self
            .passed_over
            .and_then(|before| refused::pages()?.checked_sub(before))
            .unwrap_or(0);
        if pages > 0 {
            line.text(b"; passed over ").number(pages);
            line.text(b" pages, see sksm doctor");
        }
        if self.unreadable {
            line.text(b"; cannot read /proc/self/maps");
        }
    }
}

impl Obstacle {
    const ALL: [Obstacle; 10] = [
        Obstacle::Settings,
        Obstacle::Support,
        Obstacle::Refused,
        Obstacle::Unasked,
        Obstacle::Undecided,
        Obstacle::Kills,
        Obstacle::Untried,
        Obstacle::Later,
        Obstacle::Unseen,
        Obstacle::NotAsked,
    ];

    pub fn tell(self, line: &mut Line) {
        line.text(b"nothing done").text(match self {
            Obstacle::Settings => b", SKSM is not understood".as_slice(),
            Obstacle::Support => b", this kernel has no MADV_MERGE",
            Obstacle::Refused => {
                b", this kernel has no MADV_MERGE, or the seccomp filter refuses it"
            }
            Obstacle::Unasked => {
                b", whether this kernel merges cannot be found out: the seccomp filter refuses madvise with the advice 26"
            }
            Obstacle::Undecided => {
                b", whether this kernel merges could not be found out, without memory or a free descriptor for it"
            }
            Obstacle::Kills => b", the seccomp filter would end the program for it",
            Obstacle::Untried => {
                b" under a seccomp filter, where nothing can be tried; see SKSM_SECCOMP"
            }
            Obstacle::NotAsked => b", SKSM_STORE is set and SKSM is not",
            Obstacle::Later => b" under a seccomp filter that has come since; see SKSM_SECCOMP",
            Obstacle::Unseen => {
                b", whether a seccomp filter has come since could not be found out, without memory or a free descriptor for it"
            }
        });
    }
}

impl Wanted {
    const fn new() -> Self {
        Wanted {
            kinds: AtomicU64::new(0),
            min_pages: AtomicUsize::new(0),
            verbose: AtomicBool::new(false),
            filter_allows: AtomicBool::new(false),
            filters: AtomicU32::new(0),
            obstacle: AtomicU8::new(0),
            stderr: StandardError::unknown(),
        }
    }

    pub fn set(&self, settings: &Settings) {
        let mut set = 0;
        for kind in Kind::MERGEABLE {
            if settings.kinds.is_some_and(|kinds| kinds.has(kind)) {
                set |= kind as u64;
            }
        }
        self.kinds.store(set, Ordering::Relaxed);
        self.min_pages.store(settings.min_pages, Ordering::Relaxed);
        self.verbose.store(settings.verbose, Ordering::Relaxed);
        self.filter_allows
            .store(settings.filter_allows, Ordering::Relaxed);
        if settings.verbose {
            self.stderr.remember();
        }
    }

    /// Notes the filters that are in force before main.
    pub fn note_filters(&self) {
        let filters = filter::in_force().unwrap_or(UNKNOWN);
        self.filters.store(filters, Ordering::Relaxed);
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose.load(Ordering::Relaxed)
    }

    /// Finds out, before main, whether anything can be merged here.
    pub fn find_obstacle(&self) -> Result<(), Obstacle> {
        let filters = self.filters.load(Ordering::Relaxed);
        self.survives(|| _ = sksm::support())?;
        match (sksm::require(), filters) {
            (Ok(()), _) => Ok(()),
            (Err(error @ Error::Undecided { .. }), _) => Err(match error.is_transient() {
                true => Obstacle::Undecided,
                false => Obstacle::Unasked,
            }),
            (Err(_), 0) => Err(Obstacle::Support),
            (Err(_), _) => Err(Obstacle::Refused),
        }
    }

    /// Before main, under a filter that might end the program for it: tries this in a child.
    pub fn survives(&self, call: impl FnOnce()) -> Result<(), Obstacle> {
        let trusted = self.filter_allows.load(Ordering::Relaxed);
        if trusted || self.filters.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let quietly = || {
            self.verbose.store(false, Ordering::Relaxed);
            call();
        };
        match filter::try_in_child(quietly) {
            Tried::Survived => Ok(()),
            Tried::Killed => Err(Obstacle::Kills),
            Tried::NoChild => Err(Obstacle::Untried),
        }
    }

    /// Whether something has come up since. It makes only calls that a signal handler may make.
    pub fn find_later_obstacle(&self) -> Result<(), Obstacle> {
        if self.filter_allows.load(Ordering::Relaxed) {
            return Ok(());
        }
        let filters = match filter::in_force() {
            Err(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => return Err(Obstacle::Unseen),
            seen => seen.unwrap_or(UNKNOWN),
        };
        // Those of the start have let it pass.
        if filters == 0 || filters == self.filters.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(Obstacle::Later)
        }
    }

    pub fn set_obstacle(&self, obstacle: Option<Obstacle>) {
        let number = obstacle.map_or(0, |obstacle| obstacle as u8);
        self.obstacle.store(number, Ordering::Relaxed);
    }

    /// Why nothing is done at all.
    pub fn tell_obstacle(&self, line: &mut Line) {
        let number = self.obstacle.load(Ordering::Relaxed);
        if let Some(obstacle) = (Obstacle::ALL.iter()).find(|known| **known as u8 == number) {
            obstacle.tell(line);
        } else {
            line.text(b"nothing done");
        }
    }

    /// Says something if it is to.
    pub fn say(&self, when: &[u8], what: impl FnOnce(&mut Line)) {
        if !self.is_verbose() {
            return;
        }
        let mut line = Line::default();
        line.text(b"sksm: process ");
        // SAFETY: getpid cannot fail.
        line.number(unsafe { libc::getpid() } as u64);
        line.text(b" ").text(when).text(b": ");
        what(&mut line);
        self.stderr.write(&mut line);
    }

    fn wants(&self, mapping: &maps::Line<'_>) -> bool {
        let min = (self.min_pages.load(Ordering::Relaxed)).saturating_mul(sksm::page_size());
        let kinds = self.kinds.load(Ordering::Relaxed);
        kinds & mapping.kind() as u64 != 0 && mapping.region.len >= min
    }

    /// Merges on from where it had come to, at most `step` bytes at once, until there is no `time` left; whether all is done. It
    /// makes only calls that a signal handler may make.
    pub fn merge(&self, progress: &mut Progress, step: usize, time: impl Fn() -> bool) -> bool {
        let mut done = true;
        let read = maps::each_own(|mapping| {
            let (start, end) = (
                mapping.region.start,
                mapping.region.start + mapping.region.len,
            );
            if end <= progress.next {
                return true;
            }
            progress.next = progress.next.max(start);
            while self.wants(mapping) && progress.next < end {
                let len = (end - progress.next).min(step);
                match sksm::merge_exact(progress.next, len) {
                    Ok(()) => {
                        progress.bytes += len;
                        progress.next += len;
                        progress.mappings += u64::from(progress.next == end);
                        // Not before: whoever has little time still comes on.
                        if !time() {
                            done = false;
                            return false;
                        }
                    }
                    Err(Error::Interrupted { .. }) => {
                        done = false;
                        return false;
                    }
                    Err(_) => {
                        progress.refused += 1;
                        break;
                    }
                }
            }
            progress.next = end;
            true
        });
        progress.unreadable = read.is_err();
        done
    }
}

#[cfg(test)]
mod tests {
    use sksm::Kinds;

    use super::*;

    #[test]
    fn small_mappings_are_left_alone() {
        let settings = |kind, min_pages| Settings {
            kinds: Some(Kinds::of(&[kind])),
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
            wanted.set(&settings(Kind::Heap, min));
            assert_eq!([1, 3, 4].map(wants), expected, "at least {min}");
        }
        wanted.set(&settings(Kind::Text, 0));
        assert!(!wants(4));
    }
}
