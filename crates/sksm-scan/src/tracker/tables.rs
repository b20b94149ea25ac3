//! The page tables of this process, and which of its pages were written.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::BLOCK;
use crate::pagemap::{
    self, CHECK, Entry, HUGE, PRESENT, PROTECT, Query, Region, SWAPPED, WRITTEN, ZERO,
};

pub struct Tables {
    file: File,
    found: Vec<Region>,
}

impl Tables {
    pub fn open() -> io::Result<Self> {
        Ok(Tables {
            file: File::open("/proc/self/pagemap")?,
            found: vec![Region::default(); BLOCK as usize],
        })
    }

    /// Shows what is there, swapped out included, in ranges of addresses of pages that are the same. Fails with `EPERM` where writes
    /// are not noted.
    pub fn each(
        &mut self,
        addresses: Range<u64>,
        see: impl FnMut(Range<u64>, u64),
    ) -> io::Result<()> {
        let query = Query {
            flags: CHECK,
            any: PRESENT | SWAPPED,
            returned: WRITTEN | PRESENT | SWAPPED | ZERO | HUGE,
            ..Query::default()
        };
        self.scan(addresses, query, see)
    }

    /// Whether all pages are there, or swapped out, and none was written since it was protected. Of what the kernel can be asked this
    /// takes the least time for a page.
    pub fn untouched(&mut self, addresses: Range<u64>) -> io::Result<bool> {
        let query = Query {
            flags: CHECK,
            mask: WRITTEN,
            returned: WRITTEN,
            most: 1,
            ..Query::default()
        };
        let (found, _) = pagemap::find(&self.file, addresses, query, &mut self.found)?;
        Ok(found.is_empty())
    }

    /// Write-protects the pages that were written since they were protected last, and shows their addresses. Huge pages are left
    /// out: the first write to a protected one would split it.
    pub fn protect(
        &mut self,
        addresses: Range<u64>,
        mut see: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let query = Query {
            flags: PROTECT | CHECK,
            // What is not there counts as written on some kernels.
            mask: WRITTEN | PRESENT | HUGE | ZERO,
            inverted: HUGE | ZERO,
            returned: WRITTEN,
            ..Query::default()
        };
        self.scan(addresses, query, |range, _| see(range))
    }

    fn scan(
        &mut self,
        addresses: Range<u64>,
        query: Query,
        mut see: impl FnMut(Range<u64>, u64),
    ) -> io::Result<()> {
        pagemap::scan(
            &self.file,
            addresses,
            query,
            &mut self.found,
            |range, is| {
                see(range, is);
                Ok(())
            },
        )
    }

    /// The entries of these pages, given by their numbers.
    pub fn entries(&self, pages: Range<u64>) -> io::Result<Vec<Entry>> {
        pagemap::entries(&self.file, pages)
    }
}
