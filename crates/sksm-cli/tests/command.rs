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
        &report["within_users"]["pages"],
        &report["within_users"]["saved_pages"],
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
    ["pages", "saved_pages"].map(|name| report["within_users"][name].as_f64().unwrap())
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
    let both = |share: &f64| (0.5..0.7).contains(share);
    assert!(shares[4..].iter().all(both), "{shares:?}");
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
    let pid = std::process::id().to_string();
    let look = |more: &[&str]| {
        let arguments = [&["estimate", "--json", "--pid", &pid] as &[&str], more].concat();
        let report = json(&arguments);
        (
            figures(&report)[0] as usize,
            report["own_peak_bytes"].as_f64().unwrap(),
        )
    };
    // Groups of equal pages, with samples that are zeros in some.
    let pages = |bytes, equal: usize, zeros: usize| {
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
        pages
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
        let least = look(more);
        let many = pages(GIB, equal, zeros);
        let most = look(more);
        drop((few, many));
        assert!((most.0 - least.0) * sksm::page_size() >= GIB - GIB / 100);
        let used = (most.1 - least.1) / f64::from(1 << 20);
        assert!(
            used < mib + 0.5,
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
    for (kind, right) in [("patched text", 600.0), ("data", 400.0)] {
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
    let output = sksm(&["estimate", "--cgroup", "/no/such/group"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no control group"));
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
    assert!(output.stdout.is_empty());
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
    std::thread::sleep(Duration::from_millis(1500));
    for running in [&mut ends, &mut changes] {
        running.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }
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
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("other anonymous")
    );
    let stable = report["stable"]["pages"].as_f64().unwrap();
    assert!(stable > 0.0 && stable <= report["within_users"]["pages"].as_f64().unwrap());
}

#[test]
fn a_process_that_is_not_there_is_named() {
    for verb in ["estimate", "stat"] {
        let output = sksm(&[verb, "--pid", "2147483647"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("2147483647"), "{output:?}");
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
            assert!(text(&output.stderr).contains("CONFIG_SKSM"), "{output:?}");
        }
    }
    let report = json(&["merge", "--dry-run", "--json", "--pid", &pid]);
    assert_eq!(report["dry_run"], true);
    assert!(report["processes"][0]["pages"].as_u64().unwrap() > 0);
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
            let unit = format!("# UNIT {name} bytes");
            let has_unit = lines.next_if(|line| *line == unit).is_some();
            let bytes = name.ends_with("_bytes") && format == "--openmetrics";
            assert_eq!(has_unit, bytes, "{line}");
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
                value.parse::<u64>().expect(line);
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

#[test]
fn what_run_is_given_reaches_the_object() {
    let object = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["run", "--after", "2m", "--signal", "HUP", "-v", "--"])
        .args(["sh", "-c", "echo $SKSM_AFTER $SKSM_SIGNAL $SKSM_VERBOSE"])
        .env("SKSM_PRELOAD", object.path())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "120000ms 1 1\n");
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

#[test]
fn a_wrong_command_line_is_refused() {
    for wrong in [
        &["merge"] as &[&str],
        &["merge", "--pid", "1", "--what", "texts"],
        &["estimate", "--name", "("],
        &["estimate", "--all", "--max-page-sharing", "1"],
        &["stat", "--json", "--openmetrics"],
        &["stat", "--json", "--prometheus"],
        &["stat", "--openmetrics", "--prometheus"],
        &["run", "--after", "5x", "--", "true"],
        &["run", "--signal", "KILL", "--", "true"],
        &["run", "--json", "--", "true"],
        &["--json", "run", "--", "true"],
        &["top", "--interval", "0"],
        &["top", "--sort", "colour"],
        &["nonsense"],
    ] {
        let output = sksm(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
}

/// Names of fields, as docs/json.md writes them.
fn fields(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields_of) => {
            for (name, value) in fields_of {
                // Where the data gives the keys.
                let name = match at {
                    "sksm" | "ksm" | "kinds" => "NAME",
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
    let examples: [(&str, &[&str]); 6] = [
        ("doctor", &["doctor"]),
        ("stat", &["stat"]),
        ("stat --pid", &["stat", "--pid", &pid]),
        ("merge", &["merge", "--dry-run", "--pid", &pid]),
        ("estimate", &["estimate", "--settle", "0", "--pid", &pid]),
        ("top", &["top"]),
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

#[test]
fn pages_and_completions_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(sksm(&["generate", "--dir", path]).status.success());
    for (file, part) in [
        ("sksm.1", "Exit status"),
        ("sksm-estimate.1", "settle"),
        ("sksm-run.1", "verbose"),
        ("sksm-top.1", "interval"),
        ("sksm.bash", "estimate"),
        ("sksm.bash", "--interval"),
        ("_sksm", "doctor"),
        ("sksm.fish", "stat"),
    ] {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains(part), "{file}");
    }
}
