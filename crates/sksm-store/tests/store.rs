//! What stands against the store, and what becomes of it while others are at it.

mod helpers;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use helpers::{Home, again, in_small_file_system, in_test, skip};
use sksm_store::{Fault, Store};

fn numbers(seed: u64, count: u64) -> Vec<u64> {
    (0..count).map(|at| at.wrapping_mul(seed | 1)).collect()
}

fn published(home: &Home) -> Vec<String> {
    let names = fs::read_dir(home.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != ".lock").collect();
    names.sort();
    names
}

#[test]
fn the_same_is_there_once() {
    let home = Home::new();
    let store = home.store();
    let one = store.freeze(numbers(3, 10_000)).unwrap();
    let two = store.freeze(numbers(3, 10_000)).unwrap();
    let other = store.freeze(numbers(5, 10_000)).unwrap();
    assert_eq!(one[..], numbers(3, 10_000));
    assert_eq!(two[..], one[..]);
    assert_eq!(other[..], numbers(5, 10_000));
    assert_eq!(published(&home).len(), 2);
    let usage = store.usage().unwrap();
    let entry = usage
        .entries
        .iter()
        .find(|entry| entry.mapped > 100_000)
        .unwrap();
    assert_eq!(entry.users.len(), 1);
    assert_eq!(entry.users[0].pid, std::process::id());
    assert_eq!(entry.saved(), entry.bytes as i64);
    let mode = fs::metadata(home.path().join(&entry.file)).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o400);
}

/// Others of the user have to read it.
#[test]
fn the_umask_changes_nothing() {
    let home = Home::new();
    let child = helpers::fork(|| {
        // SAFETY: takes a number; of this child alone.
        unsafe { libc::umask(0o777) };
        drop(home.store().freeze(numbers(3, 1000)).unwrap());
    });
    assert!(child.wait());
    drop(home.store().freeze(numbers(3, 1000)).unwrap());
}

#[test]
fn nothing_is_frozen_too() {
    let home = Home::new();
    let empty = home.store().freeze(Vec::<u64>::new()).unwrap();
    assert_eq!(empty[..], []);
    let no_bytes = home.store().freeze(vec![(); 3]).unwrap();
    assert_eq!(no_bytes.len(), 3);
    assert_eq!(published(&home).len(), 0);
}

#[test]
fn what_is_leaked_stays() {
    let home = Home::new();
    let store = home.store();
    let frozen = store.freeze(numbers(3, 10_000)).unwrap();
    let other = frozen.clone();
    let leaked = [other.leak(), frozen.leak()];
    store.clear().unwrap();
    assert_eq!(leaked, [numbers(3, 10_000), numbers(3, 10_000)]);
    assert_eq!(store.freeze(vec![(); 3]).unwrap().leak().len(), 3);
}

#[test]
fn a_limit_that_is_no_size_is_refused() {
    const TEST: &str = "a_limit_that_is_no_size_is_refused";
    if in_test(TEST) {
        let fault = Store::open().map_err(|error| error.fault());
        assert_eq!(fault.unwrap_err(), Fault::LimitUnclear);
        return;
    }
    let home = Home::new();
    let mut test = again(TEST, home.path());
    test.env("SKSM_STORE_LIMIT", "1.5 GB");
    assert!(test.status().unwrap().success());
}

/// Of types for which a page's start is not round enough.
#[test]
fn an_alignment_of_more_than_a_page_is_refused() {
    #[derive(Clone, Copy, Debug)]
    #[repr(C, align(8192))]
    struct Round([u8; 8192]);
    // SAFETY: it has no padding.
    unsafe impl bytemuck::NoUninit for Round {}
    let home = Home::new();
    let kept = home.store().freeze(vec![Round([7; 8192])]).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Alignment);
    assert_eq!(kept.data[0].0, [7; 8192]);
}

/// A copy keeps the memory when the first goes, and threads may share it.
#[test]
fn copies_are_references() {
    let home = Home::new();
    let one = home.store().freeze(numbers(7, 1000)).unwrap();
    let two = one.clone();
    assert_eq!(one.as_ptr(), two.as_ptr());
    drop(one);
    let sum = std::thread::spawn(move || two.iter().fold(0u64, |sum, n| sum.wrapping_add(*n)));
    let right = numbers(7, 1000)
        .iter()
        .fold(0u64, |sum, n| sum.wrapping_add(*n));
    assert_eq!(sum.join().unwrap(), right);
}

