//! What a page must hold: one of a few contents, so that pages often are equal, and a few words written since.

use crate::memory::content::content;
use crate::page::WORDS;

/// Contents 0 (zeros) to this less one.
pub const CONTENTS: u64 = 8;
/// Pages of the file that is mapped privately.
pub const FILE_PAGES: usize = 64;
/// A page with more words written than this is filled anew.
const PATCHES: usize = 6;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    id: u64,
    patches: Vec<(usize, u64)>,
}

impl Page {
    pub fn of(id: u64) -> Self {
        Self {
            id,
            patches: Vec::new(),
        }
    }

    /// The content of a page of the file.
    pub fn of_file(page: usize) -> Self {
        Self::of(page as u64 % CONTENTS)
    }

    /// One word is written; false if that would be one too many.
    pub fn patch(&mut self, word: usize, value: u64) -> bool {
        if let Some(patch) = self.patches.iter_mut().find(|patch| patch.0 == word) {
            patch.1 = value;
        } else if self.patches.len() < PATCHES {
            self.patches.push((word, value));
        } else {
            return false;
        }
        true
    }

    /// Every word of the page.
    pub fn words(&self) -> [u64; WORDS] {
        let mut words = std::array::from_fn(|word| content(self.id, word));
        for (word, value) in &self.patches {
            words[*word] = *value;
        }
        words
    }
}
