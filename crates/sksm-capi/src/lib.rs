//! `libsksm.so`, `libsksm.a` and `sksm.h`: the library sksm for C. The header is made from this file, comments and all, so these
//! are written for people who read C; `tests/header.rs` keeps them the same.

#![deny(missing_docs)]
// In C a pointer and a length is what a range is; the functions never read or write what they point to unless they say so.
#![allow(clippy::not_unsafe_ptr_arg_deref)]
// The header says it in sentences.
#![allow(clippy::missing_safety_doc)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use std::cell::Cell;

use sksm_store::{Fault, Object, Store};

use rust::{Error, Kind, Kinds, Partial, Patch, Process, ProcessStatistics, Support};

/// Executable memory: text that was patched, or made by a JIT compiler.
pub const SKSM_TEXT: c_uint = 1;
/// Private memory of a file that is not executable: variables of programs and libraries.
pub const SKSM_DATA: c_uint = 2;
/// Private anonymous memory.
pub const SKSM_HEAP: c_uint = 4;
/// The main thread's stack.
pub const SKSM_STACK: c_uint = 8;

/// The running kernel merges: pages are merged when a call returns.
pub const SKSM_SUPPORT_MERGE: c_int = 1;
/// It has only KSM: a kernel thread may merge pages some time later.
pub const SKSM_SUPPORT_KSM: c_int = 2;
/// It has neither.
pub const SKSM_SUPPORT_NONE: c_int = 3;

/// The version of the library that the program runs with, as SKSM_VERSION is that of the header that it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_version() -> *const c_char {
    VERSION.as_ptr()
}

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// What the running kernel offers: one of SKSM_SUPPORT_MERGE and so on. Asks it once and remembers the answer, also for children.
///
/// It does not believe the number of MADV_MERGE, which another kernel may have given to another advice: the engine must name it in
/// sysfs or, where that cannot be seen, be in proc where that can, and a page that is mapped for it and merged must keep its bytes.
/// Until then no function gives the advice. The first call takes a dozen system calls at most; a program that puts itself under a
/// seccomp filter makes it before. Where the answer cannot be found out it is what there is besides, and the next call asks again.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_get_support() -> c_int {
    match rust::support() {
        Support::Merge => SKSM_SUPPORT_MERGE,
        Support::Ksm => SKSM_SUPPORT_KSM,
        _ => SKSM_SUPPORT_NONE,
    }
}

/// Merges the whole pages within the range: it is rounded inward. -ENOSYS: this kernel has no
/// MADV_MERGE; nothing was done. -EAGAIN: no memory for it, or nothing to find that out with. -EPERM: something refuses to ask the
/// kernel, as a seccomp filter does; nothing was done.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_merge(addr: *const c_void, len: usize) -> c_int {
    status(rust::merge_range(addr as usize, len))
}

/// Merges exactly this range, which must start at a page.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_merge_exact(addr: *const c_void, len: usize) -> c_int {
    status(rust::merge_exact(addr as usize, len))
}

/// Gives every page that holds any of these bytes its own copy again, whoever of SKSM and KSM had merged it: the range is rounded
/// outward, so that nothing of it stays in a page that another process has as well. -ENOSYS: this kernel merges nothing.
/// -EAGAIN: there is no memory for more copies; those that were made stay.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_unmerge(addr: *const c_void, len: usize) -> c_int {
    status(rust::unmerge_range(addr as usize, len))
}

/// The same for exactly this range, which must start at a page.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_unmerge_exact(addr: *const c_void, len: usize) -> c_int {
    status(rust::unmerge_exact(addr as usize, len))
}

/// Hands the whole pages within the range to KSM, whose kernel thread may merge them some time later. No other function does so.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_advise_ksm(addr: *const c_void, len: usize) -> c_int {
    status(rust::advise_ksm_range(addr as usize, len))
}

