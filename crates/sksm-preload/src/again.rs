//! Merging after the first time: at a signal, or when some time has passed.
//!
//! There is no thread for it. A timer interrupts the main thread by a signal that the C library keeps for itself, which the program
//! can neither block nor give another meaning; there it is merged in slices with pauses, on a stack of its own. The handler of
//! `SKSM_SIGNAL`, which may hit any thread on whatever stack, only sets that timer: the kernel has the main thread take it, unless that
//! blocks it or has another signal waiting, and other threads cannot be given a stack from here.

use core::ffi::{c_int, c_void};
use core::mem::{MaybeUninit, transmute, zeroed};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::keep_errno;
use crate::merging::{Progress, WANTED};
use crate::next;

/// A merge takes the main thread for so long at once, and leaves it alone for so long then, in nanoseconds.
const SLICE: u64 = 10_000_000;
const PAUSE: u64 = 90_000_000;
/// So much is merged before the clock is looked at: about a millisecond's work.
const STEP: usize = 1 << 20;
/// By then a program has chosen its signals. Only looked at where it can be told.
const LOOK: u64 = 1_000_000_000;

/// Nanoseconds; 0: never.
static AFTER: AtomicU64 = AtomicU64::new(0);
/// `SKSM_SIGNAL`, if it was free.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// What the timers send; 0: nothing merges here.
static OWN: AtomicI32 = AtomicI32::new(0);

static TIME: Timer<TIME_IS_UP> = Timer::new();
static WORK: Timer<GO_ON> = Timer::new();
static LOOKING: Timer<LOOK_AGAIN> = Timer::new();
static RUN: Run = Run::new();

/// Why a handler runs: what the timers tell it, and for what a merge is made.
const TIME_IS_UP: u8 = 1;
const SIGNALLED: u8 = 2;
const GO_ON: u8 = 4;
const LOOK_AGAIN: u8 = 8;

/// What timers send where the C library needs its own signal: harmless whatever the program makes of it, also if it gives it its
/// default back while a timer runs, which ignores it. Go interrupts threads by it for that reason.
const SECOND: c_int = libc::SIGURG;

/// Why nothing will be done later.
#[derive(Clone, Copy)]
pub enum Failure {
    /// An error number.
    NoTimer(c_int),
    /// The C library uses its signal, and the program [`SECOND`].
    NoSignal,
}

/// From now on the signal does not end the program. False if something else is done about it already.
pub fn take(signal: c_int) -> bool {
    if disposition(signal) != Some(libc::SIG_DFL) || set_handler(signal).is_none() {
        return false;
    }
    ASKED.store(signal, Relaxed);
    true
}

/// Gets ready to merge when it is asked for: after this time, if there is one, and at the signal that was taken.
pub fn set_up(milliseconds: Option<u64>) -> Result<(), Failure> {
    let own = match reserved() {
        Some(signal) if take_reserved(signal) => signal,
        _ if disposition(SECOND) == Some(libc::SIG_DFL) && set_handler(SECOND).is_some() => SECOND,
        _ => return Err(Failure::NoSignal),
    };
    OWN.store(own, Relaxed);
    // At once for none at all: a timer that is set to 0 does not run.
    let after = milliseconds.map_or(0, |time| time.saturating_mul(1_000_000).max(1));
    AFTER.store(after, Relaxed);
    give_stack();
    at_fork();
    set_timers()
}

fn set_timers() -> Result<(), Failure> {
    let after = AFTER.load(Relaxed);
    if after != 0 {
        TIME.set(after)?;
    }
    if WANTED.is_verbose() && ASKED.load(Relaxed) != 0 {
        LOOKING.set(LOOK)?;
    }
    Ok(())
}

/// What is done about a signal: a handler's address, SIG_DFL or SIG_IGN.
fn disposition(signal: c_int) -> Option<usize> {
    // SAFETY: the structure is valid, and written by the call.
    unsafe {
        let mut now: libc::sigaction = zeroed();
        (libc::sigaction(signal, ptr::null(), &mut now) == 0).then_some(now.sa_sigaction)
    }
}

