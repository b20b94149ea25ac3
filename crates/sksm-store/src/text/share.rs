use core::ops::{Range, RangeInclusive};
use core::slice;

use sksm::maps;

use super::breakpoint;
use super::image;
use super::labels::{FILE, FIXED, OWN, STORED, reduce, runs};
use super::object::{self, Loaded, Object, Segment};
use super::private;
use crate::error::{Error, Fault};
use crate::name::Name;
use crate::store::{Store, system};
use crate::sys::{self, Fd, Map, NoSignals};

/// More mappings than this are made of no object's code.
const MAPPINGS: usize = 16;
/// So many files are looked at for what they have in common with this process; the largest.
const CANDIDATES: usize = 12;
/// How long to wait for somebody who publishes the same, in milliseconds.
const PATIENCE: u32 = 5000;
/// Read from a file at once.
const CHUNK: usize = 64 << 10;

/// What sharing code has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shared {
    /// Pages that were copies of this process's own and are the store's now.
    pub pages: usize,
    /// Pages that this call has published, as nobody had before.
    pub published: usize,
    /// Mappings of the store's files that this call has made.
    pub mappings: usize,
    /// Copies that stay this process's own, as there are breakpoints of a debugger or of a probe in them.
    pub breakpoints: usize,
    /// Copies that stay this process's own for another reason.
    pub kept: usize,
    /// That reason.
    pub fault: Option<Error>,
}

impl Shared {
    fn refuse(&mut self, pages: usize, error: Error) {
        self.kept += pages;
        self.fault = self.fault.or(Some(error));
    }
}

impl Store {
    /// Shares code that this process has patched: of each page that is a copy of its own, equal ones in all processes of the user
    /// become one. It reads and runs as before, and a later write makes a copy again.
    ///
    /// Pages that other processes have patched differently stay apart; what is equal is shared. At most 16 mappings are made of an
    /// object's code. Whoever shares memory with this process without being a thread of it (`CLONE_VM`) must not write its code
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`Fault::Threads`] in a process with several threads, one of which might write meanwhile, and whatever else stands against
    /// all of it. Where it stands against some of it, [`Shared::fault`] says so. In any case pages that are not shared stay as they
    /// were.
    pub fn share_text(&self, object: Object<'_>) -> Result<Shared, Error> {
        // Before that is asked, as a handler may start a thread.
        let _quiet = NoSignals::now();
        let proc = |_| Error::new(Fault::Proc, 0);
        if sys::status(b"Threads:").map_err(proc)? != 1 {
            return Err(Error::new(Fault::Threads, 0));
        }
        // SAFETY: there is this thread alone, which does nothing else, not even run a signal handler.
        unsafe { self.share(object, None) }
    }

    /// The same for a part of the code, or all of it.
    ///
    /// # Safety
    /// Nobody writes these pages meanwhile.
    pub(crate) unsafe fn share(
        &self,
        object: Object<'_>,
        only: Option<Range<usize>>,
    ) -> Result<Shared, Error> {
        if !breakpoint::ARE_KNOWN || sys::has_branch_targets() {
            return Err(Error::new(Fault::Machine, 0));
        }
        if !self.is_executable() {
            return Err(Error::new(Fault::NoExec, 0));
        }
        if sys::status(b"VmLck:").map_err(|_| Error::new(Fault::Proc, 0))? != 0 {
            return Err(Error::new(Fault::Locked, 0));
        }
        let _quiet = NoSignals::now();
        let page = sksm::page_size();
        let mut shared = Shared::default();
        let mut failed = None;
        let mut suitable = 0;
        object::each(object, &mut |loaded| {
            let segments = loaded.code(page).count();
            for segment in loaded.code(page) {
                suitable += 1;
                let work = Work {
                    store: self,
                    loaded,
                    segment,
                    page,
                    limit: (MAPPINGS / segments.max(1)).max(1),
                };
                // SAFETY: as the caller says.
                let result = unsafe { work.run(only.as_ref(), &mut shared) };
                failed = failed.or(result.err());
            }
        });
        if suitable == 0 {
            return Err(Error::new(Fault::NoObject, 0));
        }
        shared.fault = shared.fault.or(failed);
        match shared.fault {
            Some(error) if shared.pages == 0 => Err(error),
            _ => Ok(shared),
        }
    }
}

/// What is done to one segment.
struct Work<'a> {
    store: &'a Store,
    loaded: &'a Loaded<'a>,
    segment: Segment,
    page: usize,
    limit: usize,
}

/// Files of the store that have pages in common with this process, each with the number that is its label.
struct Candidates([Option<(u64, Fd)>; CANDIDATES]);

