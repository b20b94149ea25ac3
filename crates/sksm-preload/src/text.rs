use core::ffi::{c_int, c_void};
use core::num::NonZeroUsize;

/// The executable pages of a loaded object.
pub struct Text {
    pub start: usize,
    pub len: usize,
    page: NonZeroUsize,
}

impl Text {
    pub fn pages(&self) -> usize {
        self.len / self.page
    }

    /// Writes one byte of every page, with the value that it has: after it, each page is this process's own copy.
    pub fn write_every_page(&self) -> Result<(), i32> {
        // Still executable meanwhile: mprotect itself is on one of these pages.
        self.protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
        for page in 0..self.pages() {
            let byte = (self.start + page * self.page.get()) as *mut u8;
            // SAFETY: mapped and writable by the call above. Volatile, or the compiler would drop a write of the same value.
            unsafe { byte.write_volatile(byte.read_volatile()) };
        }
        self.protect(libc::PROT_READ | libc::PROT_EXEC)
    }

    pub fn madvise(&self, advice: c_int) -> Result<(), i32> {
        // SAFETY: only called with advice that keeps the contents.
        result(unsafe { libc::madvise(self.start as *mut c_void, self.len, advice) })
    }

    fn protect(&self, protection: c_int) -> Result<(), i32> {
        // SAFETY: the range is an executable segment, and stays readable and executable.
        result(unsafe { libc::mprotect(self.start as *mut c_void, self.len, protection) })
    }
}

fn result(answer: c_int) -> Result<(), i32> {
    if answer == 0 {
        return Ok(());
    }
    // SAFETY: errno's location is valid for this thread.
    Err(unsafe { *libc::__errno_location() })
}

/// The text of libc: of the object that the loader took one of its functions from.
pub fn of_libc() -> Option<Text> {
    let mut search = Search {
        wanted: libc::sysconf as *const () as usize,
        found: None,
    };
    // SAFETY: the callback gets this search, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look_at_object), (&raw mut search).cast()) };
    search.found
}

struct Search {
    wanted: usize,
    found: Option<Text>,
}

/// Stops the iteration (1) at the object whose executable segment holds the wanted address.
unsafe extern "C" fn look_at_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr gives a valid description of an object, and the search as it was given.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
    let Some(page) = NonZeroUsize::new(sksm::page_size()) else {
        return 1;
    };
    for number in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the object has dlpi_phnum program headers.
        let header = unsafe { &*info.dlpi_phdr.add(number) };
        let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        let end = start.wrapping_add(header.p_memsz as usize);
        let executable = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0;
        if executable && (start..end).contains(&search.wanted) {
            // Outward: the loader maps whole pages.
            let start = start & !(page.get() - 1);
            let end = (end + page.get() - 1) & !(page.get() - 1);
            search.found = Some(Text {
                start,
                len: end - start,
                page,
            });
            return 1;
        }
    }
    0
}