/// Returns what was there.
fn set_handler(signal: c_int) -> Option<libc::sigaction> {
    // SAFETY: both structures are valid, and the handler makes only calls that are allowed in one.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = (zeroed(), zeroed());
        new.sa_sigaction = handler as *const () as usize;
        new.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_SIGINFO;
        // The program's own handlers wait for the end of a slice, and need no room on its stack.
        libc::sigfillset(&mut new.sa_mask);
        (libc::sigaction(signal, &new, &mut old) == 0).then_some(old)
    }
}

/// A signal that the C library keeps for itself, and whose handler there, once it has one, ignores a timer's. glibc: the one that
/// cancels threads, not the one of setuid(), whose handler every program with threads has. musl: the same.
fn reserved() -> Option<c_int> {
    let glibc = !next::find(c"gnu_get_libc_version").is_null();
    Some(if glibc { 32 } else { 33 }).filter(|signal| *signal < libc::SIGRTMIN())
}

/// Handles a signal that libc's own function gives to nobody. False if libc has a handler there: before glibc 2.34 in every
/// program with threads.
fn take_reserved(signal: c_int) -> bool {
    // As the kernel has it, which differs between machines. First comes the handler; the set has 8 bytes.
    type Kernels = [usize; 8];
    let change = |signal: c_int, new: *const Kernels, old: *mut Kernels| {
        // SAFETY: the structures have room enough for the kernel's.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, 8usize) == 0 }
    };
    let mut now = [0; 8];
    // Some who start programs have them ignore and block every signal that there is, which libc undoes, too.
    if !change(signal, ptr::null(), &mut now) || !matches!(now[0], libc::SIG_DFL | libc::SIG_IGN) {
        return false;
    }
    let set = 1u64 << (signal - 1);
    let none = ptr::null_mut::<u64>();
    // SAFETY: a valid set of 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_UNBLOCK,
            &raw const set,
            none,
            8usize,
        )
    };
    // Made by libc, which knows how a handler returns, at a signal of the program's.
    let template = libc::SIGRTMAX();
    let Some(before) = set_handler(template) else {
        return false;
    };
    let taken = change(template, ptr::null(), &mut now) && change(signal, &now, ptr::null_mut());
    // SAFETY: what was there is put back.
    unsafe { libc::sigaction(template, &before, ptr::null_mut()) };
    taken
}

/// A handler's frame alone is larger than some stacks on which programs run coroutines. Where there is no memory for it, the
/// ordinary stack has to do.
fn give_stack() {
    static STACK: AtomicUsize = AtomicUsize::new(0);
    const AT_MINSIGSTKSZ: libc::c_ulong = 51;
    // SAFETY: reads what the kernel left at the start; 0 where it left nothing.
    let frame = unsafe { libc::getauxval(AT_MINSIGSTKSZ) } as usize;
    let size = (64 << 10) + frame.next_multiple_of(64 << 10);
    // SAFETY: the structures are valid. The mapping is new, private, and never unmapped; a child has its own copy of it, and only
    // one thread.
    unsafe {
        let mut now: libc::stack_t = zeroed();
        if libc::sigaltstack(ptr::null(), &mut now) != 0 || now.ss_flags & libc::SS_DISABLE == 0 {
            return;
        }
        if STACK.load(Relaxed) == 0 {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let stack = libc::mmap(ptr::null_mut(), size, prot, flags, -1, 0);
            if stack == libc::MAP_FAILED {
                return;
            }
            STACK.store(stack as usize, Relaxed);
        }
        let new = libc::stack_t {
            ss_sp: STACK.load(Relaxed) as *mut c_void,
            ss_flags: 0,
            ss_size: size,
        };
        libc::sigaltstack(&new, ptr::null_mut());
    }
}

/// Has children get timers of their own. Not by pthread_atfork(), which is part of each object before glibc 2.34.
fn at_fork() {
    type Glibc = unsafe extern "C" fn(usize, usize, extern "C" fn(), *mut c_void) -> c_int;
    type Posix = unsafe extern "C" fn(usize, usize, extern "C" fn()) -> c_int;
    let glibc = next::find(c"__register_atfork");
    let posix = next::find(c"pthread_atfork");
    // SAFETY: the functions of these names have these types. The object is never unloaded.
    unsafe {
        if !glibc.is_null() {
            transmute::<*mut c_void, Glibc>(glibc)(0, 0, in_child, ptr::null_mut());
        } else if !posix.is_null() {
            transmute::<*mut c_void, Posix>(posix)(0, 0, in_child);
        }
    }
}

