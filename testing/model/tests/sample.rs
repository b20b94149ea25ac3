//! The engine's `content.rs` with pages of 4, 16 and 64 KiB: what it compares and hashes is the page, and of a large one the
//! sample covers all parts, as it does of a small one.

use std::ops::Range;

include!(concat!(env!("OUT_DIR"), "/contents.rs"));

/// In place of the kernel's crate.
mod kernel {
    pub(crate) mod prelude {
        pub(crate) type Result<T> = std::result::Result<T, ()>;

        pub(crate) struct KBox<T>(Box<T>);

        impl<T> KBox<T> {
            pub(crate) fn new(of: T, _flags: ()) -> Result<Self> {
                Ok(Self(Box::new(of)))
            }

            pub(crate) fn into_raw(this: Self) -> *mut T {
                Box::into_raw(this.0)
            }

            /// # Safety
            ///
            /// It comes from `into_raw`.
            pub(crate) unsafe fn from_raw(raw: *mut T) -> Self {
                // SAFETY: The caller says so.
                Self(unsafe { Box::from_raw(raw) })
            }
        }
    }

    #[allow(non_camel_case_types)]
    pub(crate) mod bindings {
        use std::ffi::c_void;
        use std::hash::{DefaultHasher, Hash, Hasher};

        #[derive(Clone, Copy, Default, Hash)]
        pub(crate) struct siphash_key_t {
            key: [u64; 2],
        }

        /// # Safety
        ///
        /// So many bytes may be written there.
        pub(crate) unsafe fn get_random_bytes(into: *mut c_void, len: usize) {
            let mut state = 1u64;
            for at in 0..len {
                state = (state.wrapping_mul(6_364_136_223_846_793_005)).wrapping_add(1);
                // SAFETY: The caller says so.
                unsafe { into.cast::<u8>().add(at).write((state >> 56) as u8) };
            }
        }

        /// # Safety
        ///
        /// The key is valid.
        pub(crate) unsafe fn siphash_2u64(a: u64, b: u64, key: *const siphash_key_t) -> u64 {
            let mut hasher = DefaultHasher::new();
            // SAFETY: The caller says so.
            (a, b, unsafe { *key }).hash(&mut hasher);
            hasher.finish()
        }
    }
}

/// In place of the base's own.
mod base {
    pub(crate) mod atomic {
        use std::sync::atomic::{AtomicPtr, Ordering};

        pub(crate) struct Acquire;
        pub(crate) struct Full;

        pub(crate) struct Atomic<P: Pointer>(AtomicPtr<P::To>);

        pub(crate) trait Pointer {
            type To;
        }

        impl<T> Pointer for *mut T {
            type To = T;
        }

        impl<T> Atomic<*mut T> {
            pub(crate) const fn new(of: *mut T) -> Self {
                Self(AtomicPtr::new(of))
            }

            pub(crate) fn load(&self, _order: Acquire) -> *mut T {
                self.0.load(Ordering::Acquire)
            }

            pub(crate) fn cmpxchg(
                &self,
                old: *mut T,
                new: *mut T,
                _order: Full,
            ) -> Result<*mut T, *mut T> {
                (self.0).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            }
        }
    }
}

fn gfp() {}

/// Words of a page of 4 KiB that the tests in the kernel take for ones of no sample.
const IN_NO_SAMPLE: [Range<usize>; 4] = [8..16, 160..161, 301..302, 472..504];

/// Bytes of a line of the cache.
const LINE: usize = 64;

macro_rules! size {
    ($test:ident, $content:ident, $size:expr, $lines:expr) => {
        #[test]
        fn $test() {
            use $content::{equal, is_zero, Secret, Words};

            const LINES: usize = $size / LINE;
            let secret = Secret::get().unwrap();
            let page: Box<Words> = Box::new(std::array::from_fn(|word| word as u64 * 0x9e37_79b9));
            let zero: Box<Words> = Box::new([0; $size / 8]);
            let sampled = |word: usize| {
                let mut other = page.clone();
                other[word] ^= 1;
                secret.hash_sample(&page, 0) != secret.hash_sample(&other, 0)
            };
            let mut lines = Vec::new();
            for line in 0..LINES {
                let mut other = page.clone();
                let mut nearly = zero.clone();
                other[line * 8 + line % 8] ^= 1;
                nearly[line * 8 + line % 8] ^= 1 << 63;
                assert!(!equal(&page, &other), "line {line} is not compared");
                assert!(!is_zero(&nearly), "line {line} may hold anything");
                assert_ne!(secret.hash(&page, 0), secret.hash(&other, 0), "{line}");
                match (line * 8..).take(8).filter(|&word| sampled(word)).count() {
                    0 => {}
                    8 => lines.push(line),
                    some => panic!("{some} words of line {line} are sampled"),
                }
            }
            assert!(equal(&page, &page.clone()) && is_zero(&zero));
            covers(&lines, LINES, $lines);
            if $size == 4 << 10 {
                assert!(!IN_NO_SAMPLE.into_iter().flatten().any(sampled));
            }
        }
    };
}

size!(pages_of_4_kib, content_4096, 4 << 10, 4);
size!(pages_of_16_kib, content_16384, 16 << 10, 16);
size!(pages_of_64_kib, content_65536, 64 << 10, 32);

/// So many lines, from the first to the last, as far from each other as they can be, and not always at the same place of
/// what programs keep in a row.
fn covers(sampled: &[usize], lines: usize, wanted: usize) {
    assert_eq!(sampled.len(), wanted);
    assert_eq!((sampled[0], sampled[wanted - 1]), (0, lines - 1));
    for pair in sampled.windows(2) {
        assert_eq!(pair[1] - pair[0], (lines - 1) / (wanted - 1), "{sampled:?}");
    }
    for place in 0..8 {
        let there = sampled.iter().filter(|&line| line % 8 == place);
        let most = wanted.div_ceil(8);
        assert!(
            (wanted / 8..=most).contains(&there.count()),
            "place {place}: {sampled:?}"
        );
    }
    // None of the parts that would be pages of 4 KiB is passed over.
    for part in 0..lines / 64 {
        let within = sampled.iter().filter(|&line| line / 64 == part);
        assert!(
            within.count() >= wanted / (lines / 64),
            "part {part}: {sampled:?}"
        );
    }
}
