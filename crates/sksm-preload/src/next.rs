//! Functions of libc, found by name at run time: not by `dlsym`, which would bind the object to glibc 2.34 or later, as it was
//! in another library before.

use core::ffi::{CStr, c_int, c_void};
use core::ops::Range;
use core::ptr;

/// The address of a function in the first object loaded after this one that defines it; null if none does. Of those before it
/// some may call this object in place of libc, as another copy of it does, and would be called back for ever.
pub fn find(name: &CStr) -> *mut c_void {
    let mut search = Search {
        name,
        own: find as *const () as usize,
        passed: false,
        found: ptr::null_mut(),
    };
    // SAFETY: the callback gets this search, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

struct Search<'a> {
    name: &'a CStr,
    /// An address of this object's.
    own: usize,
    /// Whether that has been met.
    passed: bool,
    found: *mut c_void,
}

const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;

#[repr(C)]
struct Dynamic {
    tag: u64,
    value: u64,
}

/// The tables that the loader looks symbols up in.
struct Tables {
    strings: *const u8,
    symbols: *const libc::Elf64_Sym,
    gnu_hash: *const u32,
    hash: *const u32,
}

unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr gives a valid description of an object, and the search as it was given.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search<'_>>()) };
    let base = info.dlpi_addr as usize;
    let mut dynamic = ptr::null();
    let mut loaded = Range {
        start: usize::MAX,
        end: 0,
    };
    for number in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the object has dlpi_phnum program headers.
        let header = unsafe { &*info.dlpi_phdr.add(number) };
        let start = base.wrapping_add(header.p_vaddr as usize);
        let end = start.wrapping_add(header.p_memsz as usize);
        match header.p_type {
            libc::PT_LOAD if (start..end).contains(&search.own) => {
                search.passed = true;
                return 0;
            }
            libc::PT_LOAD => loaded = loaded.start.min(start)..loaded.end.max(end),
            libc::PT_DYNAMIC => dynamic = start as *const Dynamic,
            _ => {}
        }
    }
    if dynamic.is_null() || !search.passed {
        return 0;
    }
    // SAFETY: the loader has mapped the object, and with it these tables, as its program headers say.
    unsafe {
        let tables = Tables::of(dynamic, base, loaded);
        if let Some(symbol) = tables.and_then(|tables| tables.find(search.name)) {
            search.found = base.wrapping_add((*symbol).st_value as usize) as *mut c_void;
            return 1;
        }
    }
    0
}

impl Tables {
    /// # Safety
    /// The dynamic section of an object that is loaded there, at this base.
    unsafe fn of(mut dynamic: *const Dynamic, base: usize, loaded: Range<usize>) -> Option<Self> {
        let mut tables = Tables {
            strings: ptr::null(),
            symbols: ptr::null(),
            gnu_hash: ptr::null(),
            hash: ptr::null(),
        };
        // SAFETY: the section ends in a tag of zero.
        while let Dynamic { tag: 1.., value } = unsafe { &*dynamic } {
            // glibc has added the base already, but not to those of the vDSO, and musl never does. Which is less tells nothing:
            // the vDSO of User-Mode Linux is linked for the end of the address space.
            let mut address = *value as usize;
            if !loaded.contains(&address) {
                address = address.wrapping_add(base);
            }
            // SAFETY: as above.
            match unsafe { (*dynamic).tag } {
                DT_STRTAB => tables.strings = address as *const u8,
                DT_SYMTAB => tables.symbols = address as *const libc::Elf64_Sym,
                DT_GNU_HASH => tables.gnu_hash = address as *const u32,
                DT_HASH => tables.hash = address as *const u32,
                _ => {}
            }
            // SAFETY: as above.
            dynamic = unsafe { dynamic.add(1) };
        }
        (!tables.strings.is_null() && !tables.symbols.is_null()).then_some(tables)
    }

    /// The symbol of this name that the object defines.
    ///
    /// # Safety
    /// Tables of a loaded object.
    unsafe fn find(&self, name: &CStr) -> Option<*const libc::Elf64_Sym> {
        // SAFETY: both follow the tables as their formats say.
        unsafe {
            if !self.gnu_hash.is_null() {
                self.by_gnu_hash(name)
            } else if !self.hash.is_null() {
                // The chains have an entry for each symbol.
                let count = *self.hash.add(1) as usize;
                (0..count).find_map(|number| self.defined(number, name))
            } else {
                None
            }
        }
    }

    /// # Safety
    /// As [`Self::find`], with a table of this kind.
    unsafe fn by_gnu_hash(&self, name: &CStr) -> Option<*const libc::Elf64_Sym> {
        let mut wanted: u32 = 5381;
        for byte in name.to_bytes() {
            wanted = wanted.wrapping_mul(33).wrapping_add(u32::from(*byte));
        }
        // SAFETY: four words, a Bloom filter of 64-bit words, the buckets, and a chain for each symbol from the first.
        unsafe {
            let [buckets, first, bloom] = [0, 1, 2].map(|at| *self.gnu_hash.add(at) as usize);
            let bucket = self.gnu_hash.add(4 + 2 * bloom);
            let chain = bucket.add(buckets);
            let mut number = *bucket.add((wanted as usize).checked_rem(buckets)?) as usize;
            if number < first {
                return None;
            }
            loop {
                let hash = *chain.add(number - first);
                // The lowest bit is set at the end of a chain.
                if hash | 1 == wanted | 1 {
                    if let Some(symbol) = self.defined(number, name) {
                        return Some(symbol);
                    }
                }
                if hash & 1 == 1 {
                    return None;
                }
                number += 1;
            }
        }
    }

    /// The symbol of this number, if it is a function of this name that the object has. Of several versions any will do: those of
    /// the functions that are looked for here differ in nothing.
    ///
    /// # Safety
    /// As [`Self::find`], with a number within the table.
    unsafe fn defined(&self, number: usize, name: &CStr) -> Option<*const libc::Elf64_Sym> {
        const FUNCTION: u8 = 2;
        // SAFETY: a name in the string table ends in a nul byte.
        unsafe {
            let symbol = self.symbols.add(number);
            let own = CStr::from_ptr(self.strings.add((*symbol).st_name as usize).cast());
            let defined = (*symbol).st_shndx != 0 && (*symbol).st_info & 15 == FUNCTION;
            (defined && own == name).then_some(symbol)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_libc_are_found() {
        assert_eq!(find(c"getpid"), libc::getpid as *mut c_void);
        assert!(!find(c"__libc_start_main").is_null());
        assert!(find(c"there is no such function").is_null());
    }
}
