//! `libsksm_preload.so`: loaded into an unmodified program by `LD_PRELOAD`, it merges after all constructors have run and before
//! `main`, as the environment says:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SKSM` | what to merge: a list of `text`, `data`, `heap`, `stack`; `text` if it is not set |
//! | `SKSM_MIN_PAGES` | leave smaller mappings alone |
//! | `SKSM_AFTER` | merge again after this time, as in `500ms`, `5s`, `2m` or `1h`; children that the program forks each after their own |
//! | `SKSM_SIGNAL` | merge again at this signal, as in `RTMIN+12` or `46`, unless the program takes that for itself |
//! | `SKSM_VERBOSE` | `1`: one line on standard error for each of these, and for each that is not understood |
//! | `SKSM_STORE` | `1`: share text that differs from its file by the store (crate `sksm-store`), on any kernel; then nothing is merged unless `SKSM` says what |
//! | `SKSM_STORE_DIR` | where the store is; `/dev/shm/sksm-UID` if it is not set |
//! | `SKSM_STORE_LIMIT` | how much the store may hold, as in `800M` or `2G`; a tenth of the machine's memory if it is not set |
//! | `SKSM_SECCOMP` | `allowed`: try nothing out, the seccomp filter that the program is started under lets it pass |
//!
//! It never breaks the program: nothing is said without `SKSM_VERBOSE`, nor once the program has put something else in the place of
//! its standard error; `errno` is kept, and it does nothing
//!
//! * where the kernel has no MADV_MERGE,
//! * in programs that run with more rights than who started them (set-uid),
//! * under a seccomp filter that kills for it: a child of the program tries that out before `main`,
//! * under a seccomp filter that has come after `main`,
//! * for a variable that it does not understand.
//!
//! The main thread takes `SKSM_SIGNAL`, on a stack that it is given for it, unless it blocks the signal or has another one waiting: then
//! another thread does, on its own stack, which has to have room for a signal's frame (some KiB, with AVX-512 four, with AMX eleven).
//! A program that runs coroutines on smaller stacks in several threads merges by `SKSM_AFTER`, which always takes the main thread.
//!
//! `SKSM_SIGNAL` alone has an effect there too: the signal does not end the program. It should be a real-time signal: others mean
//! something in many programs once they run (OpenJDK crashes at `USR2` from outside), and whoever sends one to such a program by then
//! has what the program makes of it. With `SKSM_VERBOSE` it is looked at a second after the start, after the time, and said.
//!
//! Three things are the caller's to weigh. `SKSM_AFTER` and `SKSM_SIGNAL` interrupt the program's main thread, for 10 ms and then again
//! every 100 ms until all is merged. Its system calls are started again, but those that no handler lets go on (`poll`, `select`,
//! `epoll_wait`, `nanosleep`, `sigtimedwait`, socket calls with a timeout, as signal(7) lists them) return early with `EINTR`. In a
//! program that cancels threads (`pthread_cancel`) glibc takes its signal back, and nothing is merged later. Where it has taken it before
//! `main`, as glibc before 2.34 does in every program with threads, `SIGURG` is used in its place, unless the program handles that: one
//! that takes it for itself later merges no more, and may get it once or twice. And a program that later
//! installs a filter that kills for `openat` is killed by what they ask for.
//!
//! It lives in every process, so it allocates nothing and keeps clear of all of std that needs memory or relocations. It needs glibc
//! 2.17 or later, or musl.

#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

mod again;
mod asan;
mod environment;
#[cfg(feature = "experiment")]
mod experiment;
mod filter;
mod merging;
mod next;
mod refused;
mod report;
mod settings;
mod shared;
mod start;
#[cfg(feature = "experiment")]
mod text;

/// A step of the experiment of `sksm-demo`, which `SKSM_EXPERIMENT` and `SKSM_EXPERIMENT_FD` ask for instead of all that: only where
/// it is built for that, as it makes all text of libc's writable for a moment.
///
/// The loader calls what stands in this section once libc is ready, before the program's own constructors and `main`.
#[cfg(feature = "experiment")]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[cfg(feature = "experiment")]
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