/// Merges all mappings of these kinds, a sum of SKSM_TEXT and so on, in a process: 0 is this one. Others need the permissions
/// of process_madvise(2). At advised, unless it is NULL, it leaves the number of bytes of the mappings that were merged, 0
/// after an error. Mappings that are refused, as they have gone meanwhile, are left out; if all are, it returns why the first one
/// was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sksm_merge_process(
    pid: libc::pid_t,
    kinds: c_uint,
    advised: *mut usize,
) -> c_int {
    let result = kinds_of(kinds)
        .ok_or(-libc::EINVAL)
        .and_then(|kinds| on_process(pid, |process| process.merge_kinds(kinds)));
    // SAFETY: the caller says that it may be written.
    unsafe { tell(result, advised) }
}

/// Gives all pages of a process that SKSM or KSM has merged their own copies again: 0 is this one, others need the permissions of
/// process_madvise(2). It takes the memory that merging had saved. At advised, unless it is NULL, it leaves the number of bytes
/// of the mappings that were gone through, 0 after an error. Mappings that are refused, as they have gone meanwhile, are left out;
/// if all are, it returns why the first one was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sksm_unmerge_process(pid: libc::pid_t, advised: *mut usize) -> c_int {
    let result = on_process(pid, Process::unmerge_all);
    // SAFETY: the caller says that it may be written.
    unsafe { tell(result, advised) }
}

/// Returns the status, and leaves the number of bytes.
///
/// # Safety
/// `advised` must be NULL or valid for a write.
unsafe fn tell(result: Result<usize, c_int>, advised: *mut usize) -> c_int {
    if !advised.is_null() {
        // SAFETY: the caller says so.
        unsafe { advised.write(result.unwrap_or(0)) };
    }
    result.err().unwrap_or(0)
}

fn on_process(
    pid: libc::pid_t,
    call: impl Fn(&Process) -> Result<Partial, Error>,
) -> Result<usize, c_int> {
    let done = match u32::try_from(pid) {
        Ok(0) => call(&Process::own()),
        Ok(pid) => Process::open(pid).and_then(|process| call(&process)),
        Err(_) => return Err(-libc::ESRCH),
    };
    done.and_then(bytes_advised).map_err(number)
}

/// How much was done; an error if all of it was refused.
fn bytes_advised(done: Partial) -> Result<usize, Error> {
    match done.refused.first() {
        Some(error) if done.advised == 0 => Err(*error),
        _ => Ok(done.advised),
    }
}

/// Bytes of a process's memory that are merged, by SKSM or KSM, left at bytes; process 0 is this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sksm_merged_bytes(pid: libc::pid_t, bytes: *mut u64) -> c_int {
    let statistics = match u32::try_from(pid) {
        _ if bytes.is_null() => return -libc::EFAULT,
        Ok(0) => ProcessStatistics::own(),
        Ok(pid) => ProcessStatistics::of(pid),
        Err(_) => return -libc::ESRCH,
    };
    status(statistics.map(|statistics| {
        // SAFETY: not null, and the caller says that it may be written.
        unsafe { bytes.write(statistics.ksm) };
    }))
}

/// Writes len bytes over code at addr: makes its pages writable, writes, restores their protection, makes the new code
/// visible to all threads, and merges the pages if merge is not 0. No thread may run these bytes meanwhile. -ENOSYS: this kernel
/// has no MADV_MERGE; the patch is in place all the same. After any other error it may be or not, as merging comes last: the bytes at
/// addr tell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sksm_patch(
    addr: *mut c_void,
    bytes: *const c_void,
    len: usize,
    merge: c_int,
) -> c_int {
    if bytes.is_null() || len > isize::MAX as usize {
        return -libc::EFAULT;
    }
    // SAFETY: the caller says so.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    let patch = || -> Result<(), Error> {
        // SAFETY: the caller says so.
        let mut patch = unsafe { Patch::begin(addr as usize, len)? };
        patch.write(addr as usize, bytes)?;
        if merge == 0 {
            patch.finish()
        } else {
            patch.finish_and_merge()
        }
    };
    status(patch())
}

