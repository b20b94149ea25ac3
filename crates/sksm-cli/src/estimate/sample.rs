//! A few bytes of each page: those whose sample nobody else has cannot have a twin, and are not read in full.

pub use sksm_scan::sample::{LEN, key, key_of_page, key_of_zeros, place};

/// Whether to sample pages of which such shares are zeros and, of the others, have the sample of another page. A sample takes 50
/// to 60 % of the time of a page, hashes included, and one that is then read alone 120 to 150 %: it pays up to a quarter.
pub fn pays(zeros: f32, repeated: f32) -> bool {
    zeros + (1.0 - zeros) * repeated < 0.25
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_which_a_quarter_is_repeated_are_read_at_once() {
        assert!(pays(0.0, 0.0) && pays(0.0, 0.2) && pays(0.2, 0.0) && pays(0.1, 0.1));
        assert!(!pays(0.0, 0.3) && !pays(0.3, 0.0) && !pays(0.2, 0.2) && !pays(1.0, 0.0));
    }
}