extern "C" fn in_child() {
    keep_errno(|| {
        RUN.forget();
        // A filter that has come since may kill for any of this.
        if WANTED.find_later_obstacle().is_err() {
            return;
        }
        give_stack();
        if let Err(failure) = set_timers() {
            tell(b"after the fork", failure);
        }
    });
}

pub fn tell(when: &[u8], failure: Failure) {
    WANTED.say(when, |line| {
        line.text(b"nothing will be done later, ");
        match failure {
            Failure::NoTimer(error) => line
                .text(b"there is no timer for it: error number ")
                .number(error as u64),
            Failure::NoSignal => {
                line.text(b"SIGURG is the program's, and the C library needs its signals")
            }
        };
    });
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives every handler of this kind a valid one, and a timer's has a value.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr) };
    keep_errno(|| {
        let own = OWN.load(Relaxed);
        if own == 0 {
            WANTED.say(b"at the signal", |line| WANTED.tell_obstacle(line));
        } else if code == libc::SI_TIMER && signal == own {
            RUN.go_on(value.addr() as u8);
        } else if signal == ASKED.load(Relaxed) {
            if let Err(obstacle) = WANTED.find_later_obstacle() {
                WANTED.say(b"at the signal", |line| obstacle.tell(line));
                return;
            }
            RUN.asked.fetch_or(SIGNALLED, Relaxed);
            if let Err(failure) = WORK.set(1) {
                tell(b"at the signal", failure);
            }
        }
    });
}

/// Says so if the program has given the signal another meaning: sent to it, it may do anything.
fn look_again() {
    let asked = ASKED.load(Relaxed);
    if asked != 0 && !is_taken(asked) {
        WANTED.say(b"by now", |line| {
            line.text(b"signal ").number(asked as u64);
            line.text(b" is the program's, it merges nothing; send none, or set another");
        });
    }
}

/// Whether the signal is handled here still.
fn is_taken(signal: c_int) -> bool {
    disposition(signal) == Some(handler as *const () as usize)
}

/// One of the kernel's timers, which interrupts the main thread once, for this reason.
struct Timer<const REASON: u8> {
    id: AtomicI32,
    /// Children have none of their parent's.
    process: AtomicI32,
}

impl<const REASON: u8> Timer<REASON> {
    const fn new() -> Self {
        Timer {
            id: AtomicI32::new(0),
            process: AtomicI32::new(0),
        }
    }

    /// Runs out after so many nanoseconds. It makes only calls that a signal handler may make: the kernel's, as libc's functions
    /// were in a library of their own before glibc 2.34.
    fn set(&self, nanoseconds: u64) -> Result<(), Failure> {
        // What the program has taken for itself is left to it.
        if OWN.load(Relaxed) == SECOND && !is_taken(SECOND) {
            return Err(Failure::NoSignal);
        }
        // SAFETY: getpid cannot fail.
        let process = unsafe { libc::getpid() };
        if self.process.load(Relaxed) != process {
            let id = Self::create(process).map_err(Failure::NoTimer)?;
            self.id.store(id, Relaxed);
            self.process.store(process, Relaxed);
        }
        // SAFETY: a structure of numbers.
        let mut time: libc::itimerspec = unsafe { zeroed() };
        time.it_value = libc::timespec {
            tv_sec: (nanoseconds / 1_000_000_000) as i64,
            tv_nsec: (nanoseconds % 1_000_000_000) as i64,
        };
        let (id, none) = (self.id.load(Relaxed), ptr::null_mut::<libc::itimerspec>());
        // SAFETY: a valid time.
        let set = unsafe { libc::syscall(libc::SYS_timer_settime, id, 0, &raw const time, none) };
        result(set).map_err(Failure::NoTimer)
    }