/// Puts these bytes into the store of this user, on any kernel, and tells where they are to be read from now on: at the start of a
/// page, read-only, and in memory once for all processes of the user that freeze the same. The caller may then free his own copy,
/// which nobody may write while this runs. -EINVAL: a pointer is NULL, or there are no bytes. sksm_store_explain() says what stood
/// against it. The store is in /dev/shm/sksm-UID, or the directory that SKSM_STORE_DIR names.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_store_freeze(
    data: *const c_void,
    len: usize,
    frozen: *mut *const c_void,
) -> c_int {
    if data.is_null() || frozen.is_null() || len == 0 || isize::try_from(len).is_err() {
        return -libc::EINVAL;
    }
    // SAFETY: the caller says that so many bytes are there, and that nobody writes them.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
    match Store::open().and_then(|store| store.freeze_copy(data)) {
        Ok(shared) => {
            // SAFETY: the caller says that a pointer can be put there. Unmapped by sksm_store_release.
            unsafe { *frozen = shared.leak().as_ptr().cast() };
            0
        }
        Err(error) => stood_against(error),
    }
}

/// Gives frozen bytes back, which nobody may read any more: as many as were frozen.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_store_release(frozen: *const c_void, len: usize) -> c_int {
    // SAFETY: the caller says that this is what was mapped for him, and that nobody uses it.
    match unsafe { libc::munmap(frozen.cast_mut(), len) } {
        0 => 0,
        _ => -std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL),
    }
}

/// Shares code that this process has patched, of the library with this name (libc.so.6), or of all objects if it is NULL, with the
/// processes of this user that have patched it alike; returns how many pages are shared now. The process must have one thread. What
/// stood against sharing some of it, sksm_store_explain() says.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_store_share_text(name: *const c_char) -> isize {
    let object = if name.is_null() {
        Object::All
    } else {
        // SAFETY: the caller says that it ends in a nul byte.
        match unsafe { CStr::from_ptr(name) }.to_str() {
            Ok(name) => Object::Named(name),
            Err(_) => return -libc::EINVAL as isize,
        }
    };
    match Store::open().and_then(|store| store.share_text(object)) {
        Ok(shared) => {
            // Against some of it something may stand as well.
            shared.fault.map(stood_against);
            shared.pages as isize
        }
        Err(error) => stood_against(error) as isize,
    }
}

/// Removes what nobody uses from the store; returns how many bytes that were.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_store_collect() -> isize {
    match Store::open().and_then(|store| store.collect()) {
        Ok(removed) => removed.bytes as isize,
        Err(error) => stood_against(error) as isize,
    }
}

/// What stood against the last call of this thread about the store that failed, in words; they are valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_store_explain() -> *const c_char {
    LAST.get().as_ptr()
}

thread_local! {
    static LAST: Cell<&'static CStr> = const { Cell::new(c"nothing has failed") };
}

/// Notes it down. Numbers say little of it: several have the same.
fn stood_against(error: sksm_store::Error) -> c_int {
    LAST.set(error.fault().advice_for_c());
    -error.raw_os_error().unwrap_or(match error.fault() {
        Fault::Owner | Fault::Mode | Fault::Privileged | Fault::NoExec => libc::EACCES,
        Fault::Limit | Fault::Space => libc::ENOSPC,
        Fault::Busy | Fault::Threads | Fault::Locked => libc::EBUSY,
        Fault::NoObject => libc::ENOENT,
        Fault::FileSize => libc::EFBIG,
        Fault::Damaged => libc::EIO,
        _ => libc::EINVAL,
    })
}

