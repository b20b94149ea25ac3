//! Merging after the first time: at a signal, or when some time has passed.

use core::ffi::{c_int, c_void};
use core::mem::{MaybeUninit, zeroed};
use core::ptr;

use crate::keep_errno;
use crate::merging::WANTED;

/// Merges whenever this signal comes, unless something else is done about it already.
pub fn at_signal(signal: c_int) {
    // SAFETY: both structures are valid, and the handler makes only calls that are allowed in one.
    unsafe {
        let mut old: libc::sigaction = zeroed();
        if libc::sigaction(signal, ptr::null(), &mut old) != 0 || old.sa_sigaction != libc::SIG_DFL
        {
            return;
        }
        let mut new: libc::sigaction = zeroed();
        new.sa_sigaction = handler as extern "C" fn(c_int) as usize;
        new.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &new, ptr::null_mut());
    }
}

extern "C" fn handler(_: c_int) {
    keep_errno(|| WANTED.merge(b"at the signal"));
}

/// Merges once on a thread of its own, which then ends. No signal of the program is handled there.
pub fn after(milliseconds: u64) {
    let mut thread = MaybeUninit::uninit();
    // SAFETY: the attributes and sets are initialised before they are used. The thread gets no pointer.
    unsafe {
        let (mut all, mut before) = (zeroed(), zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let mut attributes = MaybeUninit::uninit();
        if libc::pthread_attr_init(attributes.as_mut_ptr()) == 0 {
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), 64 << 10);
            libc::pthread_attr_setdetachstate(
                attributes.as_mut_ptr(),
                libc::PTHREAD_CREATE_DETACHED,
            );
            libc::pthread_create(
                thread.as_mut_ptr(),
                attributes.as_ptr(),
                sleep_and_merge,
                ptr::without_provenance_mut(milliseconds as usize),
            );
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
    }
}

extern "C" fn sleep_and_merge(milliseconds: *mut c_void) -> *mut c_void {
    let milliseconds = milliseconds.addr() as i64;
    let time = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    // SAFETY: a valid time; signals are blocked, so nothing ends the sleep early.
    unsafe { libc::nanosleep(&time, ptr::null_mut()) };
    WANTED.merge(b"after the time");
    ptr::null_mut()
}
