//! The memory of this process, as the scanner sees it: one process, of which only what was written is read.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use sksm::{MergeStatistics, Region};
use twox_hash::XxHash3_128;

use super::service::Service;
use super::tables::Tables;
use super::userfault::Userfault;
use super::{Failed, Twins, Unsupported, memory};
use crate::known::{Bits, each_in, set_all};
use crate::pagemap::{self, Entry};
use crate::{BLOCK, Content, Found, Gone, Known, Merged, Seen, Whole, World, sample};

/// Tracked memory: private, anonymous, mapped and readable as long as this is there.
pub struct Local {
    /// In numbers of pages, and in order.
    ranges: Vec<Range<u64>>,
    page: u64,
    tables: Tables,
    /// None while it is not looked at.
    userfault: Option<Userfault>,
    /// By the numbers of blocks, the pages whose samples were shown, and that are write-protected since, or were written.
    protected: HashMap<u64, Bits>,
    /// Blocks of which merged pages may have been swapped out and in, which is no write.
    unsure: HashSet<u64>,
    major_faults: i64,
    everything: bool,
    service: Option<Service>,
    started: Instant,
    cpu: Cpu,
    zero_key: u32,
    /// Room for a page.
    room: Vec<u8>,
    /// Why the last call failed.
    pub failed: Option<Failed>,
}

/// CPU time of pieces of work, by whatever threads.
#[derive(Default)]
struct Cpu {
    done: Duration,
    since: Option<Duration>,
}

impl Local {
    /// # Safety
    ///
    /// The regions, of whole pages and in order, stay mapped and readable as long as this is there.
    pub unsafe fn new(regions: &[Region], twins: Twins) -> Result<Self, Unsupported> {
        let page = sksm::page_size() as u64;
        let tables = Tables::open().map_err(Unsupported::PagemapScan)?;
        let numbers =
            (regions.iter()).map(|region| region.start as u64 / page..region.end() as u64 / page);
        let mut local = Local {
            ranges: numbers.collect(),
            page,
            tables,
            userfault: None,
            protected: HashMap::new(),
            unsure: HashSet::new(),
            major_faults: major_faults(),
            everything: twins == Twins::Everything,
            service: match twins {
                Twins::Service(path) => Some(Service::new(path)),
                Twins::Own | Twins::Everything => None,
            },
            started: Instant::now(),
            cpu: Cpu::default(),
            zero_key: sample::key_of_zeros() as u32,
            room: vec![0; page as usize],
            failed: None,
        };
        local.resume()?;
        Ok(local)
    }

    pub fn ranges(&self) -> impl Iterator<Item = Region> {
        let page = self.page;
        self.ranges.iter().map(move |range| {
            let len = (range.end - range.start) * page;
            Region::new((range.start * page) as usize, len as usize)
        })
    }

    /// Takes all write protection away, and looks at nothing any more.
    pub fn pause(&mut self) {
        if let Some(userfault) = self.userfault.take() {
            let regions: Vec<Region> = self.ranges().collect();
            userfault.release(regions.into_iter());
        }
        self.forget();
    }

    /// All will be read again.
    pub fn forget(&mut self) {
        self.protected.clear();
        self.unsure.clear();
    }

    pub fn resume(&mut self) -> Result<(), Unsupported> {
        self.pause();
        let userfault = Userfault::open()?;
        for region in self.ranges() {
            userfault.register(region)?;
        }
        if let Some(range) = self.ranges.first() {
            let first = range.start * self.page..(range.start + 1) * self.page;
            self.tables
                .each(first, |_, _| {})
                .map_err(Unsupported::PagemapScan)?;
        }
        self.userfault = Some(userfault);
        Ok(())
    }

    /// The service, where there is one.
    pub fn service(&mut self) -> Option<&mut Service> {
        self.service.as_mut()
    }

    /// Work begins, whose CPU time counts.
    pub fn begin(&mut self) {
        self.cpu.since = Some(thread_time());
    }

    pub fn end(&mut self) {
        self.cpu.done = self.cpu();
        self.cpu.since = None;
    }

    fn addresses(&self, pages: &Range<u64>) -> Range<u64> {
        pages.start * self.page..pages.end * self.page
    }

