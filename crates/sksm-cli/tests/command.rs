//! The command as a user runs it, on whatever kernel this machine has.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use sksm::{Support, support};

fn sksm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = sksm(arguments);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Memory of this test process, whose pages are known.
struct Pages(*mut u8, usize);

impl Pages {
    fn new(count: usize, fill: impl Fn(usize) -> [u64; 2]) -> Self {
        let len = count * sksm::page_size();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, placed by the kernel, and written within its length.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            for number in 0..count {
                let page = start.byte_add(number * sksm::page_size());
                page.cast::<[u64; 2]>().write_volatile(fill(number));
            }
            Pages(start.cast(), len)
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn estimate() -> [f64; 3] {
    let pid = std::process::id().to_string();
    let report = json(&["estimate", "--json", "--pid", &pid]);
    assert_eq!(report["processes"][0]["pid"], std::process::id());
    [
        &report["within_domains"]["pages"],
        &report["within_domains"]["saved_pages"],
        &report["zero"]["saved_pages"],
    ]
    .map(|value| value.as_f64().unwrap())
}

/// Held by tests that count this process's memory, and by those that use much of it.
static MEMORY: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MEMORY.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// A few pages are other threads' business.
#[test]
fn the_estimate_is_what_the_memory_holds() {
    let _alone = alone();
    let near = |found: f64, right: f64| (found - right).abs() < 40.0;
    let before = estimate();
    let equal = Pages::new(1000, |_| [7, 7]);
    let zero = Pages::new(500, |_| [0, 0]);
    let different = Pages::new(700, |number| [8, number as u64]);
    let after = estimate();
    let [pages, saved, zeros] = [0, 1, 2].map(|figure| after[figure] - before[figure]);
    assert!(near(pages, 2200.0), "{pages} pages");
    // One copy serves 256 mappings.
    assert!(near(saved, 1000.0 - 4.0 + 500.0), "{saved} saved");
    assert!(near(zeros, 500.0), "{zeros} pages of zeros");
    drop((equal, zero, different));
}

/// Whether a page of this process is mapped by it alone, as its pagemap says.
fn exclusive(addr: usize) -> bool {
    use std::os::unix::fs::FileExt;
    let mut entry = [0; 8];
    let file = std::fs::File::open("/proc/self/pagemap").unwrap();
    let offset = addr / sksm::page_size() * 8;
    file.read_exact_at(&mut entry, offset as u64).unwrap();
    u64::from_ne_bytes(entry) >> 56 & 1 != 0
}

/// Pages in common since a fork stay so, which not every way of reading them sees to.
#[test]
fn reading_ends_no_sharing() {
    let _alone = alone();
    let pages = Pages::new(300, |number| [9, number as u64]);
    let addrs = (0..300).map(|number| pages.0 as usize + number * sksm::page_size());
    let shared = || addrs.clone().filter(|addr| !exclusive(*addr)).count();
    assert_eq!(shared(), 0);
    // SAFETY: the child only waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    let before = shared();
    let pid = child.to_string();
    let report = json(&["estimate", "--json", "--pid", &pid]);
    let after = shared();
    // SAFETY: our own child, not waited for yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert_eq!((before, after), (300, 300));
    assert!(report["read_bytes"].as_u64().unwrap() >= 300 * 4096);
}

/// A forked child that has done what it was to do, and now waits until it is killed.
struct Forked(i32);

impl Forked {
    /// Of an ordinary user, if this process may choose.
    fn new(prepare: impl FnOnce()) -> Self {
        let (mut reader, mut writer) = UnixStream::pair().unwrap();
        // SAFETY: glibc keeps its locks usable in the child, which only prepares and waits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: takes numbers only; own memory stays open to its user.
            unsafe {
                libc::setgid(NOBODY);
                libc::setuid(NOBODY);
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            prepare();
            writer.write_all(b"!").unwrap();
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
        reader.read_exact(&mut [0]).unwrap();
        Forked(child)
    }

    fn pid(&self) -> String {
        self.0.to_string()
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: our own child, not waited for yet.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// The command, run by an ordinary user.
fn as_nobody(arguments: &[&str]) -> Output {
    use std::os::unix::process::CommandExt;
    if !is_root() {
        return sksm(arguments);
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("sksm");
    // Not by this process: a child that another test forks meanwhile would keep it open to write, and nobody could run it.
    let copied = Command::new("cp")
        .args([env!("CARGO_BIN_EXE_sksm").as_ref(), program.as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let mut command = Command::new(&program);
    let command = command.args(arguments).uid(NOBODY).gid(NOBODY);
    command.output().unwrap()
}

/// Looks at these processes, by root and by their own user.
fn estimates(pids: &[&str], mut check: impl FnMut(Value)) {
    let arguments = [&["estimate", "--json", "--pid"] as &[&str], pids].concat();
    check(json(&arguments));
    let output = as_nobody(&arguments);
    assert!(output.status.success(), "{output:?}");
    check(serde_json::from_slice(&output.stdout).unwrap());
}

fn figures(report: &Value) -> [f64; 2] {
    ["pages", "saved_pages"].map(|name| report["within_domains"][name].as_f64().unwrap())
}

/// Pages that were read and never written are no memory, and look like pages that were.
#[test]
fn the_zero_page_is_not_counted() {
    let _alone = alone();
    let pages = |read: bool| {
        Forked::new(|| {
            // A quarter at least is there, so that all entries are looked at.
            let pages = Pages::new(1000, |number| [3, number as u64]);
            let page = sksm::page_size();
            // SAFETY: of this mapping, which nobody else uses.
            unsafe {
                libc::madvise(
                    pages.0.add(500 * page).cast(),
                    500 * page,
                    libc::MADV_DONTNEED,
                );
                for number in 500..if read { 1000 } else { 500 } {
                    std::hint::black_box(pages.0.add(number * page).read_volatile());
                }
            }
            std::mem::forget(pages);
        })
    };
    let (with, without) = (pages(true), pages(false));
    let mut seen = Vec::new();
    for pid in [with.pid(), without.pid()] {
        estimates(&[&pid], |report| seen.push(figures(&report)));
    }
    for (with, without) in [(seen[0], seen[2]), (seen[1], seen[3])] {
        assert!((with[0] - without[0]).abs() < 20.0, "{seen:?} pages");
        assert!((with[1] - without[1]).abs() < 20.0, "{seen:?} saved");
    }
}

/// Root sees the frames; others are told by addresses what a fork has left in common.
#[test]
fn pages_in_common_since_a_fork_are_one() {
    let _alone = alone();
    let pages = Pages::new(400, |number| [4, number as u64]);
    // Nothing changes in a process that only waits; in this one other tests go on.
    let parent = Forked::new(|| {
        for _ in 0..2 {
            // SAFETY: the child only waits, and ends with its parent.
            unsafe {
                if libc::fork() == 0 {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    loop {
                        libc::pause();
                    }
                }
            }
        }
    });
    drop(pages);
    let one = parent.pid();
    let children = std::fs::read_to_string(format!("/proc/{one}/task/{one}/children")).unwrap();
    let all: Vec<&str> = children.split_whitespace().chain([one.as_str()]).collect();
    assert_eq!(all.len(), 3);
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    estimates(&[&one], |report| alone.push(figures(&report)));
    estimates(&all, |report| together.push(figures(&report)));
    for (alone, together) in alone.iter().zip(&together) {
        assert!(alone[0] >= 400.0);
        let more = [0, 1].map(|figure| together[figure] - alone[figure]);
        assert!(more.iter().all(|more| *more < 100.0), "{more:?} more");
    }
}

/// Where in a page the command takes its sample, of 128 bytes.
const SAMPLE: usize = 1024;

/// A child with pages in any order: of these numbers, which differ; like others in the sample only; in groups of so many equal
/// ones; of zeros.
fn mixed(
    single: std::ops::Range<usize>,
    alike: usize,
    (groups, size): (usize, usize),
    zero: usize,
) -> Forked {
    let (first, single) = (single.start, single.len());
    Forked::new(|| {
        let all = single + alike + groups * size + zero;
        let pages = Pages::new(all, |_| [0, 0]);
        for number in 0..all {
            let (group, last) = (single + alike, all - zero);
            let (start, sample) = match number {
                number if number < single => (0, [1, first + number]),
                number if number < group => (number - single + 1, [2, 0]),
                number if number < last => (0, [3, first + (number - group) / size]),
                _ => (0, [0, 0]),
            };
            // SAFETY: within the mapping, whose number of pages is prime to this one.
            unsafe {
                let page = pages.0.add(number * 7919 % all * sksm::page_size());
                page.cast::<usize>().write_volatile(start);
                page.add(SAMPLE).cast::<[usize; 2]>().write_volatile(sample);
            }
        }
        std::mem::forget(pages);
    })
}

/// Whether pages are sampled first, as few have twins, or are read at once; and with both in one look.
#[test]
fn samples_change_no_figure() {
    let _alone = alone();
    // So few pairs that the probe hardly ever meets several of them.
    let few = || mixed(0..9000, 500, (60, 2), 300);
    let many = || mixed(8800..11_800, 300, (1500, 4), 100);
    let nothing = Forked::new(|| ());
    let mut shares = Vec::new();
    let mut look = |children: &[&Forked], right: [f64; 3]| {
        let pids: Vec<String> = children.iter().map(|child| child.pid()).collect();
        let all: Vec<&str> = pids.iter().map(String::as_str).collect();
        let (mut seen, mut bare) = (Vec::new(), Vec::new());
        let found = |report: &Value| {
            let [pages, saved] = figures(report);
            let zeros = report["zero"]["saved_pages"].as_f64().unwrap();
            [pages, saved, zeros, report["read_bytes"].as_f64().unwrap()]
        };
        estimates(&all, |report| seen.push(found(&report)));
        estimates(&[&nothing.pid()], |report| bare.push(found(&report)));
        for (seen, bare) in seen.iter().zip(&bare) {
            for (figure, right) in right.iter().enumerate() {
                let more = seen[figure] - bare[figure];
                // Each child has a few pages of its own.
                let near = 40.0 * children.len() as f64;
                assert!((more - right).abs() < near, "{seen:?}, {bare:?}: {right}");
            }
            shares.push((seen[3] - bare[3]) / (right[0] * sksm::page_size() as f64));
        }
    };
    look(&[&few()], [9920.0, 60.0 + 300.0, 300.0]);
    look(&[&many()], [9400.0, 4500.0 + 100.0, 100.0]);
    // Of pages that are sampled in one of them some have their twins in the other, which is read in full.
    let across = 200.0 + 300.0;
    let right = [19_320.0, 360.0 + 4600.0 + across, 400.0];
    look(&[&few(), &many()], right);
    // It was as it was meant to be.
    assert!(shares[..2].iter().all(|share| *share < 0.3), "{shares:?}");
    assert!(shares[2..4].iter().all(|share| *share > 0.9), "{shares:?}");
    // Which pages the probe meets is chance: as a rule one of them is sampled, and the other read.
    assert!(shares[4..].iter().all(|share| *share > 0.5), "{shares:?}");
}

/// A frame is not saved while a process has it that is not looked at: this one.
#[test]
fn what_others_keep_is_not_saved() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let pages = Pages::new(800, |number| [5, number as u64 % 400]);
    let keeps = Forked::new(|| ());
    // What it writes is what was there, but its own from then on; and only once.
    let writes = Forked::new(|| {
        // SAFETY: of a mapping that this child has as well, and nobody else uses.
        unsafe {
            for number in 0..400 {
                let byte = pages.0.add(number * sksm::page_size() + 64);
                byte.write_volatile(0);
            }
            let half = 400 * sksm::page_size();
            libc::munmap(pages.0.add(half).cast(), half);
        }
    });
    let saved = |pids: &[&str]| {
        let report = json(&[&["estimate", "--json", "--pid"] as &[&str], pids].concat());
        let [pages, saved] = figures(&report);
        assert!(pages >= 400.0, "{report}");
        saved
    };
    let alone = saved(&[&keeps.pid()]);
    assert!(alone < 100.0, "{alone} saved");
    // The page that merges first becomes the copy: one of this process's, if that has the lower number.
    let both = saved(&[&keeps.pid(), &writes.pid()]);
    let right = if keeps.0 < writes.0 { 400.0 } else { 0.0 };
    assert!((both - right).abs() < 100.0, "{both} saved");
    drop(pages);
}

/// A GiB more takes what it says: 4 MiB, or 2 more for a second look, or 1 more where some pages are sampled and others read.
#[test]
fn memory_is_bounded() {
    const GIB: usize = 1 << 30;
    let _alone = alone();
    let look = |children: &[&Forked], more: &[&str]| {
        let pids: Vec<String> = children.iter().map(|child| child.pid()).collect();
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        let arguments = [&["estimate", "--json"] as &[&str], more, &["--pid"], &pids].concat();
        let report = json(&arguments);
        (
            figures(&report)[0] as usize,
            report["own_peak_bytes"].as_f64().unwrap(),
        )
    };
    // Groups of equal pages, with samples that are zeros in some. In children: while a test forks, none of this process's pages
    // are its alone.
    let pages = |bytes, equal: usize, zeros: usize| {
        Forked::new(move || {
            let all = bytes / sksm::page_size();
            let pages = Pages::new(all, |number| [6, (number / equal) as u64]);
            for number in (0..all).filter(|number| number % 10 >= zeros) {
                // SAFETY: within the mapping.
                unsafe {
                    let sample = pages.0.add(number * sksm::page_size() + SAMPLE);
                    sample
                        .cast::<[usize; 2]>()
                        .write_volatile([bytes, number / equal]);
                }
            }
            std::mem::forget(pages);
        })
    };
    let settle: &[&str] = &["--settle", "0"];
    let cases = [
        (1, 0, &[] as &[&str], 4.0),
        (2, 0, &[], 4.0),
        (1, 3, &[], 5.0),
        (1, 0, settle, 6.0),
    ];
    for (equal, zeros, more, mib) in cases {
        // So much that all is in use that does not depend on it.
        let few = pages(GIB / 4, equal, zeros);
        let least = look(&[&few], more);
        let many = pages(GIB, equal, zeros);
        let most = look(&[&few, &many], more);
        drop((few, many));
        assert!((most.0 - least.0) * sksm::page_size() >= GIB - GIB / 100);
        let used = (most.1 - least.1) / f64::from(1 << 20);
        // How the workers share the pages among them is chance.
        assert!(
            used < mib + 1.0,
            "{used} MiB with {more:?}, {equal} equal, {zeros} zeros"
        );
    }
}

/// Pages of a figure that the estimate gives for a kind.
fn of_kind(report: &Value, kind: &str) -> f64 {
    report["kinds"][kind]["pages"].as_f64().unwrap()
}

#[test]
fn kinds_are_told_apart() {
    let _alone = alone();
    let pid = std::process::id().to_string();
    let what = ["--what", "text,data,heap,stack"];
    let look = || json(&[&["estimate", "--json", "--pid", &pid] as &[&str], &what].concat());
    let before = look();
    let (text, data) = (CopyOfFile::new(600), CopyOfFile::new(400));
    text.protect(libc::PROT_READ | libc::PROT_EXEC);
    let after = look();
    for (kind, right) in [("text", 600.0), ("data", 400.0)] {
        let more = of_kind(&after, kind) - of_kind(&before, kind);
        assert!((more - right).abs() < 40.0, "{more} pages of {kind}");
    }
    drop((text, data));
    // The heap and the stack of a program with one thread.
    let mut child = Command::new("bash")
        .args(["-c", "echo; read"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    let pid = child.id().to_string();
    let with = json(&[&["estimate", "--json", "--pid", &pid] as &[&str], &what].concat());
    let without = json(&["estimate", "--json", "--pid", &pid]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(of_kind(&with, "heap") > 0.0 && of_kind(&with, "stack") > 0.0);
    // As `--what` has them.
    let kinds: Vec<&String> = with["kinds"].as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["data", "heap", "stack", "text"]);
    // What was not looked at is not called empty.
    assert!(without["kinds"]["stack"].is_null());
}

/// Pages of a file that were written to: this process's own copies.
struct CopyOfFile(Pages);

impl CopyOfFile {
    fn new(count: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        let len = count * sksm::page_size();
        file.set_len(len as u64).unwrap();
        // SAFETY: a new mapping, placed by the kernel, and written within its length.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
            let start = libc::mmap(null, len, prot, libc::MAP_PRIVATE, fd, 0);
            assert_ne!(start, libc::MAP_FAILED);
            for number in 0..count {
                let page = start.byte_add(number * sksm::page_size());
                page.cast::<u64>().write_volatile(number as u64 + 1);
            }
            CopyOfFile(Pages(start.cast(), len))
        }
    }

    fn protect(&self, prot: i32) {
        // SAFETY: of this mapping, which nobody uses.
        let done = unsafe { libc::mprotect(self.0.0.cast(), self.0.1, prot) };
        assert_eq!(done, 0);
    }
}

#[test]
fn processes_are_found_by_name_and_control_group() {
    let own = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let name = format!("^{}$", name.trim());
    let found = |report: Value| {
        let processes = report["processes"].as_array().unwrap().clone();
        processes.iter().any(|process| process["pid"] == own)
    };
    assert!(found(json(&["estimate", "--json", "--name", &name])));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if let Some(group) = group.filter(|_| unified) {
        let output = sksm(&["estimate", "--json", "--cgroup", group]);
        // Others in the group may exit or refuse.
        assert!(matches!(output.status.code(), Some(0 | 5)), "{output:?}");
        assert!(found(serde_json::from_slice(&output.stdout).unwrap()));
    }
    // And by both, or one of them with another.
    let others = json(&[
        "estimate",
        "--json",
        "--name",
        &name,
        "--user",
        "0",
        "--exclude",
        "1",
    ]);
    assert_eq!(found(others), is_root());
    // Not of this program's name: other tests run under that at the same time.
    let (_dir, other) = called("sksm-left-out");
    let pid = other.0.id().to_string();
    let output = sksm(&["estimate", "--name", "^sksm-left-out$", "--exclude", &pid]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = sksm(&["estimate", "--all", "--user", "no-such-user"]);
    assert!(
        text(&output.stderr).contains("no user no-such-user"),
        "{output:?}"
    );
    let output = sksm(&["estimate", "--cgroup", "/no/such/group"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no control group"));
}

/// A program of this name, which waits.
fn called(name: &str) -> (tempfile::TempDir, Running) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(name);
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let running = Running::start(Command::new(program).arg("600"));
    (dir, running)
}

/// The kernel keeps 15 bytes of it.
#[test]
fn long_names_are_known_in_full() {
    let (_dir, running) = called("a-name-of-more-than-15-bytes");
    let pid = running.0.id();
    for verb in ["estimate", "stat"] {
        let report = json(&[verb, "--json", "--name", "a-name-of-more-than-15-bytes"]);
        let row = match verb {
            "stat" => &report[0],
            _ => &report["processes"][0],
        };
        assert_eq!(
            (&row["pid"], &row["name"]),
            (&pid.into(), &"a-name-of-more-than-15-bytes".into())
        );
    }
    for verb in ["merge", "unmerge"] {
        let report = json(&[verb, "--dry-run", "--json", "--name", "a-name-of-more.*"]);
        assert_eq!(report["processes"][0]["pid"], pid);
    }
    // A part of a name is none, and what there is is told.
    let output = sksm(&["merge", "--dry-run", "--name", "a-name-of"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stderr);
    assert!(
        said.contains("as a whole") && said.contains("a-name-of-more-than-15-bytes"),
        "{said}"
    );
}

#[test]
fn numbers_are_given_in_any_way() {
    let (first, second) = (called("sksm-one"), called("sksm-two"));
    let [first, second] = [&first, &second].map(|(_, running)| running.0.id().to_string());
    let both = format!("{first},{second}");
    for arguments in [
        &[&*first, &*second] as &[&str],
        &[&*both],
        &["--pid", &*both],
        &["-p", &*first, &*second],
        &[&*first, "--pid", &*second],
    ] {
        let report = json(&[&["estimate", "--json"], arguments].concat());
        let rows = report["processes"].as_array().unwrap();
        let pids: BTreeSet<String> = rows.iter().map(|row| row["pid"].to_string()).collect();
        let right: BTreeSet<String> = [first.clone(), second.clone()].into();
        assert_eq!(pids, right, "{arguments:?}");
    }
}

#[test]
fn processes_are_put_together() {
    let running: Vec<_> = (0..3).map(|_| called("sksm-crew")).collect();
    for (by, name) in [
        ("program", "sksm-crew"),
        ("user", if is_root() { "root" } else { "" }),
    ] {
        let report = json(&["estimate", "--json", "--name", "sksm-crew", "--by", by]);
        let groups = report["groups"].as_array().unwrap();
        assert_eq!((groups.len(), &report["by"]), (1, &by.into()), "{report}");
        assert_eq!(groups[0]["processes"], 3);
        assert!(name.is_empty() || groups[0]["name"] == name);
        assert_eq!(
            groups[0]["mapped_pages"],
            report["within_domains"]["mapped_pages"]
        );
    }
    let output = sksm(&["estimate", "--name", "sksm-crew", "--by", "unit"]);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("unit  ") && output.status.success(),
        "{output:?}"
    );
    let output = sksm(&["estimate", "--name", "sksm-crew"]);
    let said = text(&output.stdout);
    // Each, and all.
    assert_eq!(said.matches(" sksm-crew ").count(), 3, "{said}");
    assert!(said.contains("\nall "), "{said}");
    assert!(said.lines().all(|line| line.trim_end() == line), "{said:?}");
    drop(running);
}

/// Numbers of processes that nobody reads.
#[test]
fn many_who_refuse_are_counted() {
    if !is_root() {
        return;
    }
    let running: Vec<_> = (0..8).map(|_| called("sksm-refuses")).collect();
    let output = as_nobody(&["estimate", "--name", "sksm-refuses"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    assert!(said.contains("8 processes (root: 8)"), "{said}");
    // Who was not named may refuse.
    let output = as_nobody(&["estimate", "--all"]);
    assert!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
    assert!(output.stderr.len() < 1000, "{output:?}");
    drop(running);
}

/// A few descriptors are enough for many processes.
#[test]
fn descriptors_are_no_limit() {
    use std::os::unix::process::CommandExt;
    let running: Vec<_> = (0..150).map(|_| called("sksm-many")).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
    command.args(["estimate", "--json", "--name", "sksm-many"]);
    // SAFETY: only a call that takes numbers, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 256,
                rlim_max: 256,
            };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["processes"].as_array().unwrap().len(),
        150,
        "{}",
        report["unread"]
    );
    drop(running);
}

#[test]
fn a_kernel_thread_is_called_one() {
    let thread = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(kthreadd)")
    };
    let pid = "2".to_owned();
    if !thread(&pid) {
        return;
    }
    for verb in ["estimate", "stat"] {
        let output = sksm(&[verb, &pid]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            text(&output.stderr).contains("thread of the kernel"),
            "{output:?}"
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

/// Every row is there, and it is said where and when it was drawn.
#[test]
fn the_picture_is_whole() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plot.svg");
    let pid = std::process::id().to_string();
    let pages = Pages::new(40_000, |number| [12, number as u64 / 2]);
    let output = sksm(&["estimate", &pid, "--plot", path.to_str().unwrap()]);
    drop(pages);
    assert!(output.status.success(), "{output:?}");
    let svg = std::fs::read_to_string(path).unwrap();
    // Its own kind of memory, itself, and all.
    let rows = svg.matches("MiB<").count() + svg.matches("KiB<").count();
    assert!(rows >= 3, "{svg}");
    for words in [">stays<", ">saved<", ">heap<", ">all<", " %<"] {
        assert!(svg.contains(words), "{words}: {svg}");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(
        svg.contains(&format!("Linux {}, 20", release.trim())),
        "{svg}"
    );
    let output = sksm(&["estimate", &pid, "--plot", "plot.png"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains(".svg"), "{output:?}");
}

/// Run by somebody else, who may not look at this process.
#[test]
fn who_may_not_look_is_told_what_is_missing() {
    if !is_root() {
        return;
    }
    let pid = std::process::id().to_string();
    for verb in ["estimate", "stat"] {
        let output = as_nobody(&[verb, "--pid", &pid]);
        assert_eq!(output.status.code(), Some(4), "{verb}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("CAP_SYS_PTRACE"), "{verb}: {said}");
        assert!(said.contains(&pid), "{verb}: {said}");
    }
}

/// A picture that cannot be drawn costs no results, and no time.
#[test]
fn a_bad_path_of_the_plot_is_told_first() {
    let pid = std::process::id().to_string();
    let plot = |path| sksm(&["estimate", "--json", "--pid", &pid, "--plot", path]);
    let output = plot("/no/such/place.svg");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("/no/such/place.svg"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["error"]["status"], 1, "{report}");
    let output = plot("/dev/full");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["processes"][0]["pid"].to_string(), pid);
}

/// One ends, and one goes on as another program, between the two looks.
#[test]
fn who_goes_while_it_settles_is_named() {
    let program = |script: &str| {
        let mut command = Command::new("bash");
        Running::start(command.args(["-c", script]).stdin(Stdio::piped()))
    };
    let mut ends = program("read; exit");
    let mut changes = program("read; exec sleep 600");
    let stays = program("read; read");
    let pids = [&ends, &changes, &stays].map(|running| running.0.id().to_string());
    // What bash has done so far is not looked at.
    let bash = |pid: &str| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        name == "bash\n"
    };
    while !pids.iter().all(|pid| bash(pid)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let look = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["estimate", "--json", "--settle", "3", "--pid"])
        .args(&pids)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It is held where it waits for the second look, however long the others take.
    let file = |pid: u32, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (waits, wait) = (libc::SYS_clock_nanosleep, Duration::from_millis(1));
    let in_call = |pid| {
        file(pid, "syscall")
            .unwrap()
            .starts_with(&format!("{waits} "))
    };
    while !in_call(look.id()) {
        std::thread::sleep(wait);
    }
    // SAFETY: takes numbers only; our own child, not waited for yet.
    let signal = |signal| assert_eq!(unsafe { libc::kill(look.id() as i32, signal) }, 0);
    signal(libc::SIGSTOP);
    for running in [&mut ends, &mut changes] {
        running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }
    let ended = |pid| file(pid, "stat").unwrap().contains(") Z ");
    while !ended(ends.0.id()) || file(changes.0.id(), "comm").unwrap() != "sleep\n" {
        std::thread::sleep(wait);
    }
    signal(libc::SIGCONT);
    let output = look.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let unread = report["unread"].as_array().unwrap();
    let named: Vec<String> = unread.iter().map(|one| one["pid"].to_string()).collect();
    assert_eq!(named, pids[..2], "{report}");
    let late = |one: &Value| one["reason"].as_str().unwrap().starts_with("at the second");
    assert!(unread.iter().all(late), "{report}");
    // What they held at the first look is counted.
    assert_eq!(report["processes"].as_array().unwrap().len(), 3);
    let stable = report["stable"]["pages"].as_f64().unwrap();
    assert!(stable > 0.0 && stable < figures(&report)[0]);
}

/// Nobody has waited for it yet, but it has no memory any more.
#[test]
fn a_zombie_is_named() {
    let mut child = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = sksm(&["estimate", "--pid", &child.id().to_string()]);
    child.wait().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("has exited"), "{output:?}");
}

#[test]
fn the_plot_is_drawn_and_what_settles_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plot.svg");
    let pid = std::process::id().to_string();
    let plot = path.to_str().unwrap();
    let report = json(&[
        "estimate", "--json", "--pid", &pid, "--plot", plot, "--settle", "0",
    ]);
    let svg = std::fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains(">heap<"));
    assert!(report["processes"][0]["saved_pages"].is_u64(), "{report}");
    let stable = report["stable"]["pages"].as_f64().unwrap();
    assert!(stable > 0.0 && stable <= report["within_domains"]["pages"].as_f64().unwrap());
}

#[test]
fn a_process_that_is_not_there_is_named() {
    for verb in ["estimate", "stat"] {
        let output = sksm(&[verb, "--pid", "2147483647"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert_eq!(said, "error: there is no process 2147483647\n");
        // No tables of zeros.
        assert!(output.stdout.is_empty(), "{output:?}");
        // With others it is left out.
        let pid = std::process::id().to_string();
        let output = sksm(&[verb, "--pid", "2147483647", &pid]);
        assert_eq!(output.status.code(), Some(5), "{output:?}");
    }
}

#[test]
fn merging_says_where_it_cannot() {
    let pid = std::process::id().to_string();
    let output = sksm(&["merge", "--pid", &pid]);
    match support() {
        Support::Merge => assert!(output.status.success(), "{output:?}"),
        _ => {
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            let said = text(&output.stderr);
            assert!(said.contains("CONFIG_SKSM"), "{output:?}");
            // What this kernel has, and what it takes.
            let ksm = support() == Support::Ksm;
            assert_eq!(said.contains("sksm run --ksm"), ksm, "{said}");
        }
    }
    let report = json(&["merge", "--dry-run", "--json", "--pid", &pid]);
    assert_eq!(report["dry_run"], true);
    assert!(report["processes"][0]["pages"].as_u64().unwrap() > 0);
}

/// Pages of one process, and of two, in small pages.
#[test]
fn only_pages_with_twins_are_taken() {
    let holds = |fill: fn(usize) -> [u64; 2]| {
        Forked::new(|| {
            let pages = Pages::new(1200, fill);
            std::mem::forget(pages);
        })
    };
    // A third are pairs within each, a third are in both, and a third differ.
    let fill = |process: u64| {
        move |number: usize| match number {
            0..400 => [13, (process << 32) | (number as u64 / 2)],
            400..800 => [14, number as u64],
            _ => [15, (process << 32) | number as u64],
        }
    };
    let _alone = alone();
    let first = Forked::new(|| std::mem::forget(Pages::new(1200, fill(1))));
    let second = Forked::new(|| std::mem::forget(Pages::new(1200, fill(2))));
    let nothing = holds(|number| [16, number as u64]);
    let taken = |processes: &[&Forked], more: &[&str]| {
        let pids: Vec<String> = processes.iter().map(|one| one.pid()).collect();
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        let report = json(&[&["merge", "--dry-run", "--json"], more, &pids].concat());
        let rows = report["processes"].as_array().unwrap();
        let sum = rows.iter().map(|row| row["taken_pages"].as_f64().unwrap());
        sum.sum::<f64>()
    };
    // What they have from this process is the same in all, but of one frame.
    let near =
        |found: f64, right: f64| assert!((found - right).abs() < 100.0, "{found}, not {right}");
    near(taken(&[&first], &[]), 400.0);
    near(taken(&[&first, &second], &[]), 1600.0);
    near(taken(&[&nothing], &[]), 0.0);
    near(taken(&[&first, &second], &["--settle", "0"]), 1600.0);
    assert!(taken(&[&first, &second], &["--everything"]) >= 2400.0);
    // And said.
    let output = sksm(&["merge", "--dry-run", &nothing.pid()]);
    assert!(
        text(&output.stdout).contains("have no twin here"),
        "{output:?}"
    );
}

/// In 4 huge pages, of which one has many twins, one few, and two none.
#[test]
fn huge_pages_stay_where_few_twins_are() {
    const HUGE: usize = 2 << 20;
    let _alone = alone();
    let holder = Forked::new(|| {
        let len = 5 * HUGE;
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, placed by the kernel, and written within its length.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let start = start.cast::<u8>();
            let start = start.add(start.align_offset(HUGE));
            libc::madvise(start.cast(), 4 * HUGE, libc::MADV_HUGEPAGE);
            for number in 0..4 * 512 {
                let content = match number {
                    0..100 => number / 2,
                    512..530 => number / 2,
                    _ => 10_000 + number,
                };
                start
                    .add(number * 4096)
                    .cast::<[usize; 2]>()
                    .write_volatile([17, content]);
            }
        }
    });
    let report = json(&["merge", "--dry-run", "--json", &holder.pid()]);
    let row = &report["processes"][0];
    // Where the kernel had huge pages to give.
    if row["left"]["huge_bytes"].as_u64().unwrap() < 4 * HUGE as u64 {
        return;
    }
    assert_eq!(
        (&row["split_huge_pages"], &row["whole_huge_pages"]),
        (&1.into(), &1.into()),
        "{row}"
    );
    assert_eq!(row["spared_pages"], 18, "{row}");
    let all = json(&[
        "merge",
        "--dry-run",
        "--json",
        "--everything",
        &holder.pid(),
    ]);
    assert!(
        all["processes"][0]["split_huge_pages"].as_u64().unwrap() >= 4,
        "{all}"
    );
}

/// Shared memory is the commonest reason why nothing merges.
#[test]
fn what_never_merges_is_told_with_its_name() {
    let holder = Forked::new(|| {
        let len = 2 << 20;
        // SAFETY: a new file and mapping, written within its length.
        unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), 0);
            assert_eq!(libc::ftruncate(fd, len), 0);
            let (prot, len) = (libc::PROT_READ | libc::PROT_WRITE, len as usize);
            let start = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0);
            assert_ne!(start, libc::MAP_FAILED);
            libc::memset(start, 1, len);
            let locked = Pages::new(30, |number| [18, number as u64]);
            assert_eq!(libc::mlock(locked.0.cast(), locked.1), 0);
            std::mem::forget(locked);
        }
    });
    for arguments in [&["merge", "--dry-run"] as &[&str], &["estimate"]] {
        let pid = holder.pid();
        let output = sksm(&[arguments, &[&pid]].concat());
        let said = text(&output.stdout);
        assert!(
            said.contains("shared memory, which never merges (memfd:guest"),
            "{output:?}"
        );
        assert!(said.contains("120 KiB locked"), "{output:?}");
    }
}

#[test]
fn undoing_says_where_it_cannot() {
    let pid = std::process::id().to_string();
    let report = json(&["unmerge", "--dry-run", "--json", "--pid", &pid]);
    assert_eq!(report["whole_machine"], false);
    assert_eq!(report["processes"][0]["pid"].to_string(), pid);
    assert_eq!(report["processes"][0]["unmerged_bytes"], 0);
    let output = sksm(&["unmerge", "--pid", &pid]);
    if support() == Support::Merge {
        assert!(output.status.success(), "{output:?}");
        return;
    }
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("CONFIG_SKSM"), "{said}");
    // There it is another file that undoes what was merged.
    let ksm = support() == Support::Ksm;
    assert_eq!(said.contains("/sys/kernel/mm/ksm/run"), ksm, "{said}");
}

/// Chosen as for `merge`, and the reason told where there is nothing to do.
#[test]
fn nothing_to_undo_is_no_error() {
    let child = Forked::new(|| ());
    let output = sksm(&["unmerge", "--dry-run", "--pid", &child.pid()]);
    assert!(output.status.success(), "{output:?}");
    // KSM of this machine may have merged something.
    let said = text(&output.stdout);
    assert!(said.contains("nothing to undo") || said.contains("nothing was undone"));
    let output = sksm(&["unmerge", "--dry-run", "--name", "^no such name$"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("no process fits"));
}

/// A part of memory that only its process may merge, and a process that is no single user's.
#[test]
fn what_would_be_passed_over_is_told() {
    let locked = Forked::new(|| {
        let pages = Pages::new(50, |number| [2, number as u64]);
        // SAFETY: of this mapping, which stays.
        let done = unsafe { libc::madvise(pages.0.cast(), pages.1, libc::MADV_DONTDUMP) };
        assert_eq!(done, 0);
        std::mem::forget(pages);
    });
    let report = json(&["merge", "--dry-run", "--json", "--pid", &locked.pid()]);
    let reasons = report["processes"][0]["passed_over_reasons"].to_string();
    assert!(reasons.contains("left out of dumps"), "{report}");
    if !is_root() {
        return;
    }
    let hidden = Forked::new(|| {
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    });
    let report = json(&["merge", "--dry-run", "--json", "--pid", &hidden.pid()]);
    let reasons = report["processes"][0]["passed_over_reasons"].to_string();
    assert!(reasons.contains("not dumpable"), "{report}");
    assert!(
        reasons.contains("echo user > memory.merge_domain"),
        "{report}"
    );
    // Nothing of it would be taken.
    assert_eq!(report["processes"][0]["taken_pages"], 0, "{report}");
    let report = json(&["estimate", "--json", &hidden.pid()]);
    assert_eq!(report["processes"][0]["undumpable"], true);
    let output = sksm(&["estimate", &hidden.pid()]);
    assert!(text(&output.stderr).contains("not dumpable"), "{output:?}");
}

#[test]
fn who_changed_its_user_merges_with_nobody() {
    if !is_root() {
        return;
    }
    let _alone = alone();
    let child = |effective| {
        let (mut reader, mut writer) = UnixStream::pair().unwrap();
        // SAFETY: as in `Forked::new`; the child only writes pages and waits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            std::mem::forget(Pages::new(600, |_| [11, 11]));
            // SAFETY: takes numbers only.
            unsafe {
                libc::setresuid(NOBODY, effective, NOBODY);
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            writer.write_all(b"!").unwrap();
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
        reader.read_exact(&mut [0]).unwrap();
        Forked(child)
    };
    for (effective, apart) in [(NOBODY, false), (NOBODY - 1, true)] {
        let child = child(effective);
        let report = json(&[
            "estimate",
            "--json",
            "--domain",
            "user",
            "--pid",
            &child.pid(),
        ]);
        let [pages, saved] = figures(&report);
        assert!(pages >= 600.0, "{report}");
        assert_eq!(saved < 100.0, apart, "{report}");
        assert_eq!(
            report["processes"][0]["apart"].is_string(),
            apart,
            "{report}"
        );
        let across = report["across_users"]["saved_pages"].as_f64().unwrap();
        assert_eq!(across < 100.0, apart, "{report}");
        // Said in words as well.
        let output = sksm(&["estimate", "--domain", "global", "--pid", &child.pid()]);
        let said = text(&output.stderr);
        assert_eq!(said.contains("merge with nobody"), apart, "{said}");
    }
}

/// Nothing merges in memory that the kernel may drop: neither verb counts it.
#[test]
fn what_never_merges_is_not_counted() {
    /// Since Linux 6.11; libc does not name it.
    const MAP_DROPPABLE: i32 = 8;
    let _alone = alone();
    let pid = std::process::id().to_string();
    let looks = || {
        let merge = json(&["merge", "--dry-run", "--json", "--pid", &pid]);
        let estimate = json(&["estimate", "--json", "--pid", &pid]);
        [
            merge["processes"][0]["pages"].as_f64().unwrap(),
            figures(&estimate)[0],
        ]
    };
    let before = looks();
    let len = 500 * sksm::page_size();
    let (prot, flags) = (libc::PROT_WRITE, MAP_DROPPABLE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, placed by the kernel, and written within its length.
    let start = unsafe {
        let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
        if start == libc::MAP_FAILED {
            assert_eq!(
                std::io::Error::last_os_error().raw_os_error(),
                Some(libc::EINVAL)
            );
            return;
        }
        libc::memset(start, 7, len);
        start
    };
    let after = looks();
    // SAFETY: of the mapping above.
    unsafe { libc::munmap(start, len) };
    for (before, after) in before.iter().zip(after) {
        assert!(after < before + 100.0, "{before} pages became {after}");
    }
}

#[test]
fn doctor_knows_the_kernel() {
    let report = json(&["doctor", "--json"]);
    let checks = report["checks"].as_array().unwrap();
    let merge = checks.iter().find(|check| check["name"] == "MADV_MERGE");
    let state = &merge.unwrap()["state"];
    assert_eq!(*state == "yes", support() == Support::Merge);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(report["kernel"], release.trim());
    // Which programs can be started for KSM is told in any case, and advised where there is nothing better.
    let memory_merge = checks
        .iter()
        .find(|check| check["name"] == "PR_SET_MEMORY_MERGE");
    let there = memory_merge.unwrap()["state"] == "yes";
    let advised = report["next"].to_string().contains("sksm run --ksm");
    assert_eq!(advised, there && support() != Support::Merge, "{report}");
    // And what is required has its status.
    let required = sksm(&["doctor", "--require", "merge"]);
    let status = if support() == Support::Merge { 0 } else { 3 };
    assert_eq!(required.status.code(), Some(status), "{required:?}");
    assert_eq!(text(&required.stderr).contains("MADV_MERGE"), status != 0);
    assert!(text(&required.stdout).contains("What to do next"));
    // No colours where there is no terminal.
    let output = sksm(&["doctor"]);
    assert!(text(&output.stdout).contains("What to do next"));
    assert!(!text(&output.stdout).contains('\u{1b}'));
}

/// What `sksm stat` prints in one of the formats, of this process given twice.
fn metrics(format: &str) -> String {
    let pid = std::process::id().to_string();
    let output = sksm(&["stat", format, "--pid", &pid, &pid]);
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).into()
}

/// Every metric is described before its samples, which come once each and all together.
#[test]
fn stat_is_fit_for_prometheus() {
    let pid = std::process::id().to_string();
    for (format, end) in [("--openmetrics", "# EOF"), ("--prometheus", "}")] {
        let metrics = metrics(format);
        let mut described = Vec::new();
        let mut series = Vec::new();
        let mut kind = "";
        let mut lines = metrics.lines().filter(|line| *line != "# EOF").peekable();
        while let Some(line) = lines.next() {
            let help = line.strip_prefix("# HELP ").expect(line);
            let (name, help) = help.split_once(' ').expect(line);
            assert!(!help.is_empty() && !described.contains(&name), "{line}");
            described.push(name);
            let line = lines.next().expect("a type");
            let rest = line.strip_prefix("# TYPE ").expect(line);
            kind = rest.strip_prefix(name).expect(line).trim();
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            // The unit ends the name.
            let unit = name.rsplit_once('_').map_or("", |(_, unit)| unit);
            let told = format!("# UNIT {name} {unit}");
            let has_unit = lines.next_if(|line| *line == told).is_some();
            let known = matches!(unit, "bytes" | "seconds" | "ratio") && format == "--openmetrics";
            assert_eq!(has_unit, known, "{line}");
            let sample = match (kind, format) {
                ("counter", "--openmetrics") => format!("{name}_total"),
                ("counter", _) => {
                    assert!(name.ends_with("_total"), "{line}");
                    name.into()
                }
                _ => name.into(),
            };
            let before = series.len();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (key, value) = line.rsplit_once(' ').expect(line);
                let labels = key.strip_prefix(&*sample).expect(line);
                assert!(labels.is_empty() || labels.starts_with("{pid=\""));
                value.parse::<f64>().expect(line);
                assert!(!series.contains(&key), "{key} twice");
                series.push(key);
            }
            assert!(series.len() > before, "{name} has no value");
        }
        assert!(!kind.is_empty());
        assert!(metrics.trim_end().ends_with(end) || format == "--prometheus");
        let own = format!("sksm_process_anonymous_bytes{{pid=\"{pid}\"");
        assert!(series.iter().any(|key| key.starts_with(&own)), "{metrics}");
    }
}

/// What Prometheus's own client library for Python reads.
#[test]
#[ignore = "needs Debian's python3-prometheus-client"]
fn stat_is_read_by_prometheus() {
    let check = "import sys\n\
        if sys.argv[1] == '--openmetrics':\n\
        \x20   from prometheus_client.openmetrics.parser import text_string_to_metric_families\n\
        else:\n\
        \x20   from prometheus_client.parser import text_string_to_metric_families\n\
        families = list(text_string_to_metric_families(sys.stdin.read()))\n\
        for family in families:\n\
        \x20   assert family.documentation and family.type in ('counter', 'gauge'), family\n\
        \x20   assert family.samples, family\n\
        \x20   for sample in family.samples:\n\
        \x20       assert (family.type == 'counter') == sample.name.endswith('_total'), family\n\
        assert any(family.name == 'ksm_full_scans' for family in families), families\n\
        print(len(families))";
    for format in ["--openmetrics", "--prometheus"] {
        let mut python = Command::new("python3")
            .args(["-c", check, format])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = python.stdin.take().unwrap();
        input.write_all(metrics(format).as_bytes()).unwrap();
        drop(input);
        assert!(python.wait().unwrap().success(), "{}", metrics(format));
    }
}

#[test]
fn run_ends_as_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let run = |object: &str, program: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_sksm"))
            .args(["run", "--what", "data", "--"])
            .args(program)
            .env("SKSM_PRELOAD", object)
            .output()
            .unwrap()
    };
    // An object that is none: the loader says so and goes on.
    let object = dir.path().join("object");
    std::fs::write(&object, "").unwrap();
    let object = object.to_str().unwrap();
    let output = run(object, &["sh", "-c", "echo $SKSM $LD_PRELOAD; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output.stdout).starts_with("data /"), "{output:?}");
    assert_eq!(run(object, &["/no/such/program"]).status.code(), Some(127));
    assert_eq!(run(object, &[object]).status.code(), Some(126));
    // The loader would take its path for two.
    for name in ["my object", "my:object"] {
        let path = dir.path().join(name);
        std::fs::write(&path, "").unwrap();
        let output = run(path.to_str().unwrap(), &["true"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("space or a colon"));
        // As it says, a link will do.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let output = run(link.to_str().unwrap(), &["sh", "-c", "echo $LD_PRELOAD"]);
        assert_eq!(text(&output.stdout).trim(), link.to_str().unwrap());
        std::fs::remove_file(link).unwrap();
    }
    let output = run("/no/such/object", &["true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("SKSM_PRELOAD"));
}

/// As `cargo install` leaves it: the command alone.
#[test]
fn run_needs_no_installed_object() {
    let dir = tempfile::tempdir().unwrap();
    let command = dir.path().join("sksm");
    std::fs::copy(env!("CARGO_BIN_EXE_sksm"), &command).unwrap();
    let run = |home: &std::path::Path| {
        Command::new(&command)
            .args([
                "run",
                "--verbose",
                "--",
                "sh",
                "-c",
                "true; sh -c exit; exit 7",
            ])
            .env("XDG_CACHE_HOME", home)
            .env_remove("SKSM_PRELOAD")
            .output()
            .unwrap()
    };
    let home = dir.path().join("cache");
    for _ in 0..2 {
        let output = run(&home);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        // The program, and the one that it starts.
        let loaded = text(&output.stderr).matches(" at start: ").count();
        assert_eq!(loaded, 2, "{output:?}");
    }
    assert_eq!(
        std::fs::read_dir(home.join("sksm-preload"))
            .unwrap()
            .count(),
        1
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run(&file);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("SKSM_PRELOAD"), "{output:?}");
}

/// A build of the whole workspace leaves one beside the command, ten times as large.
#[test]
fn run_takes_no_object_that_brings_std() {
    let dir = tempfile::tempdir().unwrap();
    let command = dir.path().join("sksm");
    std::fs::copy(env!("CARGO_BIN_EXE_sksm"), &command).unwrap();
    let source = dir.path().join("object.c");
    std::fs::write(&source, "int nothing;").unwrap();
    let object = dir.path().join("libsksm_preload.so");
    for (unwinder, beside) in [(true, false), (false, true)] {
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&object);
        compiler.arg(&source).arg("-Wl,--no-as-needed");
        if unwinder {
            compiler.arg("-lgcc_s");
        }
        assert!(compiler.status().unwrap().success());
        let output = Command::new(&command)
            .args(["run", "--quiet", "--", "sh", "-c", "echo $LD_PRELOAD"])
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .env_remove("SKSM_PRELOAD")
            .output()
            .unwrap();
        let taken = text(&output.stdout).trim() == object.canonicalize().unwrap().to_str().unwrap();
        assert_eq!(taken, beside, "{output:?}");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn what_run_is_given_reaches_the_object() {
    let object = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["run", "--after", "2m", "--signal", "HUP", "-v"])
        .args(["--seccomp-allowed", "--"])
        .args(["sh", "-c"])
        .arg("echo $SKSM_AFTER $SKSM_SIGNAL $SKSM_VERBOSE $SKSM_SECCOMP")
        .env("SKSM_PRELOAD", object.path())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "120000ms 1 1 allowed\n");
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["run", "--after", "1h", "--signal", "--"])
        .args(["sh", "-c", "echo $SKSM_AFTER $SKSM_SIGNAL"])
        .env("SKSM_PRELOAD", object.path())
        .output()
        .unwrap();
    // A real-time signal.
    let signal = libc::SIGRTMIN() + 12;
    assert_eq!(text(&output.stdout), format!("3600000ms {signal}\n"));
}

#[test]
fn run_takes_a_program_as_env_does() {
    let object = tempfile::NamedTempFile::new().unwrap();
    for words in [
        &["-q", "echo", "-n", "--what"][..],
        &["-q", "--", "echo", "-n", "--what"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
            .arg("run")
            .args(words)
            .env("SKSM_PRELOAD", object.path())
            .output()
            .unwrap();
        assert_eq!(text(&output.stdout), "--what", "{output:?}");
    }
}

/// Whether the kernel has it or not, the program runs, and what KSM will do is said unless nobody wants to hear it.
#[test]
fn ksm_is_asked_for_and_told() {
    let own = env!("CARGO_BIN_EXE_sksm");
    let asked = sksm(&["run", "--ksm", own, "run", "--ksm-asked"]);
    let told = text(&asked.stderr);
    match asked.status.code() {
        Some(0) => assert!(told.contains("KSM"), "{told}"),
        Some(1) => assert!(told.contains("it runs unmerged"), "{told}"),
        _ => panic!("{asked:?}"),
    }
    assert_eq!(sksm(&["run", "--ksm-asked"]).status.code(), Some(1));
    let quiet = sksm(&["run", "--ksm", "--quiet", "sh", "-c", "exit 7"]);
    assert_eq!((quiet.status.code(), text(&quiet.stderr)), (Some(7), ""));
}

/// Imitates another kernel, for a program that loads it.
fn another_kernel(dir: &std::path::Path, code: &str) -> std::path::PathBuf {
    let source = dir.join("kernel.c");
    std::fs::write(&source, code).unwrap();
    let object = dir.join("kernel.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]);
    let status = compiler.arg(&object).arg(source).status().unwrap();
    assert!(status.success());
    object
}

/// What `sksm` says there with these arguments, and how it ends.
fn sksm_there(kernel: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
    command.args(arguments).env("LD_PRELOAD", kernel);
    command.output().unwrap()
}

fn check_there(kernel: &std::path::Path, name: &str) -> Value {
    let output = sksm_there(kernel, &["doctor", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|one| one["name"] == name)
        .unwrap()
        .clone()
}

/// As Linux 6.4 to 6.6 do it.
#[test]
fn a_kernel_that_forgets_ksm_is_no_kernel_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let code = r#"
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
static int merges;
int prctl(int option, ...) {
    unsigned long word[4];
    va_list list;
    va_start(list, option);
    for (int i = 0; i < 4; i++) word[i] = va_arg(list, unsigned long);
    va_end(list);
    if (option == 67) { merges = word[0]; return 0; }
    if (option == 68) return merges;
    return syscall(SYS_prctl, option, word[0], word[1], word[2], word[3]);
}"#;
    let kernel = another_kernel(dir.path(), code);
    let check = check_there(&kernel, "PR_SET_MEMORY_MERGE");
    assert_eq!(check["state"], "no", "{check}");
    let output = sksm_there(&kernel, &["run", "--ksm", "true"]);
    for said in [check["detail"].as_str().unwrap(), text(&output.stderr)] {
        assert!(said.contains("needs Linux 6.7"), "{said}");
    }
}

/// A kernel that drops pages at the number of the advice, whether or not it looks as if the engine were there.
#[test]
fn another_kernels_advice_is_no_merging() {
    let dir = tempfile::tempdir().unwrap();
    let code = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
int madvise(void *start, size_t len, int advice) {
    return syscall(SYS_madvise, start, len, advice == 26 ? MADV_DONTNEED : advice);
}
int statfs(const char *path, struct statfs *found) {
    if (NAMED && !strcmp(path, "/sys/kernel/mm/sksm")) path = "/sys/kernel";
    return syscall(SYS_statfs, path, found);
}"#;
    for named in ["0", "1"] {
        let kernel = another_kernel(dir.path(), &code.replace("NAMED", named));
        let check = check_there(&kernel, "MADV_MERGE");
        assert_eq!(check["state"], "no", "{check}");
        let output = sksm_there(&kernel, &["doctor", "--require", "merge"]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let own = std::process::id().to_string();
        let output = sksm_there(&kernel, &["merge", &own]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
}

/// `sksm run` of a program, with an object that is none: how it ended.
fn run_program(options: &[&str], program: &[&str], set_up: impl FnOnce(&mut Command)) -> Output {
    let object = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
    command
        .arg("run")
        .args(options)
        .arg("--")
        .args(program)
        .env("SKSM_PRELOAD", object.path());
    set_up(&mut command);
    command.output().unwrap()
}

/// Builds a C program that prints a word; none where this compiler cannot.
fn hello(dir: &std::path::Path, flags: &[&str]) -> Option<String> {
    let source = dir.join("hello.c");
    let code = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }";
    std::fs::write(&source, code).unwrap();
    let program = dir.join("hello");
    let mut compiler = Command::new("cc");
    compiler.arg("-o").arg(&program).args(flags).arg(&source);
    let built = compiler.output().unwrap().status.success();
    built.then(|| program.to_str().unwrap().to_owned())
}

#[test]
fn run_says_what_no_object_is_loaded_into() {
    let dir = tempfile::tempdir().unwrap();
    let program = hello(dir.path(), &["-static"]).unwrap();
    let output = run_program(&[], &[&program], |_| {});
    assert_eq!(text(&output.stdout), "hello\n");
    assert!(
        text(&output.stderr).contains("is statically linked"),
        "{output:?}"
    );
    // Of a script it is the interpreter that counts.
    let script = dir.path().join("script");
    std::fs::write(&script, format!("#!{program}\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = run_program(&[], &[script.to_str().unwrap()], |_| {});
    assert!(
        text(&output.stderr).contains("is statically linked"),
        "{output:?}"
    );
    // It cannot run here; what counts is the header.
    let mut bytes = std::fs::read(&program).unwrap();
    bytes[4] = 1;
    let other = dir.path().join("other");
    std::fs::write(&other, bytes).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = run_program(&[], &[other.to_str().unwrap()], |_| {});
    assert!(
        text(&output.stderr).contains("is a 32-bit program"),
        "{output:?}"
    );

    let program = hello(dir.path(), &[]).unwrap();
    let unmerged = |output: &Output| text(&output.stderr).contains("runs unmerged");
    let output = run_program(&[], &[&program], |_| {});
    assert!(!unmerged(&output), "{output:?}");
    let kernel = text(&output.stderr).contains("this kernel has no MADV_MERGE");
    assert_eq!(kernel, support() != Support::Merge, "{output:?}");
    let output = run_program(&["--quiet"], &[&program], |_| {});
    assert!(!text(&output.stderr).contains("note:"), "{output:?}");
    if std::os::unix::fs::chown(&program, Some(1), None).is_ok() {
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let output = run_program(&[], &[&program], |_| {});
        assert!(text(&output.stderr).contains("set-uid"), "{output:?}");
    }
}

/// gcc's would refuse to start.
#[test]
fn run_arranges_for_address_sanitizer() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = hello(dir.path(), &["-fsanitize=address"]) else {
        return;
    };
    // The object must be one, or nothing is loaded before it.
    let other = dir.path().join("empty.c");
    std::fs::write(&other, "int nothing;").unwrap();
    let object = dir.path().join("object.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&object)
        .arg(other);
    assert!(compiler.status().unwrap().success());
    for own in ["", "detect_leaks=0"] {
        let output = run_program(&[], &[&program], |command| {
            command
                .env("SKSM_PRELOAD", &object)
                .env("ASAN_OPTIONS", own);
        });
        assert_eq!(text(&output.stdout), "hello\n", "{output:?}");
    }
    // The user's own word counts.
    let output = run_program(&[], &[&program], |command| {
        command.env("SKSM_PRELOAD", &object);
        command.env("ASAN_OPTIONS", "verify_asan_link_order=1");
    });
    assert!(!output.status.success(), "{output:?}");
}

/// What it does is tried by a child, which it may kill.
#[test]
fn run_says_what_a_filter_does() {
    use std::os::unix::process::CommandExt;
    let word = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    for (result, reason) in [
        (
            libc::SECCOMP_RET_KILL_PROCESS,
            "the seccomp filter kills for it",
        ),
        (
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            "or the seccomp filter refuses it",
        ),
    ] {
        let filter = [
            word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            word(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                3,
                libc::SYS_madvise as u32,
            ),
            // The advice: only those that no C library gives.
            word(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 32),
            word(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 26),
            word(libc::BPF_RET | libc::BPF_K, 0, result),
            word(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let set = move || {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_ptr().cast_mut(),
            };
            let mode = libc::SECCOMP_MODE_FILTER;
            // SAFETY: takes numbers, and a program that is valid for the call.
            let done = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) == 0
            };
            done.then_some(()).ok_or_else(std::io::Error::last_os_error)
        };
        let output = run_program(&[], &["echo", "hello"], |command| {
            // SAFETY: makes two system calls, and allocates nothing.
            unsafe { command.pre_exec(set) };
        });
        assert_eq!(text(&output.stdout), "hello\n");
        assert!(text(&output.stderr).contains(reason), "{output:?}");
    }
}

/// A full disk, or a reader that has gone.
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let pid = std::process::id().to_string();
    for arguments in [
        &["doctor"] as &[&str],
        &["doctor", "--json"],
        &["stat", "--pid", &pid],
        &["stat", "--pid", &pid, "--openmetrics"],
        &["estimate", "--pid", &pid],
        &["merge", "--dry-run", "--pid", &pid],
        &["unmerge", "--dry-run", "--pid", &pid],
    ] {
        let into = |file: Stdio, errors: Stdio| {
            Command::new(env!("CARGO_BIN_EXE_sksm"))
                .args(arguments)
                .stdout(file)
                .stderr(errors)
                .output()
                .unwrap()
        };
        let full = || {
            let mut options = std::fs::OpenOptions::new();
            Stdio::from(options.write(true).open("/dev/full").unwrap())
        };
        let output = into(full(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("cannot write the output"), "{said}");
        assert_eq!(into(full(), full()).status.code(), Some(1));
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let output = into(OwnedFd::from(writer).into(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

/// A program that is never left running.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Running(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A process that is named to mislead whoever looks at the list.
#[test]
fn names_do_not_steer_the_terminal() {
    use std::os::unix::ffi::OsStrExt;
    // A process is named as the file that it runs.
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\x1b[31ma\nb\xc3");
    let program = dir.path().join(name);
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let child = Running::start(Command::new(program).arg("600"));
    let pid = child.0.id().to_string();
    let output = sksm(&["estimate", "--pid", &pid]);
    // Found by its name as far as that is text, of which the last letter is cut.
    let named = json(&["estimate", "--json", "--name", "^\u{1b}\\[31ma\nb$"]);
    let shown = text(&output.stdout);
    assert!(
        shown.contains(&format!("{pid} \\u{{1b}}[31ma\\nb ")),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'));
    assert_eq!(named["processes"][0]["pid"].to_string(), pid);
}

/// Who has shared memory names it.
#[test]
fn names_of_shared_memory_do_not_steer_the_terminal() {
    let len = 2 << 20;
    // SAFETY: a new file and a new mapping of it, written within its length.
    let map = unsafe {
        let file = libc::memfd_create(c"\x1b[31mred".as_ptr(), libc::MFD_CLOEXEC);
        assert!(file >= 0 && libc::ftruncate(file, len as i64) == 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file, 0);
        assert_ne!(map, libc::MAP_FAILED);
        libc::memset(map, 1, len);
        libc::close(file);
        map
    };
    let output = sksm(&["estimate", "--pid", &std::process::id().to_string()]);
    // SAFETY: that mapping.
    unsafe { libc::munmap(map, len) };
    let shown = text(&output.stdout);
    assert!(shown.contains("memfd:\\u{1b}[31mred"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
}

/// On a terminal of any width; lines without a place to break them, as of a path, may be longer.
#[test]
fn help_is_broken_between_words() {
    for verb in ["estimate", "merge", "scan", "stat", "top", "doctor"] {
        let help = |columns: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sksm"));
            let output = command
                .args([verb, "--help"])
                .env("COLUMNS", columns)
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let (narrow, wide) = (help("60"), help("100"));
        assert!(
            narrow.lines().all(|line| line.chars().count() <= 60),
            "{narrow}"
        );
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(words(&narrow), words(&wide));
    }
}

#[test]
fn a_wrong_command_line_is_refused() {
    for wrong in [
        &["merge"] as &[&str],
        &["merge", "--pid", "1", "--what", "texts"],
        &["unmerge"],
        &["unmerge", "--pid", "1", "--what", "heap"],
        &["estimate", "--name", "("],
        &["estimate", "--all", "--domain", "none"],
        &["estimate", "--all", "--max-page-sharing", "1"],
        &["stat", "--json", "--openmetrics"],
        &["stat", "--json", "--prometheus"],
        &["stat", "--openmetrics", "--prometheus"],
        &["run", "--after", "5x", "--", "true"],
        &["run", "--afer", "5s", "--", "true"],
        &["run", "--signal", "KILL", "--", "true"],
        &["run", "--json", "--", "true"],
        &["--json", "run", "--", "true"],
        &["scan", "--stable", "soon"],
        &["scan", "--stable", "0"],
        &["scan", "--cpu", "5"],
        &["scan", "--cpu", "200%"],
        &["scan", "--when", "never"],
        &["scan", "--when", "pressure=much"],
        &["scan", "--huge-min", "0"],
        &["scan", "--huge-min", "513"],
        &["scan", "--config"],
        &["scan", "--verbose"],
        &["scan", "--name", "("],
        &["top", "--interval", "0"],
        &["top", "--interval", "nan"],
        &["top", "--interval", "1e9"],
        &["doctor", "--require", "nonsense"],
        &["estimate", "--exclude", "1"],
        &["estimate", "--all", "--by", "colour"],
        &["merge", "--all", "--everything", "--settle", "1"],
        &["top", "--sort", "colour"],
        &["nonsense"],
    ] {
        let output = sksm(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
}

#[test]
fn scanning_says_where_it_cannot() {
    if support() == Support::Merge {
        return;
    }
    for arguments in [
        &["scan"] as &[&str],
        &["scan", "--once", "--all", "--stable", "1s"],
        &["scan", "--pid", "2147483647"],
    ] {
        let output = sksm(arguments);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("MADV_MERGE") && said.contains("boot a kernel with CONFIG_SKSM"),
            "{said}"
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

/// What it should be is told, and where the mistake is in a file.
#[test]
fn mistakes_in_what_a_scan_is_told_are_named() {
    for (arguments, advice) in [
        (["scan", "--stable", "soon"], "as in 90s or 5m"),
        (["scan", "--cpu", "200%"], "as in 5%"),
        (["scan", "--when", "never"], "available-below=20%"),
        (["scan", "--huge-min", "513"], "1..=512"),
    ] {
        let said = sksm(&arguments).stderr;
        assert!(text(&said).contains(advice), "{}", text(&said));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scan.conf");
    let path = file.to_str().unwrap();
    let scan = || {
        let output = sksm(&["scan", "--config", path]);
        let code = output.status.code();
        (code, text(&output.stderr).to_owned())
    };
    let (code, said) = scan();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("cannot read {path}: No such file")),
        "{said}"
    );
    for (lines, line, told) in [
        ("# all well\nstable = 5m\ncpu = much\n", 3, "give a share"),
        ("when = never\n", 1, "give always"),
        ("\n\nhuge-min = many\n", 3, "many"),
        ("colour = red\n", 1, "--colour"),
        ("config = other\n", 1, "names no other"),
        ("opted-in = yes\n", 1, "yes"),
        ("stable\n", 1, "--stable"),
    ] {
        std::fs::write(&file, lines).unwrap();
        let (code, said) = scan();
        let place = format!("{path}: line {line}: ");
        assert!(said.contains(&place) && said.contains(told), "{said}");
        assert_eq!(code, Some(2), "as of the command line: {said}");
    }
    // Of lines that do not go together.
    std::fs::write(&file, "once\nserve = /nowhere\n").unwrap();
    let (code, said) = scan();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with(&format!("error: with {path}: ")), "{said}");
    assert!(
        !said.contains("Usage") && said.lines().count() == 1,
        "{said}"
    );
    // One that is right is no reason to fail, but the kernel may be one.
    std::fs::write(&file, "stable = 1s\ncpu = 100%\n").unwrap();
    let pid = "2147483647";
    let output = sksm(&["scan", "--config", path, "--once", "--pid", pid]);
    let said = text(&output.stderr);
    assert!(!said.contains("line "), "{said}");
    let right = if support() == Support::Merge { 1 } else { 3 };
    assert_eq!(output.status.code(), Some(right), "{output:?}");
}

/// Names of fields, as docs/json.md writes them.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        // It has a section of its own.
        Value::Object(_) if at == "scanner" => _ = found.insert(at.into()),
        Value::Object(fields_of) => {
            for (name, value) in fields_of {
                // Where the data gives the keys.
                let name = match at {
                    "sksm" | "ksm" | "kinds" | "processes[].left" => "NAME",
                    _ => name,
                };
                let dot = if at.is_empty() { "" } else { "." };
                fields(value, &format!("{at}{dot}{name}"), found);
            }
        }
        Value::Array(values) => {
            for value in values {
                fields(value, &format!("{at}[]"), found);
            }
        }
        _ => _ = found.insert(at.into()),
    }
}

/// The page about JSON has every field, and no other.
#[test]
fn json_is_as_documented() {
    let page = include_str!("../../../docs/json.md");
    let pid = std::process::id().to_string();
    let examples: [(&str, &[&str]); 9] = [
        ("doctor", &["doctor"]),
        ("stat", &["stat"]),
        ("stat --pid", &["stat", "--pid", &pid]),
        ("merge", &["merge", "--dry-run", "--pid", &pid]),
        ("unmerge", &["unmerge", "--dry-run", "--pid", &pid]),
        ("estimate", &["estimate", "--settle", "0", "--pid", &pid]),
        ("top", &["top"]),
        ("store", &["store"]),
        ("store collect", &["store", "collect"]),
    ];
    for (verb, arguments) in examples {
        // Without KSM and SKSM.
        if support() == Support::None && matches!(verb, "stat" | "top") {
            continue;
        }
        let section = page
            .split("\n## ")
            .find(|part| part.starts_with(&format!("{verb}\n")));
        let rows = section.unwrap().lines().filter_map(|line| {
            let (name, what) = line.strip_prefix("| `")?.split_once('`')?;
            Some((name, what.contains("may be absent")))
        });
        let rows: Vec<(&str, bool)> = rows.collect();
        let mut printed = BTreeSet::new();
        let report = json(&[arguments, &["--json"]].concat());
        fields(&report, "", &mut printed);
        for field in &printed {
            // What is null as a whole, or empty.
            let known =
                |(name, _): &(&str, bool)| *name == field || name.starts_with(&format!("{field}."));
            assert!(rows.iter().any(known), "{verb}: {field} is not documented");
        }
        for (name, may_be_absent) in rows {
            let whole = name.split('.').next().unwrap();
            let there = printed.contains(name) || report[whole].is_null() || name.ends_with("[]");
            assert!(there || may_be_absent, "{verb}: there is no {name}");
        }
    }
}

/// One document, whatever goes wrong, with what the page about JSON has of errors; and the same in words.
#[test]
fn errors_are_json_as_well() {
    let page = include_str!("../../../docs/json.md");
    let section = page
        .split("\n## ")
        .find(|part| part.starts_with("errors\n"));
    let rows = section.unwrap().lines();
    let documented: BTreeSet<&str> = rows
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
        .collect();
    let mut cases: Vec<(&[&str], &str, i32, &str)> = vec![
        (
            &["estimate", "--json", "--pid", "2147483647"],
            "failed",
            1,
            "there is no process 2147483647",
        ),
        (
            &["--json", "estimate"],
            "usage",
            2,
            "required arguments were not provided",
        ),
        (&["stat", "--json", "--nonsense"], "usage", 2, "--nonsense"),
        (
            &["run", "--json", "--", "true"],
            "usage",
            2,
            "--json is for verbs that print something of their own",
        ),
        (&["--json"], "usage", 2, "requires a subcommand"),
    ];
    if support() != Support::Merge {
        cases.push((
            &["merge", "--json", "--all"],
            "unsupported",
            3,
            "MADV_MERGE",
        ));
    }
    for (arguments, kind, status, message) in cases {
        let output = sksm(arguments);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["error"]["kind"], kind, "{report}");
        assert_eq!(report["error"]["status"], status, "{report}");
        let told = report["error"]["message"].as_str().unwrap();
        assert!(
            told.contains(message) && !told.contains('\u{1b}'),
            "{report}"
        );
        assert!(!output.stderr.is_empty(), "{output:?}");
        let mut printed = BTreeSet::new();
        fields(&report, "", &mut printed);
        let printed: BTreeSet<&str> = printed.iter().map(String::as_str).collect();
        assert_eq!(printed, documented);
    }
    if is_root() {
        let own = std::process::id().to_string();
        let output = as_nobody(&["stat", "--json", "--pid", &own]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["error"]["kind"], "denied", "{report}");
    }
    // What is behind `--` is another program's, and help is no error.
    let output = sksm(&["run", "--nonsense", "--", "ls", "--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let output = sksm(&["--json", "--help"]);
    assert!(output.status.success() && output.stdout.starts_with(b"Merge equal"));
}

/// Who may trace processes of other users, but not open what is their user's alone, is not told that nothing has a twin.
#[test]
fn what_cannot_be_read_is_left_out_of_a_merge() {
    if !is_root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let mut other = Command::new("sleep");
    let other = Running::start(other.arg("600").uid(NOBODY).gid(NOBODY));
    let pid = other.0.id().to_string();
    let merge = |right: &str| {
        let only = format!("-all,{right}");
        Command::new("setpriv")
            .args([
                format!("--bounding-set={only}"),
                format!("--inh-caps={only}"),
            ])
            .args([env!("CARGO_BIN_EXE_sksm"), "merge", "--dry-run", "--json"])
            .args(["--pid", &pid])
            .output()
            .unwrap()
    };
    let output = merge("+sys_ptrace,+sys_nice");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("CAP_DAC_READ_SEARCH"), "{said}");
    let output = merge("+sys_ptrace,+sys_nice,+dac_read_search");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn pages_and_completions_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(sksm(&["generate", "--dir", path]).status.success());
    for (file, part) in [
        ("sksm.1", "sksm\\-preload"),
        ("sksm-estimate.1", "settle"),
        ("sksm-run.1", "verbose"),
        ("sksm-top.1", "interval"),
        ("sksm-scan.1", "/etc/sksm/scan.conf"),
        ("sksm-scan.1", "/run/sksm\\-scan/state.json"),
        ("sksm-scan.1", "SIGHUP"),
        ("sksm-scan.1", "SIGTERM"),
        ("sksm-unmerge.1", "/sys/kernel/mm/sksm/unmerge"),
        ("sksm.bash", "estimate"),
        ("sksm.bash", "unmerge"),
        ("sksm.bash", "--interval"),
        ("_sksm", "doctor"),
        ("sksm.fish", "stat"),
    ] {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains(part), "{file}");
    }
    // Every page has every section, and names no page that is not made.
    let made: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    let mut pages = 0;
    for entry in made {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|chapter| chapter != "1") {
            continue;
        }
        pages += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        for section in ["EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"] {
            let line = format!("\n.SH \"{section}\"\n");
            let short = format!("\n.SH {section}\n");
            let there = text.contains(&line) || text.contains(&short);
            assert!(there, "{}: no {section}", path.display());
        }
        let words = ["\\fB", "\\fR", "\\"].iter();
        let words = words.fold(text.clone(), |words, mark| words.replace(mark, ""));
        for word in words.split_whitespace() {
            if let Some((name, _)) = word.split_once("(1)") {
                let other = dir.path().join(format!("{name}.1"));
                assert!(other.is_file() || !name.starts_with("sksm"), "{name}");
            }
        }
    }
    assert_eq!(pages, 10);
}

/// The store is of the user, and there is none unless somebody uses it.
#[test]
fn the_store_can_be_looked_at_and_emptied() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = home.path().join("store");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
            .args(arguments)
            .env("SKSM_STORE_DIR", &place)
            .output()
            .unwrap();
        (output.status.code(), output.stdout, output.stderr)
    };
    let report = |arguments: &[&str]| -> Value {
        let (code, printed, _) = run(&[&["--json"], arguments].concat());
        assert_eq!(code, Some(0));
        serde_json::from_slice(&printed).unwrap()
    };
    assert!(text(&run(&["store"]).1).ends_with("nothing is stored\n"));
    assert_eq!(report(&["store", "collect"])["removed_files"], 0);
    let doctor = |report: Value| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "store");
        check.unwrap()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(doctor(report(&["doctor"])), "yes");
    // Nobody who only looks makes one.
    assert!(!place.exists());
    let store = sksm_store::Store::open_in(&place).unwrap();
    let kept = store.freeze(vec![1u8; 40_000]).unwrap();
    drop(store.freeze(vec![2u8; 50_000]).unwrap());
    let listed = report(&["store", "list"]);
    assert_eq!(
        (listed["files"].as_u64(), listed["held_bytes"].as_u64()),
        (Some(2), Some(94_208))
    );
    let used = &listed["stored"][1];
    assert_eq!(used["users"][0], std::process::id());
    assert_eq!(
        (used["saved_bytes"].as_i64(), listed["saved_bytes"].as_i64()),
        (Some(0), Some(-53_248))
    );
    // Whatever the kernel merges.
    for verb in ["stat", "top"] {
        assert_eq!(report(&[verb])["store"]["files"], 2, "{verb}");
    }
    let metrics = run(&["stat", "--prometheus"]).1;
    assert!(text(&metrics).contains("\nsksm_store_held_bytes 94208\n"));
    assert_eq!(report(&["store", "collect"])["removed_bytes"], 53_248);
    let cleared = report(&["store", "clear"]);
    assert_eq!(
        (
            cleared["removed_files"].as_u64(),
            cleared["left_files"].as_u64()
        ),
        (Some(1), Some(0))
    );
    assert_eq!(kept[..], [1; 40_000]);
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, _, said) = run(&["store"]);
    assert_eq!(code, Some(1));
    assert!(text(&said).contains("chmod it to 700"), "{}", text(&said));
    let said = run(&["stat"]).2;
    assert!(text(&said).contains("note: "), "{}", text(&said));
    assert!(text(&said).contains("chmod it to 700"), "{}", text(&said));
    assert_eq!(doctor(report(&["doctor"])), "no");
    let (code, ..) = run(&["doctor", "--require", "store"]);
    assert_eq!(code, Some(3));
}

#[test]
fn run_asks_for_the_store_alone() {
    let object = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["run", "--store", "-v", "--", "sh", "-c"])
        .arg("echo $SKSM_STORE ${SKSM-none} $SKSM_VERBOSE")
        .env("SKSM_PRELOAD", object.path())
        .env("SKSM", "heap")
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "1 none 1\n");
    let output = sksm(&["run", "--store", "--what", "heap", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
}
