//! Merging after the first time: at a signal, or when some time has passed.

use core::ffi::{c_int, c_void};
use core::mem::{MaybeUninit, transmute, zeroed};
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
    keep_errno(|| _ = WANTED.merge(b"at the signal"));
}

/// Merges once on a thread of its own, which then ends. No signal of the program is handled there. Fails with the error number if
/// there is no thread to be had.
pub fn after(milliseconds: u64) -> Result<(), c_int> {
    let mut thread = MaybeUninit::uninit();
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: the attributes and sets are initialised before they are used. The thread gets no pointer.
    unsafe {
        let error = libc::pthread_attr_init(attributes.as_mut_ptr());
        if error != 0 {
            return Err(error);
        }
        if let Some(size) = stack_size() {
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), size);
        }
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        let (mut all, mut before) = (zeroed(), zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let error = libc::pthread_create(
            thread.as_mut_ptr(),
            attributes.as_ptr(),
            sleep_and_merge,
            ptr::without_provenance_mut(milliseconds as usize),
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if error == 0 { Ok(()) } else { Err(error) }
    }
}

/// What the thread itself needs is little, but glibc takes the thread-local variables of all the program's libraries out of its
/// stack, and only glibc knows how large those are. None where it does not say: its usual size takes them into account.
fn stack_size() -> Option<usize> {
    type MinStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> libc::size_t;
    const OWN: usize = 64 << 10;
    // SAFETY: a name that ends in a nul byte.
    let least = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__pthread_get_minstack".as_ptr()) };
    if least.is_null() {
        return None;
    }
    // SAFETY: glibc's function of this name has this type, and looks at no attributes.
    let least = unsafe { transmute::<*mut c_void, MinStack>(least)(ptr::null()) };
    least.checked_add(OWN)
}

extern "C" fn sleep_and_merge(milliseconds: *mut c_void) -> *mut c_void {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, into ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let end = later(now, milliseconds.addr() as u64);
    // Signals are blocked, but for two that glibc keeps for itself: one comes with every setuid() of the program.
    // SAFETY: a valid time.
    while unsafe {
        libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &end,
            ptr::null_mut(),
        )
    } == libc::EINTR
    {}
    WANTED.merge(b"after the time");
    ptr::null_mut()
}

fn later(now: libc::timespec, milliseconds: u64) -> libc::timespec {
    let nanoseconds = now.tv_nsec as u64 + milliseconds % 1000 * 1_000_000;
    let seconds = milliseconds / 1000 + nanoseconds / 1_000_000_000;
    libc::timespec {
        tv_sec: now.tv_sec.saturating_add_unsigned(seconds),
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_added() {
        let at = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
        for (now, milliseconds, end) in [
            (at(5, 0), 0, at(5, 0)),
            (at(5, 999_999_999), 1, at(6, 999_999)),
            (at(5, 400_000_000), 2600, at(8, 0)),
            (
                at(5, 0),
                u64::MAX,
                at(5 + (u64::MAX / 1000) as i64, 615_000_000),
            ),
            (at(i64::MAX, 0), 9000, at(i64::MAX, 0)),
        ] {
            let found = later(now, milliseconds);
            assert_eq!((found.tv_sec, found.tv_nsec), (end.tv_sec, end.tv_nsec));
        }
    }

    #[test]
    fn the_stack_holds_more_than_the_least_one() {
        // SAFETY: sysconf only reads.
        let least = unsafe { libc::sysconf(libc::_SC_THREAD_STACK_MIN) } as usize;
        assert!(stack_size().is_none_or(|size| size >= least + (64 << 10)));
    }
}
