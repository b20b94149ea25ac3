//! What the rest of a busy system does to the processes' memory, each kind in a thread of its own.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sksm_guest::exercise::arena::{Arena, PAGES};
use sksm_guest::exercise::changer::Changer;
use sksm_guest::exercise::choices::Choices;
use sksm_guest::exercise::shared::Shared;
use sksm_guest::exercise::system::Changing;
use sksm_guest::harness::scanner::Scanner;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::SwapFile;
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM};
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Pidfd;
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

/// What the scanner tells of itself.
const STATE: &str = "/tmp/sksm-random-scan.json";
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// A process that is disturbed.
pub struct Target {
    pub pid: i32,
    pub pidfd: Pidfd,
}

/// What the disturbers work with.
pub struct Scene<'a> {
    pub targets: &'a [Target],
    /// The control groups that the targets are in.
    pub groups: &'a [Cgroup],
    pub swap_file: Option<&'a SwapFile>,
    /// NUMA nodes with memory.
    pub nodes: &'a [i32],
    pub changing: &'a [Changing],
    pub scanner: &'a mut Scanner,
}

type Act<'a> = Box<dyn FnMut(&mut Choices) -> Result<bool> + Send + 'a>;

/// One kind of disturbance.
pub struct Disturber<'a> {
    name: &'static str,
    /// Between two of them: often enough to hit every state, rarely enough that work goes on on one CPU. Those that go
    /// through all memory take a large part of an emulated CPU.
    pause: Duration,
    /// Tells whether it came to anything.
    act: Act<'a>,
    done: Arc<AtomicU64>,
}

/// How often a disturber came to anything.
pub struct Count {
    pub name: &'static str,
    done: Arc<AtomicU64>,
}

impl Count {
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }
}

impl<'a> Disturber<'a> {
    fn new(
        name: &'static str,
        pause_ms: u64,
        act: impl FnMut(&mut Choices) -> Result<bool> + Send + 'a,
    ) -> Self {
        Self {
            name,
            pause: Duration::from_millis(pause_ms),
            act: Box::new(act),
            done: Arc::default(),
        }
    }

    pub fn count(&self) -> Count {
        Count {
            name: self.name,
            done: self.done.clone(),
        }
    }

    /// Disturbs until the time is over or something differs.
    fn keep_up(&mut self, seed: u64, shared: &Shared) {
        let mut choices = Choices::seeded(seed);
        while shared.running() {
            match (self.act)(&mut choices) {
                Ok(done) => self.done.fetch_add(u64::from(done), Relaxed),
                Err(error) => return shared.differ(&format!("{}: {error:#}", self.name)),
            };
            sleep(self.pause);
        }
    }
}

/// Those of an ordinary run.
pub fn ordinary(changing: &[Changing]) -> Result<Vec<Disturber<'_>>> {
    let mut all = whole_machine(50, 400);
    all.extend(of_files(changing)?);
    all.push(Disturber::new("unmerge", 2000, |_| unmerge()));
    Ok(all)
}

/// What changes files under those who have them mapped.
fn of_files(changing: &[Changing]) -> Result<Vec<Disturber<'_>>> {
    changing
        .iter()
        .map(|changing| {
            let mut changer = Changer::new(changing)?;
            let name = if changing.direct {
                "invalidate"
            } else {
                "punch"
            };
            Ok(Disturber::new(name, 20, move |choices| {
                changer.change(choices)
            }))
        })
        .collect()
}

/// Reclaim and compaction.
fn whole_machine<'a>(reclaim_pause: u64, compaction_pause: u64) -> Vec<Disturber<'a>> {
    // Both are attempts: that there was nothing to reclaim or to compact is no error of the memory that is compared.
    let reclaim = || fs::write("/sys/fs/cgroup/memory.reclaim", "1M").is_ok();
    vec![
        Disturber::new("reclaim", reclaim_pause, move |_| Ok(reclaim())),
        Disturber::new("compaction", compaction_pause, |_| {
            Ok(fs::write(COMPACT, "1").is_ok())
        }),
    ]
}

