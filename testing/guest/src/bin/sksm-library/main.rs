//! The library, the preload object and the command on a kernel that merges: what they promise beyond the call itself.

mod c;
mod counts;
mod crew;
mod preload;
mod scratch;
mod tracker;
mod undo;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use sksm::{Error, Patch, Process, ProcessStatistics, Region, Support, SystemStatistics};
use sksm_guest::harness::program::beside;
use sksm_guest::harness::report::{self, Options, Test, test};
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::file::memfd;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Pagemap, copies};
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;

use crew::{Crew, Worker};

/// Checks the user-space side of SKSM, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

const TESTS: &[Test] = &[
    test("asking-merges-nothing", asking_merges_nothing),
    test("pretended-support", pretended_support),
    test("ksm-stays-out", ksm_stays_out),
    test("anonymous-above-a-size", anonymous_above_a_size),
    test("mapping-by-file", mapping_by_file),
    test("mapping-by-address", mapping_by_address),
    test("other-process", other_process),
    test("remote-with-holes", remote_with_holes),
    test("remote-beyond-2-gib", remote_beyond_2_gib),
    test("no-process", no_process),
    test("measured", measured),
    test("counts/process", counts::of_a_process),
    test("counts/system", counts::of_the_system),
    test("unmerge/own", undo::own),
    test("unmerge/own-process", undo::own_process),
    test("unmerge/other-process", undo::other_process),
    test("unmerge/forks-share-on", undo::forks_share_on),
    test("patched-text-is-shared", patched_text_is_shared),
    test("all-text", all_text),
    test("static-keys", static_keys),
    test("vm-memory", vm_memory),
    test("tracker/guests", tracker::guests),
    test("tracker/service", tracker::service),
    test("tracker/time-per-page", tracker::time_per_page),
    test("example", example),
    test("c/functions", c::functions),
    test("c/example", c::example),
    test("preload/bash", || {
        preload::as_without_it("bash", &["-c", "echo $((6 * 7)); bash -c 'exit 3'"])
    }),
    test("preload/perl", || {
        let script = "print join ',', map { $_ ** 2 } 1 .. 9; exit 3";
        preload::as_without_it("perl", &["-e", script])
    }),
    test("preload/python3", || {
        let script = "import json; print(json.dumps(list(range(9))))";
        preload::as_without_it("python3", &["-c", script])
    }),
    test("preload/git", || {
        preload::as_without_it("git", &["--version"])
    }),
    test("preload/sqlite3", || {
        let script = "create table t(a); insert into t values (42); select * from t";
        preload::as_without_it("sqlite3", &[":memory:", script])
    }),
    test("preload/openssl", || {
        preload::as_without_it("openssl", &["dgst", "-sha256", "/etc/hostname"])
    }),
    test("preload/node", || {
        let script = "console.log([1, 2].map(x => x * 2))";
        preload::as_without_it("node", &["-e", script])
    }),
    test("preload/as-packaged", preload::as_packaged),
    test("preload/merges", preload::merges),
    test("preload/no-domain", preload::no_domain),
    test("preload/forked-workers", preload::forked_workers),
    test("preload/min-pages", preload::min_pages),
    test("preload/after", preload::after),
    test("preload/after-setuid", preload::after_setuid),
    test("preload/after-fork", preload::after_fork),
    test("preload/after-no-timer", preload::after_no_timer),
    test("preload/set-uid", preload::set_uid),
    test("estimate-agrees-with-merge", estimate_agrees_with_merge),
];