/// What cannot be trusted with code is refused, each with its own reason.
#[test]
fn bad_directories_are_refused() {
    let home = Home::new();
    let inside = |name: &str| home.path().join(name);
    let fault = |path: &Path| Store::open_in(path).unwrap_err().fault();

    fs::create_dir(inside("open")).unwrap();
    fs::set_permissions(inside("open"), fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(fault(&inside("open")), Fault::Mode);
    fs::create_dir(inside("real")).unwrap();
    symlink(inside("real"), inside("link")).unwrap();
    assert_eq!(fault(&inside("link")), Fault::NotDirectory);
    symlink(inside("nowhere"), inside("dangling")).unwrap();
    assert_eq!(fault(&inside("dangling")), Fault::NotDirectory);
    fs::write(inside("file"), "").unwrap();
    assert_eq!(fault(&inside("file")), Fault::NotDirectory);
    assert_eq!(fault(&inside("none/at/all")), Fault::Directory);
    assert_eq!(fault(Path::new("relative")), Fault::Path);
    assert_eq!(fault(&inside(&"x".repeat(250))), Fault::Path);
    assert_eq!(fault(Path::new("/proc")), Fault::Mode);
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    assert_eq!(fault(&disk.path().join("store")), Fault::FileSystem);
    assert!(!disk.path().join("store").exists(), "it is left behind");
}

/// Another user's directory, and for another user ours.
#[test]
fn users_are_apart() {
    if !in_test("users_are_apart") {
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } != 0 {
            skip("users-are-apart", "only root can be two users");
            return;
        }
        let home = Home::new();
        home.store().freeze(numbers(3, 1000)).unwrap();
        for (uid, dir) in [(0, "foreign"), (65534, "")] {
            let path = home.path().join(dir);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            if !dir.is_empty() {
                std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            }
            let mut test = again("users_are_apart", &path);
            test.env("SKSM_TEST_UID", uid.to_string());
            assert!(test.status().unwrap().success(), "as user {uid}");
        }
        return;
    }
    let uid: u32 = std::env::var("SKSM_TEST_UID").unwrap().parse().unwrap();
    // SAFETY: takes a number; this process has one thread that does anything.
    assert_eq!(unsafe { libc::setuid(uid) }, 0);
    let error = Store::open().unwrap_err();
    assert_eq!(error.fault(), Fault::Owner, "{error}");
    assert!(error.to_string().contains("SKSM_STORE_DIR"));
}