/// What a returned number means and what to do about it, in words. The text is valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sksm_explain(status: c_int) -> *const c_char {
    // The least number of all has no counterpart.
    let text = match status.checked_neg().unwrap_or(c_int::MAX) {
        0 => c"done",
        libc::ENOSYS => c"this kernel has no MADV_MERGE; boot a kernel with CONFIG_SKSM",
        libc::EINVAL => c"the range must start at a page and end within the address space",
        libc::ENOMEM => c"part of the range is not mapped; the mapped parts are done",
        libc::EAGAIN => {
            c"no memory for it, or none and no descriptor to ask the kernel; what was done stays so, try again later"
        }
        libc::EINTR => c"a signal ended the call; what was done stays so, call again",
        libc::EPERM => {
            c"not allowed: another process takes CAP_SYS_NICE, as root has; one's own a seccomp filter that lets madvise pass"
        }
        libc::EACCES => {
            c"not allowed: no right over the other process as for ptrace, or to make code writable"
        }
        libc::ESRCH => {
            c"no process has this number: it has ended, or that is a thread of one or of the kernel"
        }
        libc::EFAULT => c"a pointer is NULL, or the code is not mapped with one protection",
        _ => c"see errno(3) for the number",
    };
    text.as_ptr()
}

fn kinds_of(bits: c_uint) -> Option<Kinds> {
    let named = [
        (SKSM_TEXT, Kind::Text),
        (SKSM_DATA, Kind::Data),
        (SKSM_HEAP, Kind::Heap),
        (SKSM_STACK, Kind::Stack),
    ];
    let known = named.iter().fold(0, |sum, (bit, _)| sum | bit);
    let chosen = named.iter().filter(|(bit, _)| bits & bit != 0);
    let kinds: Vec<Kind> = chosen.map(|(_, kind)| *kind).collect();
    (bits != 0 && bits & !known == 0).then(|| Kinds::of(&kinds))
}

fn status(result: Result<(), Error>) -> c_int {
    result.map_err(number).err().unwrap_or(0)
}

/// An error as C functions return it.
fn number(error: Error) -> c_int {
    // The kernel's own EINVAL may as well be about the range.
    if let Error::Unsupported { .. } = error {
        return -libc::ENOSYS;
    }
    // Whether it is worth another try is what there is to know of it.
    if let Error::Undecided { .. } = error {
        return match error.is_transient() {
            true => -libc::EAGAIN,
            false => -libc::EPERM,
        };
    }
    -error.raw_os_error().unwrap_or(match error {
        Error::Mixed { .. } => libc::EFAULT,
        Error::Thread { .. } | Error::KernelThread { .. } => libc::ESRCH,
        _ => libc::EINVAL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_that_was_refused_throughout_is_an_error() {
        let errno = libc::ESRCH;
        let with = |advised, refused: usize| {
            let refused = vec![Error::Gone { errno }; refused];
            let mut done = Partial::default();
            (done.advised, done.refused) = (advised, refused);
            bytes_advised(done)
        };
        assert_eq!(with(0, 0), Ok(0));
        assert_eq!(with(4096, 0), Ok(4096));
        assert_eq!(with(4096, 2), Ok(4096));
        assert_eq!(with(0, 2), Err(Error::Gone { errno }));
    }

    #[test]
    fn doubt_is_told_from_a_kernel_that_merges_nothing() {
        let of = |errno| number(Error::Undecided { errno });
        assert_eq!(of(libc::ENOMEM), -libc::EAGAIN);
        assert_eq!(of(libc::EMFILE), -libc::EAGAIN);
        assert_eq!(of(libc::EPERM), -libc::EPERM);
        assert_eq!(of(libc::ENOSYS), -libc::EPERM);
        let (instead, errno) = (Support::Ksm, libc::EINVAL);
        assert_eq!(number(Error::Unsupported { instead, errno }), -libc::ENOSYS);
    }

    #[test]
    fn every_number_is_explained() {
        for status in [0, 1, -1, -libc::EINVAL, c_int::MAX, c_int::MIN] {
            assert!(!sksm_explain(status).is_null());
        }
    }
}
