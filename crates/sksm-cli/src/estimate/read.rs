//! Reading the pages of processes, in parallel.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use sksm::Kinds;

use super::before::Before;
use super::frames::{Frames, Hashes};
use super::page::{Page, Spot};
use super::pieces::{IN_TURN, Pieces};
use super::repeated::{self, Singles};
use super::subject::{Subject, Unread};
use super::worker::{Samples, Worker};
use super::{pagemap, probe, sample};
use crate::descriptors;
use crate::target::name_of;

/// How to look.
#[derive(Clone, Copy)]
pub struct How {
    pub kinds: Kinds,
    /// Whether there will be a second look.
    pub again: bool,
    /// Whether it is wanted where pages are, for a merge; and so many of the processes are to be merged, of the others only what
    /// is merged already counts.
    pub spots: Option<usize>,
}

/// What was seen.
#[derive(Default)]
pub struct Look {
    /// Of each process that was asked for; none of those that could not be looked at.
    pub subjects: Vec<Option<Arc<Subject>>>,
    /// Sorted parts.
    pub pages: Vec<Vec<Page>>,
    /// Pages that have no twin, and are not among the others.
    pub singles: Singles,
    pub spots: Vec<Spot>,
    /// In the order of their numbers.
    pub unread: Vec<Unread>,
    /// What the second look compares with.
    pub before: Before,
    pub vanished: u64,
    /// So much was read.
    pub bytes: u64,
}

/// So many pages that were sampled are read in full by one thread at a time.
const REPEATED_AT_ONCE: usize = 4096;

/// Looks at all private pages of these processes.
pub fn look(pids: &[u32], how: How, bar: &ProgressBar) -> Look {
    let hashes = Hashes::new();
    let mut workers = workers(&hashes, how.again, None, bar);
    let flags = Frames::flags();
    let flags = (flags.told() && pagemap::tells_frames()).then_some(&flags);
    for worker in &mut workers {
        worker.spots = how.spots.map(|_| Vec::new());
        worker.flags = flags;
    }
    let (subjects, unread) = open(pids, how, flags.is_some());
    let mut look = Look {
        unread,
        ..Look::default()
    };
    if how.again {
        // The second look compares all of each page.
        read_pieces(&mut workers, &subjects, |_| Samples::None);
    } else {
        sample_first(&mut workers, &subjects, bar, &mut look);
    }
    look.subjects = subjects;
    finish(workers, look)
}

/// Looks once more at what was seen, and keeps the pages that are unchanged.
pub fn look_again(subjects: &[Option<Arc<Subject>>], before: &Before, bar: &ProgressBar) -> Look {
    let hashes = Hashes::new();
    let mut workers = workers(&hashes, false, Some(before), bar);
    read_pieces(&mut workers, subjects, |_| Samples::None);
    let look = Look {
        subjects: subjects.to_vec(),
        ..Look::default()
    };
    finish(workers, look)
}

/// One for each processor.
fn workers<'a>(
    hashes: &'a Hashes,
    again: bool,
    before: Option<&'a Before>,
    bar: &'a ProgressBar,
) -> Vec<Worker<'a>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = |_| Worker::new(hashes, again, before, bar);
    (0..threads).map(worker).collect()
}

fn on_all<'a>(workers: &mut [Worker<'a>], job: impl Fn(&mut Worker<'a>) + Sync) {
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(|| job(worker));
        }
    });
}

fn read_pieces(
    workers: &mut [Worker<'_>],
    subjects: &[Option<Arc<Subject>>],
    samples: impl Fn(usize) -> Samples + Sync,
) {
    let pieces = Pieces::of(subjects);
    on_all(workers, |worker| {
        while let Some(piece) = pieces.next() {
            worker.read(&piece, samples(piece.process));
        }
    });
}

/// Opens processes, and tells which cannot be.
fn open(pids: &[u32], how: How, told: bool) -> (Vec<Option<Arc<Subject>>>, Vec<Unread>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let opened = Mutex::new((vec![None; pids.len()], Vec::new()));
    let room = AtomicIsize::new(room_for_files());
    let open_some = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(pid) = pids.get(number) else {
                return;
            };
            let mut subject = Subject::open(*pid, how.kinds);
            if let Ok(subject) = &mut subject {
                match how.spots {
                    Some(chosen) if number < chosen => subject.leave_what_is_left_alone(),
                    Some(_) => subject.leave_what_is_not_merged(told),
                    None => {}
                }
                if room.fetch_sub(2, Ordering::Relaxed) < 2 {
                    subject.release();
                }
            }
            let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
            match subject {
                Ok(subject) => opened.0[number] = Some(Arc::new(subject)),
                Err(error) => opened.1.push(Unread::new(*pid, name_of(*pid), &error)),
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(open_some);
        });
    });
    opened.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// How many files of processes may be kept open: what is left of the limit besides those that are opened for a while.
fn room_for_files() -> isize {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let others = 64 + 8 * threads + 2 * IN_TURN;
    isize::try_from(descriptors::besides(others)).unwrap_or(isize::MAX)
}

