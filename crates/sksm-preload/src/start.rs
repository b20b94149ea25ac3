//! The moment after all constructors and before `main`: libc's start function is called with another `main`, which calls the
//! program's own.

use crate::again;
use crate::environment::{secure, variable};
use crate::merging::WANTED;
use crate::settings::Settings;

/// What is asked for, before main runs.
#[cfg_attr(test, expect(dead_code, reason = "a test's own main is left alone"))]
fn before_main() {
    let settings = Settings::from_environment();
    let Some(kinds) = settings.kinds else {
        return;
    };
    WANTED.set(kinds, &settings);
    let merges = WANTED.merge(b"at start");
    // Also where nothing merges: whoever sends the signal to all processes means none of them to die of it.
    if let Some(signal) = settings.signal {
        again::at_signal(signal);
    }
    // A second thread changes what a program may do (unshare(2) for one), and is worth nothing where nothing merges.
    if let Some(milliseconds) = settings.after.filter(|_| merges) {
        if let Err(error) = again::after(milliseconds) {
            WANTED.say(b"after the time", |line| {
                line.text(b"nothing will be done, there is no thread for it: error number ");
                line.number(error as u64);
            });
        }
    }
}

/// Whether this program is to be left alone altogether.
#[cfg_attr(test, expect(dead_code, reason = "a test's own main is left alone"))]
fn left_alone() -> bool {
    secure() || variable(c"SKSM_EXPERIMENT").is_some()
}

#[cfg(not(test))]
mod interposed {
    use core::ffi::{c_char, c_int, c_void};
    use core::mem::transmute;
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, Ordering};

    use super::*;
    use crate::keep_errno;

    type Main = extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
    type Start = unsafe extern "C" fn(
        Main,
        c_int,
        *mut *mut c_char,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
    ) -> c_int;

    static MAIN: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

    /// Called by a dynamically linked program's first instructions in place of libc's function of that name.
    ///
    /// # Safety
    /// As libc's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn __libc_start_main(
        main: Main,
        argc: c_int,
        argv: *mut *mut c_char,
        init: *mut c_void,
        fini: *mut c_void,
        rtld_fini: *mut c_void,
        stack_end: *mut c_void,
    ) -> c_int {
        // SAFETY: a name that ends in a nul byte.
        let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__libc_start_main".as_ptr()) };
        if next.is_null() {
            // There is no libc to start the program; it cannot get here.
            // SAFETY: abort takes nothing and does not return.
            unsafe { libc::abort() };
        }
        // SAFETY: libc's function of this name has this type.
        let start: Start = unsafe { transmute(next) };
        let main = if left_alone() {
            main
        } else {
            MAIN.store(main as *mut c_void, Ordering::Relaxed);
            merge_then_main
        };
        // SAFETY: as this function was called, but for a `main` that calls the one given.
        unsafe { start(main, argc, argv, init, fini, rtld_fini, stack_end) }
    }

    extern "C" fn merge_then_main(
        argc: c_int,
        argv: *mut *mut c_char,
        envp: *mut *mut c_char,
    ) -> c_int {
        keep_errno(before_main);
        // SAFETY: stored above, from a function of this type.
        let main: Main = unsafe { transmute(MAIN.load(Ordering::Relaxed)) };
        main(argc, argv, envp)
    }
}
