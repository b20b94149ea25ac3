//! In place of the engine's `content.rs`: a page has three words. The first is its sample; the hash
//! of all bytes is of the second, so that it may be that of other pages, too.

use kernel::bindings::Words as Page;
use kernel::prelude::*;

pub(crate) type Words = Page;

pub(crate) struct Secret;

impl Secret {
    pub(crate) fn get() -> Result<&'static Self> {
        Ok(&Secret)
    }

    /// The highest bits pick the shard, which samples that differ by 8 share. The same in all
    /// domains: what tells them apart is the key.
    pub(crate) fn hash_sample(&self, words: &Words, _domain: u64) -> u64 {
        words[0] << 61 | words[0]
    }

    /// Of another shard than the sample's, perhaps.
    pub(crate) fn hash(&self, words: &Words, _domain: u64) -> u64 {
        words[1] << 61 | words[1] << 8
    }
}

pub(crate) fn equal(a: &Words, b: &Words) -> bool {
    a == b
}

pub(crate) fn is_zero(words: &Words) -> bool {
    *words == [0; 3]
}