    /// Adds which of these pages are there. Of blocks that were known to be there as a whole, the kernel is first asked whether they
    /// still are: that takes it much less time.
    fn present(&mut self, pages: &Range<u64>, runs: &mut Vec<Range<u64>>) -> io::Result<()> {
        let whole =
            |block: u64| (self.protected.get(&block)).is_some_and(|is| is == &[u64::MAX; 8]);
        let mut parts: Vec<(bool, Range<u64>)> = Vec::new();
        let mut start = pages.start;
        while start < pages.end {
            let end = pages.end.min((start / BLOCK + 1) * BLOCK);
            match (parts.last_mut(), whole(start / BLOCK)) {
                (Some((before, part)), now) if *before == now => part.end = end,
                (_, now) => parts.push((now, start..end)),
            }
            start = end;
        }
        for (whole, part) in parts {
            let (page, addresses) = (self.page, self.addresses(&part));
            if whole && self.tables.untouched(addresses.clone())? {
                runs.push(part);
                continue;
            }
            self.tables.each(addresses, |found, _| {
                runs.push(found.start / page..found.end / page);
            })?;
        }
        Ok(())
    }

    /// What there is of these pages, which are write-protected then.
    fn states(&mut self, pages: &Range<u64>) -> io::Result<States> {
        let page = self.page;
        let addresses = self.addresses(pages);
        let mut states = States::default();
        let mut all = Bits::default();
        set_all(&mut all, pages.clone());
        let protected = self.protected.get(&(pages.start / BLOCK));
        if protected == Some(&all) && self.tables.untouched(addresses.clone())? {
            states.present = all;
            return Ok(states);
        }
        self.tables.each(addresses.clone(), |range, is| {
            let range = range.start / page..range.end / page;
            let all = [
                (pagemap::PRESENT, &mut states.present),
                (pagemap::SWAPPED, &mut states.swapped),
                (pagemap::WRITTEN, &mut states.written),
                (pagemap::HUGE, &mut states.huge),
                (pagemap::ZERO, &mut states.zero),
            ];
            for (category, bits) in all {
                if is & category != 0 {
                    set_all(bits, range.clone());
                }
            }
        })?;
        let small = |at: usize| states.present[at] & !states.huge[at] & !states.zero[at];
        if (0..states.written.len()).any(|at| states.written[at] & small(at) != 0) {
            // Before anything is read: what is written from now on shows at the next look.
            self.tables.protect(addresses, |range| {
                let range = range.start / page..range.end / page;
                set_all(&mut states.written, range);
            })?;
        }
        Ok(states)
    }

    /// The same once more where the memory was mapped anew meanwhile, and is registered no more.
    fn states_again(&mut self, pages: &Range<u64>) -> Result<States, Failed> {
        match self.states(pages) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.resume().map_err(|unsupported| match unsupported {
                    Unsupported::Registering(_, error) => Failed::Looking(error),
                    _ => Failed::Looking(error),
                })?;
                self.states(pages).map_err(Failed::Looking)
            }
            states => states.map_err(Failed::Looking),
        }
    }

    fn fail<T>(&mut self, failed: Failed) -> Result<T, Gone> {
        self.failed = Some(failed);
        self.forget();
        Err(Gone)
    }

    fn sample(&self, page: u64) -> u32 {
        // SAFETY: of the tracked ranges, which stay mapped.
        let sampled = unsafe { memory::sample(page * self.page) };
        sample::key(&sampled) as u32
    }
}

/// The pages of a block, one bit each.
#[derive(Default)]
struct States {
    present: Bits,
    swapped: Bits,
    written: Bits,
    huge: Bits,
    zero: Bits,
}

impl World for Local {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn cpu(&self) -> Duration {
        let running = |since| thread_time().saturating_sub(since);
        self.cpu.done + self.cpu.since.map_or(Duration::ZERO, running)
    }

    fn processes(&mut self, see: &mut dyn FnMut(Found)) {
        see(Found { id: 0, domain: 0 });
    }