    fn create(process: c_int) -> Result<c_int, c_int> {
        let mut id = MaybeUninit::<c_int>::uninit();
        // SAFETY: a structure of numbers and a pointer that nobody follows; the call writes an id, into ours.
        unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_value.sival_ptr = ptr::without_provenance_mut(REASON.into());
            event.sigev_signo = OWN.load(Relaxed);
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            // The main thread's is the process's.
            event.sigev_notify_thread_id = process;
            let clock = libc::CLOCK_MONOTONIC;
            result(libc::syscall(
                libc::SYS_timer_create,
                clock,
                &raw mut event,
                id.as_mut_ptr(),
            ))?;
            Ok(id.assume_init())
        }
    }
}

fn result(answer: libc::c_long) -> Result<(), c_int> {
    if answer == 0 {
        return Ok(());
    }
    // SAFETY: errno's location is valid for this thread.
    Err(unsafe { *libc::__errno_location() })
}

/// A merge in slices. Only `asked` is touched outside the main thread's handler, which does not interrupt itself.
struct Run {
    /// For what merges are still to be made.
    asked: AtomicU8,
    /// For what one is being made; 0: none is.
    reason: AtomicU8,
    next: AtomicUsize,
    bytes: AtomicUsize,
    mappings: AtomicU64,
    refused: AtomicU64,
    /// `u64::MAX`: not known.
    passed_over: AtomicU64,
}

impl Run {
    const fn new() -> Self {
        Run {
            asked: AtomicU8::new(0),
            reason: AtomicU8::new(0),
            next: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            mappings: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            passed_over: AtomicU64::new(0),
        }
    }

    /// What a parent was at is not the child's to go on with.
    fn forget(&self) {
        self.asked.store(0, Relaxed);
        self.reason.store(0, Relaxed);
    }

    fn go_on(&self, why: u8) {
        if why == LOOK_AGAIN || why == TIME_IS_UP {
            look_again();
        }
        if why == LOOK_AGAIN {
            return;
        }
        if why == TIME_IS_UP {
            self.asked.fetch_or(TIME_IS_UP, Relaxed);
        }
        let (reason, mut progress) = match self.reason.load(Relaxed) {
            0 => {
                let asked = self.asked.load(Relaxed);
                // The lowest, if there is any.
                let reason = asked & asked.wrapping_neg();
                if reason == 0 {
                    return;
                }
                self.asked.fetch_and(!reason, Relaxed);
                (reason, Progress::begin())
            }
            reason => (reason, self.load()),
        };
        let when: &[u8] = match reason {
            TIME_IS_UP => b"after the time",
            _ => b"at the signal",
        };
        // Before each slice: a program's main thread may confine itself at any time.
        let done = match WANTED.find_later_obstacle() {
            Err(obstacle) => {
                WANTED.say(when, |line| obstacle.tell(line));
                true
            }
            Ok(()) => {
                let end = now().saturating_add(SLICE);
                let done = WANTED.merge(&mut progress, STEP, || now() < end);
                if done {
                    WANTED.say(when, |line| progress.tell(line));
                }
                done
            }
        };
        if done {
            self.reason.store(0, Relaxed);
        } else {
            self.reason.store(reason, Relaxed);
            self.store(&progress);
        }
        if !done || self.asked.load(Relaxed) != 0 {
            if let Err(failure) = WORK.set(PAUSE) {
                self.forget();
                tell(when, failure);
            }
        }
    }

    fn load(&self) -> Progress {
        let passed_over = self.passed_over.load(Relaxed);
        Progress {
            next: self.next.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            mappings: self.mappings.load(Relaxed),
            refused: self.refused.load(Relaxed),
            passed_over: (passed_over != u64::MAX).then_some(passed_over),
            ..Progress::default()
        }
    }

    fn store(&self, progress: &Progress) {
        self.next.store(progress.next, Relaxed);
        self.bytes.store(progress.bytes, Relaxed);
        self.mappings.store(progress.mappings, Relaxed);
        self.refused.store(progress.refused, Relaxed);
        self.passed_over
            .store(progress.passed_over.unwrap_or(u64::MAX), Relaxed);
    }
}

/// Nanoseconds of a clock that only runs forward.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, into ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
