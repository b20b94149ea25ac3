use std::env;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault};
use crate::store::{Store, in_memory};
use crate::{size, sys};

impl Store {
    /// Opens the user's store: `/dev/shm/sksm-UID`, or the directory that `SKSM_STORE_DIR` names. It may hold a tenth of the machine's
    /// memory, or as much as `SKSM_STORE_LIMIT` says, as in `800M` or `2G`.
    ///
    /// # Errors
    ///
    /// As [`Store::open_in`]; and a limit that is no size is refused.
    pub fn open() -> Result<Self, Error> {
        let limit = env::var_os("SKSM_STORE_LIMIT").filter(|text| !text.is_empty());
        let limit = limit
            .map(|text| size::parse(text.as_bytes()).ok_or(Error::new(Fault::LimitUnclear, 0)));
        let limit = limit.transpose()?;
        let store = Self::open_in(Self::directory())?;
        Ok(match limit {
            Some(bytes) => store.with_limit(bytes),
            None => store,
        })
    }

    /// Opens the store in this directory, which it makes if there is none.
    ///
    /// # Errors
    ///
    /// A directory that others own or may open, or that is not in memory, is refused: see [`Fault`].
    pub fn open_in(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = CString::new(path.as_ref().as_os_str().as_bytes());
        Self::open_at(&path.map_err(|_| Error::new(Fault::Path, 0))?)
    }

    /// As [`Store::open`], but makes nothing; none if there is no such directory.
    ///
    /// # Errors
    ///
    /// As [`Store::open_in`].
    pub fn existing() -> Result<Option<Self>, Error> {
        match std::fs::symlink_metadata(Self::directory()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            _ => Self::open().map(Some),
        }
    }

    /// Whether [`Store::open`] would work, and code could be mapped then; makes nothing.
    ///
    /// # Errors
    ///
    /// What would stand against it.
    pub fn prospect() -> Result<bool, Error> {
        if let Some(store) = Self::existing()? {
            return Ok(store.is_executable());
        }
        let directory = Self::directory();
        let parent = directory.parent().unwrap_or(&directory);
        let failed = |errno| Error::new(Fault::Directory, errno);
        let path =
            CString::new(parent.as_os_str().as_bytes()).map_err(|_| Error::new(Fault::Path, 0))?;
        let parent = sys::open(&path, libc::O_RDONLY | libc::O_DIRECTORY).map_err(failed)?;
        // SAFETY: a path that ends in a nul byte.
        if unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } != 0 {
            return Err(failed(sys::errno()));
        }
        in_memory(&parent)
    }

    /// Where [`Store::open`] looks.
    #[must_use]
    pub fn directory() -> PathBuf {
        let named = env::var_os("SKSM_STORE_DIR").filter(|path| !path.is_empty());
        // SAFETY: geteuid cannot fail.
        let own = || format!("/dev/shm/sksm-{}", unsafe { libc::geteuid() }).into();
        named.map_or_else(own, PathBuf::from)
    }
}