#[test]
fn links_and_changed_files_are_not_used() {
    let home = Home::new();
    let store = home.store();
    drop(store.freeze(numbers(3, 1000)).unwrap());
    let name = home.path().join(&published(&home)[0]);
    let whole = fs::read(&name).unwrap();
    let write = |bytes: &[u8], mode| {
        fs::remove_file(&name).unwrap();
        fs::write(&name, bytes).unwrap();
        fs::set_permissions(&name, fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut changed = whole.clone();
    changed[5000] ^= 1;
    let longer = [whole.as_slice(), b"x"].concat();
    let cases: [(&[u8], u32); 5] = [
        (&changed, 0o400),
        (&whole[..4000], 0o400),
        (&longer, 0o400),
        (b"", 0o400),
        (&whole, 0o600),
    ];
    for (bytes, mode) in cases {
        write(bytes, mode);
        let kept = store.freeze(numbers(3, 1000)).unwrap_err();
        assert_eq!(kept.error.fault(), Fault::Damaged);
        assert_eq!(kept.into_data(), numbers(3, 1000));
    }
    // Another user's, as root could put it there.
    write(&whole, 0o400);
    if chown(&name, Some(65534), None).is_ok() {
        let kept = store.freeze(numbers(3, 1000)).unwrap_err();
        assert_eq!(kept.error.fault(), Fault::Damaged);
    }
    fs::remove_file(&name).unwrap();
    symlink("/etc/passwd", &name).unwrap();
    let kept = store.freeze(numbers(3, 1000)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Damaged);
    fs::remove_file(&name).unwrap();
    fs::create_dir(&name).unwrap();
    let kept = store.freeze(numbers(3, 1000)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Damaged);
    fs::remove_dir(&name).unwrap();
    // A lock that is a link is not followed.
    let lock = home.path().join(".lock");
    fs::remove_file(&lock).unwrap();
    symlink(home.path().join("victim"), &lock).unwrap();
    assert!(store.freeze(numbers(3, 1000)).is_err());
    assert!(!home.path().join("victim").exists());
    fs::remove_file(&lock).unwrap();
    assert_eq!(
        store.freeze(numbers(3, 1000)).unwrap()[..],
        numbers(3, 1000)
    );
}

/// What is mapped is in use, in this process and in others, and nothing else is.
#[test]
fn only_the_unused_is_collected() {
    let home = Home::new();
    let store = home.store();
    let kept = store.freeze(numbers(3, 10_000)).unwrap();
    drop(store.freeze(numbers(5, 10_000)).unwrap());
    let before = store.held().unwrap();
    assert_eq!(before.files, 2);
    let removed = store.collect().unwrap();
    assert_eq!((removed.files, removed.bytes), (1, before.bytes / 2));
    assert_eq!(published(&home).len(), 1);
    // Only a child has it mapped.
    let child = helpers::fork(|| std::thread::sleep(std::time::Duration::from_secs(3600)));
    drop(kept);
    assert_eq!(store.collect().unwrap().files, 0);
    child.kill();
    assert_eq!(store.collect().unwrap().files, 1);
    assert_eq!(published(&home).len(), 0);
}

#[test]
fn what_is_removed_while_it_is_mapped_stays() {
    let home = Home::new();
    let store = home.store();
    let one = store.freeze(numbers(3, 100_000)).unwrap();
    assert_eq!(store.clear().unwrap().files, 1);
    assert_eq!(store.held().unwrap().files, 0);
    let two = store.freeze(numbers(3, 100_000)).unwrap();
    assert_eq!(one[..], numbers(3, 100_000));
    assert_eq!(two[..], one[..]);
    fs::remove_dir_all(home.path()).unwrap();
    assert_eq!(one[..], two[..]);
    assert!(store.freeze(numbers(5, 10)).is_err());
}

#[test]
fn the_limit_holds_and_the_oldest_go_first() {
    let home = Home::new();
    let store = home.store().with_limit(1 << 20);
    let pages = |seed: u64, pages: u64| store.freeze(numbers(seed, pages * 512));
    drop(pages(1, 100).unwrap());
    let used = pages(3, 100).unwrap();
    drop(pages(5, 50).unwrap());
    let before = published(&home);
    // 250 of 256 are taken; the first goes, and the third stays.
    drop(pages(7, 100).unwrap());
    let after = published(&home);
    assert_eq!(after.len(), 3);
    assert_eq!(
        before.iter().filter(|name| !after.contains(name)).count(),
        1
    );
    assert!(store.held().unwrap().bytes <= 1 << 20);
    // All that nobody uses would not be enough.
    let kept = pages(9, 200).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Limit);
    assert_eq!(kept.data, numbers(9, 200 * 512));
    assert_eq!(pages(11, 257).unwrap_err().error.fault(), Fault::Limit);
    assert_eq!(used[..], numbers(3, 100 * 512));
}

#[test]
fn a_full_file_system_is_no_harm() {
    if !in_test("a_full_file_system_is_no_harm") {
        return in_small_file_system("a_full_file_system_is_no_harm", "size=1m");
    }
    let store = Store::open().unwrap().with_limit(u64::MAX);
    let used = store.freeze(numbers(3, 100 * 512)).unwrap();
    drop(store.freeze(numbers(5, 100 * 512)).unwrap());
    // There is room once the unused one has gone.
    let other = store.freeze(numbers(7, 120 * 512)).unwrap();
    assert_eq!(store.held().unwrap().files, 2);
    let kept = store.freeze(numbers(9, 100 * 512)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Space, "{}", kept.error);
    assert_eq!(kept.data, numbers(9, 100 * 512));
    // Nothing half-written is left, neither a name nor memory.
    assert_eq!(store.held().unwrap().files, 2);
    drop(other);
    assert_eq!(
        store.freeze(numbers(9, 100 * 512)).unwrap()[..],
        numbers(9, 100 * 512)
    );
    assert_eq!(used[..], numbers(3, 100 * 512));
}

#[test]
fn no_inodes_are_no_harm() {
    if !in_test("no_inodes_are_no_harm") {
        return in_small_file_system("no_inodes_are_no_harm", "size=8m,nr_inodes=4");
    }
    // The root, the directory, the lock, and one more.
    let store = Store::open().unwrap();
    let used = store.freeze(numbers(3, 1000)).unwrap();
    let kept = store.freeze(numbers(5, 1000)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Space, "{}", kept.error);
    assert_eq!(used[..], numbers(3, 1000));
}

/// As few kernels have quotas for tmpfs, a filter answers for one.
#[test]
fn a_quota_is_no_harm() {
    if !in_test("a_quota_is_no_harm") {
        let home = Home::new();
        let used = home.store().freeze(numbers(3, 1000)).unwrap();
        let mut test = again("a_quota_is_no_harm", home.path());
        assert!(test.status().unwrap().success());
        assert_eq!(published(&home).len(), 1);
        drop(used);
        return;
    }
    let store = Store::open().unwrap();
    helpers::refuse(libc::SYS_pwrite64, libc::EDQUOT);
    let kept = store.freeze(numbers(5, 1000)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::Quota, "{}", kept.error);
    assert_eq!(kept.data, numbers(5, 1000));
    // What is there already takes no more.
    assert_eq!(
        store.freeze(numbers(3, 1000)).unwrap()[..],
        numbers(3, 1000)
    );
}

/// Whatever the kernel refuses, the data is given back or frozen, and nothing half-written is there.
#[test]
fn each_call_may_be_refused() {
    const CALLS: [i64; 11] = [
        libc::SYS_openat,
        libc::SYS_pwrite64,
        libc::SYS_pread64,
        libc::SYS_ftruncate,
        libc::SYS_linkat,
        libc::SYS_fcntl,
        libc::SYS_mmap,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_getdents64,
        libc::SYS_unlinkat,
    ];
    const TEST: &str = "each_call_may_be_refused";
    if !in_test(TEST) {
        for call in CALLS {
            let home = Home::new();
            drop(home.store().freeze(numbers(3, 1000)).unwrap());
            let mut test = again(TEST, home.path());
            test.env("SKSM_TEST_CALL", call.to_string());
            assert!(test.status().unwrap().success(), "call {call}");
            let store = home.store();
            assert_eq!(
                store.freeze(numbers(3, 1000)).unwrap()[..],
                numbers(3, 1000)
            );
            assert_eq!(
                store.freeze(numbers(5, 1000)).unwrap()[..],
                numbers(5, 1000)
            );
        }
        return;
    }
    let call = std::env::var("SKSM_TEST_CALL").unwrap().parse().unwrap();
    let store = Store::open().unwrap();
    let data = [numbers(3, 1000), numbers(5, 1000)];
    let right = data.clone();
    helpers::refuse(call, libc::EPERM);
    for (data, right) in data.into_iter().zip(right) {
        match store.freeze(data) {
            Ok(frozen) => assert_eq!(frozen[..], right),
            Err(kept) => assert_eq!(kept.data, right),
        }
    }
    _ = store.collect();
    // What the harness does at the end may need the call.
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) };
}