fn main() -> ExitCode {
    let part: Option<fn() -> Result<()>> = match std::env::args().nth(1).as_deref() {
        Some(PATCHED) => Some(patched_worker),
        Some(ASKING) => Some(asking),
        _ => None,
    };
    if let Some(part) = part {
        return match part() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    report::run(TESTS, &Arguments::parse().options)
}

/// As the first argument: this program only asks what the kernel offers.
const ASKING: &str = "--asking";

fn asking() -> Result<()> {
    ensure!(sksm::support() == Support::Merge);
    Ok(())
}

/// Where the kernel says which number its advice has, nothing is advised to find out.
fn asking_merges_nothing() -> Result<()> {
    ensure!(SKSM.number("advice")? == i64::from(sksm::MADV_MERGE));
    let calls = SKSM.number("calls")?;
    let asked = Command::new(std::env::current_exe()?)
        .arg(ASKING)
        .status()?;
    ensure!(asked.success(), "asking: {asked}");
    ensure!(SKSM.number("calls")? == calls, "the advice was given");
    Ok(())
}

fn pretended_support() -> Result<()> {
    ensure!(sksm::support() == Support::Merge);
    let map = Map::filled(&[5; 4])?;
    for instead in [Support::Ksm, Support::None] {
        sksm::pretend_support(Some(instead));
        ensure!(sksm::support() == instead);
        let refused = Err(Error::Unsupported {
            instead,
            errno: libc::EINVAL,
        });
        ensure!(sksm::merge_range(map.addr(), map.len()) == refused);
        ensure!(sksm::unmerge_range(map.addr(), map.len()) == refused);
        let child = Child::spawn(|parent| parent.meet())?;
        child.pause()?;
        let result = Process::open(child.pid() as u32)?.merge_mapping_at(map.addr());
        ensure!(result.is_err(), "the other process is merged: {result:?}");
        child.go()?;
        child.join()?;
        ensure!(copies(&map.pfns()?) == 4, "merged all the same");
    }
    sksm::pretend_support(None);
    sksm::merge_range(map.addr(), map.len())?;
    ensure!(copies(&map.pfns()?) == 1, "not merged");
    Ok(())
}

/// A merge does not start KSM's scanning.
fn ksm_stays_out() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    map.merge()?;
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    ensure!(
        !smaps
            .lines()
            .any(|line| line.starts_with("VmFlags:") && line.contains(" mg")),
        "a mapping is handed to KSM"
    );
    Ok(())
}

fn anonymous_above_a_size() -> Result<()> {
    // Apart by pages that cannot be accessed, or the kernel would join the two.
    let room = Map::anon(1000)?;
    room.no_huge();
    for guard in [0, 300, 700] {
        room.protect_pages(guard..guard + 1, libc::PROT_NONE)?;
    }
    let (small, large) = (room.part(1..300), room.part(301..700));
    small.fill_all(|_| 5);
    large.fill_all(|_| 6);
    Process::own().merge_anonymous(350 * PAGE)?;
    ensure!(
        copies(&small.pfns()?) == small.pages(),
        "the small one is merged"
    );
    // max_page_sharing is 256.
    ensure!(
        copies(&large.pfns()?) <= 2,
        "{} copies",
        copies(&large.pfns()?)
    );
    // Not everything: pages that this process has in common with its parent would stay merged there.
    Process::own().merge_anonymous(250 * PAGE)?;
    ensure!(
        copies(&small.pfns()?) <= 2,
        "{} copies",
        copies(&small.pfns()?)
    );
    small.expect_all(|_| 5)?;
    large.expect_all(|_| 6)
}

fn mapping_by_file() -> Result<()> {
    // Paths are bytes, and end where they end.
    for name in [b"plain".as_slice(), b"\xff\xfe", b"ends in a space "] {
        let mut file = format!("sksm-library-{}-", std::process::id()).into_bytes();
        file.extend(name);
        merge_one_file(&std::env::temp_dir().join(OsStr::from_bytes(&file)))?;
    }
    Ok(())
}

fn merge_one_file(path: &Path) -> Result<()> {
    let file = std::fs::File::create_new(path)?;
    file.set_len(8 * PAGE as u64)?;
    let file = std::fs::File::open(path)?;
    let map = Map::new(
        8,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE,
        Some(&file),
    )?;
    map.fill_all(|_| 5);
    let other = Map::filled(&[5; 8])?;
    let done = Process::own().merge_file(path);
    std::fs::remove_file(path)?;
    ensure!(done?.advised == map.len(), "{}", path.display());
    ensure!(copies(&map.pfns()?) == 1, "not merged");
    ensure!(
        copies(&other.pfns()?) == 8,
        "what was not asked for is merged"
    );
    map.expect_all(|_| 5)
}

fn mapping_by_address() -> Result<()> {
    let file = memfd(4)?;
    let shared = Map::new(
        4,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
        Some(&file),
    )?;
    shared.fill_all(|_| 5);
    let result = Process::own().merge_mapping_at(shared.addr());
    ensure!(result == Err(Error::NotMapped), "shared memory: {result:?}");
    let map = Map::filled(&[5; 4])?;
    Process::own().merge_mapping_at(map.page(2) + 17)?;
    ensure!(copies(&map.pfns()?) == 1, "not merged");
    Ok(())
}

