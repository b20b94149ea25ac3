//! Other kernels, which know another advice by the number of [`sksm::MADV_MERGE`]: `madvise`, `statfs` and `open` of this program
//! imitate them. Each is met by a process of its own, as a process asks its kernel once.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::process::Command;
use std::sync::OnceLock;

use sksm::{Error, MADV_MERGE, Region, Support};

/// Names a kernel, in the environment of a process that is to meet it.
const KERNEL: &str = "SKSM_TEST_KERNEL";

/// What a kernel does for the number, and where it names the engine.
#[derive(Clone, Copy, PartialEq)]
struct Kernel {
    number: Number,
    sysfs: Sysfs,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Number {
    /// Nothing, as an engine that finds no twin.
    Keep,
    /// The advice of this number instead.
    Other(c_int),
    /// Pages that cannot be touched any more.
    Guard,
    /// Refused for lack of memory, but for empty ranges.
    NoMemory,
    /// Refused by a filter, but for empty ranges.
    Filtered,
    /// Refused by a filter.
    Barred,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Sysfs {
    /// The engine says which number its advice has.
    Numbered(c_int),
    /// The engine is there, and does not say it.
    Named,
    Other,
    /// It cannot be seen, and proc, which can, has no counts of KSM.
    Uncounted,
    /// Nor can proc.
    Hidden,
}

fn kernel() -> Option<Kernel> {
    static KERNEL_MET: OnceLock<Option<Kernel>> = OnceLock::new();
    *KERNEL_MET.get_or_init(|| {
        let name = std::env::var(KERNEL).ok()?;
        let (number, sysfs) = name.split_once(' ')?;
        Some(Kernel {
            number: match number {
                "keep" => Number::Keep,
                "guard" => Number::Guard,
                "memory" => Number::NoMemory,
                "filtered" => Number::Filtered,
                "barred" => Number::Barred,
                advice => Number::Other(advice.parse().ok()?),
            },
            sysfs: match sysfs {
                "named" => Sysfs::Named,
                "other" => Sysfs::Other,
                "uncounted" => Sysfs::Uncounted,
                "hidden" => Sysfs::Hidden,
                number => Sysfs::Numbered(number.parse().ok()?),
            },
        })
    })
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: errno's location is valid for this thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Takes the place of the C library's.
///
/// # Safety
/// As `madvise(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    let advice = match kernel() {
        Some(kernel) if advice == MADV_MERGE => match kernel.number {
            Number::Barred => return fail(libc::EPERM),
            _ if len == 0 => return 0,
            Number::Keep => return 0,
            Number::Other(advice) => advice,
            // SAFETY: the caller's range.
            Number::Guard => return unsafe { libc::mprotect(addr, len, libc::PROT_NONE) },
            Number::NoMemory => return fail(libc::EAGAIN),
            Number::Filtered => return fail(libc::EPERM),
        },
        _ => advice,
    };
    // SAFETY: the caller's arguments.
    unsafe { libc::syscall(libc::SYS_madvise, addr, len, advice as c_long) as c_int }
}

/// Takes the place of the C library's.
///
/// # Safety
/// As `statfs(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn statfs(path: *const c_char, found: *mut libc::statfs) -> c_int {
    // SAFETY: the caller's path.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    let Some(kernel) = kernel() else {
        // SAFETY: the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_statfs, path, found) as c_int };
    };
    // As a kernel would say it; what is mounted where the tests run is nothing to them.
    let kind = match (kernel.sysfs, name) {
        (Sysfs::Numbered(_) | Sysfs::Named, b"/sys/kernel/mm/sksm") => 0x6265_6572,
        (Sysfs::Numbered(_) | Sysfs::Named | Sysfs::Other, b"/sys/kernel/mm") => 0x6265_6572,
        (Sysfs::Uncounted, b"/proc/self/stat") => 0x9fa0,
        _ => return fail(libc::ENOENT),
    };
    // SAFETY: the caller's room; zeros are a value of it.
    unsafe {
        found.write_bytes(0, 1);
        (*found).f_type = kind;
    }
    0
}

/// Takes the place of the C library's, which takes the mode only where there is one to take.
///
/// # Safety
/// As `open(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the caller's path.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    match kernel() {
        Some(kernel) if name == b"/sys/kernel/mm/sksm/advice" => match kernel.sysfs {
            Sysfs::Numbered(number) => holding(&format!("{number}\n")),
            _ => fail(libc::ENOENT),
        },
        _ => {
            let at = c_long::from(libc::AT_FDCWD);
            // SAFETY: the caller's arguments.
            unsafe { libc::syscall(libc::SYS_openat, at, path, flags, mode) as c_int }
        }
    }
}

/// A descriptor that this can be read from.
fn holding(text: &str) -> c_int {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are this function's own; the text is valid.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let written = libc::write(ends[1], text.as_ptr().cast(), text.len());
        assert_eq!(usize::try_from(written), Ok(text.len()));
        libc::close(ends[1]);
    }
    ends[0]
}