/// What cannot disturb here, and why.
pub type LeftOut = Vec<(&'static str, String)>;

/// Those of a stress run, and which of them this kernel has no use for.
pub fn all<'a>(scene: Scene<'a>) -> Result<(Vec<Disturber<'a>>, LeftOut)> {
    let Scene {
        targets,
        groups,
        swap_file,
        nodes,
        changing,
        scanner,
    } = scene;
    let mut left_out = Vec::new();
    let mut all = whole_machine(300, 2000);
    if groups.is_empty() {
        for name in ["limit", "mark"] {
            left_out.push((name, "no memory controller".into()));
        }
    } else {
        // Mostly those with which something merges.
        all.push(Disturber::new("mark", 400, |choices| {
            let mark = choices.one_of(&["inherit", "user", "all", "all", "none"]);
            groups[choices.below(groups.len())].write("memory.merge_domain", mark)?;
            Ok(true)
        }));
        all.push(Disturber::new("limit", 500, |choices| {
            limit(&groups[choices.below(groups.len())], choices)
        }));
    }
    all.push(Disturber::new("ksmd", 700, ksmd));
    all.push(Disturber::new("ksm-unmerge", 4000, |_| {
        let undone = KSM.write("run", 2).is_ok();
        KSM.write("run", 1).map(|()| undone)
    }));
    all.push(Disturber::new("domain", 300, |choices| {
        let domain = choices.one_of(&["user", "cgroup", "global", "global", "none"]);
        SKSM.write("domain", domain).map(|()| true)
    }));
    all.push(Disturber::new("max-sharing", 500, |choices| {
        let most = choices.one_of(&[2, 3, 16, 256]);
        SKSM.write("max_page_sharing", most).map(|()| true)
    }));
    all.push(Disturber::new("across-nodes", 500, |choices| {
        let across = choices.below(2);
        SKSM.write("merge_across_nodes", across).map(|()| true)
    }));
    all.push(Disturber::new("remote", 100, |choices| {
        remote(&targets[choices.below(targets.len())], choices)
    }));
    all.extend(of_files(changing)?);
    all.push(Disturber::new("unmerge", 1500, |_| unmerge()));
    all.push(Disturber::new("remote-unmerge", 400, |choices| {
        let whole = (Arena::addr(0), PAGES * PAGE);
        let target = &targets[choices.below(targets.len())];
        Ok(process_madvise(target, whole, libc::MADV_UNMERGEABLE))
    }));
    all.push(Disturber::new("look", 1000, |choices| {
        look(&targets[choices.below(targets.len())])
    }));
    let mut told = 0;
    all.push(Disturber::new("scan", 5000, move |_| {
        scanner.runs()?;
        let before = std::mem::replace(&mut told, sampled()?);
        Ok(told > before)
    }));
    match swap_file {
        Some(file) => all.push(Disturber::new("swapoff", 3000, |_| {
            file.off()?;
            file.again().map(|()| true)
        })),
        None => left_out.push(("swapoff", "no swap file".into())),
    }
    if nodes.len() > 1 {
        all.push(Disturber::new("migrate", 600, |choices| {
            Ok(migrate(
                targets[choices.below(targets.len())].pid,
                choices.one_of(nodes),
            ))
        }));
    } else {
        left_out.push(("migrate", "this machine has one NUMA node".into()));
    }
    Ok((all, left_out))
}

/// Gives every page of the machine a copy of its own. Tells whether any were shared.
fn unmerge() -> Result<bool> {
    let shared = SKSM.number("pages_sharing")? > 0;
    SKSM.write("unmerge", 1).map(|()| shared)
}

/// Lets all of them disturb; meanwhile calls `watch` until the time is over.
pub fn run(disturbers: &mut [Disturber], seed: u64, shared: &Shared, mut watch: impl FnMut()) {
    std::thread::scope(|scope| {
        for (number, disturber) in disturbers.iter_mut().enumerate() {
            let seed = seed.wrapping_add(number as u64);
            scope.spawn(move || disturber.keep_up(seed, shared));
        }
        while shared.running() {
            watch();
            sleep(Duration::from_millis(200));
        }
    });
}

