//! `libsksm_preload.so`: loaded into an unmodified program by `LD_PRELOAD`, it merges after all constructors have run and before
//! `main`, as the environment says:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SKSM` | what to merge: a list of `text`, `data`, `heap`, `stack`; `text` if it is not set |
//! | `SKSM_MIN_PAGES` | leave smaller mappings alone |
//! | `SKSM_AFTER` | merge again after this time, as in `5s`, `500ms` or `2m`, on a thread of the object's own |
//! | `SKSM_SIGNAL` | merge again at this signal, as in `USR2` or `10`, unless the program takes that for itself |
//! | `SKSM_VERBOSE` | `1`: one line on standard error for each of these |
//! | `SKSM_SECCOMP` | `allowed`: the seccomp filter that the program is started under lets `madvise` pass, as Docker's does |
//! | `SKSM_EXPERIMENT`, `SKSM_EXPERIMENT_FD` | instead of all that, a step of the experiment, see [`experiment::Step`] |
//!
//! It never breaks the program: nothing is said without `SKSM_VERBOSE`, `errno` is kept, and it does nothing
//!
//! * where the kernel has no MADV_MERGE,
//! * in programs that run with more rights than who started them (set-uid),
//! * under a seccomp filter, which might kill for a call that it does not know, unless `SKSM_SECCOMP` says otherwise,
//! * for a variable that it does not understand.
//!
//! `SKSM_SIGNAL` alone has an effect there too: the signal does not end the program.
//!
//! Two things are the caller's to weigh. Where it merges, `SKSM_AFTER` makes the program one of several threads, and works only in
//! the process itself, not in children that it has forked by then; they have the signal. And a program that later installs a
//! filter that kills for `openat` is killed by what `SKSM_AFTER` and `SKSM_SIGNAL` ask for.
//!
//! It lives in every process, so it allocates nothing and keeps clear of all of std that needs memory or relocations.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

mod again;
mod environment;
mod experiment;
mod merging;
mod report;
mod settings;
mod start;
mod text;

/// The loader calls what stands in this section once libc is ready, before the program's own constructors and `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    keep_errno(experiment::run);
}

/// The program shall not see that calls were made.
fn keep_errno(work: impl FnOnce()) {
    // SAFETY: errno's location is valid for this thread.
    let errno = unsafe { &mut *libc::__errno_location() };
    let kept = *errno;
    work();
    *errno = kept;
}

/// Nothing here panics; were it to, the program is ended rather than run on in an unknown state.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort takes nothing and does not return.
    unsafe { libc::abort() }
}
