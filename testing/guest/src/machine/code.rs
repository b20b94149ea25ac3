//! Machine code that tests write into pages, and what stops it there.

/// A function that returns this number.
#[cfg(target_arch = "x86_64")]
pub fn function(number: u16) -> [u8; 8] {
    let [low, high] = number.to_le_bytes();
    // `mov eax, NUMBER; ret`, and what must not run.
    [0xb8, low, high, 0, 0, 0xc3, 0xcc, 0xcc]
}

/// A function that returns this number.
#[cfg(target_arch = "aarch64")]
pub fn function(number: u16) -> [u8; 8] {
    // `mov w0, #NUMBER; ret`
    let code = [0x5280_0000 | u32::from(number) << 5, 0xd65f_03c0];
    (u64::from(code[0]) | u64::from(code[1]) << 32).to_le_bytes()
}

/// Calls the function at this address.
///
/// # Safety
///
/// There must be one of `function`'s, in memory that can be executed.
pub unsafe fn call(addr: usize) -> u32 {
    // Instructions are fetched past what was written as data.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: mapped, as the caller says; neither changes memory.
    unsafe {
        std::arch::asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) addr)
    }
    // SAFETY: the caller says so.
    let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(addr) };
    function()
}

/// What debuggers put in the place of an instruction, and how far behind its start the program counter is then.
#[cfg(target_arch = "x86_64")]
pub const BREAKPOINT: (&[u8], usize) = (&[0xcc], 1);
/// What the kernel puts there for its probes.
#[cfg(target_arch = "x86_64")]
pub const UPROBE: &[u8] = &[0xcc];

/// `brk #0`.
#[cfg(target_arch = "aarch64")]
pub const BREAKPOINT: (&[u8], usize) = (&[0x00, 0x00, 0x20, 0xd4], 0);
/// `brk #5`.
#[cfg(target_arch = "aarch64")]
pub const UPROBE: &[u8] = &[0xa0, 0x00, 0x20, 0xd4];
