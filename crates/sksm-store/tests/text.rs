//! Code that several processes patch.
#![cfg(target_arch = "x86_64")]

mod helpers;
mod library;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use helpers::{Home, again, fork, in_small_file_system, in_test, skip};
use library::{Library, PAGE, PAGES};
use sksm_store::{Error, Fault, FinishAndShare, Object, Shared, Store, Unshared};

/// A process of its own with one thread, which does this with the library.
fn process(home: &Home, work: impl FnOnce(&Store, &Library)) {
    let path = library::path();
    let child = fork(|| work(&home.store(), &Library::load(path)));
    assert!(child.wait());
}

fn share(store: &Store) -> Result<Shared, Error> {
    store.share_text(Object::Named("libpatched.so"))
}

/// Functions return these numbers.
fn patch_all(library: &Library, number: impl Fn(usize) -> i32) {
    (0..PAGES - 1).for_each(|at| library.patch(at, number(at)));
}

fn check_all(library: &Library, number: impl Fn(usize) -> i32) {
    (0..PAGES - 1).for_each(|at| assert_eq!(library.call(at), number(at), "f{at}"));
}

fn files(home: &Home) -> usize {
    home.store().held().unwrap().files as usize
}

#[test]
fn what_is_patched_alike_is_shared() {
    let home = Home::new();
    let number = |at| 1000 + at as i32;
    for published in [PAGES - 1, 0, 0] {
        process(&home, |store, library| {
            patch_all(library, number);
            let places = library.mappings();
            assert_eq!(library.private(), PAGES - 1);
            let shared = share(store).unwrap();
            assert_eq!((shared.pages, shared.published), (PAGES - 1, published));
            assert_eq!((shared.mappings, shared.fault), (1, None));
            assert_eq!(library.private(), 0);
            check_all(library, number);
            let maps = library.mappings();
            assert_eq!(maps.len(), 2, "{maps:?}");
            assert!(maps[0].contains("/libpatched.so."), "{maps:?}");
            // The same addresses, rights and offset.
            let of = |line: &str, word| line.split_whitespace().nth(word).unwrap().to_owned();
            for word in [1, 2] {
                assert_eq!(of(&maps[0], word), of(&places[0], word));
            }
            // Nothing is left to do.
            assert_eq!(share(store).unwrap(), Shared::default());
        });
        assert_eq!(files(&home), 1);
    }
    assert_eq!(home.store().collect().unwrap().files, 1);
}

#[test]
fn what_differs_stays_apart_and_the_rest_is_shared() {
    let home = Home::new();
    process(&home, |store, library| {
        patch_all(library, |at| at as i32 + 1000);
        assert_eq!(share(store).unwrap().published, PAGES - 1);
    });
    let number = |at| at as i32 + if at == 10 || at == 40 { 2000 } else { 1000 };
    for published in [2, 0] {
        process(&home, |store, library| {
            patch_all(library, number);
            let shared = share(store).unwrap();
            assert_eq!((shared.pages, shared.published), (PAGES - 1, published));
            assert_eq!(shared.mappings, 5);
            assert_eq!(library.private(), 0);
            check_all(library, number);
        });
        assert_eq!(files(&home), 2);
    }
}

/// Whoever may write a page goes on to.
#[test]
fn what_may_be_written_stays() {
    let home = Home::new();
    for published in [PAGES - 2, 0] {
        process(&home, |store, library| {
            patch_all(library, |at| at as i32 + 1000);
            library.make_writable(3);
            let shared = share(store).unwrap();
            assert_eq!((shared.pages, shared.published), (PAGES - 2, published));
            assert_eq!(library.private(), 1);
            check_all(library, |at| at as i32 + 1000);
            // SAFETY: a page that may be written, of code that nobody runs meanwhile.
            unsafe { ((library.address(3) + 1) as *mut i32).write_unaligned(7) };
            assert_eq!(library.call(3), 7);
        });
    }
}

