use core::ffi::{CStr, c_int, c_void};
use core::slice;

use crate::sys::{self, Errno, Fd};

/// Which of the objects that are loaded: the program, or its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object<'a> {
    /// All of them.
    All,
    /// The program itself.
    Program,
    /// What has this address, as of a function.
    Holding(usize),
    /// A library by the name of its file, without directories.
    Named(&'a str),
}

/// An object while the loader keeps it where it is.
pub struct Loaded<'a> {
    base: usize,
    path: &'a CStr,
    headers: &'a [libc::Elf64_Phdr],
    program: bool,
}

/// Whole pages of an object's code.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub start: usize,
    pub len: usize,
    /// In the object's file.
    pub offset: u64,
}

impl Loaded<'_> {
    /// What the loader has mapped to be executed.
    pub fn code(&self, page: usize) -> impl Iterator<Item = Segment> {
        let executable = |header: &&libc::Elf64_Phdr| {
            header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0
        };
        let headers = self.headers.iter().filter(executable);
        headers.filter_map(move |header| {
            let start = self.base.wrapping_add(header.p_vaddr as usize);
            // What comes after the file's bytes is zeros, and data.
            let end = start.checked_add(header.p_filesz as usize)?;
            let first = start & !(page - 1);
            let offset = header.p_offset & !(page as u64 - 1);
            // The loader would not have taken it.
            if (start - first) as u64 != header.p_offset - offset {
                return None;
            }
            let last = end.checked_next_multiple_of(page)?;
            Some(Segment {
                start: first,
                len: last - first,
                offset,
            })
        })
    }

    /// The start of the file, as it is mapped: its headers and, as linkers lay it out, its build ID.
    pub fn head(&self, page: usize) -> Option<&[u8]> {
        let first = self.headers.iter().find(|header| {
            let readable = header.p_flags & libc::PF_R != 0;
            header.p_type == libc::PT_LOAD && header.p_offset == 0 && readable
        })?;
        let start = self.base.wrapping_add(first.p_vaddr as usize);
        let len = (first.p_filesz as usize).min(page);
        // SAFETY: mapped readable by the loader for as long as this object is loaded, and written by nobody.
        Some(unsafe { slice::from_raw_parts(start as *const u8, len) })
    }

    /// Its file.
    pub fn open(&self) -> Result<Fd, Errno> {
        let path = if self.program {
            c"/proc/self/exe"
        } else {
            self.path
        };
        sys::open(path, libc::O_RDONLY)
    }

    /// Shows the name of the file, without directories.
    pub fn name<R>(&self, see: impl FnOnce(&[u8]) -> R) -> R {
        if !self.program {
            return see(last_part(self.path.to_bytes()));
        }
        let mut room = [0; 512];
        let path = c"/proc/self/exe";
        // SAFETY: a path that ends in a nul byte; the room is valid for writes of its length.
        let len = unsafe { libc::readlink(path.as_ptr(), room.as_mut_ptr().cast(), room.len()) };
        let path = usize::try_from(len).ok().and_then(|len| room.get(..len));
        let name = last_part(path.unwrap_or(b"program"));
        see(name.strip_suffix(b" (deleted)").unwrap_or(name))
    }

    fn is(&self, wanted: Object<'_>) -> bool {
        match wanted {
            Object::All => true,
            Object::Program => self.program,
            Object::Holding(address) => self.headers.iter().any(|header| {
                let start = self.base.wrapping_add(header.p_vaddr as usize);
                let within = address.wrapping_sub(start) < header.p_memsz as usize;
                header.p_type == libc::PT_LOAD && within
            }),
            Object::Named(name) => self.name(|own| own == name.as_bytes()),
        }
    }
}

fn last_part(path: &[u8]) -> &[u8] {
    let mut parts = path.rsplit(|byte| *byte == b'/');
    parts.next().unwrap_or(path)
}

/// Shows each of these objects, which the loader neither adds nor takes away meanwhile; tells how many there were.
pub fn each(wanted: Object<'_>, see: &mut dyn FnMut(&Loaded<'_>)) -> usize {
    struct Search<'a> {
        wanted: Object<'a>,
        see: &'a mut dyn FnMut(&Loaded<'_>),
        seen: usize,
        found: usize,
    }
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: dl_iterate_phdr gives a valid description of an object, and the search as it was given.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search<'_>>()) };
        if info.dlpi_phdr.is_null() || info.dlpi_name.is_null() {
            return 0;
        }
        let loaded = Loaded {
            base: info.dlpi_addr as usize,
            // SAFETY: a name that ends in a nul byte.
            path: unsafe { CStr::from_ptr(info.dlpi_name) },
            // SAFETY: the object has so many program headers.
            headers: unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) },
            // The loader tells of it first.
            program: search.seen == 0,
        };
        search.seen += 1;
        // What has no path has no file, as the vDSO.
        let has_file = loaded.program || loaded.path.to_bytes().contains(&b'/');
        if has_file && loaded.is(search.wanted) {
            search.found += 1;
            (search.see)(&loaded);
        }
        0
    }
    let mut search = Search {
        wanted,
        see,
        seen: 0,
        found: 0,
    };
    // SAFETY: the callback gets this search, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found() {
        let mut names = Vec::new();
        let libc = Object::Holding(libc::sysconf as *const () as usize);
        for wanted in [Object::Program, libc, Object::Named("libc.so.6")] {
            each(wanted, &mut |loaded| {
                names.push(loaded.name(|name| String::from_utf8_lossy(name).into_owned()));
                assert!(loaded.head(4096).unwrap().starts_with(b"\x7fELF"));
                assert!(loaded.code(sksm::page_size()).count() > 0);
                loaded.open().unwrap();
            });
        }
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("sksm_store-"), "{names:?}");
        assert_eq!(names[1..], ["libc.so.6"; 2]);
        assert_eq!(each(Object::Named("libnone.so"), &mut |_| {}), 0);
        assert!(each(Object::All, &mut |_| {}) >= 3);
    }
}