/// For a file that is larger than it may write the kernel would end the process.
#[test]
fn the_size_that_a_file_may_have_is_asked_for() {
    if !in_test("the_size_that_a_file_may_have_is_asked_for") {
        let home = Home::new();
        let mut test = again("the_size_that_a_file_may_have_is_asked_for", home.path());
        assert!(test.status().unwrap().success());
        return;
    }
    let limit = libc::rlimit {
        rlim_cur: 1 << 16,
        rlim_max: 1 << 16,
    };
    // SAFETY: reads one limit, ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    let store = Store::open().unwrap();
    let kept = store.freeze(numbers(3, 10_000)).unwrap_err();
    assert_eq!(kept.error.fault(), Fault::FileSize);
    store.freeze(numbers(3, 1000)).unwrap();
}

/// The last descriptors are gone.
#[test]
fn no_descriptors_are_no_harm() {
    if !in_test("no_descriptors_are_no_harm") {
        let home = Home::new();
        let mut test = again("no_descriptors_are_no_harm", home.path());
        assert!(test.status().unwrap().success());
        return;
    }
    let store = Store::open().unwrap();
    let mut files = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        files.push(file);
    }
    // With none to be had, and then with one more each time: until it works, nothing else happens.
    let mut refused = 0;
    while let Err(kept) = store.freeze(numbers(3, 1000)) {
        assert_eq!(kept.error.raw_os_error(), Some(libc::EMFILE));
        assert_eq!(kept.data, numbers(3, 1000));
        refused += 1;
        files.pop();
    }
    assert!((1..6).contains(&refused), "{refused}");
    drop(files);
    assert_eq!(
        store.freeze(numbers(3, 1000)).unwrap()[..],
        numbers(3, 1000)
    );
}

