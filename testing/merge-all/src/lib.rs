//! Loaded into a program by `LD_PRELOAD`, a thread of this object merges all private mappings of the program every few
//! milliseconds, from before `main` until its end, and in the children that it forks. It is for tests: nobody wants that of a program
//! that is to do something else.

use std::time::Duration;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(5);
const STACK: usize = 256 << 10;

/// The loader calls what stands in this section once libc is ready, before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    // Of a fork, only the thread that called it is in the child.
    // SAFETY: the handler starts a thread, which glibc allows there.
    unsafe { libc::pthread_atfork(None, None, Some(start)) };
    start();
}

/// A program that can have no thread more goes on unmerged.
fn start_thread() {
    let merge = || {
        loop {
            merge_all();
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(merge)
        .ok();
}

extern "C" fn start() {
    // Signals are the program's.
    // SAFETY: sets of signals are valid when they are filled, and the thread's own is put back.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut own: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut own);
        start_thread();
        libc::pthread_sigmask(libc::SIG_SETMASK, &own, std::ptr::null_mut());
    }
}

fn merge_all() {
    // One that went away meanwhile, or is not for merging, is passed over.
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, end) in maps.lines().filter_map(private) {
        sksm::merge_exact(start, end - start).ok();
    }
}

/// The addresses of a private mapping's line.
fn private(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    words
        .next()?
        .ends_with('p')
        .then_some((number(start)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_mappings_are_told_from_others() {
        let line = "7f00-8000 rw-p 00000000 00:00 0          [heap]";
        assert_eq!(private(line), Some((0x7f00, 0x8000)));
        assert_eq!(private("7f00-8000 rw-s 00000000 00:00 0"), None);
        // The kernel's own page, whose addresses it says all the same.
        let top = "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]";
        assert_eq!(private(top), Some((0xffffffffff600000, 0xffffffffff601000)));
        assert_eq!(private(""), None);
    }
}
