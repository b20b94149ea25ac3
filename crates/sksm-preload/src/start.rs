//! The moment after all constructors and before `main`: libc's start function is called with another `main`, which calls the
//! program's own.

use core::ffi::c_int;

use crate::again;
use crate::environment::secure;
use crate::merging::{Obstacle, Progress, WANTED};
use crate::settings::Settings;
use crate::shared;

const WHEN: &[u8] = b"at start";

/// What is asked for, before main runs.
#[cfg_attr(test, expect(dead_code, reason = "a test's own main is left alone"))]
fn before_main() {
    let settings = Settings::from_environment();
    WANTED.set(&settings);
    for (name, value) in settings.misunderstood.each() {
        WANTED.say(WHEN, |line| {
            line.text(name.to_bytes()).text(b" is not understood: ");
            line.quoted(value);
        });
    }
    // An object with nothing to do writes no page of its own.
    if settings.store || settings.kinds.is_some() {
        WANTED.note_filters();
    }
    if settings.store {
        shared::share(&settings);
    }
    let obstacle = match settings.kinds {
        _ if settings.store && !settings.merge => Err(Obstacle::NotAsked),
        Some(_) => WANTED.find_obstacle(),
        None => Err(Obstacle::Settings),
    };
    match obstacle {
        Ok(()) => {
            let mut progress = Progress::begin();
            WANTED.merge(&mut progress, usize::MAX, || true);
            WANTED.say(WHEN, |line| progress.tell(line));
        }
        // Said already, or nothing to say.
        Err(Obstacle::Settings | Obstacle::NotAsked) => {}
        Err(obstacle) => WANTED.say(WHEN, |line| obstacle.tell(line)),
    }
    // Also where nothing merges: whoever sends the signal to all processes means none of them to die of it.
    let taken = settings.signal.is_some_and(take_signal);
    WANTED.set_obstacle(obstacle.err());
    if obstacle.is_ok() && (settings.after.is_some() || taken) {
        let set_up = || again::set_up(settings.after);
        match WANTED.survives(|| _ = set_up()) {
            Ok(()) => {
                if let Err(failure) = set_up() {
                    again::tell(WHEN, failure);
                }
            }
            Err(obstacle) => {
                WANTED.set_obstacle(Some(obstacle));
                WANTED.say(b"for later", |line| obstacle.tell(line));
            }
        }
    }
}

fn take_signal(signal: c_int) -> bool {
    match WANTED.survives(|| _ = again::take(signal)) {
        Ok(()) if again::take(signal) => return true,
        Ok(()) => WANTED.say(WHEN, |line| {
            line.text(b"signal ").number(signal as u64);
            line.text(b" is the program's already, or ignored; it will merge nothing");
        }),
        Err(obstacle) => WANTED.say(WHEN, |line| obstacle.tell(line)),
    }
    false
}

/// Whether this program is to be left alone altogether.
#[cfg_attr(test, expect(dead_code, reason = "a test's own main is left alone"))]
fn left_alone() -> bool {
    #[cfg(feature = "experiment")]
    if crate::environment::variable(c"SKSM_EXPERIMENT").is_some() {
        return true;
    }
    secure()
}

#[cfg(not(test))]
mod interposed {
    use core::ffi::{c_char, c_void};
    use core::mem::transmute;
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, Ordering};

    use super::*;
    use crate::{keep_errno, next};

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
        let next = next::find(c"__libc_start_main");
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
