//! What the page tables of a process say, without touching its pages: `/proc/PID/pagemap`, its entries and `PAGEMAP_SCAN`.

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
    #[must_use]
    pub fn anonymous(self) -> bool {
        self.0 >> 63 & 1 != 0 && self.0 >> 61 & 1 == 0
    }

    /// Swapped out.
    #[must_use]
    pub fn swapped(self) -> bool {
        self.0 >> 62 & 1 != 0
    }

    /// The physical page; 0 for those without the right to know.
    #[must_use]
    pub fn pfn(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }

    /// Mapped by this process alone.
    #[must_use]
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// What the page of this number is the same as; none if it is its process's alone. Where frames are not told, what several
    /// processes have since a fork is at one address in all of them.
    #[must_use]
    pub fn frame(self, page: u64) -> Option<u64> {
        match (self.exclusive(), self.pfn()) {
            (true, _) => None,
            (false, 0) => Some(page),
            (false, frame) => Some(frame),
        }
    }
}

/// Reads the entries of pages from the one of this number on into this room, 8 bytes each; shows as many as there are.
///
/// # Errors
///
/// Those of the read; `ESRCH` after the end of the process, also where another program runs in its place.
pub fn read(
    pagemap: &File,
    first: u64,
    room: &mut [u8],
) -> io::Result<impl ExactSizeIterator<Item = Entry>> {
    let count = pagemap.read_at(room, first * 8)?;
    if count < 8 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let words = room[..count].chunks_exact(8);
    Ok(words.map(|word| Entry(u64::from_ne_bytes(word.try_into().unwrap_or_default()))))
}

/// The entries of these pages, given by their numbers.
///
/// # Errors
///
/// As [`read`], and where not all are there.
pub fn entries(pagemap: &File, pages: Range<u64>) -> io::Result<Vec<Entry>> {
    let count = pages.end.saturating_sub(pages.start) as usize;
    let mut room = vec![0; count * 8];
    let entries: Vec<Entry> = read(pagemap, pages.start, &mut room)?.collect();
    match entries.len() == count {
        true => Ok(entries),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Written since it was write-protected.
pub const WRITTEN: u64 = 1 << 1;
/// Of a file, or shared memory.
pub const FILE: u64 = 1 << 2;
/// In memory.
pub const PRESENT: u64 = 1 << 3;
/// Swapped out.
pub const SWAPPED: u64 = 1 << 4;
/// The zero page.
pub const ZERO: u64 = 1 << 5;
/// Part of a huge page.
pub const HUGE: u64 = 1 << 6;

/// Write-protect what is found.
pub const PROTECT: u64 = 1;
/// Fail with `EPERM` where writes are not noted.
pub const CHECK: u64 = 1 << 1;

/// What `PAGEMAP_SCAN` is to look for.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Query {
    /// [`PROTECT`] and [`CHECK`].
    pub flags: u64,
    /// A page is all of these, those of `inverted` aside, which it is not.
    pub mask: u64,
    /// See `mask`.
    pub inverted: u64,
    /// And one of these at least, if there are any.
    pub any: u64,
    /// What is told of it.
    pub returned: u64,
    /// It ends with so many pages; 0: with the range.
    pub most: u64,
}

/// Pages next to each other that are the same: the kernel's `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(
    clippy::exhaustive_structs,
    reason = "the kernel's, which does not grow"
)]
pub struct Region {
    /// The address of the first.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// What they are.
    pub is: u64,
}

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
struct Argument {
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

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong =
    0xc000_0000 | (size_of::<Argument>() as libc::c_ulong) << 16 | 0x6610;

/// One call: what it has found in a range of addresses, and the address where it goes on.
///
/// # Errors
///
/// Those of the call: `ENOTTY` where the kernel has none.
pub fn find<'a>(
    pagemap: &File,
    addresses: Range<u64>,
    query: Query,
    room: &'a mut [Region],
) -> io::Result<(&'a [Region], u64)> {
    let mut argument = Argument {
        size: size_of::<Argument>() as u64,
        flags: query.flags,
        start: addresses.start,
        end: addresses.end,
        walk_end: 0,
        regions: room.as_mut_ptr() as u64,
        regions_len: room.len() as u64,
        max_pages: query.most,
        inverted: query.inverted,
        mask: query.mask,
        any: query.any,
        returned: query.returned,
    };
    // SAFETY: the argument and the regions that it names are valid for the call, and it changes no contents of memory.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut argument) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok((&room[..count.min(room.len())], argument.walk_end))
}

/// Shows all that is found, in order.
///
/// # Errors
///
/// As [`find`], and those that are made by what is shown them.
pub fn scan(
    pagemap: &File,
    addresses: Range<u64>,
    query: Query,
    room: &mut [Region],
    mut see: impl FnMut(Range<u64>, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut start = addresses.start;
    while start < addresses.end {
        let (found, walk_end) = find(pagemap, start..addresses.end, query, room)?;
        for region in found {
            see(region.start..region.end, region.is)?;
        }
        // No loop without progress, whatever the kernel says.
        start = walk_end.max(start + 1);
    }
    Ok(())
}