impl Candidates {
    /// Keeps the largest, which come first.
    fn add(&mut self, blocks: u64, file: Fd) {
        let mut next = Some((blocks, file));
        for place in &mut self.0 {
            let larger = match (&next, &*place) {
                (Some((blocks, _)), Some((other, _))) => blocks > other,
                (next, _) => next.is_some(),
            };
            if larger {
                core::mem::swap(place, &mut next);
            }
        }
    }

    fn each(&self) -> impl Iterator<Item = (u8, &Fd)> {
        let files = STORED.zip(&self.0);
        files.filter_map(|(label, place)| Some((label, &place.as_ref()?.1)))
    }
}

impl Work<'_> {
    /// # Safety
    /// Nobody writes these pages meanwhile.
    unsafe fn run(&self, only: Option<&Range<usize>>, shared: &mut Shared) -> Result<(), Error> {
        let Segment { start, len, .. } = self.segment;
        if only.is_some_and(|only| only.end <= start || only.start >= start + len) {
            return Ok(());
        }
        let mut scratch = Map::scratch(len / self.page).map_err(system)?;
        let labels = scratch.bytes_mut();
        // Each that an earlier call has made is one, and the object's own is parted by it.
        let limit = self.limit.saturating_sub(2 * self.look(only, labels)?);
        if count(labels, OWN) == 0 {
            return Ok(());
        }
        let mut buffer = Map::scratch(CHUNK.max(self.page)).map_err(system)?;
        let buffer = buffer.bytes_mut();
        let head = (self.loaded.head(self.page)).ok_or(Error::new(Fault::NoObject, 0))?;
        shared.breakpoints += self.keep_breakpoints(head, labels, buffer, OWN..=OWN)?;
        let mut before = Map::scratch(labels.len()).map_err(system)?;
        before.bytes_mut().copy_from_slice(labels);
        let own_before = |number: usize| before.bytes().get(number) == Some(&OWN);
        let (name, key) = self.loaded.name(|name| {
            let mut hash = blake3::Hasher::new();
            hash.update(head).update(&[0]).update(name);
            hash.update(&self.page.to_le_bytes());
            hash.update(&self.segment.offset.to_le_bytes());
            let bytes = *hash.finalize().as_bytes();
            let key = bytes.first_chunk().copied().map_or(0, u64::from_le_bytes);
            (Name::of_object(name, key), key)
        });

        let mut candidates = self.candidates(&name)?;
        let mut new = None;
        self.find_equal(&candidates, labels, buffer, limit)?;
        if count(labels, OWN) > 0 {
            let published = self.store.alone(key, PATIENCE, || {
                // Somebody may have published it meanwhile.
                labels.copy_from_slice(before.bytes());
                candidates = self.candidates(&name)?;
                self.find_equal(&candidates, labels, buffer, limit)?;
                if count(labels, OWN) == 0 {
                    return Ok(None);
                }
                self.publish(name, labels, buffer).map(Some)
            });
            match published {
                Ok(None) => {}
                Ok(Some(file)) => {
                    let number = *STORED.end();
                    let wanted = count(labels, OWN);
                    self.compare(&file, number, labels, buffer)?;
                    shared.published += wanted - count(labels, OWN);
                    new = Some((number, file));
                    if count(labels, OWN) > 0 {
                        let kept = (labels.iter().enumerate())
                            .filter(|(at, label)| **label == OWN && own_before(*at));
                        shared.refuse(kept.count(), Error::new(Fault::Damaged, 0));
                    }
                }
                Err(error) => {
                    let kept = (labels.iter().enumerate())
                        .filter(|(at, label)| **label == OWN && own_before(*at));
                    shared.refuse(kept.count(), error);
                }
            }
        }
        // A probe may have come before it was published; then it is there, and nobody takes that.
        if let Some((number, _)) = &new {
            shared.breakpoints += self.keep_breakpoints(head, labels, buffer, *number..=*number)?;
        }
        let file_of = |label: u8| {
            let mut all = candidates
                .each()
                .chain(new.iter().map(|(number, file)| (*number, file)));
            all.find(|(number, _)| *number == label)
                .map(|(_, file)| file)
        };
        let mut first = true;
        for (at, (label, run)) in runs(labels).enumerate() {
            let Some(file) = file_of(label) else {
                continue;
            };
            if at >= limit {
                let kept = run.filter(|number| own_before(*number)).count();
                shared.refuse(kept, Error::new(Fault::Mappings, 0));
                continue;
            }
            // Before the first pages go: the kernel, or a security module, may forbid it.
            if core::mem::take(&mut first) {
                self.try_out(file)?;
            }
            let (start, offset) = self.place(run.start);
            let len = run.len() * self.page;
            // SAFETY: the pages have been compared, as the caller says nobody writes them, and they are read and executed as before.
            unsafe { sys::map_over(start, len, CODE, file, offset) }.map_err(system)?;
            shared.mappings += 1;
            shared.pages += run.filter(|number| own_before(*number)).count();
        }
        Ok(())
    }

    /// Labels pages that are this process's own, and the file's; of these only those that may be looked at. How many mappings
    /// there are of the store's.
    fn look(&self, only: Option<&Range<usize>>, labels: &mut [u8]) -> Result<usize, Error> {
        let Segment { start, len, offset } = self.segment;
        let page = self.page;
        let own = self.loaded.open().and_then(|object| object.stat());
        let own = own.map_or(0, |stat| stat.st_ino);
        let mut mappings = 0;
        labels.fill(FIXED);
        maps::each_own(|line| {
            let (first, last) = (line.region.start, line.region.start + line.region.len);
            if last <= start {
                return true;
            }
            if first >= start + len {
                return false;
            }
            mappings += usize::from(![0, own].contains(&line.inode));
            let code = line.private && line.read && line.execute && !line.write;
            // As the loader has mapped it, or this crate before.
            let there = line
                .offset
                .wrapping_sub(first as u64)
                .wrapping_add(start as u64)
                == offset;
            if code && there && line.inode != 0 {
                let numbers =
                    (first.max(start) - start) / page..(last.min(start + len) - start) / page;
                labels.get_mut(numbers).unwrap_or_default().fill(FILE);
            }
            true
        })
        .map_err(|_| Error::new(Fault::Proc, 0))?;
        private::each(start, len / page, page, |number, own| {
            let address = start + number * page;
            let wanted = only.is_none_or(|only| only.contains(&address));
            if let Some(label) = labels.get_mut(number).filter(|label| **label == FILE) {
                match (own, wanted) {
                    (true, true) => *label = OWN,
                    // Nobody has promised that it is not written meanwhile.
                    (_, false) => *label = FIXED,
                    _ => {}
                }
            }
        })
        .map_err(|errno| Error::new(Fault::Proc, errno))?;
        Ok(mappings)
    }

    /// All that has been published of this segment.
    fn candidates(&self, name: &Name) -> Result<Candidates, Error> {
        let mut candidates = Candidates(Default::default());
        self.store.each_file(|file, _| {
            let hash = file.to_bytes().strip_prefix(name.as_bytes());
            if hash.is_some_and(|hash| hash.starts_with(b".")) {
                // What is damaged is of no use, and in nobody's way.
                if let Ok(Some(file)) = self.store.find(file) {
                    let blocks = file.stat().map_or(0, |stat| stat.st_blocks as u64);
                    candidates.add(blocks, file);
                }
            }
            true
        })?;
        Ok(candidates)
    }

    /// Labels what others have published, in no more mappings than there may be.
    fn find_equal(
        &self,
        candidates: &Candidates,
        labels: &mut [u8],
        buffer: &mut [u8],
        limit: usize,
    ) -> Result<(), Error> {
        let mut compare = |labels: &mut [u8]| {
            for (label, file) in candidates.each() {
                if count(labels, OWN) > 0 {
                    self.compare(file, label, labels, buffer)?;
                }
            }
            Ok(())
        };
        compare(labels)?;
        // What has been given up for the sake of fewer mappings may be in a larger file as well.
        if reduce(labels, limit) {
            compare(labels)?;
            reduce(labels, limit);
        }
        Ok(())
    }

    /// Labels what of it is equal in this file.
    fn compare(
        &self,
        file: &Fd,
        label: u8,
        labels: &mut [u8],
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let from = self.segment.offset;
        let end = from + self.segment.len as u64;
        let mut at = from;
        while let Some(data) = file.seek(at, libc::SEEK_DATA).filter(|data| *data < end) {
            let hole = file.seek(data, libc::SEEK_HOLE).unwrap_or(end).min(end);
            at = hole.max(data + 1);
            // Whole pages of it.
            let first = (data - from).div_ceil(self.page as u64) as usize;
            let last = (hole - from) as usize / self.page;
            let mut number = first;
            while number < last {
                let pages = (buffer.len() / self.page).min(last - number);
                let wanted = labels.get(number..number + pages).unwrap_or_default();
                if !wanted.contains(&OWN) {
                    number += pages;
                    continue;
                }
                let (_, offset) = self.place(number);
                let read = match file.read_at(buffer, offset) {
                    Ok(read) => read.min(pages * self.page),
                    Err(_) => return Ok(()),
                };
                let theirs = buffer.get(..read).unwrap_or_default();
                for theirs in theirs.chunks_exact(self.page) {
                    if let Some(own) = labels.get_mut(number).filter(|label| **label == OWN) {
                        if theirs == self.bytes(number..number + 1) {
                            *own = label;
                        }
                    }
                    number += 1;
                }
                // It has become shorter: somebody is at it.
                if read < pages * self.page {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Leaves pages with breakpoints as they are, of those with such a label; how many these are.
    fn keep_breakpoints(
        &self,
        head: &[u8],
        labels: &mut [u8],
        buffer: &mut [u8],
        among: RangeInclusive<u8>,
    ) -> Result<usize, Error> {
        let mut found = 0;
        let replaced = |errno| Error::new(Fault::Replaced, errno);
        let file = self.loaded.open().map_err(replaced)?;
        let room = buffer.get_mut(..head.len()).unwrap_or_default();
        if file.read_at(room, 0).map_err(replaced)? < head.len() || room != head {
            return Err(replaced(0));
        }
        for (number, label) in labels.iter_mut().enumerate() {
            if !among.contains(label) || !breakpoint::may_be_in(self.bytes(number..number + 1)) {
                continue;
            }
            let (_, offset) = self.place(number);
            let room = buffer.get_mut(..self.page).unwrap_or_default();
            let read = file.read_at(room, offset).map_err(replaced)?;
            room.get_mut(read..).unwrap_or_default().fill(0);
            if breakpoint::is_in(self.bytes(number..number + 1), room) {
                *label = FIXED;
                found += 1;
            }
        }
        Ok(found)
    }

    /// Publishes what is this process's own.
    fn publish(&self, mut name: Name, labels: &[u8], buffer: &mut [u8]) -> Result<Fd, Error> {
        let object = self
            .loaded
            .open()
            .map_err(|errno| Error::new(Fault::Replaced, errno))?;
        let size = object.stat().map_err(system)?.st_size as u64;
        let own = || runs(labels).filter(|(label, _)| *label == OWN);
        let mut hash = blake3::Hasher::new();
        for (_, run) in own() {
            hash.update(&(run.start as u64).to_le_bytes());
            hash.update(&(run.len() as u64).to_le_bytes());
            hash.update(self.bytes(run));
        }
        name.hash(&hash.finalize());
        let page = self.page as u64;
        let code = count(labels, OWN) as u64 * page;
        let mut needed = code;
        image::each_part(&object, size, code, |part| {
            needed += (part.end - part.start).next_multiple_of(page);
            Ok(())
        })
        .map_err(system)?;
        let end = self.segment.offset + self.segment.len as u64;
        // Whole pages, as memory has them past the end of the file.
        let len = size.max(end).next_multiple_of(page);
        let buffer = core::cell::RefCell::new(buffer);
        self.store.publish(name.as_c_str(), len, needed, |draft| {
            let mut buffer = buffer.try_borrow_mut().map_err(|_| libc::EBUSY)?;
            image::each_part(&object, size, code, |part: Range<u64>| {
                let mut at = part.start;
                while at < part.end {
                    let len = ((part.end - at) as usize).min(buffer.len());
                    let room = buffer.get_mut(..len).unwrap_or_default();
                    let read = object.read_at(room, at)?;
                    draft.write_at(room.get(..read).unwrap_or_default(), at)?;
                    at += len as u64;
                }
                Ok(())
            })?;
            for (_, run) in own() {
                let (_, offset) = self.place(run.start);
                draft.write_at(self.bytes(run), offset)?;
            }
            Ok(())
        })
    }

    /// Maps a page elsewhere as code.
    fn try_out(&self, file: &Fd) -> Result<(), Error> {
        Map::file(file, self.page, CODE, 0)
            .map(drop)
            .map_err(|errno| match errno {
                libc::EPERM | libc::EACCES => Error::new(Fault::NoExec, errno),
                _ => system(errno),
            })
    }

    /// Where a page is in memory, and in the file.
    fn place(&self, number: usize) -> (usize, u64) {
        let distance = number * self.page;
        let Segment { start, offset, .. } = self.segment;
        (start + distance, offset + distance as u64)
    }

    fn bytes(&self, pages: Range<usize>) -> &[u8] {
        let (start, _) = self.place(pages.start);
        // SAFETY: only asked for of pages that are mapped as readable code, which nobody writes meanwhile.
        unsafe { slice::from_raw_parts(start as *const u8, pages.len() * self.page) }
    }
}

const CODE: core::ffi::c_int = libc::PROT_READ | libc::PROT_EXEC;

fn count(labels: &[u8], wanted: u8) -> usize {
    labels.iter().filter(|label| **label == wanted).count()
}
