//! Which pages of a process are present and its own, without touching them: `/proc/PID/pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;

use sksm_scan::pagemap::{self, FILE, HUGE, PRESENT, Query, Region, ZERO};
pub use sksm_scan::pagemap::{Entry, entries};

/// What PAGEMAP_SCAN is to look for.
#[derive(Clone, Copy)]
enum Wanted {
    /// Present, and neither of a file nor the zero page.
    Anonymous,
    /// The zero page, where a page was read and never written.
    Zero,
    /// Huge pages.
    Huge,
}

/// Whether the kernel knows PAGEMAP_SCAN.
pub fn scans(pagemap: &File) -> bool {
    let page = sksm::page_size() as u64;
    scan(pagemap, page..2 * page, Wanted::Zero, |_| Ok(())).is_ok()
}

/// Shows the pages of this range that are wanted, as ranges of addresses.
fn scan(
    pagemap: &File,
    range: Range<u64>,
    wanted: Wanted,
    mut see: impl FnMut(Range<u64>) -> io::Result<()>,
) -> io::Result<()> {
    let (mask, inverted) = match wanted {
        Wanted::Anonymous => (FILE | PRESENT | ZERO, FILE | ZERO),
        Wanted::Zero => (PRESENT | ZERO, 0),
        Wanted::Huge => (PRESENT | HUGE, 0),
    };
    let mut query = Query::default();
    (query.mask, query.inverted) = (mask, inverted);
    query.returned = PRESENT;
    let mut room = [Region::default(); 256];
    pagemap::scan(pagemap, range, query, &mut room, |range, _| see(range))
}

/// The ranges of a range of addresses where the zero page is mapped: it looks like a page that was written, but is none of the
/// process's own. None on kernels without PAGEMAP_SCAN.
pub fn zero_pages(pagemap: &File, range: Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let see = |range| {
        ranges.push(range);
        Ok(())
    };
    scan(pagemap, range, Wanted::Zero, see).ok()?;
    Some(ranges)
}

/// The ranges of a range of addresses where pages are present that are neither a file's nor the zero page. None on kernels without
/// PAGEMAP_SCAN.
pub fn anonymous_pages(pagemap: &File, range: Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let see = |range| {
        ranges.push(range);
        Ok(())
    };
    scan(pagemap, range, Wanted::Anonymous, see).ok()?;
    Some(ranges)
}

/// The ranges of a range of addresses where huge pages are. None on kernels without PAGEMAP_SCAN.
pub fn huge_pages(pagemap: &File, range: Range<u64>) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let see = |range: Range<u64>| {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
        Ok(())
    };
    scan(pagemap, range, Wanted::Huge, see).ok()?;
    Some(ranges)
}

/// Shows the present anonymous pages of this range of addresses, each with its address and entry; the zero page may be among
/// them. So many entries are read at once: more than are worked on at once would only push other things out of the cache.
/// Fails after the end of the process, also where another program runs in its place.
pub fn each_anonymous(
    pagemap: &File,
    range: Range<u64>,
    can_scan: bool,
    at_once: usize,
    mut see: impl FnMut(u64, Entry),
) -> io::Result<()> {
    let page = sksm::page_size() as u64;
    let mut room = vec![0; at_once * 8];
    let mut entries = |run: Range<u64>| {
        let mut addr = run.start;
        while addr < run.end {
            let pages = ((run.end - addr) / page).min(at_once as u64);
            let room = &mut room[..pages as usize * 8];
            for entry in pagemap::read(pagemap, addr / page, room)? {
                if entry.anonymous() {
                    see(addr, entry);
                }
                addr += page;
            }
        }
        Ok(())
    };
    if can_scan {
        let scanned = scan(pagemap, range.clone(), Wanted::Anonymous, &mut entries);
        // The call is not there, or finds nothing of a process that has gone.
        match scanned {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
            Err(error) => return Err(error),
            Ok(()) => return alive(pagemap, range.start),
        }
    }
    entries(range)
}

/// Fails after the end of the process.
fn alive(pagemap: &File, addr: u64) -> io::Result<()> {
    let page = sksm::page_size() as u64;
    pagemap::read(pagemap, addr / page, &mut [0; 8]).map(drop)
}

/// Whether page frames are told to this process.
pub fn tells_frames() -> bool {
    let value = std::hint::black_box(1u8);
    let page = &raw const value as u64 / sksm::page_size() as u64;
    let entries = File::open("/proc/self/pagemap").and_then(|file| entries(&file, page..page + 1));
    entries.is_ok_and(|entries| entries[0].pfn() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ioctl finds what the entries say.
    #[test]
    fn both_ways_find_the_same_pages() {
        let page = sksm::page_size();
        let mut memory = vec![0u8; 3000 * page];
        let start = memory.as_mut_ptr().align_offset(page);
        // SAFETY: within that memory, and changes no contents.
        unsafe {
            let first = memory.as_mut_ptr().add(start).cast();
            libc::madvise(first, 2950 * page, libc::MADV_NOHUGEPAGE);
        }
        for number in [0, 1, 7, 511, 512, 1500, 1502, 2900] {
            memory[start + number * page] = 1;
        }
        // Reading maps the zero page, which is no memory of this process.
        std::hint::black_box(memory[start + 5 * page]);
        let addr = memory.as_ptr() as u64 + start as u64;
        let range = addr..addr + 2950 * page as u64;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        if !scans(&pagemap) {
            return;
        }
        let pages = |can_scan| {
            let mut pages = Vec::new();
            let see = |addr, _| pages.push(addr);
            each_anonymous(&pagemap, range.clone(), can_scan, 64, see).unwrap();
            pages
        };
        let zero = zero_pages(&pagemap, range.clone()).unwrap();
        let fifth = addr + 5 * page as u64;
        assert!(zero.iter().any(|zero| zero.contains(&fifth)));
        let expected =
            [0, 1, 7, 511, 512, 1500, 1502, 2900].map(|number| addr + number * page as u64);
        assert!(expected.iter().all(|page| pages(true).contains(page)));
        assert!(pages(true).iter().all(|page| pages(false).contains(page)));
    }
}
