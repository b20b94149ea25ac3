//! A thread that reads and hashes pages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use indicatif::ProgressBar;
use sksm::{Kind, Mapping};
use twox_hash::XxHash3_64;

use super::before::Before;
use super::frames::{Frames, Hashes};
use super::memory::{self, Place};
use super::page::{Page, Spot, hash_of_zeros};
use super::pieces::Piece;
use super::subject::{Files, Subject};
use super::{nodes, pagemap, probe, repeated, sample};

/// So many pages are read at once: they stay in a processor's cache until they are hashed.
const AT_ONCE: usize = 128;
/// Pages nearer than this are looked up at once, even if nothing is wanted of those between.
const NEAR: u64 = 16;

/// Which pages of a piece are sampled.
#[derive(Clone, Copy, PartialEq)]
pub enum Samples {
    /// None is: all are read in full, and nothing is compared with samples.
    None,
    /// Those of the probe; no other is looked at.
    Probe,
    /// The others, where that pays: so many that are not zeros have the sample of another page. Where that is too many, all are
    /// read in full.
    Paying(f32),
}

pub struct Worker<'a> {
    pub pages: Vec<Page>,
    /// Pages that were only sampled; and of others the keys of their samples.
    pub sampled: Vec<Page>,
    pub keys: Vec<u32>,
    /// What the pieces held, for a second look, and where that is.
    pub held: Vec<u64>,
    pub pieces: Vec<((u32, u64), Range<usize>)>,
    /// Where pages are that were read in full, if that is wanted.
    pub spots: Option<Vec<Spot>>,
    /// Which frames are merged pages, where that is told.
    pub flags: Option<&'a Frames>,
    pub vanished: u64,
    pub bytes: u64,
    buffer: Vec<u8>,
    /// Of the last pages of the piece, how many have samples of zeros, and which share that is.
    zero_samples: usize,
    zeros: f32,
    hashes: &'a Hashes,
    /// Of a page of zeros, and of a sample of it.
    zero: u64,
    zero_key: u64,
    again: bool,
    before: Option<&'a Before>,
    bar: &'a ProgressBar,
}

/// What is being read.
struct Current<'a> {
    subject: &'a Subject,
    files: &'a Files,
    process: u32,
    kind: u8,
    /// Whether the mapping holds merged pages: then none is known not to be one.
    merged: bool,
    start: u64,
    /// What it held at the first look.
    before: Option<&'a [u64]>,
    samples: Samples,
}

impl<'a> Worker<'a> {
    pub fn new(
        hashes: &'a Hashes,
        again: bool,
        before: Option<&'a Before>,
        bar: &'a ProgressBar,
    ) -> Self {
        Worker {
            pages: Vec::new(),
            sampled: Vec::new(),
            keys: Vec::new(),
            held: Vec::new(),
            pieces: Vec::new(),
            spots: None,
            flags: None,
            vanished: 0,
            bytes: 0,
            buffer: vec![0; AT_ONCE * sksm::page_size()],
            zero_samples: 0,
            zeros: 0.0,
            hashes,
            zero: hash_of_zeros(),
            zero_key: sample::key_of_zeros(),
            again,
            before,
            bar,
        }
    }

    pub fn read(&mut self, piece: &Piece, samples: Samples) {
        let (subject, mapping) = (&piece.subject, piece.mapping());
        let start = self.held.len();
        let current = Current {
            subject,
            files: &piece.files,
            process: piece.process as u32,
            kind: kind(mapping),
            merged: mapping.statistics.ksm > 0,
            start: piece.range().start,
            before: self.before.map(|before| before.of(piece)),
            samples,
        };
        self.zeros = 0.0;
        let (page, process, range) = (sksm::page_size() as u64, piece.process, piece.range());
        let probed = |addr| probe::has(process, addr / page);
        let places = &mut Vec::with_capacity(AT_ONCE);
        match samples {
            Samples::Probe if piece.sparse() => self.each(&current, range, true, places, probed),
            Samples::Probe => {
                for block in probe::blocks(process, range.start / page..range.end / page) {
                    let block = block.start * page..block.end * page;
                    self.each(&current, block, false, places, |_| true);
                }
            }
            Samples::Paying(repeated) if sample::pays(0.0, repeated) => {
                self.each(&current, range, piece.sparse(), places, |addr| {
                    !probed(addr)
                });
            }
            _ => self.each(&current, range, piece.sparse(), places, |_| true),
        }
        self.look_at(&current, places);
        if self.again {
            self.pieces.push((piece.key(), start..self.held.len()));
        }
    }