    fn layout(&mut self, _: u64, see: &mut dyn FnMut(crate::Range)) -> Result<(), Gone> {
        let before = std::mem::replace(&mut self.major_faults, major_faults());
        if before != self.major_faults {
            self.unsure.extend(self.protected.keys());
        }
        let mut blocks = HashSet::new();
        for range in self.ranges.clone() {
            let mut last: Option<crate::Range> = None;
            let mut one = |found: Range<u64>| {
                for block in found.start / BLOCK..=(found.end - 1) / BLOCK {
                    let within = block * BLOCK..(block + 1) * BLOCK;
                    let present = found.end.min(within.end) - found.start.max(within.start);
                    match &mut last {
                        Some(last) if last.start / BLOCK == block => last.present += present,
                        _ => {
                            blocks.insert(block);
                            let next = crate::Range {
                                start: range.start.max(within.start),
                                end: range.end.min(within.end),
                                present,
                            };
                            last.replace(next).into_iter().for_each(&mut *see);
                        }
                    }
                }
            };
            // Shown when all of it is known: a part that is told twice would be its own twin.
            let mut runs = Vec::new();
            match self.present(&range, &mut runs) {
                // Where it is not registered any more, a look sees to that.
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => {
                    return self.fail(Failed::Looking(error));
                }
                Err(_) => one(range.clone()),
                Ok(()) => runs.into_iter().for_each(&mut one),
            }
            last.into_iter().for_each(&mut *see);
        }
        self.protected.retain(|block, _| blocks.contains(block));
        self.unsure.retain(|block| blocks.contains(block));
        Ok(())
    }

    fn look(
        &mut self,
        _: u64,
        pages: Range<u64>,
        known: &Known,
        see: &mut dyn FnMut(u64, Seen),
    ) -> Result<Whole, Gone> {
        let block = pages.start / BLOCK;
        let states = match self.states_again(&pages) {
            Ok(states) => states,
            Err(failed) => return self.fail(failed),
        };
        let before = self.protected.get(&block).copied().unwrap_or_default();
        let unsure = self.unsure.contains(&block);
        let mut looked_at = Bits::default();
        set_all(&mut looked_at, pages.clone());
        let as_it_was = |at: usize| {
            let present = states.present[at] & !states.zero[at];
            present == known.pages[at] & looked_at[at]
                && present & !before[at] == 0
                && present & states.written[at] == 0
                && states.swapped[at] == 0
                && (!unsure || present & known.shared[at] == 0)
        };
        if (0..before.len()).all(as_it_was) {
            return Ok(Whole::Unchanged);
        }
        let mut entries: Option<Vec<Entry>> = None;
        let mut failed = None;
        for (at, protected) in before.into_iter().enumerate() {
            let present = states.present[at] & !states.zero[at];
            let known_since = present & protected & known.pages[at];
            let written = known_since & states.written[at];
            let merged = known.shared[at];
            let kept = known_since & !written & merged & if unsure { 0 } else { u64::MAX };
            let unchanged = known_since & !written & !merged;
            each_in(at, present & !unchanged & !kept, |offset| {
                memory::soon((block * BLOCK + offset) * self.page);
            });
            each_in(at, present | states.swapped[at], |offset| {
                let (page, bit) = (block * BLOCK + offset, 1 << (offset % 64));
                if unchanged & bit != 0 {
                    return see(page, Seen::Unchanged);
                }
                let seen = if states.swapped[at] & bit != 0 {
                    Some(Seen::Swapped)
                } else if kept & bit != 0 {
                    Some(Seen::Merged)
                } else if written & bit != 0 {
                    Some(Seen::Written(self.sample(page)))
                } else {
                    let all = match &entries {
                        Some(entries) => entries,
                        None => match self.tables.entries(pages.clone()) {
                            Ok(found) => entries.insert(found),
                            Err(error) => {
                                failed = Some(error);
                                return;
                            }
                        },
                    };
                    let entry = all[(page - pages.start) as usize];
                    match (entry.anonymous(), entry.exclusive()) {
                        // It went meanwhile.
                        (false, _) => None,
                        (_, true) => Some(Seen::Own(self.sample(page))),
                        _ if merged & bit != 0 => Some(Seen::Merged),
                        _ => Some(Seen::Shared(self.sample(page))),
                    }
                };
                if let Some(seen) = seen {
                    see(page, seen);
                }
            });
        }
        if let Some(error) = failed {
            return self.fail(Failed::Looking(error));
        }
        // Another part of the block keeps what is known of it.
        let mut after = before;
        for (at, word) in after.iter_mut().enumerate() {
            *word &= !looked_at[at];
            *word |= states.present[at] & !states.huge[at] & !states.zero[at];
        }
        self.protected.insert(block, after);
        self.unsure.remove(&block);
        Ok(match states.huge == looked_at {
            true => Whole::HugePage,
            false => Whole::Pages,
        })
    }

