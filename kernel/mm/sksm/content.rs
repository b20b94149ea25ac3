// SPDX-License-Identifier: GPL-2.0-only

//! The bytes of a page: comparing and hashing them.
//!
//! The hash is NH, the almost universal hash of UMAC (RFC 4418) with words of 64 bits: whoever does
//! not know the key finds two pages of one hash with a chance of 2^-64, however he makes them. So
//! small is the chance of any difference of two results (it is almost delta-universal), so that the
//! domain is added to it: each domain has hashes of its own. SipHash over the sum hides the key
//! from who sees where pages stand.

use core::ptr::null_mut;
use kernel::bindings;
use kernel::prelude::*;

use super::base::atomic::{Acquire, Atomic, Full};
use super::gfp;

/// Words of 8 bytes in a page, and in a line of the cache.
const WORDS: usize = kernel::page::PAGE_SIZE / 8;
const LINE: usize = 8;
/// Words of one loop that the compiler unrolls whole.
const STRIDE: usize = 16;
/// Words that are compared without a loop. There is no rest.
const PART: usize = 8 * STRIDE;
/// Words of a page of zeros that are looked at without a loop: compilers unroll no more of them.
const ZEROS: usize = 4 * STRIDE;
const _: () = assert!(WORDS % PART == 0 && WORDS % ZEROS == 0);

/// The lines of a sample are so far apart: with pages of 4 KiB there are four, with pages of 16 and
/// 64 KiB 16 and 32. The first line of the page and the last are among them, and they are spread
/// evenly over the places in 512 bytes.
const SAMPLE_STRIDE: usize = match WORDS / LINE {
    64 => 21,
    256 => 17,
    1024 => 33,
    _ => panic!("no sample for pages of this size"),
};
const _: () = assert!((WORDS / LINE - 1) % SAMPLE_STRIDE == 0 && SAMPLE_STRIDE % 2 == 1);

/// A page as words.
pub(crate) type Words = [u64; WORDS];

/// What nobody may know, drawn at the first call.
pub(crate) struct Secret {
    nh: Words,
    sip: bindings::siphash_key_t,
}

static SECRET: Atomic<*mut Secret> = Atomic::new(null_mut());

impl Secret {
    /// The one secret. May sleep; fails when there is no memory for it.
    pub(crate) fn get() -> Result<&'static Self> {
        let mut secret = SECRET.load(Acquire);
        if secret.is_null() {
            secret = Self::draw()?;
        }
        // SAFETY: Set once and never freed.
        Ok(unsafe { &*secret })
    }

    fn draw() -> Result<*mut Self> {
        let new = KBox::into_raw(KBox::new(
            Self {
                nh: [0; WORDS],
                sip: Default::default(),
            },
            gfp(),
        )?);
        // SAFETY: Ours alone so far, and any bytes are valid.
        unsafe { bindings::get_random_bytes(new.cast(), size_of::<Self>()) };
        if SECRET.cmpxchg(null_mut(), new, Full).is_err() {
            // SAFETY: Another caller was faster; nobody has seen this one.
            drop(unsafe { KBox::from_raw(new) });
        }
        Ok(SECRET.load(Acquire))
    }

    /// A number that stands for others, of which there are always so many.
    pub(crate) fn digest<const N: usize>(&self, numbers: [u64; N]) -> u64 {
        const { assert!(N % 2 == 0 && N <= WORDS) };
        self.finish(nh(0, &numbers, &self.nh))
    }

    fn finish(&self, sum: u128) -> u64 {
        // SAFETY: The key is valid.
        unsafe { bindings::siphash_2u64(sum as u64, (sum >> 64) as u64, &self.sip) }
    }

    /// The hash of a sample of the page, a sixteenth of it if it has 4 KiB, in a domain.
    pub(crate) fn hash_sample(&self, words: &Words, domain: u64) -> u64 {
        let lines = words.chunks_exact(LINE).step_by(SAMPLE_STRIDE);
        let keys = self.nh.chunks_exact(LINE);
        let sum = lines
            .zip(keys)
            .fold(domain.into(), |sum, (words, key)| nh(sum, words, key));
        self.finish(sum)
    }

    /// The hash of all bytes, in a domain.
    pub(crate) fn hash(&self, words: &Words, domain: u64) -> u64 {
        self.finish(nh(domain.into(), words, &self.nh))
    }
}

fn nh(sum: u128, words: &[u64], key: &[u64]) -> u128 {
    let pairs = words.chunks_exact(2).zip(key.chunks_exact(2));
    pairs.fold(sum, |sum, (word, key)| {
        let [a, b] = [0, 1].map(|at| u128::from(word[at].wrapping_add(key[at])));
        sum.wrapping_add(a.wrapping_mul(b))
    })
}

/// Whether two pages are equal.
pub(crate) fn equal(a: &Words, b: &Words) -> bool {
    let mut parts = a.chunks_exact(PART).zip(b.chunks_exact(PART));
    // What compilers make of it for x86: a load, a comparison and a branch for each word.
    parts.all(|(a, b)| {
        differences::<0>(a, b)
            | differences::<1>(a, b)
            | differences::<2>(a, b)
            | differences::<3>(a, b)
            | differences::<4>(a, b)
            | differences::<5>(a, b)
            | differences::<6>(a, b)
            | differences::<7>(a, b)
            == 0
    })
}

/// All bits in which one stride of a part differs.
#[inline(always)]
fn differences<const AT: usize>(a: &[u64], b: &[u64]) -> u64 {
    let words = a[AT * STRIDE..][..STRIDE].iter();
    let words = words.zip(&b[AT * STRIDE..][..STRIDE]);
    words.fold(0, |sum, (a, b)| sum | (a ^ b))
}

/// Whether all bytes are zero. The first line settles it for most pages, and the first few for
/// nearly all: so a page of zeros is read with few questions.
pub(crate) fn is_zero(words: &Words) -> bool {
    let or = |words: &[u64]| words.iter().fold(0, |sum, word| sum | word);
    or(&words[..LINE]) == 0
        && (words.chunks_exact(ZEROS)).all(|part| {
            part.chunks_exact(STRIDE)
                .fold(0, |sum, words| sum | or(words))
                == 0
        })
}