    /// Reads pages that were sampled, in order of process and number, in full. Those that are there take their places.
    pub fn read_in_full(&mut self, sampled: &mut [Page], subjects: &[Option<Arc<Subject>>]) {
        let (page, before) = (sksm::page_size() as u64, self.pages.len());
        let same = |a: &Page, b: &Page| a.process() == b.process() && a.kind() == b.kind();
        let near = |a: &Page, b: &Page| b.number() - a.number() < NEAR;
        let mut places = Vec::with_capacity(AT_ONCE);
        for alike in sampled.chunk_by(same) {
            let Some(subject) = &subjects[alike[0].process()] else {
                continue;
            };
            let files = match subject.files() {
                Ok(files) => files,
                Err(error) => {
                    subject.fail(&error);
                    continue;
                }
            };
            let current = Current {
                subject,
                files: &files,
                process: alike[0].process() as u32,
                kind: alike[0].kind() as u8,
                merged: false,
                start: 0,
                before: None,
                samples: Samples::None,
            };
            for near in alike.chunk_by(near) {
                // What is swapped out by now is left there, and what is shared by now is not pinned.
                let range = near[0].number()..near[near.len() - 1].number() + 1;
                let range = range.start * page..range.end * page;
                let mut numbers = near.iter().map(|page| page.number()).peekable();
                let mut there = 0;
                self.each(&current, range, false, &mut places, |addr| {
                    while numbers.next_if(|number| *number < addr / page).is_some() {}
                    let wanted = numbers.next_if_eq(&(addr / page)).is_some();
                    there += u64::from(wanted);
                    wanted
                });
                self.vanished += near.len() as u64 - there;
            }
            self.look_at(&current, &mut places);
        }
        let found = self.pages.drain(before..);
        let (taken, gone) = sampled.split_at_mut(found.len());
        (taken.iter_mut().zip(found)).for_each(|(page, found)| *page = found);
        gone.fill(Page::GONE);
    }

    /// Forgets pages, which are looked at again.
    pub fn leave_out(&mut self, out: impl Fn(&Page) -> bool) {
        let before = self.pages.len() + self.sampled.len();
        self.pages.retain(|page| !out(page));
        self.sampled.retain(|page| !out(page));
        if let Some(spots) = &mut self.spots {
            spots.retain(|spot| !out(&Page::new(0, 0, spot.process, 0)));
        }
        self.sampled.shrink_to_fit();
        let left = self.pages.len() + self.sampled.len();
        self.bar
            .inc_length(((before - left) * sksm::page_size()) as u64);
    }

    /// Looks at the pages of this range that are wanted, and leaves the last of them in the list.
    fn each(
        &mut self,
        current: &Current<'_>,
        range: Range<u64>,
        can_scan: bool,
        places: &mut Vec<Place>,
        mut wanted: impl FnMut(u64) -> bool,
    ) {
        let subject = current.subject;
        if subject.failed.load(Ordering::Relaxed) != 0 {
            return;
        }
        let see = |addr, entry| {
            if wanted(addr) {
                places.push((addr, entry));
                if places.len() == AT_ONCE {
                    self.look_at(current, places);
                }
            }
        };
        let done = pagemap::each_anonymous(&current.files.pagemap, range, can_scan, AT_ONCE, see);
        if let Err(error) = done {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            subject.failed.store(errno, Ordering::Relaxed);
        }
    }