/// Its pages may be the same, but not its symbols.
#[test]
fn another_build_has_a_file_of_its_own() {
    let home = Home::new();
    let dir = tempfile::tempdir().unwrap();
    let other = library::another_build(dir.path());
    for (path, files_then) in [(library::path(), 1), (&other, 2), (&other, 2)] {
        let before = files(&home);
        let child = fork(|| {
            let library = Library::load(path);
            patch_all(&library, |at| at as i32 + 1000);
            let shared = share(&home.store()).unwrap();
            let published = if before == files_then { 0 } else { PAGES - 1 };
            assert_eq!((shared.pages, shared.published), (PAGES - 1, published));
            check_all(&library, |at| at as i32 + 1000);
        });
        assert!(child.wait());
        assert_eq!(files(&home), files_then);
    }
}

/// However often it is asked for: what would be more stays, and that is told.
#[test]
fn mappings_stay_few_call_by_call() {
    let home = Home::new();
    process(&home, |store, library| {
        let mut told = 0;
        for at in (0..PAGES - 1).step_by(2) {
            let operand = library.address(at) + 1;
            // SAFETY: nobody runs this function, and nothing else is changed.
            let mut patch = unsafe { sksm::Patch::begin(operand, 4) }.unwrap();
            let number = at as i32 + 1000;
            patch.write(operand, &number.to_le_bytes()).unwrap();
            match patch.finish_and_share(store) {
                Ok(shared) => assert_eq!((shared.pages, shared.kept), (1, 0), "{at}"),
                Err(Unshared::Store(error)) => {
                    assert_eq!(error.fault(), Fault::Mappings);
                    told += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(told > 0 && told < PAGES / 2);
        let maps = library.mappings();
        let stored = maps.iter().filter(|line| line.contains("/dev/shm/"));
        assert_eq!(stored.count(), 8, "{maps:?}");
        for at in (0..PAGES - 1).step_by(2) {
            assert_eq!(library.call(at), at as i32 + 1000);
        }
    });
}

/// However the patches lie, there are no more than 16 mappings of the library's code.
#[test]
fn mappings_are_few() {
    let home = Home::new();
    let every_other = |at: usize| at as i32 + 1000 * i32::from(at % 2 == 0);
    let each_differs = |at: usize| every_other(at) + 5000 * i32::from(at % 4 == 0);
    let all = |at: usize| at as i32 + 7000 + 5 * (at as i32 % 7);
    for number in [&every_other as &dyn Fn(usize) -> i32, &each_differs, &all] {
        for round in 0..2 {
            process(&home, |store, library| {
                for at in 0..PAGES - 1 {
                    if number(at) != at as i32 {
                        library.patch(at, number(at));
                    }
                }
                let shared = share(store).unwrap();
                assert_eq!(library.private(), 0);
                assert!(library.mappings().len() <= 16, "{:?}", library.mappings());
                check_all(library, number);
                assert_eq!(shared.fault, None);
                assert!(round == 0 || shared.published == 0 || shared.mappings == 1);
            });
        }
    }
    assert!(files(&home) <= 4);
}

/// A write after sharing is this process's own, and can be shared again.
#[test]
fn what_is_written_later_is_ones_own() {
    let home = Home::new();
    process(&home, |store, library| {
        patch_all(library, |at| at as i32 + 1000);
        share(store).unwrap();
        let child = fork(|| {
            library.patch(7, 77);
            assert_eq!((library.call(7), library.private()), (77, 1));
            assert_eq!(share(store).unwrap().published, 1);
            assert_eq!((library.call(7), library.private()), (77, 0));
            check_all(library, |at| if at == 7 { 77 } else { at as i32 + 1000 });
        });
        assert!(child.wait());
        check_all(library, |at| at as i32 + 1000);
        assert_eq!(library.private(), 0);
    });
    process(&home, |store, library| {
        patch_all(library, |at| at as i32 + 1000);
        assert_eq!(share(store).unwrap().published, 0);
        check_all(library, |at| at as i32 + 1000);
    });
}

/// What the loader and the program do with the memory later works as with the object's own.
#[test]
fn the_library_can_go() {
    let home = Home::new();
    let path = library::path();
    let child = fork(|| {
        let (store, library) = (home.store(), Library::load(path));
        patch_all(&library, |at| at as i32 + 1000);
        share(&store).unwrap();
        // A part is unmapped, and one made inaccessible.
        let (gone, closed) = (library.address(5), library.address(20));
        // SAFETY: pages that nobody uses any more.
        unsafe {
            assert_eq!(libc::mprotect(closed as *mut _, PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::munmap(gone as *mut _, PAGE), 0);
        }
        assert_eq!(library.call(4) + library.call(6), 2010);
        assert_eq!(store.collect().unwrap().files, 0);
        library.close();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("libpatched.so"), "{maps}");
        assert_eq!(store.collect().unwrap().files, 1);
        // And come again.
        let library = Library::load(path);
        assert_eq!(library.call(5), 5);
        patch_all(&library, |at| at as i32 + 1000);
        assert_eq!(share(&store).unwrap().pages, PAGES - 1);
        check_all(&library, |at| at as i32 + 1000);
    });
    assert!(child.wait());
}

/// Another program has its own.
#[test]
fn exec_begins_anew() {
    let home = Home::new();
    process(&home, |store, library| {
        patch_all(library, |at| at as i32 + 1000);
        share(store).unwrap();
        assert!(Command::new("true").status().unwrap().success());
    });
}

/// In another file the kernel would not know a probe's breakpoint, and end the program.
#[test]
fn breakpoints_stay_where_they_are() {
    let home = Home::new();
    process(&home, |store, library| {
        patch_all(library, |at| at as i32 + 1000);
        library.write(30, 0, &[0xcc]);
        let shared = share(store).unwrap();
        assert_eq!((shared.pages, shared.breakpoints), (PAGES - 2, 1));
        assert_eq!(library.private(), 1);
        library.write(30, 0, &[0xb8]);
        assert_eq!(share(store).unwrap().published, 1);
        check_all(library, |at| at as i32 + 1000);
    });
}

#[test]
fn several_threads_are_refused() {
    let home = Home::new();
    process(&home, |store, library| {
        library.patch(3, 33);
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert_eq!(share(store).unwrap_err().fault(), Fault::Threads);
        drop(end);
        _ = thread.join().unwrap();
        // The kernel may still be about to bury it.
        while share(store).is_err_and(|error| error.fault() == Fault::Threads) {}
        assert_eq!((library.private(), library.call(3)), (0, 33));
    });
}

#[test]
fn locked_memory_is_refused() {
    let home = Home::new();
    process(&home, |store, library| {
        library.patch(3, 33);
        let page = library.address(3) as *const _;
        // SAFETY: a page of the library's.
        assert_eq!(unsafe { libc::mlock(page, PAGE) }, 0);
        assert_eq!(share(store).unwrap_err().fault(), Fault::Locked);
        assert_eq!((library.private(), library.call(3)), (1, 33));
    });
}

#[test]
fn what_is_not_loaded_is_not_shared() {
    let home = Home::new();
    process(&home, |store, _| {
        let error = store.share_text(Object::Named("libnone.so")).unwrap_err();
        assert_eq!(error.fault(), Fault::NoObject);
    });
}

/// All objects at once, among them what this code is in itself and libc, whose every page is written.
#[test]
fn the_whole_process_is_shared() {
    let home = Home::new();
    for round in 0..2 {
        process(&home, |store, library| {
            let mut written = 0;
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            for line in maps
                .lines()
                .filter(|line| line.contains("r-xp") && line.contains('/'))
            {
                let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                let (start, end) = (number(start), number(end));
                let code = libc::PROT_READ | libc::PROT_EXEC;
                // SAFETY: code that stays what it is, byte for byte.
                unsafe {
                    let both = code | libc::PROT_WRITE;
                    assert_eq!(libc::mprotect(start as *mut _, end - start, both), 0);
                    for page in (start..end).step_by(PAGE) {
                        let byte = page as *mut u8;
                        byte.write_volatile(byte.read_volatile());
                    }
                    assert_eq!(libc::mprotect(start as *mut _, end - start, code), 0);
                }
                written += (end - start) / PAGE;
            }
            let shared = store.share_text(Object::All).unwrap();
            assert_eq!((shared.pages, shared.fault), (written, None));
            assert_eq!(shared.published, if round == 0 { written } else { 0 });
            assert_eq!(library.private(), 0);
            check_all(library, |at| at as i32);
        });
    }
}

#[test]
fn changed_and_truncated_files_are_not_used() {
    let home = Home::new();
    let share_all = |fault: Option<Fault>| {
        process(&home, |store, library| {
            patch_all(library, |at| at as i32 + 1000);
            match (share(store), fault) {
                (Ok(shared), _) => assert_eq!(shared.fault.map(|error| error.fault()), fault),
                (Err(error), fault) => assert_eq!(Some(error.fault()), fault),
            }
            check_all(library, |at| at as i32 + 1000);
        });
    };
    share_all(None);
    let usage = home.store().usage().unwrap();
    let path = home.path().join(&usage.entries[0].file);
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    // In the middle of the code.
    changed[PAGE * 30 + 1] ^= 0x40;
    for bytes in [&changed[..], &whole[..PAGE * 20], &whole[..PAGE * 20 + 100]] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        share_all(None);
        // What it lacks has been published beside it.
        assert_eq!(files(&home), 2);
        home.store().collect().unwrap();
        share_all(None);
    }
    // Nothing is left of it but the name, which is that of what would be published.
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"").unwrap();
    share_all(Some(Fault::Damaged));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    share_all(Some(Fault::Damaged));
    assert_eq!(home.store().clear().unwrap().files, 1);
    share_all(None);
}

#[test]
fn a_file_system_without_code_is_said_to_be_one() {
    const TEST: &str = "a_file_system_without_code_is_said_to_be_one";
    if !in_test(TEST) {
        return in_small_file_system(TEST, "size=8m,noexec");
    }
    let path = library::path();
    let child = fork(|| {
        let (store, library) = (Store::open().unwrap(), Library::load(path));
        library.patch(3, 33);
        assert_eq!(share(&store).unwrap_err().fault(), Fault::NoExec);
        assert_eq!((library.private(), library.call(3)), (1, 33));
        // Data has no need of it.
        assert_eq!(store.freeze(vec![7u8; 10]).unwrap()[..], [7; 10]);
    });
    assert!(child.wait());
}

#[test]
fn a_full_file_system_leaves_code_as_it_is() {
    const TEST: &str = "a_full_file_system_leaves_code_as_it_is";
    if !in_test(TEST) {
        return in_small_file_system(TEST, "size=200k");
    }
    let path = library::path();
    let child = fork(|| {
        let (store, library) = (Store::open().unwrap(), Library::load(path));
        patch_all(&library, |at| at as i32 + 1000);
        assert_eq!(share(&store).unwrap_err().fault(), Fault::Space);
        assert_eq!(library.private(), PAGES - 1);
        check_all(&library, |at| at as i32 + 1000);
        assert_eq!(store.held().unwrap().files, 0);
    });
    assert!(child.wait());
}

/// Under a filter that refuses one of the calls that sharing makes, whichever it is, code stays what it is.
#[test]
fn each_call_may_be_refused() {
    let home = Home::new();
    for call in [
        libc::SYS_openat,
        libc::SYS_pwrite64,
        libc::SYS_pread64,
        libc::SYS_ftruncate,
        libc::SYS_linkat,
        libc::SYS_fcntl,
        libc::SYS_mmap,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_readlink,
        libc::SYS_getdents64,
        libc::SYS_rt_sigprocmask,
    ] {
        process(&home, |store, library| {
            patch_all(library, |at| at as i32 + 1000);
            helpers::refuse(call, libc::EPERM);
            _ = share(store);
            check_all(library, |at| at as i32 + 1000);
        });
        process(&home, |store, library| {
            patch_all(library, |at| at as i32 + 1000);
            assert_eq!(share(store).unwrap().fault, None);
            check_all(library, |at| at as i32 + 1000);
        });
        home.store().clear().unwrap();
    }
}

/// The guard for patched code knows which pages nobody else writes, also among threads.
#[test]
fn a_patch_ends_in_the_store() {
    let home = Home::new();
    for published in [1, 0] {
        process(&home, |store, library| {
            let (end, wait) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || wait.recv());
            library.patch(9, 99);
            let begin = |at: usize| {
                // SAFETY: no thread runs this function, and nothing else is changed.
                unsafe { sksm::Patch::begin(library.address(at) + 1, 4) }.unwrap()
            };
            let mut patch = begin(3);
            patch
                .write(library.address(3) + 1, &33i32.to_le_bytes())
                .unwrap();
            let shared = patch.finish_and_share(store).unwrap();
            assert_eq!((shared.pages, shared.published), (1, published));
            assert_eq!((library.call(3), library.call(9)), (33, 99));
            assert_eq!(library.private(), 1);
            // While another has the page open, it is written.
            let other = begin(4);
            let mut patch = begin(4);
            patch
                .write(library.address(4) + 1, &44i32.to_le_bytes())
                .unwrap();
            assert_eq!(patch.finish_and_share(store).unwrap(), Shared::default());
            assert_eq!(library.private(), 2);
            assert_eq!(other.finish_and_share(store).unwrap().pages, 1);
            assert_eq!((library.call(4), library.private()), (44, 1));
            drop(end);
            _ = thread.join().unwrap();
        });
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        skip(program, "it is not installed");
    }
    found
}

