use sksm::Patch;

use crate::error::Error;
use crate::store::Store;
use crate::text::{Object, Shared};

/// Why a finished patch is not shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unshared {
    /// Finishing it failed.
    Patch(sksm::Error),
    /// Sharing it failed; the patch is in place and finished.
    Store(Error),
}

impl std::fmt::Display for Unshared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unshared::Patch(error) => error.fmt(f),
            Unshared::Store(error) => write!(f, "the patch is in place, but not shared: {error}"),
        }
    }
}

impl std::error::Error for Unshared {}

/// A patch that ends in the store.
pub trait FinishAndShare {
    /// Finishes the patch, then shares the touched pages with the other processes that have patched them alike. An error of the store
    /// leaves the patch in place and finished.
    ///
    /// Other threads may run meanwhile, and patch too: where another patch has one of these pages open, nothing is shared yet, and the
    /// answer says so by its zeros.
    ///
    /// # Errors
    ///
    /// [`Unshared`] says which of both failed.
    fn finish_and_share(self, store: &Store) -> Result<Shared, Unshared>;
}

impl FinishAndShare for Patch {
    fn finish_and_share(self, store: &Store) -> Result<Shared, Unshared> {
        let shared = self.finish_then(|pages| {
            let range = pages.start..pages.start + pages.len;
            // SAFETY: no patch of these pages is open, and none begins before this has ended; that nobody else writes them, whoever
            // began the patch has promised.
            unsafe { store.share(Object::Holding(pages.start), Some(range)) }
        });
        match shared {
            Ok(Some(result)) => result.map_err(Unshared::Store),
            Ok(None) => Ok(Shared::default()),
            Err(error) => Err(Unshared::Patch(error)),
        }
    }
}