    /// Samples or hashes these pages, and empties the list.
    fn look_at(&mut self, current: &Current<'_>, places: &mut Vec<Place>) {
        self.bar.inc((places.len() * sksm::page_size()) as u64);
        // Where pages are not told, all of the mapping is merged.
        if let (true, Some(flags)) = (current.subject.only_merged, self.flags) {
            places.retain(|(_, entry)| flags.merged(entry.pfn()));
        }
        let all = places.len();
        self.zero_samples = 0;
        let sampled = match current.samples {
            Samples::None => false,
            Samples::Probe => true,
            Samples::Paying(repeated) => sample::pays(self.zeros, repeated),
        };
        if sampled {
            self.sample(current, places);
        }
        if !places.is_empty() {
            self.hash(current, places);
        }
        self.zeros = self.zero_samples as f32 / all.max(1) as f32;
    }

    /// Samples those of these pages that are the process's alone, and leaves the others in the list.
    fn sample(&mut self, current: &Current<'_>, places: &mut Vec<Place>) {
        let page = sksm::page_size() as u64;
        let alone = |place: &Place| memory::alone(place, current.merged);
        let (alone, mut others): (Vec<_>, Vec<_>) = places.drain(..).partition(alone);
        let mut rest = alone.as_slice();
        while !rest.is_empty() {
            let room = &mut self.buffer[..rest.len() * sample::LEN];
            let addrs = rest.iter().map(|(addr, _)| *addr);
            let Some(read) = current.files.memory.sample(addrs, room) else {
                others.extend_from_slice(rest);
                break;
            };
            let (done, left) = rest.split_at(read);
            for (place, sample) in done.iter().zip(room.chunks_exact(sample::LEN)) {
                let key = sample::key(sample);
                self.zero_samples += usize::from(key == self.zero_key);
                match Page::sampled(key, place.0 / page, current.process, current.kind) {
                    Some(page) => self.sampled.push(page),
                    None => others.push(*place),
                }
            }
            self.bytes += (read * sample::LEN) as u64;
            rest = left;
            if read == 0 {
                // The first of them went meanwhile.
                self.vanished += 1;
                rest = &rest[1..];
            }
        }
        others.sort_unstable_by_key(|(addr, _)| *addr);
        *places = others;
    }

    /// Hashes these pages, and empties the list.
    fn hash(&mut self, current: &Current<'_>, places: &mut Vec<Place>) {
        let zeros_left_out = places.iter().all(own) || leave_out_zero_page(current.files, places);
        // Of frames that were read for another process the hash is known.
        let known = |(_, entry): &Place| match entry.pfn() {
            0 => None,
            _ if entry.exclusive() => None,
            frame => self.hashes.get(frame),
        };
        let mut hashes: Vec<Option<u64>> = places.iter().map(known).collect();
        if hashes.iter().all(Option::is_none) {
            self.read_all(current, places, &mut hashes);
        } else {
            let unknown = places
                .iter()
                .zip(&hashes)
                .filter(|(_, hash)| hash.is_none());
            let unknown: Vec<Place> = unknown.map(|(place, _)| *place).collect();
            let mut read = vec![None; unknown.len()];
            self.read_all(current, &unknown, &mut read);
            let mut read = read.into_iter();
            for hash in hashes.iter_mut().filter(|hash| hash.is_none()) {
                *hash = read.next().flatten();
            }
        }
        nodes::part(current.subject.pid, places, &mut hashes, self.zero);
        for (place, hash) in places.drain(..).zip(hashes) {
            match hash {
                None => self.vanished += 1,
                // Without the call that tells them apart, most likely the zero page.
                Some(hash) if !zeros_left_out && !own(&place) && hash == self.zero => {}
                Some(hash) => self.keep(current, place, hash),
            }
        }
    }

