//! What the rest of a busy system does to the processes' memory, each kind in a thread of its own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::swap::SwapFile;
use sksm_guest::machine::sysfs::{Counters, KSM, SKSM};
use sksm_guest::memory::map::{Map, READ};
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Pidfd;
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::arena::{Arena, PAGES};
use crate::shadow::FILE_PAGES;
use crate::shared::Shared;
use crate::system::Changing;

/// Contents that no process writes begin here.
const UNLIKE: u64 = 1 << 20;

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
}

type Act<'a> = Box<dyn FnMut(&mut SmallRng) -> Result<bool> + Send + 'a>;

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
        act: impl FnMut(&mut SmallRng) -> Result<bool> + Send + 'a,
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
        let mut random = SmallRng::seed_from_u64(seed);
        while shared.running() {
            match (self.act)(&mut random) {
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
            Ok(Disturber::new(name, 20, move |random| {
                changer.change(random)
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
    } = scene;
    let mut left_out = Vec::new();
    let mut all = whole_machine(300, 2000);
    if groups.is_empty() {
        for name in ["limit", "mark"] {
            left_out.push((name, "no memory controller".into()));
        }
    } else {
        // Mostly those with which something merges.
        all.push(Disturber::new("mark", 400, |random| {
            let mark = any(&["inherit", "user", "all", "all", "none"], random);
            any(groups, random).write("memory.merge_domain", mark)?;
            Ok(true)
        }));
        all.push(Disturber::new("limit", 500, |random| {
            limit(any(groups, random), random)
        }));
    }
    all.push(Disturber::new("ksmd", 700, ksmd));
    all.push(Disturber::new("ksm-unmerge", 4000, |_| {
        let undone = KSM.write("run", 2).is_ok();
        KSM.write("run", 1).map(|()| undone)
    }));
    all.push(Disturber::new("domain", 300, |random| {
        let domain = *any(&["user", "cgroup", "global", "global", "none"], random);
        SKSM.write("domain", domain).map(|()| true)
    }));
    all.push(Disturber::new("max-sharing", 500, |random| {
        let most = any(&[2, 3, 16, 256], random);
        SKSM.write("max_page_sharing", most).map(|()| true)
    }));
    all.push(Disturber::new("across-nodes", 500, |random| {
        let across = random.random_range(0..=1);
        SKSM.write("merge_across_nodes", across).map(|()| true)
    }));
    all.push(Disturber::new("remote", 100, |random| {
        remote(any(targets, random), random)
    }));
    all.extend(of_files(changing)?);
    all.push(Disturber::new("unmerge", 1500, |_| unmerge()));
    all.push(Disturber::new("remote-unmerge", 400, |random| {
        let whole = (Arena::addr(0), PAGES * PAGE);
        let target = any(targets, random);
        Ok(process_madvise(target, whole, libc::MADV_UNMERGEABLE))
    }));
    all.push(Disturber::new("look", 1000, |random| {
        look(any(targets, random))
    }));
    match swap_file {
        Some(file) => all.push(Disturber::new("swapoff", 3000, |_| {
            file.off()?;
            file.again().map(|()| true)
        })),
        None => left_out.push(("swapoff", "no swap file".into())),
    }
    if nodes.len() > 1 {
        all.push(Disturber::new("migrate", 600, |random| {
            Ok(migrate(any(targets, random).pid, *any(nodes, random)))
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

/// Changes pages of one file.
struct Changer<'a> {
    changing: &'a Changing,
    /// Somebody maps the pages as they are in the file: who drops what is cached asks whether anybody does.
    reader: Map,
    /// What is written.
    new: Map,
}

impl<'a> Changer<'a> {
    const MOST: usize = 8;

    fn new(changing: &'a Changing) -> Result<Self> {
        let (file, first) = (changing.file(), changing.first);
        let reader = Map::at(0, FILE_PAGES, READ, libc::MAP_PRIVATE, Some(file), first);
        Ok(Self {
            changing,
            reader: reader.context("cannot map a file that changes")?,
            new: Map::anon(Self::MOST)?,
        })
    }

    /// A hole and other contents in it, or these by O_DIRECT.
    fn change(&mut self, random: &mut SmallRng) -> Result<bool> {
        let first = random.random_range(0..FILE_PAGES);
        let pages = random.random_range(1..=Self::MOST.min(FILE_PAGES - first));
        (first..first + pages).for_each(|page| _ = self.reader.get(page, 0));
        let id = UNLIKE + random.random_range(0..8);
        (0..pages).for_each(|page| self.new.fill(page, id));
        let (fd, len) = (self.changing.file().as_raw_fd(), pages * PAGE);
        let at = ((self.changing.first + first) * PAGE) as i64;
        if !self.changing.direct {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: takes numbers only.
            check(unsafe { libc::fallocate(fd, mode, at, len as i64) }).context("a hole")?;
        }
        // SAFETY: pages of a mapping.
        let written = check(unsafe { libc::pwrite(fd, self.new.addr() as *const _, len, at) })
            .context("cannot write to a file that changes")?;
        Ok(written as usize == len)
    }
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

fn any<'a, T>(choices: &'a [T], random: &mut SmallRng) -> &'a T {
    &choices[random.random_range(0..choices.len())]
}

/// Squeezes a control group for a moment.
fn limit(group: &Cgroup, random: &mut SmallRng) -> Result<bool> {
    let now = group.number("memory.current")?;
    let taken = group.reclaim(now / 100 * random.random_range(5..50))?;
    // Its processes reclaim by themselves too. A limit far below what they have would put them to sleep for seconds, and
    // `memory.max` would kill where pages are locked or pinned.
    let limit = group.number("memory.current")? / 100 * 95;
    group.write("memory.high", &limit.to_string())?;
    sleep(Duration::from_millis(50));
    group.write("memory.high", "max")?;
    Ok(taken)
}

/// Stops and starts a ksmd that never sleeps.
fn ksmd(random: &mut SmallRng) -> Result<bool> {
    KSM.write("use_zero_pages", random.random_range(0..=1))?;
    KSM.write("run", 0)?;
    sleep(Duration::from_millis(random.random_range(1..300)));
    KSM.write("run", 1)?;
    Ok(true)
}

/// Another process advises.
fn remote(target: &Target, random: &mut SmallRng) -> Result<bool> {
    let whole = (Arena::addr(0), PAGES * PAGE);
    let others = [
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_WILLNEED,
        libc::MADV_COLLAPSE,
    ];
    if random.random_bool(0.3) {
        return Ok(process_madvise(target, whole, *any(&others, random)));
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
    let (old, new) = (u64::MAX >> 1, 1u64 << node);
    // SAFETY: two masks of one word each; moving changes no content.
    unsafe { libc::syscall(libc::SYS_migrate_pages, pid, BITS, &old, &new) >= 0 }
}

/// Prepares KSM: it works without a pause in a stress run.
pub fn set_up_ksm(stress: bool) -> Result<()> {
    KSM.write("sleep_millisecs", if stress { 0 } else { 20 })?;
    KSM.write("pages_to_scan", 500)?;
    KSM.write("run", 1).context("cannot start ksmd")
}
