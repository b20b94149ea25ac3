//! What is kept of a page that was looked at.

use twox_hash::XxHash3_64;

/// A page of a process: 16 bytes, as there are many. In order, equal pages are together, and of those the ones that are one
/// page frame. Of a page that was only sampled the hash is its sample's, and the frame, which no other page is, its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Page {
    /// Of its bytes. 64 bits are enough to count by: among the pages of a TiB, two that differ have the same hash once in 500
    /// times.
    pub hash: u64,
    /// The frame, the number of the process, the kind.
    place: u64,
}

pub const KIND_BITS: u32 = 3;
const PROCESS_BITS: u32 = 21;
const FRAME_BITS: u32 = 40;

/// So many processes can be told apart: as many as Linux has at once.
pub const MOST_PROCESSES: usize = 1 << PROCESS_BITS;

impl Page {
    /// In the place of a page that is no more: of a kind that no page has.
    pub const GONE: Page = Page {
        hash: 0,
        place: u64::MAX,
    };

    /// `frame` is 0 where no other page can be the same frame.
    pub fn new(hash: u64, frame: u64, process: u32, kind: u8) -> Self {
        let frame = frame & ((1 << FRAME_BITS) - 1);
        let process = u64::from(process) & ((1 << PROCESS_BITS) - 1);
        let kind = u64::from(kind) & ((1 << KIND_BITS) - 1);
        Page {
            hash,
            place: frame << (PROCESS_BITS + KIND_BITS) | process << KIND_BITS | kind,
        }
    }

    /// None where the number of the page, which is its address in pages, is too large.
    pub fn sampled(key: u64, number: u64, process: u32, kind: u8) -> Option<Self> {
        (number >> FRAME_BITS == 0).then(|| Page::new(key, number, process, kind))
    }

    /// Of a page that was only sampled.
    pub fn number(self) -> u64 {
        self.frame()
    }

    pub fn frame(self) -> u64 {
        self.place >> (PROCESS_BITS + KIND_BITS)
    }

    pub fn process(self) -> usize {
        (self.place >> KIND_BITS) as usize & ((1 << PROCESS_BITS) - 1)
    }

    pub fn kind(self) -> usize {
        self.place as usize & ((1 << KIND_BITS) - 1)
    }
}

/// A page that was read in full, and where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spot {
    pub hash: u64,
    /// Its address, in pages.
    pub number: u64,
    /// 0 where no other page can be the same frame.
    pub frame: u64,
    /// The process, by its place among those that were looked at.
    pub process: u32,
    /// Whether it is of a file: zeros are content like any other there.
    pub of_file: bool,
}

pub fn hash_of_zeros() -> u64 {
    XxHash3_64::oneshot(&vec![0; sksm::page_size()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_in_16_bytes() {
        assert_eq!(size_of::<Page>(), 16);
        for frame in [0, 1, (1 << FRAME_BITS) - 1] {
            for process in [0, 1, MOST_PROCESSES as u32 - 1] {
                for kind in [0, 4, 7] {
                    let page = Page::new(9, frame, process, kind);
                    assert_eq!(page.frame(), frame);
                    assert_eq!(page.process(), process as usize);
                    assert_eq!(page.kind(), usize::from(kind));
                }
            }
        }
        assert_eq!(Page::sampled(9, 1 << FRAME_BITS, 0, 0), None);
        let sampled = Page::sampled(9, (1 << FRAME_BITS) - 1, 3, 1).unwrap();
        assert_eq!(sampled.number(), (1 << FRAME_BITS) - 1);
        let page = |hash, frame, process| Page::new(hash, frame, process, 7);
        assert!(page(1, 9, 9) < page(2, 0, 0) && page(1, 1, 9) < page(1, 2, 0));
    }
}