/// Each has what it froze, and all of them the same memory.
#[test]
fn two_hundred_publish_at_once() {
    const TEST: &str = "two_hundred_publish_at_once";
    if in_test(TEST) {
        let store = Store::open().unwrap();
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let frozen = store.freeze(numbers(3, 20_000)).unwrap();
        assert_eq!(frozen[..], numbers(3, 20_000));
        println!("frozen");
        std::io::stdin().read_line(&mut line).unwrap();
        return;
    }
    let home = Home::new();
    let store = home.store();
    let mut crew: Vec<_> = (0..200)
        .map(|_| {
            let mut test = again(TEST, home.path());
            test.stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for process in &mut crew {
        use std::io::Write;
        process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
    // Not by the clock: until all of them have it.
    loop {
        let usage = store.usage().unwrap();
        let users = usage.entries.first().map_or(0, |entry| entry.users.len());
        if users == crew.len() {
            assert_eq!(usage.entries.len(), 1);
            assert_eq!(usage.entries[0].mapped, 200 * usage.entries[0].bytes);
            break;
        }
        for process in &mut crew {
            assert_eq!(process.try_wait().unwrap(), None);
        }
        // Whoever looks too often takes their time.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(store.collect().unwrap().files, 0);
    for mut process in crew {
        drop(process.stdin.take());
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(store.collect().unwrap().files, 1);
}

/// A child that was forked meanwhile has the descriptor, and not the lock.
#[test]
fn a_child_of_a_publisher_holds_no_lock() {
    const TEST: &str = "a_child_of_a_publisher_holds_no_lock";
    if in_test(TEST) {
        Store::open().unwrap().freeze(numbers(3, 1000)).unwrap();
        return;
    }
    let home = Home::new();
    drop(home.store().freeze(numbers(1, 10)).unwrap());
    // All keys at once, as if this process published everything, and then a child of it.
    let lock = fs::File::options()
        .write(true)
        .open(home.path().join(".lock"))
        .unwrap();
    helpers::lock_all(&lock);
    let child = helpers::fork(|| std::thread::sleep(std::time::Duration::from_secs(3600)));
    let mut other = again(TEST, home.path()).spawn().unwrap();
    // It waits for who holds them.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(other.try_wait().unwrap(), None);
    drop(lock);
    assert!(other.wait().unwrap().success());
    child.kill();
}

/// A set-uid program: this one's copy, with the rights of nobody rather than root's, which is as much another user.
#[test]
fn a_privileged_program_is_left_alone() {
    const TEST: &str = "a_privileged_program_is_left_alone";
    if in_test(TEST) {
        // SAFETY: it asks for a number.
        if unsafe { libc::geteuid() } == 0 {
            return skip("set-uid", "the file system is mounted nosuid");
        }
        assert_eq!(Store::open().unwrap_err().fault(), Fault::Privileged);
        return;
    }
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        skip("set-uid", "only root can give a program to another user");
        return;
    }
    let home = Home::new();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = place.path().join("set-uid");
    let test = again(TEST, home.path());
    fs::copy(test.get_program(), &program).unwrap();
    if let Err(error) = chown(&program, Some(65534), Some(65534)) {
        return skip("set-uid", &format!("there is no other user: {error}"));
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut set_uid = Command::new(program);
    set_uid.args(test.get_args());
    for (name, value) in test.get_envs() {
        set_uid.env(name, value.unwrap());
    }
    assert!(set_uid.status().unwrap().success());
    assert_eq!(published(&home).len(), 0);
}

/// A shared volume, seen from two mount namespaces at two places.
#[test]
fn containers_share_a_volume() {
    const TEST: &str = "containers_share_a_volume";
    if in_test(TEST) {
        let store = Store::open().unwrap();
        let frozen = store.freeze(numbers(3, 10_000)).unwrap();
        assert_eq!(frozen[..], numbers(3, 10_000));
        let names = fs::read_dir(Store::directory()).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        return;
    }
    let home = Home::new();
    let kept = home.store().freeze(numbers(3, 10_000)).unwrap();
    let inside = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "mount --bind {0} {1} && SKSM_TEST={TEST} SKSM_STORE_DIR={1} exec {2} --exact {TEST} --nocapture",
        home.path().display(),
        inside.path().display(),
        program.display()
    );
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "sh",
            "-c",
            &script,
        ])
        .status()
        .unwrap();
    assert!(status.success());
    drop(kept);
}
