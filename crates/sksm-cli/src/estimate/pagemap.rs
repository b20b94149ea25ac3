//! Which pages of a process are present and its own, without touching them: `/proc/PID/pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What a page's entry says.
#[derive(Clone, Copy)]
pub struct Entry(u64);

impl Entry {
    /// Present, and neither of a file nor shared memory.
    fn anonymous(self) -> bool {
        self.0 >> 63 & 1 != 0 && self.0 >> 61 & 1 == 0
    }

    /// The physical page; 0 for those without the right to know.
    pub fn pfn(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }

    /// Mapped by this process alone.
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 != 0
    }
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any: u64,
    returned: u64,
}

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_ZERO: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong =
    0xc000_0000 | (size_of::<Scan>() as libc::c_ulong) << 16 | 0x6610;

/// What PAGEMAP_SCAN is to look for.
#[derive(Clone, Copy)]
enum Wanted {
    /// Present, and neither of a file nor the zero page.
    Anonymous,
    /// The zero page, where a page was read and never written.
    Zero,
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
    let mut found = [Found::default(); 256];
    let mut start = range.start;
    let (mask, inverted) = match wanted {
        Wanted::Anonymous => (IS_FILE | IS_PRESENT | IS_ZERO, IS_FILE | IS_ZERO),
        Wanted::Zero => (IS_PRESENT | IS_ZERO, 0),
    };
    while start < range.end {
        let mut argument = Scan {
            size: size_of::<Scan>() as u64,
            start,
            end: range.end,
            regions: found.as_mut_ptr() as u64,
            regions_len: found.len() as u64,
            inverted,
            mask,
            returned: IS_PRESENT,
            ..Scan::default()
        };
        // SAFETY: the argument and the regions that it names are valid for the call.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut argument) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for found in found.iter().take(count) {
            see(found.start..found.end)?;
        }
        // No loop without progress, whatever the kernel says.
        start = argument.walk_end.max(start + 1);
    }
    Ok(())
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
            let count = pagemap.read_at(room, addr / page * 8)?;
            if count < 8 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for word in room[..count].chunks_exact(8) {
                let entry = Entry(u64::from_ne_bytes(word.try_into().unwrap_or_default()));
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
    match pagemap.read_at(&mut [0; 8], addr / sksm::page_size() as u64 * 8)? {
        8 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Whether page frames are told to this process.
pub fn tells_frames() -> bool {
    let value = std::hint::black_box(1u8);
    let addr = &raw const value as u64;
    let file = File::open("/proc/self/pagemap");
    let mut entry = [0; 8];
    let offset = addr / sksm::page_size() as u64 * 8;
    let read = file.and_then(|file| file.read_exact_at(&mut entry, offset));
    read.is_ok() && Entry(u64::from_ne_bytes(entry)).pfn() != 0
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