    fn read_all(&mut self, current: &Current<'_>, places: &[Place], hashes: &mut [Option<u64>]) {
        let page = sksm::page_size();
        let memory = &current.files.memory;
        let mut valid = memory.read(places, current.merged, &mut self.buffer);
        let room = self.buffer.chunks_exact_mut(page);
        for (number, ((place, hash), bytes)) in places.iter().zip(hashes).zip(room).enumerate() {
            // Behind a page that went meanwhile, one by one.
            if number >= valid && memory.read(&[*place], current.merged, bytes) == 1 {
                valid = number + 1;
            }
            if number >= valid {
                continue;
            }
            let found = XxHash3_64::oneshot(bytes);
            *hash = Some(found);
            self.bytes += page as u64;
            if current.samples != Samples::None {
                match sample::key_of_page(bytes) {
                    key if key == self.zero_key => self.zero_samples += 1,
                    key => self.keys.push(repeated::short(key)),
                }
            }
            if !own(place) && place.1.pfn() != 0 {
                self.hashes.insert(place.1.pfn(), found);
            }
        }
    }

    fn keep(&mut self, current: &Current<'_>, (addr, entry): Place, hash: u64) {
        let page = sksm::page_size() as u64;
        let number = (addr - current.start) / page;
        let held = number << 40 | hash >> 24;
        if current
            .before
            .is_some_and(|before| before.binary_search(&held).is_err())
        {
            return;
        }
        if self.again {
            self.held.push(held);
        }
        let frame = match entry.pfn() {
            _ if entry.exclusive() => 0,
            // Unknown. What a fork has left in common is at one address.
            0 => addr / page,
            frame => frame,
        };
        self.pages
            .push(Page::new(hash, frame, current.process, current.kind));
        if let Some(spots) = &mut self.spots {
            spots.push(Spot {
                hash,
                number: addr / page,
                frame,
                process: current.process,
                of_file: current.kind < 2,
            });
        }
    }
}

/// Whether no other process has the page.
fn own((_, entry): &Place) -> bool {
    entry.exclusive()
}

/// Leaves the zero page out, which is mapped where a page was only read; false if it cannot be told.
fn leave_out_zero_page(files: &Files, places: &mut Vec<Place>) -> bool {
    let (Some((first, _)), Some((last, _))) = (places.first(), places.last()) else {
        return true;
    };
    let Some(zero) = pagemap::zero_pages(&files.pagemap, *first..last + 1) else {
        return false;
    };
    places.retain(|(addr, _)| !zero.iter().any(|zero| zero.contains(addr)));
    true
}

