//! Which pages are this process's own copies.

use crate::sys::{self, Errno};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Of a file, or of memory that is mapped shared.
const OF_FILE: u64 = 1 << 61;

/// Tells of each of `count` pages from this address on whether it is a copy of this process's own.
pub fn each(
    start: usize,
    count: usize,
    page: usize,
    mut see: impl FnMut(usize, bool),
) -> Result<(), Errno> {
    let pagemap = sys::open(c"/proc/self/pagemap", libc::O_RDONLY)?;
    let mut entries = [0; 4096];
    let mut number = 0;
    while number < count {
        let at = (start / page + number) as u64 * 8;
        let len = ((count - number) * 8).min(entries.len());
        let room = entries.get_mut(..len).unwrap_or_default();
        let read = pagemap.read_at(room, at)?;
        if read < 8 {
            return Err(libc::EIO);
        }
        for entry in room.get(..read).unwrap_or_default().chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            see(
                number,
                entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0,
            );
            number += 1;
        }
    }
    Ok(())
}