fn other_process() -> Result<()> {
    let map = Map::filled(&[0; 64])?;
    let child = Child::spawn(|parent| {
        map.fill_all(|_| 7);
        parent.meet()?;
        map.expect_all(|_| 7)
    })?;
    child.pause()?;
    let before = ProcessStatistics::of(child.pid() as u32)?;
    // That mapping alone: pages that the child has in common with this process would stay merged here.
    let done = Process::open(child.pid() as u32)?.merge_mapping_at(map.addr())?;
    ensure!(done.refused.is_empty(), "refused: {:?}", done.refused);
    ensure!(copies(&child.pagemap()?.pfns(map.addr(), 64)?) == 1);
    let after = ProcessStatistics::of(child.pid() as u32)?;
    ensure!(
        after.ksm >= before.ksm + map.len() as u64,
        "smaps knows of {} merged bytes, {} before",
        after.ksm,
        before.ksm
    );
    child.go()?;
    child.join()
}

/// Ranges that are refused are noted, the others merged: more of each than one call takes.
fn remote_with_holes() -> Result<()> {
    const PAGES: usize = 3000;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    map.fill_all(|page| 1 + page as u64 / 100);
    let holes = [0, 1, 5, 1023, 1024, 1500, 2048, 2999];
    for hole in holes {
        map.unmap_pages(hole..hole + 1)?;
    }
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    let ranges: Vec<Region> = (0..PAGES)
        .map(|page| Region::from((map.page(page), PAGE)))
        .collect();
    let pidfd = child.pidfd()?;
    let done = sksm::merge_remote_each(std::os::fd::AsFd::as_fd(&pidfd), &ranges)?;
    ensure!(done.advised == (PAGES - holes.len()) * PAGE);
    let mut refused = done.refused.iter().zip(holes);
    ensure!(
        done.refused.len() == holes.len()
            && refused.all(|(error, hole)| is_hole(Some(*error), ranges[hole])),
        "refused: {:?}",
        done.refused
    );
    let pagemap = child.pagemap()?;
    // The last hundred, without its hole.
    ensure!(copies(&pagemap.pfns(map.page(2900), 99)?) == 1);
    child.go()?;
    child.join()
}

/// Whether it says that part of the region is not mapped.
fn is_hole(error: Option<Error>, wanted: Region) -> bool {
    matches!(error, Some(Error::Hole { region, errno: libc::ENOMEM, .. }) if region == wanted)
}

/// One call takes no more than 2 GiB; what lies behind is merged all the same. Only the last pages are present.
fn remote_beyond_2_gib() -> Result<()> {
    const PAGES: usize = (5 << 30) / 2 / PAGE + 2;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let map = Map::new(PAGES, libc::PROT_READ | libc::PROT_WRITE, flags, None)?;
    map.no_huge();
    let far = map.part(PAGES - 2..PAGES);
    let child = Child::spawn(|parent| {
        for id in [7, 8] {
            far.fill_all(|_| id);
            parent.meet()?;
            far.expect_all(|_| id)?;
        }
        Ok(())
    })?;
    let far_copies = || Ok::<_, anyhow::Error>(copies(&child.pagemap()?.pfns(far.addr(), 2)?));

    child.pause()?;
    ensure!(far_copies()? == 2, "one copy before any merge");
    let done = Process::open(child.pid() as u32)?.merge_mapping_at(map.addr())?;
    ensure!(done.refused.is_empty(), "refused: {:?}", done.refused);
    // The kernel may have joined it with a neighbour.
    ensure!(done.advised >= map.len(), "advised: {}", done.advised);
    ensure!(far_copies()? == 1, "the end is not merged by Process");
    child.go()?;

    child.pause()?;
    ensure!(far_copies()? == 2, "one copy after a write");
    let pidfd = child.pidfd()?;
    let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
    let advised = sksm::merge_remote(pidfd, &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "advised: {advised}");
    ensure!(far_copies()? == 1, "the end is not merged by merge_remote");
    child.go()?;
    child.join()
}

