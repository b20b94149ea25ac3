//! What the kernel passes over without an error: in no merge domain, for one.

use crate::settings::number;

/// Pages that advice of all processes has passed over so far; none where the kernel does not say so. It makes only calls that a
/// signal handler may make.
pub fn pages() -> Option<u64> {
    let path = c"/sys/kernel/mm/sksm/pages_refused";
    // SAFETY: a path that ends in a nul byte.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    let mut text = [0; 24];
    // SAFETY: room of that length; the descriptor was opened above and is owned by nobody else.
    let len = unsafe {
        let len = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        len
    };
    let text = text.get(..usize::try_from(len).ok()?)?;
    number(text.strip_suffix(b"\n")?)
}