/// A process that has shared the library's code, and then does this.
fn sharing(home: &Home, work: impl FnOnce(&Library)) -> helpers::Child {
    let path = library::path();
    let (mut reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = fork(|| {
        let (store, library) = (home.store(), Library::load(path));
        patch_all(&library, |at| at as i32 + 1000);
        share(&store).unwrap();
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        work(&library);
    });
    std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
    child
}

fn forever() {
    std::thread::sleep(std::time::Duration::from_secs(3600));
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn gdb_finds_symbols_and_bytes() {
    if !has("gdb") {
        return;
    }
    let home = Home::new();
    let child = sharing(&home, |_| forever());
    let core = home.path().join("core");
    let said = output(
        Command::new("gdb")
            .args(["--nx", "--batch", "-p", &child.pid().to_string()])
            .args(["-ex", "info symbol f7", "-ex", "x/wx (char*)f7+1"])
            .args(["-ex", &format!("gcore {}", core.display())]),
    );
    assert!(said.contains("f7 in section .text of"), "{said}");
    assert!(said.contains("0x000003ef"), "{said}");
    child.kill();
    let said = output(
        Command::new("gdb")
            .args([
                "--nx",
                "--batch",
                "-ex",
                "info symbol f7",
                "-ex",
                "x/wx (char*)f7+1",
            ])
            .arg(std::env::current_exe().unwrap())
            .arg(&core),
    );
    assert!(said.contains("f7 in section .text of"), "{said}");
    assert!(said.contains("0x000003ef"), "{said}");
}

#[test]
fn perf_finds_symbols() {
    const TEST: &str = "perf_finds_symbols";
    if in_test(TEST) {
        let store = Store::open().unwrap();
        let path = std::env::var_os("SKSM_TEST_LIBRARY").unwrap();
        let child = fork(|| {
            let library = Library::load(Path::new(&path));
            patch_all(&library, |at| at as i32 + 1000);
            library.write(63, 1, &7777i32.to_le_bytes());
            assert_eq!(share(&store).unwrap().pages, PAGES);
            library.call(63);
        });
        assert!(child.wait());
        return;
    }
    if !has("perf") {
        return;
    }
    let home = Home::new();
    let data = tempfile::NamedTempFile::new().unwrap();
    let test = again(TEST, home.path());
    let mut perf = Command::new("perf");
    perf.args(["record", "--event", "cpu-clock", "--output"])
        .arg(data.path());
    perf.arg("--").arg(test.get_program()).args(test.get_args());
    for (name, value) in test.get_envs() {
        perf.env(name, value.unwrap());
    }
    let said = output(perf.env("SKSM_TEST_LIBRARY", library::path()));
    if said.contains("perf_event_paranoid") || said.contains("No permission") {
        skip("perf", "it may not look here");
        return;
    }
    let report = output(
        Command::new("perf")
            .args(["report", "--stdio", "--sort", "dso,symbol", "--input"])
            .arg(data.path()),
    );
    let line = report.lines().find(|line| line.contains("f63"));
    let line = line.unwrap_or_else(|| panic!("{said}\n{report}"));
    assert!(line.contains("libpatched.so."), "{line}");
}