/// What a number stands for that is no process's.
fn no_process() -> Result<()> {
    let kernel = |error| matches!(error, Some(Error::KernelThread { pid: 2, .. }));
    ensure!(kernel(Process::open(2).err()));
    ensure!(kernel(ProcessStatistics::of(2).err()));
    let thread = std::thread::spawn(|| {
        // SAFETY: gettid cannot fail.
        let tid = unsafe { libc::gettid() } as u32;
        (tid, Process::open(tid).map(drop))
    });
    let Ok((tid, opened)) = thread.join() else {
        bail!("the thread has panicked");
    };
    let Err(Error::Thread {
        tid: found,
        process,
        ..
    }) = opened
    else {
        bail!("a thread is taken for a process: {opened:?}");
    };
    ensure!((found, process) == (tid, std::process::id()));
    let child = Child::spawn(|_| Ok(()))?;
    let (pid, pidfd) = (child.pid() as u32, child.pidfd()?);
    child.join()?;
    let gone = Error::Gone { errno: libc::ESRCH };
    ensure!(Process::open(pid).map(drop) == Err(gone));
    let ranges = [Region::from((0x1000, PAGE))];
    let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
    ensure!(sksm::merge_remote_each(pidfd, &ranges) == Err(gone));
    Ok(())
}

fn measured() -> Result<()> {
    let map = Map::filled(&[9; 100])?;
    let calls = || SystemStatistics::sksm().and_then(|counters| counters.get("calls"));
    let before = calls().context("no counter of calls")?;
    let (result, effect) = sksm::measure(|| sksm::merge_range(map.addr(), map.len()))?;
    result?;
    ensure!(effect.merged == map.len() as i64, "{effect:?}");
    ensure!(calls() > Some(before), "no call was counted");
    let (_, effect) = sksm::measure(|| map.fill(0, 8))?;
    ensure!(effect.merged == -(PAGE as i64), "a write: {effect:?}");
    Ok(())
}

// A page of code that nothing calls.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.sksm_spare,\"ax\",@progbits",
    ".balign 4096",
    ".globl sksm_spare",
    "sksm_spare:",
    "mov eax, 1",
    "ret",
    ".balign 4096",
    ".popsection",
);

unsafe extern "C" {
    safe fn sksm_spare() -> i32;
}

fn spare() -> usize {
    sksm_spare as *const () as usize
}

/// Makes the function that nothing calls return another number.
fn patch_spare() -> Result<Patch> {
    let number = spare() + 1;
    ensure!(sksm_spare() == 1);
    // SAFETY: only these tests run it, and not meanwhile.
    let mut patch = unsafe { Patch::begin(number, 4)? };
    patch.write(number, &7i32.to_le_bytes())?;
    Ok(patch)
}

