use core::fmt;

/// A range of addresses.
///
/// `Region::new(start, len)`, a pair `(start, len)` or a slice makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Region {
    /// The first address.
    pub start: usize,
    /// The number of bytes.
    pub len: usize,
}

impl Region {
    /// The range of `len` bytes from `start`.
    #[must_use]
    pub const fn new(start: usize, len: usize) -> Self {
        Region { start, len }
    }

    /// The address after the last one; the end of the address space if the region runs past it.
    #[must_use]
    pub const fn end(self) -> usize {
        self.start.saturating_add(self.len)
    }

    /// Whether the address is inside.
    #[must_use]
    pub const fn contains(self, addr: usize) -> bool {
        self.start <= addr && addr < self.end()
    }

    /// The whole pages inside; none if there is no whole page.
    pub(crate) fn inward(self, page: usize) -> Option<Region> {
        let end = self.end() - self.end() % page;
        let start = self.start.checked_next_multiple_of(page)?;
        (start < end).then(|| Region {
            start,
            len: end - start,
        })
    }

    /// The pages that it touches; none if they run past the end of the address space.
    pub(crate) fn outward(self, page: usize) -> Option<Region> {
        let end = (self.start.checked_add(self.len)?).checked_next_multiple_of(page)?;
        let start = self.start - self.start % page;
        Some(Region {
            start,
            len: end - start,
        })
    }

    pub(crate) const fn wraps(self) -> bool {
        self.start.checked_add(self.len).is_none()
    }
}

impl From<(usize, usize)> for Region {
    fn from((start, len): (usize, usize)) -> Self {
        Region::new(start, len)
    }
}

impl<T> From<&[T]> for Region {
    fn from(slice: &[T]) -> Self {
        Region {
            start: slice.as_ptr() as usize,
            len: size_of_val(slice),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_inward() {
        let round = |start, len| {
            let region = Region { start, len }.inward(0x1000);
            region.map(|region| (region.start, region.len))
        };
        assert_eq!(round(0x1000, 0x2000), Some((0x1000, 0x2000)));
        assert_eq!(round(0x1001, 0x2000), Some((0x2000, 0x1000)));
        assert_eq!(round(0x0fff, 0x2002), Some((0x1000, 0x2000)));
        assert_eq!(round(0x1001, 0x1ffe), None);
        assert_eq!(round(0x1000, 0xfff), None);
        assert_eq!(round(0x1000, 0), None);
        assert_eq!(round(0, 0), None);
        assert_eq!(round(usize::MAX - 1, 1), None);
    }

    #[test]
    fn rounds_outward() {
        let round = |start, len| {
            let region = Region { start, len }.outward(0x1000);
            region.map(|region| (region.start, region.len))
        };
        assert_eq!(round(0x1000, 0x1000), Some((0x1000, 0x1000)));
        assert_eq!(round(0x1fff, 2), Some((0x1000, 0x2000)));
        assert_eq!(round(0x1800, 1), Some((0x1000, 0x1000)));
        assert_eq!(round(usize::MAX - 1, 1), None);
        assert_eq!(round(usize::MAX, 2), None);
    }
}