/// Samples pages where that pays, and reads in full only those of them that may have a twin.
fn sample_first(
    workers: &mut [Worker<'_>],
    subjects: &[Option<Arc<Subject>>],
    bar: &ProgressBar,
    look: &mut Look,
) {
    read_pieces(workers, subjects, |_| Samples::Probe);
    let probed = workers.iter().flat_map(|worker| worker.sampled.iter());
    let probed = probed.copied().collect();
    let repeated = probe::repeated(probed, sample::key_of_zeros(), subjects.len());
    let sampled = |process: usize| sample::pays(0.0, repeated[process]);
    // The others are read in full, from the start.
    for worker in workers.iter_mut() {
        worker.leave_out(|page| !sampled(page.process()));
    }
    let opened = |process: &usize| subjects[*process].is_some();
    if (0..subjects.len()).filter(opened).any(sampled) {
        read_pieces(workers, subjects, |process| {
            Samples::Paying(repeated[process])
        });
        read_repeated(workers, subjects, bar, look);
    } else {
        (workers.iter_mut()).for_each(|worker| worker.keys = Vec::new());
        read_pieces(workers, subjects, |_| Samples::None);
    }
}

/// Reads the pages in full whose samples are repeated; the others are counted.
fn read_repeated(
    workers: &mut [Worker<'_>],
    subjects: &[Option<Arc<Subject>>],
    bar: &ProgressBar,
    look: &mut Look,
) {
    let (mut parts, mut keys) = (Vec::new(), Vec::new());
    for worker in workers.iter_mut() {
        parts.push(std::mem::take(&mut worker.sampled));
        keys.push(std::mem::take(&mut worker.keys));
    }
    let zero = sample::key_of_zeros();
    look.singles = repeated::leave(&mut parts, &mut keys, zero, subjects.len());
    drop(keys);
    let pages: usize = parts.iter().map(Vec::len).sum();
    bar.inc_length((pages * sksm::page_size()) as u64);
    std::thread::scope(|scope| {
        for part in &mut parts {
            scope.spawn(|| part.sort_unstable_by_key(|page| (page.process(), page.number())));
        }
    });
    let chunks = (parts.iter_mut()).flat_map(|part| part.chunks_mut(REPEATED_AT_ONCE));
    let chunks = Mutex::new(chunks);
    let next = || {
        let mut chunks = chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.next()
    };
    on_all(workers, |worker| {
        while let Some(chunk) = next() {
            worker.read_in_full(chunk, subjects);
        }
    });
    look.pages = parts;
}

/// Adds what the workers have seen.
fn finish(workers: Vec<Worker<'_>>, mut look: Look) -> Look {
    for worker in workers {
        look.before.add(worker.pieces, worker.held);
        look.pages.push(worker.pages);
        look.spots.extend(worker.spots.unwrap_or_default());
        look.vanished += worker.vanished;
        look.bytes += worker.bytes;
    }
    leave_out(&mut look);
    look
}

/// Takes out the pages of processes that were not seen to the end, and puts the others in order.
fn leave_out(look: &mut Look) {
    let gone: Vec<Option<Unread>> = (look.subjects.iter())
        .map(|subject| subject.as_ref()?.unread())
        .collect();
    for (number, _) in gone.iter().enumerate().filter(|(_, gone)| gone.is_some()) {
        look.subjects[number] = None;
        if let Some(singles) = look.singles.get_mut(number) {
            *singles = Default::default();
        }
    }
    let stays =
        |page: &Page| *page != Page::GONE && gone.get(page.process()).is_none_or(Option::is_none);
    (look.spots).retain(|spot| gone.get(spot.process as usize).is_none_or(Option::is_none));
    std::thread::scope(|scope| {
        for part in &mut look.pages {
            scope.spawn(|| {
                part.retain(stays);
                part.sort_unstable();
            });
        }
    });
    look.unread.extend(gone.into_iter().flatten());
    look.unread.sort_by_key(|unread| unread.pid);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason;
    use sksm::Kind;

    /// What was read of it before that is not counted either.
    #[test]
    fn a_process_that_went_meanwhile_is_left_out() {
        let own = std::process::id();
        let subject = || Subject::open(own, Kinds::of(&Kind::MERGEABLE)).unwrap();
        let gone = subject();
        gone.failed.store(libc::ESRCH, Ordering::Relaxed);
        let page = |process| Page::new(7, 0, process, 0);
        let mut look = Look {
            subjects: vec![Some(Arc::new(gone)), Some(Arc::new(subject())), None],
            pages: vec![vec![page(1), page(0)], vec![page(0), Page::GONE]],
            singles: vec![[3; 8]; 3],
            ..Look::default()
        };
        leave_out(&mut look);
        assert_eq!(look.pages, [vec![page(1)], vec![]]);
        assert_eq!(look.singles, [[0; 8], [3; 8], [3; 8]]);
        assert!(look.subjects[0].is_none() && look.subjects[1].is_some());
        assert_eq!(look.unread.len(), 1);
        assert_eq!(look.unread[0].reason, reason::GONE);
    }
}
