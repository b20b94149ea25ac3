//! A few bytes of each page: those whose sample nobody else has cannot have a twin, and are not read in full.

use twox_hash::XxHash3_64;

/// Behind headers that are equal and before tails of zeros. Two cache lines cost hardly more than one, and tell more.
const OFFSET: usize = 1024;
pub const LEN: usize = 128;

/// Where it is of a page at this address.
pub fn place(addr: u64) -> u64 {
    addr + OFFSET as u64
}

/// The key of a sample.
pub fn key(sample: &[u8]) -> u64 {
    XxHash3_64::oneshot(sample)
}

/// The key of the sample of a page.
pub fn key_of_page(page: &[u8]) -> u64 {
    key(&page[OFFSET..OFFSET + LEN])
}

pub fn key_of_zeros() -> u64 {
    key(&[0; LEN])
}

/// Whether to sample pages of which such shares are zeros and, of the others, have the sample of another page. A sample takes 50
/// to 60 % of the time of a page, hashes included, and one that is then read alone 120 to 150 %: it pays up to a quarter.
pub fn pays(zeros: f32, repeated: f32) -> bool {
    zeros + (1.0 - zeros) * repeated < 0.25
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

    #[test]
    fn pages_of_which_a_quarter_is_repeated_are_read_at_once() {
        assert!(pays(0.0, 0.0) && pays(0.0, 0.2) && pays(0.2, 0.0) && pays(0.1, 0.1));
        assert!(!pays(0.0, 0.3) && !pays(0.3, 0.0) && !pays(0.2, 0.2) && !pays(1.0, 0.0));
    }
}
