//! Breakpoints that others have put into the code: a debugger, or the kernel for a probe (uprobe). They are of one process, and the
//! kernel knows those of a probe by the file and the place in it; in another file they would end the program.

/// What they look like on other machines has not been looked at, so that no code is shared there.
pub const ARE_KNOWN: bool = cfg!(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "aarch64"
));

/// Whether this page of code has a breakpoint where the file has something else. What the program has patched may have such a byte
/// by chance; then the page is not shared.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
pub fn is_in(code: &[u8], file: &[u8]) -> bool {
    const INT3: u8 = 0xcc;
    let mut both = code.iter().zip(file);
    both.any(|(own, other)| *own == INT3 && own != other)
}

/// The same; instructions have four bytes each.
#[cfg(target_arch = "aarch64")]
pub fn is_in(code: &[u8], file: &[u8]) -> bool {
    let brk = |word: &[u8]| {
        let word = u32::from_le_bytes(word.try_into().unwrap_or_default());
        word & 0xffe0_001f == 0xd420_0000
    };
    let words = code.chunks_exact(4).zip(file.chunks_exact(4));
    words
        .into_iter()
        .any(|(own, other)| own != other && brk(own))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
pub fn is_in(_code: &[u8], _file: &[u8]) -> bool {
    true
}

/// Whether it is worth while to ask the file.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
pub fn may_be_in(code: &[u8]) -> bool {
    code.contains(&0xcc)
}

/// The same.
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
pub fn may_be_in(_code: &[u8]) -> bool {
    true
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_is_another_byte() {
        let file = [0x55, 0x48, 0x89, 0xe5, 0xcc, 0x90];
        let with = |at: usize, byte: u8| {
            let mut code = file;
            code[at] = byte;
            is_in(&code, &file)
        };
        for at in [0, 1, 3, 5] {
            assert!(with(at, 0xcc), "{at}");
        }
        assert!(!with(4, 0xcc));
        assert!(!with(5, 0x91));
    }
}
