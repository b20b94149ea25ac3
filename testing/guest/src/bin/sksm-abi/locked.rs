//! mlock: what merged pages count as, for the process and for the system, and the limit.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libc::{ENOMEM, EPERM};
use procfs::process::Process;
use procfs::{Current, Meminfo};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::{Map, READ};
use sksm_guest::memory::process::{Child, become_user, stay_on_one_cpu};
use sksm_guest::page::PAGE;
use sksm_guest::syscall::check;

use crate::expect::{apart, merged, merging, one_page, zero_pages};

pub const TESTS: &[Test] = &[
    test("mlock/locked-then-merged", locked_then_merged),
    test("mlock/merged-then-locked", merged_then_locked),
    test(
        "mlock/merged-then-locked-to-write",
        merged_then_locked_to_write,
    ),
    test("mlock/on-fault", on_fault),
    test("mlock/sharer-exits", sharer_exits),
    test("mlock/limit", limit),
];

fn lock(addr: usize, pages: usize, flags: u32) -> std::io::Result<()> {
    // SAFETY: locking changes no content.
    check(unsafe { libc::syscall(libc::SYS_mlock2, addr, pages * PAGE, flags) }).map(drop)
}

fn unlock(addr: usize, pages: usize) -> std::io::Result<()> {
    // SAFETY: as for locking.
    check(unsafe { libc::munlock(addr as *const _, pages * PAGE) }).map(drop)
}

/// Locked pages: of the whole system, and addresses of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Locked {
    system: i64,
    own: i64,
}

impl Locked {
    fn now() -> Result<Self> {
        // Locking and unlocking empties this CPU's batches.
        let scratch = Map::anon(1)?;
        lock(scratch.addr(), 1, 0)?;
        unlock(scratch.addr(), 1)?;
        drop(scratch);
        let refresh = Path::new("/proc/sys/vm/stat_refresh");
        if refresh.exists() {
            // Adds up what the CPUs have counted on their own; a kernel for one CPU needs none of it.
            std::fs::write(refresh, "1").context("cannot refresh the system's statistics")?;
        }
        let system = Meminfo::current()?
            .mlocked
            .context("no Mlocked in meminfo")?;
        let own = (Process::myself()?.status()?.vmlck).context("no VmLck in status")?;
        Ok(Self {
            system: system as i64 / PAGE as i64,
            own: own as i64 * 1024 / PAGE as i64,
        })
    }

    /// How many there are more than at `self`.
    fn more(&self, system: i64, own: i64, when: &str) -> Result<()> {
        let now = Self::now()?;
        let found = (now.system - self.system, now.own - self.own);
        ensure!(
            found == (system, own),
            "{when}: Mlocked rose by {} pages and VmLck by {}, not by {system} and {own}",
            found.0,
            found.1
        );
        Ok(())
    }
}

fn locked_then_merged() -> Result<()> {
    stay_on_one_cpu()?;
    let map = Map::filled(&[5, 5, 5, 6, 0])?;
    let start = Locked::now()?;
    lock(map.addr(), 5, 0)?;
    start.more(5, 5, "locked")?;
    map.merge()?;
    one_page(&map.pfns()?[..3])?;
    zero_pages(&map.part(4..5))?;
    // One merged page, one without a twin; the zero page is everybody's.
    start.more(2, 5, "merged")?;
    map.fill(0, 7);
    map.fill(4, 8);
    start.more(4, 5, "copied by writing")?;
    map.fill(3, 9);
    start.more(4, 5, "written in place")?;
    map.merge()?;
    unlock(map.addr(), 5)?;
    start.more(0, 0, "unlocked")?;
    map.expect_all(|page| [7, 5, 5, 9, 8][page])?;
    lock(map.addr(), 5, 0)?;
    map.merge()?;
    drop(map);
    start.more(0, 0, "unmapped")
}