    fn read(
        &mut self,
        _: u64,
        pages: &[u64],
        see: &mut dyn FnMut(u64, Content),
    ) -> Result<(), Gone> {
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let entries = match self.tables.entries(run[0]..run[0] + run.len() as u64) {
                Ok(entries) => entries,
                Err(error) => return self.fail(Failed::Looking(error)),
            };
            for (page, entry) in run.iter().zip(entries) {
                if !entry.anonymous() {
                    continue;
                }
                // SAFETY: of the tracked ranges, which stay mapped.
                unsafe { memory::copy(page * self.page, &mut self.room) };
                let content = Content {
                    sample: sample::key_of_page(&self.room) as u32,
                    hash: XxHash3_128::oneshot(&self.room),
                    frame: entry.frame(*page),
                    zero: self.room.iter().all(|byte| *byte == 0),
                };
                see(*page, content);
            }
        }
        Ok(())
    }

    fn merge(&mut self, _: u64, pages: &[Range<u64>]) -> Result<Merged, Gone> {
        let before = MergeStatistics::own();
        for range in pages {
            let addresses = self.addresses(range);
            let len = (addresses.end - addresses.start) as usize;
            loop {
                match sksm::merge_exact(addresses.start as usize, len) {
                    Ok(()) => break,
                    Err(sksm::Error::Interrupted { .. }) => {}
                    Err(error) => return self.fail(Failed::Merging(error)),
                }
            }
        }
        let after = MergeStatistics::own();
        let (before, after) = match (before, after) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(error), _) | (_, Err(error)) => return self.fail(Failed::Merging(error)),
        };
        Ok(Merged::between(&before, &after))
    }

    fn zero(&self) -> u32 {
        self.zero_key
    }

    fn ready(&mut self, _: u64, sample: u32) {
        if let Some(service) = &mut self.service {
            service.add(sample);
        }
    }

    fn needs_no_twin(&self, _: u64, sample: u32) -> bool {
        let elsewhere = |service: &Service| service.twice(sample);
        self.everything || self.service.as_ref().is_some_and(elsewhere)
    }
}

/// Of all threads: how often they had to wait for a page to be read in.
fn major_faults() -> i64 {
    // SAFETY: a structure of numbers, all of which may be 0.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: writes one valid structure.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    usage.ru_majflt as i64
}

