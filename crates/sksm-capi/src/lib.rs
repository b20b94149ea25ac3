//! `libsksm_preload.so`: loaded into an unmodified program by `LD_PRELOAD`, it works before `main`, named by the environment:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SKSM_EXPERIMENT` | `idle`, `patch`, `merge` or `ksm`, see [`experiment::Step`] |
//! | `SKSM_EXPERIMENT_FD` | an inherited descriptor that takes the one line of the report, and is then closed |
//!
//! It never breaks the program: no output elsewhere, `errno` kept, and without these variables no effect at all. It lives in
//! every process, so it allocates nothing and keeps clear of all of std that needs memory or relocations.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

mod experiment;
mod report;
mod text;

/// The loader calls what stands in this section once libc is ready, before the program's own constructors and `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: errno's location is valid for this thread.
    let errno = unsafe { &mut *libc::__errno_location() };
    let kept = *errno;
    experiment::run();
    *errno = kept;
}

/// Nothing here panics; were it to, the program is ended rather than run on in an unknown state.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}
