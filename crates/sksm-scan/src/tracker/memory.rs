//! Reads memory in place that others write meanwhile: by volatile loads, as what they write is unknown to the compiler. A value that is
//! half old and half new is no harm, as the write shows at the next look.

use crate::sample;

type Word = u64;
const WORD: usize = size_of::<Word>();

/// Has the processor fetch the sample of the page at this address, which is read soon: together with others it waits less for each.
pub fn soon(addr: u64) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..sample::LEN as u64).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = std::ptr::with_exposed_provenance((sample::place(addr) + line) as usize);
        // SAFETY: reads nothing that the program sees, and any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = addr;
}

/// Reads the sample of the page at this address.
///
/// # Safety
///
/// The page is mapped and readable.
pub unsafe fn sample(addr: u64) -> [u8; sample::LEN] {
    let mut room = [0; sample::LEN];
    // SAFETY: the sample is within the page.
    unsafe { copy(sample::place(addr), &mut room) };
    room
}

/// Reads what is at this address, which is a multiple of a word's size, as the length is.
///
/// # Safety
///
/// All of it is mapped and readable.
pub unsafe fn copy(addr: u64, room: &mut [u8]) {
    let from: *const Word = std::ptr::with_exposed_provenance(addr as usize);
    for (at, word) in room.chunks_exact_mut(WORD).enumerate() {
        // SAFETY: within what the caller answers for, and aligned.
        let read = unsafe { from.add(at).read_volatile() };
        word.copy_from_slice(&read.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_is_there() {
        let memory: Vec<u64> = (0..1024).map(|word| word * 0x0101_0101).collect();
        let addr = memory.as_ptr().expose_provenance() as u64;
        let mut room = [0; 4096];
        // SAFETY: within that memory.
        unsafe { copy(addr + 8, &mut room) };
        let right = memory[1..513].iter().flat_map(|word| word.to_ne_bytes());
        assert!(right.eq(room));
        // SAFETY: as above.
        let sampled = unsafe { sample(addr + 8) };
        assert_eq!(sample::key(&sampled), sample::key_of_page(&room));
    }
}