/// The CPU time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one valid structure.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Private anonymous memory in small pages.
    struct Mapping(*mut u8, usize);

    impl Mapping {
        fn new(pages: usize) -> Self {
            let len = pages * sksm::page_size();
            let (access, kind) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            // SAFETY: new memory, where nothing else is.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: that memory, which holds nothing.
            unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
            Mapping(start.cast(), len)
        }

        fn region(&self) -> Region {
            Region::new(self.0.expose_provenance(), self.1)
        }

        fn first(&self) -> u64 {
            self.region().start as u64 / sksm::page_size() as u64
        }

        fn write(&self, page: usize, offset: usize, value: u64) {
            let at = page * sksm::page_size() + offset;
            assert!(at + 8 <= self.1);
            // SAFETY: within the mapping, and aligned.
            unsafe { self.0.add(at).cast::<u64>().write_volatile(value) };
        }

        /// Tracked, if this kernel can.
        fn tracked(&self) -> Option<Local> {
            // SAFETY: each test drops it before the mapping.
            match unsafe { Local::new(&[self.region()], Twins::Own) } {
                Ok(local) => Some(local),
                Err(reason) => {
                    eprintln!("not tested here: {reason}");
                    None
                }
            }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped by this, and used by nobody any more.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }

    /// Looks at pages of the mapping as the scanner does, by blocks; what it sees, by their numbers from 0.
    fn look(
        local: &mut Local,
        mapping: &Mapping,
        pages: Range<u64>,
        merged: &[u64],
    ) -> Vec<(u64, Seen)> {
        let first = mapping.first();
        let mut all = Vec::new();
        let mut start = first + pages.start;
        while start < first + pages.end {
            let end = ((start / BLOCK + 1) * BLOCK).min(first + pages.end);
            let mut known = Known::default();
            (start..end).for_each(|page| {
                known.add((page % BLOCK) as u16, merged.contains(&(page - first)));
            });
            let mut see = |page, seen| all.push((page - first, seen));
            match local.look(0, start..end, &known, &mut see) {
                Ok(Whole::Pages | Whole::HugePage) => {}
                Ok(Whole::Unchanged) => (start..end).for_each(|page| {
                    let seen = match known.merged(page) {
                        true => Seen::Merged,
                        false => Seen::Unchanged,
                    };
                    see(page, seen);
                }),
                Err(Gone) => panic!("{:?}", local.failed),
            }
            start = end;
        }
        all
    }

    #[test]
    fn only_what_was_written_is_read() {
        let mapping = Mapping::new(900);
        for page in (0..900).filter(|page| page % 3 > 0) {
            mapping.write(page, 1024, page as u64);
        }
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        let present = || (0..900).filter(|page| page % 3 > 0);
        let first = look(&mut local, &mapping, 0..900, &[]);
        assert!(first.iter().map(|(page, _)| *page).eq(present()));
        assert!(first.iter().all(|(_, seen)| matches!(seen, Seen::Own(_))));
        let unchanged = |seen: &[(u64, Seen)]| {
            let all = seen.iter().filter(|(_, seen)| *seen == Seen::Unchanged);
            all.map(|(page, _)| *page).collect::<Vec<_>>()
        };
        assert!(
            unchanged(&look(&mut local, &mapping, 0..900, &[]))
                .into_iter()
                .eq(present())
        );
        // One where its sample is and one elsewhere; one comes, and one goes.
        mapping.write(4, 1024, 77);
        mapping.write(700, 3000, 77);
        mapping.write(300, 0, 77);
        let gone = mapping.region().start + 5 * sksm::page_size();
        // SAFETY: a page of the mapping, to which nobody holds a reference.
        unsafe {
            let gone = std::ptr::with_exposed_provenance_mut(gone);
            libc::madvise(gone, sksm::page_size(), libc::MADV_DONTNEED);
        }
        let seen = look(&mut local, &mapping, 0..900, &[]);
        let changed: Vec<_> = seen
            .iter()
            .filter(|(_, seen)| *seen != Seen::Unchanged)
            .collect();
        let same = first
            .iter()
            .find(|(page, _)| *page == 700)
            .map(|(_, seen)| *seen);
        let Some(Seen::Own(same)) = same else {
            panic!("page 700 was not seen")
        };
        assert!(
            matches!(
                changed[..],
                [(4, Seen::Written(_)), (300, Seen::Own(_)), (700, Seen::Written(sample))] if *sample == same
            ),
            "{changed:?}"
        );
        assert!(!seen.iter().any(|(page, _)| *page == 5));
        let seen = look(&mut local, &mapping, 0..900, &[]);
        assert_eq!(unchanged(&seen).len(), seen.len());
    }

    #[test]
    fn merged_pages_are_merged_until_they_are_written() {
        let mapping = Mapping::new(8);
        (0..8).for_each(|page| mapping.write(page, 0, 7));
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        look(&mut local, &mapping, 0..8, &[]);
        mapping.write(6, 8, 1);
        let seen = look(&mut local, &mapping, 0..8, &[2, 6]);
        assert_eq!((seen[1].1, seen[2].1), (Seen::Unchanged, Seen::Merged));
        assert!(matches!(seen[6].1, Seen::Written(_)));
        // They may have been swapped out and in: then the page tables tell.
        local.unsure.extend(local.protected.keys());
        let seen = look(&mut local, &mapping, 0..8, &[2]);
        assert!(matches!(seen[2].1, Seen::Own(_)) && seen[3].1 == Seen::Unchanged);
    }

    #[test]
    fn nothing_is_protected_while_paused() {
        let mapping = Mapping::new(16);
        (0..16).for_each(|page| mapping.write(page, 0, 7));
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        look(&mut local, &mapping, 0..16, &[]);
        let other = Userfault::open().unwrap();
        let busy = other.register(mapping.region());
        assert!(matches!(busy, Err(Unsupported::Registering(..))));
        local.pause();
        other.register(mapping.region()).unwrap();
        assert!(matches!(local.resume(), Err(Unsupported::Registering(..))));
        drop(other);
        local.resume().unwrap();
        let seen = look(&mut local, &mapping, 0..16, &[]);
        assert!(seen.iter().all(|(_, seen)| matches!(seen, Seen::Own(_))));
        assert_eq!(look(&mut local, &mapping, 0..16, &[])[9].1, Seen::Unchanged);
    }

    #[test]
    fn memory_that_was_mapped_anew_is_registered_again() {
        let mapping = Mapping::new(16);
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        look(&mut local, &mapping, 0..16, &[]);
        let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: replaces that mapping, to which nobody holds a reference.
        unsafe { libc::mmap(mapping.0.cast(), mapping.1, access, fixed, -1, 0) };
        (0..16).for_each(|page| mapping.write(page, 0, 7));
        let mut present = 0;
        local
            .layout(0, &mut |range| present += range.present)
            .unwrap();
        assert_eq!(present, 16);
        assert_eq!(look(&mut local, &mapping, 0..16, &[]).len(), 16);
        assert_eq!(look(&mut local, &mapping, 0..16, &[])[9].1, Seen::Unchanged);
    }

    #[test]
    fn the_layout_tells_how_much_is_in_each_block() {
        let mapping = Mapping::new(5 * BLOCK as usize);
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        let written = [3, 4, 5, 1500, 1600, 2500];
        written.iter().for_each(|page| mapping.write(*page, 0, 1));
        let mut ranges = Vec::new();
        local.layout(0, &mut |range| ranges.push(range)).unwrap();
        assert_eq!(ranges.iter().map(|range| range.present).sum::<u64>(), 6);
        let (first, end) = (mapping.first(), mapping.first() + 5 * BLOCK);
        for range in &ranges {
            let block = range.start / BLOCK;
            assert_eq!(block, (range.end - 1) / BLOCK);
            assert!(first <= range.start && range.end <= end && range.present > 0);
        }
        assert!(ranges.is_sorted_by(|a, b| a.end <= b.start));
    }

    /// Shown by `cargo test --release -p sksm-scan -- --ignored --nocapture per_page`.
    #[test]
    #[ignore = "it measures"]
    fn time_per_page() {
        let pages = 256 * BLOCK;
        let mapping = Mapping::new(pages as usize);
        (0..pages).for_each(|page| mapping.write(page as usize, 1024, page));
        let Some(mut local) = mapping.tracked() else {
            return;
        };
        let mut time = |what: &str, merged: bool| {
            let mut known = Known::default();
            (0..BLOCK).for_each(|offset| known.add(offset as u16, merged));
            let first = mapping.first().next_multiple_of(BLOCK);
            let blocks = pages / BLOCK - 1;
            let started = thread_time();
            for block in 0..blocks {
                let start = first + block * BLOCK;
                let look = local.look(0, start..start + BLOCK, &known, &mut |page, seen| {
                    std::hint::black_box((page, seen));
                });
                assert!(look.is_ok());
            }
            let nanos = (thread_time() - started).as_nanos() as f64 / (blocks * BLOCK) as f64;
            println!("{what}: {nanos:.1} ns a page");
        };
        time("read and protected first", false);
        time("nothing changed", false);
        time("nothing changed, merged", true);
        (0..pages)
            .step_by(10)
            .for_each(|page| mapping.write(page as usize, 0, 1));
        time("each tenth written", false);
        (0..pages).for_each(|page| mapping.write(page as usize, 0, 2));
        time("all written", false);
        // With the scanner's own work; nothing is merged, as each page is alone.
        local.forget();
        let settings = crate::Settings {
            stable: Duration::from_secs(1),
            cpu: None,
            ..Default::default()
        };
        let mut scanner = crate::Scanner::new(settings, &local);
        for what in [
            "read first",
            "matures",
            "nothing changed",
            "nothing changed",
            "nothing changed",
        ] {
            let (before, mut looks, mut others) = (scanner.total().looked, 0, 0);
            while scanner.total().looked < before + pages {
                let (looked, started) = (scanner.total().looked, thread_time());
                let step = scanner.step(&mut local);
                let took = (thread_time() - started).as_nanos();
                match scanner.total().looked > looked {
                    true => looks += took,
                    false => others += took,
                }
                match step {
                    crate::Step::Worked => {}
                    crate::Step::Idle(wait) | crate::Step::OutOfBudget(wait) => {
                        std::thread::sleep(wait);
                    }
                }
            }
            let each = |nanos: u128| nanos as f64 / (scanner.total().looked - before) as f64;
            println!(
                "with the scanner, {what}: {:.1} ns a page, and {:.1} for lists and searches",
                each(looks),
                each(others)
            );
        }
    }
}