fn patched_text_is_shared() -> Result<()> {
    let code = spare();
    let children = (0..6)
        .map(|_| {
            Child::spawn(|parent| {
                patch_spare()?.finish_and_merge()?;
                ensure!(sksm_spare() == 7, "the new code does not run");
                parent.meet()?;
                ensure!(sksm_spare() == 7, "the new code is lost");
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    children.iter().try_for_each(|child| child.pause())?;
    let pfns = children
        .iter()
        .map(|child| child.pagemap()?.pfn(code))
        .collect::<Result<Vec<_>>>()?;
    ensure!(copies(&pfns) == 1, "{} copies of one page", copies(&pfns));
    ensure!(sksm_spare() == 1);
    ensure!(
        Pagemap::own()?.pfn(code)? != pfns[0],
        "the parent's page has changed"
    );
    for child in children {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// Text that was patched without this library's knowledge is merged as one thing: by its process, or from outside.
fn all_text() -> Result<()> {
    // Programs of their own: what a fork has in common with this process would stay merged here.
    let mut workers = Vec::new();
    for _ in 0..4 {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PATCHED);
        workers.push(Worker::start(command)?);
    }
    let pfns = |workers: &[Worker]| {
        let pfns = workers.iter().map(|worker| {
            let code = usize::from_str_radix(&worker.first, 16)?;
            Pagemap::of(worker.child.id() as i32)?.pfn(code)
        });
        pfns.collect::<Result<Vec<_>>>()
    };
    ensure!(copies(&pfns(&workers)?) == 4, "merged by nobody");
    for (number, worker) in workers.iter_mut().enumerate() {
        if number % 2 == 0 {
            worker.ask()?;
        } else {
            let done = Process::open(worker.child.id())?.merge_text()?;
            ensure!(done.refused.is_empty(), "refused: {:?}", done.refused);
        }
    }
    let copies = copies(&pfns(&workers)?);
    ensure!(copies == 1, "{copies} copies");
    workers.into_iter().try_for_each(Worker::end)
}

/// The argument of such a program.
const PATCHED: &str = "--patched-worker";

fn patched_worker() -> Result<()> {
    patch_spare()?.finish()?;
    println!("{:x}", spare());
    if std::io::stdin().read_line(&mut String::new())? > 0 {
        let done = Process::own().merge_text()?;
        ensure!(done.refused.is_empty(), "refused: {:?}", done.refused);
        println!("merged");
        std::io::stdin().read_line(&mut String::new())?;
    }
    ensure!(sksm_spare() == 7, "the new code is lost");
    Ok(())
}

/// The example, which fails if the patched page is not shared.
fn static_keys() -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("sksm-static-keys");
    if !program.exists() {
        return skip("the example static-keys was not built: it needs Rust 1.87");
    }
    let output = Command::new(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("in 8 physical") && text.contains("in 1 physical"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The example for VMMs: two of three find the image of the first, and all have zeros.
fn vm_memory() -> Result<()> {
    let output = Command::new(beside("sksm-vm-memory")?).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let saved = |mib| {
        text.matches(&format!(": saved {mib} MiB, zero pages 16 MiB\n"))
            .count()
    };
    ensure!(
        output.status.success() && saved(0) == 1 && saved(32) == 2,
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The example of the library: workers that merge a table each.
fn example() -> Result<()> {
    let output = Command::new(beside("examples/table")?).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mib = (text.lines().last())
        .and_then(|line| line.strip_suffix(" MiB of 8 processes are merged"))
        .and_then(|mib| mib.parse::<u64>().ok());
    // 8 MiB each, but for the pages at its ends.
    ensure!(
        output.status.success() && mib.is_some_and(|mib| (60..=64).contains(&mib)),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(text.matches(" KiB merged in ").count() == 8, "{text}");
    Ok(())
}

/// The prediction for interpreters that nobody has prepared for it, and what a merge then saves.
fn estimate_agrees_with_merge() -> Result<()> {
    let perl = "use POSIX; my %h = map { $_ => [$_, rand] } 1 .. 30000; my $z = \"\\0\" x 3e6;
                my @w = map { sprintf '%064d', $_ } 1 .. 20000; $| = 1; print \"ready\\n\"; <STDIN>";
    let python = "import json, os, re, sys\n\
                  table = {i: str(i) * 20 for i in range(30000)}\n\
                  noise, zeros = os.urandom(2000000), bytearray(3000000)\n\
                  print('ready', flush=True)\nsys.stdin.read()";
    let mut commands = Vec::new();
    for (program, flag, script) in [("perl", "-e", perl), ("python3", "-c", python)] {
        for _ in 0..4 {
            let mut command = Command::new(program);
            command.args([flag, script]);
            commands.push(command);
        }
    }
    let crew = Crew::start(commands)?;
    let sksm = |verb: &str| -> Result<serde_json::Value> {
        let output = Command::new(beside("sksm")?)
            .args([verb, "--json", "--pid"])
            .args(crew.pids().map(|pid| pid.to_string()))
            .output()?;
        ensure!(output.status.success(), "sksm {verb}: {output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let estimate = sksm("estimate")?;
    let figure = |name: &str| {
        let value = estimate["within_domains"][name].as_f64();
        value.with_context(|| format!("no {name} in {estimate}"))
    };
    let before = crew.frames()?.len();
    sksm("merge")?;
    let saved = before - crew.frames()?.len();
    let predicted = figure("saved_pages")?;
    let off = (predicted - saved as f64) / saved as f64;
    ensure!(
        off.abs() <= 0.02,
        "predicted {predicted} of {} pages, saved {saved} of {before}",
        figure("pages")?
    );
    // Enough to tell.
    ensure!(saved > 2000, "only {saved} of {before} pages saved");
    // Looking at merged pages takes none apart, and finds little more to save.
    let merged = crew.frames()?.len();
    let again = sksm("estimate")?;
    let (looked, left) = (
        crew.frames()?.len(),
        &again["within_domains"]["saved_pages"],
    );
    ensure!(
        looked <= merged + 10,
        "{merged} pages became {looked} when they were looked at"
    );
    ensure!(
        left.as_f64().is_some_and(|left| left < 0.02 * saved as f64),
        "{left} pages could still be saved, after {saved} were"
    );
    Ok(())
}
