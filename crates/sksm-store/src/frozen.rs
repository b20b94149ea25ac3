use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use bytemuck::NoUninit;

use crate::error::{Error, Fault};
use crate::name::Name;
use crate::store::{Store, system};
use crate::sys::{Fd, Map};

/// Data that nobody writes any more, in memory once for all processes of the user that froze the same.
///
/// A copy of it is another reference to the same memory.
pub struct Frozen<T> {
    /// None for no bytes, of which there is no mapping.
    map: Option<Arc<Map>>,
    count: usize,
    kind: PhantomData<Arc<[T]>>,
}

/// The data that could not be frozen, and why.
#[non_exhaustive]
pub struct Kept<T> {
    /// What stood against it.
    pub error: Error,
    /// The data as it was.
    pub data: Vec<T>,
}

/// Read at once to compare, so that it stays in the processor's cache.
const CHUNK: usize = 256 << 10;
/// How long to wait for somebody who publishes the same, in milliseconds, and that for each MiB.
const PATIENCE: u32 = 10_000;
const PATIENCE_MIB: u32 = 10;

impl Store {
    /// Freezes data: what is in the store already is mapped from there and the own copy given back, else this process publishes it.
    ///
    /// The types are those without padding, whose bytes mean the same in every process and do not change behind a shared reference
    /// (`bytemuck::NoUninit`): numbers, and arrays and structures of them.
    ///
    /// # Errors
    ///
    /// [`Kept`] gives the data back, with what stood against it.
    pub fn freeze<T: NoUninit>(&self, data: Vec<T>) -> Result<Frozen<T>, Kept<T>> {
        match self.freeze_copy(&data) {
            Ok(frozen) => Ok(frozen),
            Err(error) => Err(Kept { error, data }),
        }
    }

    /// The same of data that somebody else owns, and may go on to change.
    ///
    /// # Errors
    ///
    /// What stood against it.
    pub fn freeze_copy<T: NoUninit>(&self, data: &[T]) -> Result<Frozen<T>, Error> {
        // Where a mapping begins.
        if align_of::<T>() > sksm::page_size() {
            return Err(Error::new(Fault::Alignment, 0));
        }
        let map = self.freeze_bytes(bytemuck::cast_slice(data))?;
        Ok(Frozen {
            map: map.map(Arc::new),
            count: data.len(),
            kind: PhantomData,
        })
    }

    fn freeze_bytes(&self, bytes: &[u8]) -> Result<Option<Map>, Error> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let hash = blake3::hash(bytes);
        let name = Name::frozen(&hash);
        let name = name.as_c_str();
        if let Some(file) = self.find(name)? {
            return mapped(&file, bytes).map(Some);
        }
        let key = hash.as_bytes().first_chunk().copied();
        let key = key.map_or(0, u64::from_le_bytes);
        let mib = u32::try_from(bytes.len() >> 20).unwrap_or(u32::MAX);
        let patience = PATIENCE.saturating_add(PATIENCE_MIB.saturating_mul(mib));
        let file = self.alone(key, patience, || {
            let len = bytes.len() as u64;
            let needed = len.next_multiple_of(sksm::page_size() as u64);
            self.publish(name, len, needed, |draft| {
                // Of what is written, which callers from other languages may change meanwhile.
                let mut written = blake3::Hasher::new();
                let mut buffer = vec![0; CHUNK.min(bytes.len())];
                for (number, own) in bytes.chunks(CHUNK).enumerate() {
                    let copy = buffer.get_mut(..own.len()).unwrap_or_default();
                    copy.copy_from_slice(own);
                    written.update(copy);
                    draft.write_at(copy, (number * CHUNK) as u64)?;
                }
                match written.finalize() == hash {
                    true => Ok(()),
                    false => Err(libc::EBUSY),
                }
            })
        })?;
        mapped(&file, bytes).map(Some)
    }
}

/// A mapping of the file, if it holds these bytes and no others.
fn mapped(file: &Fd, bytes: &[u8]) -> Result<Map, Error> {
    let damaged = Error::new(Fault::Damaged, 0);
    if file.stat().map_err(system)?.st_size as u64 != bytes.len() as u64 {
        return Err(damaged);
    }
    // Read rather than mapped: a file that becomes shorter meanwhile ends nothing.
    let mut buffer = vec![0; CHUNK.min(bytes.len())];
    for (number, own) in bytes.chunks(CHUNK).enumerate() {
        let room = buffer.get_mut(..own.len()).unwrap_or_default();
        let read = file
            .read_at(room, (number * CHUNK) as u64)
            .map_err(system)?;
        if read != own.len() || room != own {
            return Err(damaged);
        }
    }
    Map::file(file, bytes.len(), libc::PROT_READ, 0).map_err(system)
}

impl<T: NoUninit> Frozen<T> {
    /// The data for as long as the process runs.
    #[must_use]
    pub fn leak(self) -> &'static [T] {
        let (start, count) = (self.start(), self.count);
        // What counts the references is needed only where there are others.
        match self.map.map(Arc::try_unwrap) {
            None => {}
            Some(Ok(map)) => std::mem::forget(map),
            Some(Err(shared)) => std::mem::forget(shared),
        }
        // SAFETY: the bytes of such a slice, as in `deref`, which are never unmapped now.
        unsafe { std::slice::from_raw_parts(start, count) }
    }
}

impl<T> Frozen<T> {
    fn start(&self) -> *const T {
        match &self.map {
            Some(map) => map.bytes().as_ptr().cast(),
            None => std::ptr::NonNull::<T>::dangling().as_ptr(),
        }
    }
}

impl<T> Deref for Frozen<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: a page's start is aligned for T, of which as many are mapped, read-only and with the bytes of such a slice; the
        // mapping lives as long as this value.
        unsafe { std::slice::from_raw_parts(self.start(), self.count) }
    }
}

impl<T> AsRef<[T]> for Frozen<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T> Clone for Frozen<T> {
    fn clone(&self) -> Self {
        Frozen {
            map: self.map.clone(),
            count: self.count,
            kind: PhantomData,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Frozen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Kept<T> {
    /// The data, for a program that goes on with its own.
    #[must_use]
    pub fn into_data(self) -> Vec<T> {
        self.data
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({:?})", self.error)
    }
}

impl<T> fmt::Display for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for Kept<T> {}