/// What a process that meets the kernel does. Without one it is a test of nothing.
#[test]
fn met() {
    let Some(kernel) = kernel() else { return };
    let support = sksm::support();
    println!("it offers {support:?}: {:?}", sksm::require());
    let data = vec![7u8; 100_000];
    let merged = sksm::merge(&data);
    let exact = {
        let Region { start, len, .. } = data.as_slice().into();
        let page = sksm::page_size();
        sksm::merge_exact(start.next_multiple_of(page), len / page / 2 * page)
    };
    let all = sksm::Process::own().merge_anonymous(0);
    assert!(data.iter().all(|byte| *byte == 7), "data was lost");
    if support == Support::Merge {
        match kernel.number {
            Number::Keep => assert_eq!((merged, exact), (Ok(()), Ok(()))),
            // The page that would have shown it was not tried.
            Number::NoMemory => {
                assert!(matches!(kernel.sysfs, Sysfs::Numbered(_)));
                for refused in [merged, exact] {
                    assert!(matches!(refused, Err(Error::NoMemory { .. })));
                }
            }
            other => panic!("{other:?} is no merging"),
        }
        all.unwrap();
    } else {
        let denied = match kernel.sysfs {
            Sysfs::Numbered(number) => number != MADV_MERGE,
            Sysfs::Other | Sysfs::Uncounted => true,
            Sysfs::Named | Sysfs::Hidden => false,
        };
        let doubt = match kernel.number {
            Number::NoMemory if !denied => Some(libc::EAGAIN),
            Number::Filtered | Number::Barred if !denied => Some(libc::EPERM),
            _ => None,
        };
        for result in [merged, exact, all.map(drop)] {
            match (doubt, result) {
                (Some(doubt), Err(Error::Undecided { errno })) => assert_eq!(errno, doubt),
                (None, Err(Error::Unsupported { .. })) => {}
                (_, result) => panic!("{result:?}"),
            }
        }
    }
    // SAFETY: forks, and the child only looks and ends.
    unsafe {
        let child = libc::fork();
        let kept = data.iter().all(|byte| *byte == 7);
        if child == 0 {
            libc::_exit(if kept && sksm::support() == support {
                0
            } else {
                1
            });
        }
        let mut status = -1;
        libc::waitpid(child, &mut status, 0);
        assert_eq!(status, 0, "a child's data was lost");
    }
}

/// What a process says that meets this kernel.
fn meet(kernel: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "met", "--nocapture"])
        .env(KERNEL, kernel)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{kernel}: {said}{errors}");
    said
}

#[test]
fn what_keeps_a_page_may_be_the_engine() {
    for kernel in ["keep 26", "keep named", "keep hidden"] {
        let said = meet(kernel);
        assert!(said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

/// Where 26 is DONTNEED, a vector became zeros.
#[test]
fn other_advices_of_the_number_destroy_nothing() {
    for number in [
        libc::MADV_DONTNEED,
        libc::MADV_REMOVE,
        libc::MADV_DONTFORK,
        libc::MADV_WIPEONFORK,
        libc::MADV_DONTDUMP,
    ] {
        for sysfs in ["25", "named", "other", "uncounted", "hidden"] {
            let kernel = format!("{number} {sysfs}");
            let said = meet(&kernel);
            assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
        }
    }
    for sysfs in ["named", "other", "uncounted", "hidden"] {
        let kernel = &format!("guard {sysfs}");
        let said = meet(kernel);
        assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

/// A page that was freed lazily keeps its bytes until it is reclaimed.
#[test]
fn lazy_frees_show_where_nothing_names_the_engine() {
    for sysfs in ["other", "uncounted", "hidden"] {
        let kernel = format!("{} {sysfs}", libc::MADV_FREE);
        let said = meet(&kernel);
        assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

#[test]
fn a_kernel_that_shows_no_engine_has_none() {
    // An engine's counts stand beside those of KSM: a proc without either is not one that cannot be seen.
    for kernel in ["keep other", "keep uncounted"] {
        let said = meet(kernel);
        assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

#[test]
fn what_is_refused_is_not_there() {
    for kernel in ["memory named", "memory 25", "filtered other", "barred 25"] {
        let said = meet(kernel);
        assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

/// No page is tried, which there may be no memory for.
#[test]
fn the_engines_own_number_is_believed() {
    let said = meet("memory 26");
    assert!(said.contains("it offers Merge"), "{said}");
    for kernel in ["keep 25", "keep -1"] {
        let said = meet(kernel);
        assert!(!said.contains("it offers Merge"), "{kernel}: {said}");
    }
}

/// A filter has answered, and not the kernel.
#[test]
fn what_a_filter_refuses_is_undecided() {
    for kernel in [
        "filtered named",
        "filtered hidden",
        "barred 26",
        "barred named",
        "barred hidden",
    ] {
        let said = meet(kernel);
        assert!(said.contains("Undecided"), "{kernel}: {said}");
    }
    for kernel in ["barred other", "barred uncounted"] {
        let said = meet(kernel);
        assert!(said.contains("Unsupported"), "{kernel}: {said}");
    }
}