/// Its number among [`super::report::KINDS`].
fn kind(mapping: &Mapping) -> u8 {
    match mapping.kind {
        Kind::Text => 0,
        Kind::Data => 1,
        Kind::Stack => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sksm::Kinds;

    /// Memory of this process.
    struct Memory(*mut u8);

    impl Memory {
        fn new(pages: usize) -> Self {
            let len = pages * sksm::page_size();
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, placed by the kernel, and written within its length.
            unsafe {
                let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
                libc::memset(start, 1, len);
                Memory(start.cast())
            }
        }

        fn addr(&self, number: usize) -> u64 {
            self.0 as u64 + (number * sksm::page_size()) as u64
        }

        fn unmap(&self, number: usize) {
            // SAFETY: of that mapping, of which nobody holds a reference.
            unsafe { libc::munmap(self.addr(number) as *mut libc::c_void, sksm::page_size()) };
        }
    }

    fn worked(work: impl FnOnce(&mut Worker<'_>, Arc<Subject>)) {
        let kinds = Kinds::of(&Kind::MERGEABLE);
        let subject = Arc::new(Subject::open(std::process::id(), kinds).unwrap());
        let (hashes, bar) = (Hashes::new(), ProgressBar::hidden());
        work(&mut Worker::new(&hashes, false, None, &bar), subject);
    }

    fn number(addr: u64) -> u64 {
        addr / sksm::page_size() as u64
    }

    #[test]
    fn pages_that_go_while_they_are_sampled_have_vanished() {
        worked(|worker, subject| {
            let memory = Memory::new(8);
            let files = subject.files().unwrap();
            let current = Current {
                subject: &subject,
                files: &files,
                process: 3,
                kind: 4,
                merged: false,
                start: 0,
                before: None,
                samples: Samples::Probe,
            };
            let mut places = Vec::new();
            let range = memory.addr(0)..memory.addr(8);
            worker.each(&current, range, false, &mut places, |_| true);
            [0, 4, 5].iter().for_each(|number| memory.unmap(*number));
            worker.look_at(&current, &mut places);
            let found = worker.sampled.iter().map(|page| page.number());
            assert!(found.eq([1, 2, 3, 6, 7].map(|page| number(memory.addr(page)))));
            let key = sample::key(&[1; sample::LEN]);
            assert!(
                worker
                    .sampled
                    .iter()
                    .all(|page| page.hash == key && page.process() == 3)
            );
            assert_eq!(
                (worker.vanished, places.len(), worker.pages.len()),
                (3, 0, 0)
            );
        });
    }

    /// Of a mapping of which one page of three is merged.
    #[test]
    fn of_who_is_not_chosen_only_merged_pages_are_seen() {
        let memory = Memory::new(3);
        let kinds = Kinds::of(&Kind::MERGEABLE);
        let mut subject = Subject::open(std::process::id(), kinds).unwrap();
        let files = subject.files().unwrap();
        let page = sksm::page_size() as u64;
        let start = memory.addr(0) / page;
        let entries = pagemap::entries(&files.pagemap, start..start + 3).unwrap();
        let merged = entries[1].pfn();
        let flags = Frames::pretended([(merged, 1 << 21)].into());
        for (only_merged, seen) in [(true, u64::from(merged != 0)), (false, 3)] {
            subject.only_merged = only_merged;
            let (hashes, bar) = (Hashes::new(), ProgressBar::hidden());
            let mut worker = Worker::new(&hashes, false, None, &bar);
            worker.spots = Some(Vec::new());
            worker.flags = Some(&flags);
            let current = Current {
                subject: &subject,
                files: &files,
                process: 0,
                kind: 2,
                merged: true,
                start: memory.addr(0),
                before: None,
                samples: Samples::None,
            };
            let (range, places) = (memory.addr(0)..memory.addr(3), &mut Vec::new());
            worker.each(&current, range, false, places, |_| true);
            worker.look_at(&current, places);
            let spots = worker.spots.unwrap();
            assert_eq!(spots.len() as u64, seen);
            assert!(!only_merged || spots.iter().all(|spot| spot.number == start + 1));
        }
    }

    /// Between the sample and this look they may go.
    #[test]
    fn pages_are_read_in_full_where_they_are_still() {
        worked(|worker, subject| {
            let memory = Memory::new(60);
            let numbers = [0, 1, 2, 3, 21, 40, 41];
            let mut pages =
                numbers.map(|page| Page::sampled(9, number(memory.addr(page)), 0, 4).unwrap());
            [1, 2, 40].iter().for_each(|number| memory.unmap(*number));
            // SAFETY: within the mapping.
            unsafe { memory.0.add(3 * sksm::page_size()).write_volatile(2) };
            worker.read_in_full(&mut pages, &[Some(subject)]);
            let mut bytes = vec![1; sksm::page_size()];
            let same = Page::new(XxHash3_64::oneshot(&bytes), 0, 0, 4);
            bytes[0] = 2;
            let other = Page::new(XxHash3_64::oneshot(&bytes), 0, 0, 4);
            let gone = Page::GONE;
            assert_eq!(pages, [same, other, same, same, gone, gone, gone]);
            assert_eq!((worker.vanished, worker.pages.len()), (3, 0));
        });
    }
}