fn merged_then_locked() -> Result<()> {
    stay_on_one_cpu()?;
    let map = merged(4, 5)?;
    map.protect(READ)?;
    let start = Locked::now()?;
    lock(map.addr(), 3, 0)?;
    one_page(&map.pfns()?).context("locking parts pages that are only read")?;
    start.more(1, 3, "locked")?;
    map.unmap_pages(0..1)?;
    start.more(1, 2, "one unmapped")?;
    unlock(map.page(1), 2)?;
    start.more(0, 0, "unlocked")?;
    lock(map.page(2), 2, 0)?;
    start.more(1, 2, "others locked")?;
    map.unmap_pages(1..4)?;
    start.more(0, 0, "all unmapped")
}

/// Locking makes writable pages ready to be written, so it copies them, merged by whomever.
fn merged_then_locked_to_write() -> Result<()> {
    stay_on_one_cpu()?;
    let map = merged(4, 5)?;
    let start = Locked::now()?;
    lock(map.addr(), 4, 0)?;
    apart(&map.pfns()?)?;
    start.more(4, 4, "locked")?;
    map.expect_all(|_| 5)?;
    map.merge()?;
    start.more(1, 4, "merged again")?;
    unlock(map.addr(), 4)?;
    start.more(0, 0, "unlocked")
}

fn on_fault() -> Result<()> {
    const ONFAULT: u32 = 1;
    stay_on_one_cpu()?;
    let map = merged(4, 5)?;
    let start = Locked::now()?;
    lock(map.addr(), 4, ONFAULT)?;
    one_page(&map.pfns()?).context("locking on fault is no fault")?;
    start.more(1, 4, "locked")?;
    map.fill(1, 6);
    start.more(2, 4, "written")?;
    map.merge()?;
    map.expect_all(|page| if page == 1 { 6 } else { 5 })?;
    unlock(map.addr(), 4)?;
    start.more(0, 0, "unlocked")
}

/// A page that one process locks and another does not: it is locked as long as the first lives.
fn sharer_exits() -> Result<()> {
    stay_on_one_cpu()?;
    let ours = merged(2, 5)?;
    let map = Map::filled(&[0; 2])?;
    let start = Locked::now()?;
    let child = Child::spawn(|parent| {
        lock(map.addr(), 2, 0)?;
        map.fill_all(|_| 5);
        map.merge()?;
        parent.meet()
    })?;
    child.pause()?;
    one_page(&[ours.pfns()?, child.pagemap()?.pfns(map.addr(), 2)?].concat())?;
    start.more(1, 0, "locked by the child")?;
    child.go()?;
    child.join()?;
    start.more(0, 0, "the child has gone")?;
    ours.expect_all(|_| 5)
}

fn errno(result: std::io::Result<()>) -> i32 {
    result
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

/// The limit is of addresses: merging neither uses it up nor gives any of it back.
fn limit() -> Result<()> {
    let of = |pages: usize| -> Result<()> {
        let bytes = (pages * PAGE) as libc::rlim_t;
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: a valid limit.
        check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) })
            .context("setrlimit")
            .map(drop)
    };
    let locked = |pages: i64| -> Result<()> {
        let found = Process::myself()?.status()?.vmlck.context("no VmLck")? as i64 * 1024;
        ensure!(found == pages * PAGE as i64, "{found} bytes locked");
        Ok(())
    };
    let child = Child::spawn(|_| {
        of(8)?;
        become_user(1001)?;
        let map = Map::filled(&[5; 12])?;
        merging(|| map.merge())?;
        let fails = |from: usize, pages: usize, wanted: i32| -> Result<()> {
            let found = errno(lock(map.page(from), pages, 0));
            ensure!(found == wanted, "locking {pages} pages: error {found}");
            Ok(())
        };
        fails(0, 12, ENOMEM)?;
        fails(0, 8, 0)?;
        locked(8)?;
        merging(|| map.merge())?;
        locked(8)?;
        fails(8, 1, ENOMEM)?;
        // What is locked already is not counted again.
        fails(0, 8, 0)?;
        unlock(map.page(6), 2)?;
        fails(8, 2, 0)?;
        fails(10, 1, ENOMEM)?;
        locked(8)?;
        map.merge()?;
        map.expect_all(|_| 5)?;
        unlock(map.addr(), 12)?;
        of(0)?;
        fails(0, 1, EPERM)?;
        locked(0)
    })?;
    child.join()
}
