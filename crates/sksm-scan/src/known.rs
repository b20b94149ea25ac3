use crate::BLOCK;

const BITS: u64 = u64::BITS as u64;

/// A bit for each page of a block.
pub(crate) type Bits = [u64; (BLOCK / BITS) as usize];

/// What the scanner knows of the pages of one block, before it looks at them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    pub(crate) pages: Bits,
    pub(crate) shared: Bits,
}

impl Known {
    pub(crate) fn add(&mut self, offset: u16, shared: bool) {
        set(&mut self.pages, offset.into());
        if shared {
            set(&mut self.shared, offset.into());
        }
    }

    /// Whether it knows a sample of the page of this number: only such a page may be shown as unchanged.
    #[must_use]
    pub fn has(&self, page: u64) -> bool {
        has(&self.pages, page)
    }

    /// Whether the page of this number need not be read while several processes have it: it was merged, or found shared by others.
    #[must_use]
    pub fn merged(&self, page: u64) -> bool {
        has(&self.shared, page)
    }
}

pub(crate) fn has(bits: &Bits, page: u64) -> bool {
    let at = page % BLOCK;
    bits[(at / BITS) as usize] >> (at % BITS) & 1 != 0
}

pub(crate) fn set(bits: &mut Bits, page: u64) {
    let at = page % BLOCK;
    bits[(at / BITS) as usize] |= 1 << (at % BITS);
}

/// Those of these pages, which are within one block.
#[cfg(target_os = "linux")]
pub(crate) fn set_all(bits: &mut Bits, pages: std::ops::Range<u64>) {
    let (mut at, end) = (
        pages.start % BLOCK,
        pages.start % BLOCK + (pages.end - pages.start),
    );
    while at < end {
        let count = (BITS - at % BITS).min(end - at);
        bits[(at / BITS) as usize] |= u64::MAX >> (BITS - count) << (at % BITS);
        at += count;
    }
}

/// The numbers of the bits that are set in a word of a block's bits.
#[cfg(target_os = "linux")]
pub(crate) fn each_in(word: usize, mut bits: u64, mut see: impl FnMut(u64)) {
    while bits != 0 {
        see(word as u64 * BITS + u64::from(bits.trailing_zeros()));
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn ranges_of_bits() {
        for range in [0..512, 0..1, 63..65, 64..128, 1..511, 511..512, 7..7] {
            let mut bits = Bits::default();
            set_all(&mut bits, 512 + range.start..512 + range.end);
            let mut found = Vec::new();
            for (word, bits) in bits.into_iter().enumerate() {
                each_in(word, bits, |page| found.push(page));
            }
            assert!(found.into_iter().eq(range));
        }
    }

    #[test]
    fn pages_are_those_of_any_block() {
        let mut known = Known::default();
        known.add(0, false);
        known.add(511, true);
        assert!(known.has(0) && known.has(7 * BLOCK) && !known.has(7 * BLOCK + 1));
        assert!(known.has(BLOCK - 1) && known.merged(3 * BLOCK - 1) && !known.merged(0));
    }
}