/// Squeezes a control group for a moment.
fn limit(group: &Cgroup, choices: &mut Choices) -> Result<bool> {
    let now = group.number("memory.current")?;
    let taken = group.reclaim(now / 100 * choices.within(5..50))?;
    // Its processes reclaim by themselves too. A limit far below what they have would put them to sleep for seconds, and
    // `memory.max` would kill where pages are locked or pinned.
    let limit = group.number("memory.current")? / 100 * 95;
    group.write("memory.high", &limit.to_string())?;
    sleep(Duration::from_millis(50));
    group.write("memory.high", "max")?;
    Ok(taken)
}

/// Stops and starts a ksmd that never sleeps.
fn ksmd(choices: &mut Choices) -> Result<bool> {
    KSM.write("use_zero_pages", choices.below(2))?;
    KSM.write("run", 0)?;
    sleep(Duration::from_millis(choices.within(1..300) as u64));
    KSM.write("run", 1)?;
    Ok(true)
}

/// Another process advises.
fn remote(target: &Target, choices: &mut Choices) -> Result<bool> {
    let whole = (Arena::addr(0), PAGES * PAGE);
    let others = [
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_WILLNEED,
        libc::MADV_COLLAPSE,
    ];
    if choices.below(10) < 3 {
        return Ok(process_madvise(target, whole, choices.one_of(&others)));
    }
    match sksm::merge_remote(target.pidfd.as_fd(), &[whole]) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // It has holes, or has just ended.
            Some(libc::ENOMEM) => Ok(true),
            Some(libc::ESRCH) => Ok(false),
            _ => bail!("merging another process: {error}"),
        },
    }
}

/// Advice that leaves contents alone. Holes are passed over, and told of in the end.
fn process_madvise(target: &Target, (addr, len): (usize, usize), advice: i32) -> bool {
    let part = libc::iovec {
        iov_base: addr as *mut _,
        iov_len: len,
    };
    let fd = target.pidfd.as_fd().as_raw_fd();
    // SAFETY: one valid part, of another process.
    let result =
        check(unsafe { libc::syscall(libc::SYS_process_madvise, fd, &part, 1, advice, 0) });
    match result {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENOMEM),
    }
}

/// Reads what tells about merged pages, all of which walks page tables, the index, or both.
fn look(target: &Target) -> Result<bool> {
    Counters::now()?;
    let read = |name: &str| fs::read(format!("/proc/{}/{name}", target.pid));
    // The process may end meanwhile.
    let maps = [read("smaps"), read("numa_maps")];
    let entries = Pagemap::of(target.pid).and_then(|map| map.entries(Arena::addr(0), PAGES));
    Ok(maps[0].is_ok() && entries.is_ok())
}

/// Moves all of a process's pages to one node.
fn migrate(pid: i32, node: i32) -> bool {
    const BITS: usize = u64::BITS as usize;
    // The kernel refuses nodes that it could not have: on arm64 there are 16.
    let (old, new) = (0xffff_u64, 1u64 << node);
    // SAFETY: two masks of one word each; moving changes no content.
    unsafe { libc::syscall(libc::SYS_migrate_pages, pid, BITS, &old, &new) >= 0 }
}

/// Prepares KSM: it works without a pause in a stress run.
pub fn set_up_ksm(stress: bool) -> Result<()> {
    KSM.write("sleep_millisecs", if stress { 0 } else { 20 })?;
    KSM.write("pages_to_scan", 500)?;
    KSM.write("run", 1).context("cannot start ksmd")
}

/// How many pages the scanner says that it has looked at.
pub fn sampled() -> Result<u64> {
    let state = match fs::read(STATE) {
        // It has not said anything yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        state => state.context(STATE)?,
    };
    let state: Value = serde_json::from_slice(&state).context(STATE)?;
    let sampled = state["total"]["sampled_pages"].as_u64();
    sampled.with_context(|| format!("{STATE} does not say how many pages were sampled"))
}

/// The scanner looks at everything, and takes what has stayed the same for a moment.
pub fn scanner() -> Result<Scanner> {
    // Of an earlier run.
    fs::remove_file(STATE).ok();
    Scanner::start(&[
        "--all", "--stable", "300ms", "--cpu", "20%", "--state", STATE,
    ])
}
