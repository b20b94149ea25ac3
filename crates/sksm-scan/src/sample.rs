//! A few bytes of each page: those whose sample nobody else has cannot have a twin, and are not read in full.

use twox_hash::XxHash3_64;

/// Behind headers that are equal and before tails of zeros. Two cache lines cost hardly more than one, and tell more.
const OFFSET: usize = 1024;
/// How long a sample is, in bytes.
pub const LEN: usize = 128;

/// The address of the sample of the page at this address.
#[must_use]
pub fn place(addr: u64) -> u64 {
    addr + OFFSET as u64
}

/// The key of a sample.
#[must_use]
pub fn key(sample: &[u8]) -> u64 {
    XxHash3_64::oneshot(sample)
}

/// The key of the sample of a page.
#[must_use]
pub fn key_of_page(page: &[u8]) -> u64 {
    key(&page[OFFSET..OFFSET + LEN])
}

/// The key of the sample of a page of zeros.
#[must_use]
pub fn key_of_zeros() -> u64 {
    key(&[0; LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_key_of_its_sample() {
        let mut page: Vec<u8> = (0..4096).map(|number| (number % 251) as u8).collect();
        let whole = key_of_page(&page);
        let start = place(0) as usize;
        assert_eq!(whole, key(&page[start..start + LEN]));
        page[start + LEN] += 1;
        assert_eq!(key_of_page(&page), whole);
        page[start + LEN - 1] += 1;
        assert_ne!(key_of_page(&page), whole);
        assert_eq!(key_of_page(&[0; 4096]), key_of_zeros());
    }
}
