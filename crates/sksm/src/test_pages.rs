use crate::page_size;

/// Private anonymous pages, unmapped when dropped.
pub struct Pages(pub &'static mut [u8]);

impl Pages {
    pub fn new(count: usize, fill: impl Fn(usize) -> u8) -> Self {
        let len = count * page_size();
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: just mapped, readable, writable, zeroed, and owned by this value alone.
        let pages = unsafe { core::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        for (number, page) in pages.chunks_mut(page_size()).enumerate() {
            page.fill(fill(number));
        }
        Pages(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_mut_ptr().cast(), self.0.len()) };
    }
}
