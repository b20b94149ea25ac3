use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::linux::maps::each_own;
use crate::linux::process::all_flagged;
use crate::os::errno;
use crate::proc::read;
use crate::{Error, Region, merge_exact, page_size};

/// Code that is writable while this guard lives.
///
/// Every path restores the protection: [`Patch::finish`], which tells what went wrong, and dropping the guard, also while a
/// panic unwinds. What was written is then visible to instruction fetches of all threads. A page that several patches touch at
/// once, of one thread or of several, has its protection again when the last of them has finished. Nobody waits for anybody: a
/// guard that is leaked ([`std::mem::forget`]) leaves its own pages writable, and that is all.
///
/// ```
/// # fn patch(code: usize) -> Result<(), sksm::Error> {
/// // SAFETY: no thread runs this code meanwhile, and the instruction is a whole one.
/// let mut patch = unsafe { sksm::Patch::begin(code, 5)? };
/// patch.write(code, &[0x0f, 0x1f, 0x44, 0x00, 0x00])?;
/// patch.finish_and_merge()
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it at once writes nothing"]
pub struct Patch {
    /// What may be written.
    range: Region,
    /// The pages that it lies in.
    pages: Region,
    restored: bool,
}

impl Patch {
    /// Makes the pages of `len` bytes at `addr` writable, and leaves them executable: other threads may run other code of
    /// theirs.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a range past the end of the address space, [`Error::Mixed`] for pages that are not mapped or not all
    /// with one protection, [`Error::Protect`] where the kernel refuses, [`Error::Read`] without `/proc`. All is then as it was.
    ///
    /// # Safety
    /// Until the guard has gone, no thread may run the bytes that are written, and nothing but other patches may change the
    /// protection of these pages.
    pub unsafe fn begin(addr: usize, len: usize) -> Result<Self, Error> {
        let range = Region { start: addr, len };
        let pages = (range.outward(page_size())).ok_or(Error::Invalid {
            region: range,
            errno: None,
        })?;
        let mut open = open_pages();
        let protection = protection_before(&open, pages)?;
        for page in each(pages) {
            let patches = 0;
            let before = Before {
                protection,
                patches,
            };
            open.entry(page).or_insert(before).patches += 1;
        }
        // Built first: whatever happens next, it puts things right.
        let patch = Patch {
            range,
            pages,
            restored: false,
        };
        let result = protect(pages, protection | libc::PROT_READ | libc::PROT_WRITE);
        drop(open);
        result.map(|()| patch)
    }

    /// Writes these bytes at this address, all of which must be within the range that the patch was begun for.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] if they are not; nothing is written then.
    pub fn write(&mut self, addr: usize, bytes: &[u8]) -> Result<(), Error> {
        let target = Region {
            start: addr,
            len: bytes.len(),
        };
        if target.wraps() || addr < self.range.start || target.end() > self.range.end() {
            return Err(Error::Outside { region: target });
        }
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the range, which is mapped and writable; `begin`'s caller promised that nobody runs it meanwhile.
            unsafe { ((addr + offset) as *mut u8).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Where to write without the help of [`Patch::write`]; valid for the length that the patch was begun for.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.range.start as *mut u8
    }

    /// Restores the protection and makes the new code visible to all threads.
    ///
    /// # Errors
    ///
    /// [`Error::Protect`] where the kernel refuses to restore the protection; what was written is in place.
    pub fn finish(mut self) -> Result<(), Error> {
        self.restore()
    }

    /// Finishes, then merges the touched pages. An error of the merge leaves the patch in place and finished.
    ///
    /// # Errors
    ///
    /// Those of [`Patch::finish`], and then those of [`merge_exact`].
    pub fn finish_and_merge(mut self) -> Result<(), Error> {
        self.restore()?;
        merge_exact(self.pages.start, self.pages.len)
    }

    /// Finishes, then does this with the touched pages, while no patch of any page can begin; none, undone, if another patch has one
    /// of these pages open. For the crate `sksm-store`; no part of the API.
    ///
    /// # Errors
    ///
    /// Those of [`Patch::finish`].
    #[doc(hidden)]
    pub fn finish_then<R>(mut self, work: impl FnOnce(Region) -> R) -> Result<Option<R>, Error> {
        self.restore()?;
        let open = open_pages();
        let free = !each(self.pages).any(|page| open.contains_key(&page));
        Ok(free.then(|| work(self.pages)))
    }

    fn restore(&mut self) -> Result<(), Error> {
        // Also where restoring fails: a second try would fail as well.
        self.restored = true;
        flush(self.range);
        let result = close(self.pages);
        synchronise_threads();
        result
    }
}

impl Drop for Patch {
    fn drop(&mut self) {
        if !self.restored {
            // Whoever wants to know calls `finish`.
            self.restore().ok();
        }
    }
}

/// What a page was before patches made it writable, and how many of them have not finished.
struct Before {
    protection: i32,
    patches: usize,
}

type OpenPages = BTreeMap<usize, Before>;

/// The pages that are being patched. Held only while protections change, never while a patch is open.
fn open_pages() -> MutexGuard<'static, OpenPages> {
    static OPEN: Mutex<OpenPages> = Mutex::new(BTreeMap::new());
    // Nothing panics while it is held.
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn each(pages: Region) -> impl Iterator<Item = usize> {
    (pages.start..pages.end()).step_by(page_size())
}

/// Pages that follow each other, each run of them as one.
fn runs(pages: impl Iterator<Item = (usize, i32)>) -> Vec<(Region, i32)> {
    let len = page_size();
    let mut runs: Vec<(Region, i32)> = Vec::new();
    for (start, protection) in pages {
        match runs.last_mut() {
            Some((run, same)) if run.end() == start && *same == protection => run.len += len,
            _ => runs.push((Region { start, len }, protection)),
        }
    }
    runs
}

/// The one protection that all these pages have, or had before they were patched.
fn protection_before(open: &OpenPages, pages: Region) -> Result<i32, Error> {
    let before = |page| open.get(&page).map(|before| before.protection);
    let mut found: Vec<i32> = each(pages).filter_map(before).collect();
    let others = each(pages).filter(|page| !open.contains_key(page));
    for (run, _) in runs(others.map(|page| (page, 0))) {
        found.push(protection_of(run)?);
    }
    match found.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => Ok(*first),
        Some(_) => Err(Error::Mixed { region: pages }),
        // No page at all.
        None => protection_of(pages),
    }
}

/// Restores what no other patch still needs.
fn close(pages: Region) -> Result<(), Error> {
    let mut open = open_pages();
    let mut last = Vec::new();
    for page in each(pages) {
        let Some(before) = open.get_mut(&page) else {
            continue;
        };
        before.patches -= 1;
        if before.patches == 0 {
            last.push((page, before.protection));
            open.remove(&page);
        }
    }
    let mut result = Ok(());
    for (run, protection) in runs(last.into_iter()) {
        result = result.and(protect(run, protection));
    }
    result
}

/// The one protection that all these pages have.
fn protection_of(pages: Region) -> Result<i32, Error> {
    let mut found = None;
    let mut covered = pages.start;
    each_own(|line| {
        if line.region.end() <= covered {
            return true;
        }
        // A hole, or another protection than before.
        if line.region.start > covered || found.is_some_and(|found| found != line.protection()) {
            return false;
        }
        found = Some(line.protection());
        covered = line.region.end();
        covered < pages.end()
    })?;
    let protection = found
        .filter(|_| covered >= pages.end())
        .ok_or(Error::Mixed { region: pages })?;
    Ok(protection | branch_targets(protection, pages)?)
}

/// `PROT_BTI` of aarch64, where these pages have it. Of it smaps alone tells, and mprotect(2) takes it away where it is not asked
/// for again: code would go on without its protection against jumps into the middle. No machine of the tests has it; what they
/// check is how smaps is read.
fn branch_targets(protection: i32, pages: Region) -> Result<i32, Error> {
    const PROT_BTI: i32 = 0x10;
    const HWCAP2_BTI: u64 = 1 << 17;
    // SAFETY: reads what the kernel left at the start.
    let hardware = || unsafe { libc::getauxval(libc::AT_HWCAP2) } as u64;
    let possible = cfg!(target_arch = "aarch64") && hardware() & HWCAP2_BTI != 0;
    if !possible || protection & libc::PROT_EXEC == 0 {
        return Ok(0);
    }
    let smaps = read(Path::new("/proc/self/smaps"), "/proc/self/smaps")?;
    match all_flagged(&smaps, pages, b"bt") {
        Some(true) => Ok(PROT_BTI),
        Some(false) => Ok(0),
        None => Err(Error::Mixed { region: pages }),
    }
}

fn protect(pages: Region, protection: i32) -> Result<(), Error> {
    // SAFETY: only called with the original protection, or that and the right to read and write.
    match unsafe { libc::mprotect(pages.start as *mut libc::c_void, pages.len, protection) } {
        0 => Ok(()),
        _ => Err(Error::Protect {
            region: pages,
            errno: errno(),
        }),
    }
}

/// Makes every thread of this process fetch its instructions anew before it goes on in user mode.
fn synchronise_threads() {
    const SYNC_CORE: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE;
    const REGISTER: i32 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE;
    for command in [REGISTER, SYNC_CORE] {
        // Refused by kernels without it, where the change of protection has interrupted the other processors already.
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    }
}

/// x86 keeps instruction fetches coherent with writes.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn flush(_: Region) {}

/// Cleans the data cache to the point of unification, then invalidates the instruction cache, line by line.
#[cfg(target_arch = "aarch64")]
fn flush(region: Region) {
    use std::arch::asm;
    let types: usize;
    // SAFETY: reads a register that Linux lets every program read.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) types) };
    let line = |shift: u32| 4usize << (types >> shift & 15);
    let (instruction, data) = (line(0), line(16));
    // SAFETY: cache maintenance of mapped memory.
    unsafe {
        for addr in (region.start & !(data - 1)..region.end()).step_by(data) {
            asm!("dc cvau, {}", in(reg) addr);
        }
        asm!("dsb ish");
        for addr in (region.start & !(instruction - 1)..region.end()).step_by(instruction) {
            asm!("ic ivau, {}", in(reg) addr);
        }
        asm!("dsb ish", "isb");
    }
}

/// The kernel does it for all processors.
#[cfg(target_arch = "riscv64")]
fn flush(region: Region) {
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_riscv_flush_icache, region.start, region.end(), 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pages::Pages;

    /// Pages that are read-only, so that a write without a patch would be seen to fail; not executable, as a security policy
    /// of the machine may forbid that for anonymous memory.
    fn read_only(count: usize) -> (Pages, usize) {
        let pages = Pages::new(count, |_| 0);
        let start = pages.0.as_ptr() as usize;
        let region = Region::from((start, pages.0.len()));
        protect(region, libc::PROT_READ).unwrap();
        (pages, start)
    }

    fn protection(addr: usize) -> i32 {
        protection_of(Region::from((addr, 1)).outward(page_size()).unwrap()).unwrap()
    }

    #[test]
    fn the_protection_comes_back_on_every_path() {
        let (pages, start) = read_only(3);
        let before = |line: &str| {
            assert_eq!(protection(start), libc::PROT_READ, "{line}");
            assert_eq!(protection(start + 2 * page_size()), libc::PROT_READ);
        };
        let begin = || {
            // SAFETY: nobody runs these pages.
            let patch = unsafe { Patch::begin(start + page_size() - 2, 4) }.unwrap();
            assert_eq!(protection(start), libc::PROT_READ | libc::PROT_WRITE);
            patch
        };
        before("at first");
        let mut patch = begin();
        patch.write(start + page_size() - 2, &[1, 2, 3, 4]).unwrap();
        patch.finish().unwrap();
        before("finished");
        assert_eq!(pages.0[page_size() - 2..page_size() + 2], [1, 2, 3, 4]);
        drop(begin());
        before("dropped");
        let panicked = std::panic::catch_unwind(|| {
            let _patch = begin();
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        before("after a panic");
        _ = begin().finish_and_merge();
        before("merged");
    }

    #[test]
    fn only_the_range_is_written() {
        let (pages, start) = read_only(1);
        // SAFETY: nobody runs these pages.
        let mut patch = unsafe { Patch::begin(start + 8, 8) }.unwrap();
        for (addr, len) in [
            (start + 7, 1),
            (start + 9, 8),
            (start, 100),
            (usize::MAX, 2),
        ] {
            let region = Region::from((addr, len));
            assert_eq!(
                patch.write(addr, &vec![1; len]),
                Err(Error::Outside { region })
            );
        }
        patch.write(start + 8, &[1; 8]).unwrap();
        patch.finish().unwrap();
        assert_eq!(pages.0[..24], [[0; 8], [1; 8], [0; 8]].concat());
    }

    /// Begins a patch of a page that nobody runs.
    fn begin(addr: usize) -> Patch {
        // SAFETY: as the caller says.
        unsafe { Patch::begin(addr, 1) }.unwrap()
    }

    #[test]
    fn the_last_patch_of_a_page_restores_it() {
        let (pages, start) = read_only(3);
        let page = page_size();
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: nobody runs these pages.
        let mut first = unsafe { Patch::begin(start, 2 * page) }.unwrap();
        let other = std::thread::spawn(move || {
            // SAFETY: as above.
            let mut patch = unsafe { Patch::begin(start + page, 2 * page) }.unwrap();
            patch.write(start + page + 1, &[2]).unwrap();
            patch.finish().unwrap();
        });
        other.join().unwrap();
        assert_eq!(protection(start + page), writable);
        assert_eq!(protection(start + 2 * page), libc::PROT_READ);
        first.write(start + page, &[1]).unwrap();
        let second = begin(start);
        first.finish().unwrap();
        assert_eq!(protection(start), writable);
        assert_eq!(protection(start + page), libc::PROT_READ);
        second.finish().unwrap();
        assert_eq!(protection(start), libc::PROT_READ);
        assert_eq!(pages.0[page..page + 2], [1, 2]);
    }

    #[test]
    fn a_leaked_patch_blocks_nobody() {
        let (_pages, start) = read_only(2);
        std::mem::forget(begin(start));
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            begin(start).finish().unwrap();
            begin(start + page_size()).finish().unwrap();
            send.send(()).unwrap();
        });
        let limit = std::time::Duration::from_secs(60);
        receive.recv_timeout(limit).expect("it waits for ever");
        begin(start + page_size()).finish().unwrap();
        assert_eq!(protection(start + page_size()), libc::PROT_READ);
        // For other tests, which may get the same addresses.
        close(Region::from((start, page_size()))).unwrap();
    }

    #[test]
    fn what_is_not_one_mapping_is_refused() {
        let (pages, start) = read_only(4);
        let page = page_size();
        protect(
            Region::from((start + page, page)),
            libc::PROT_READ | libc::PROT_WRITE,
        )
        .unwrap();
        // SAFETY: nobody runs these pages.
        let mixed = unsafe { Patch::begin(start, 2 * page) };
        assert!(matches!(mixed, Err(Error::Mixed { .. })), "{mixed:?}");
        // SAFETY: the page is this test's own; unmapped twice in the end, which is no error.
        unsafe { libc::munmap((start + 3 * page) as *mut _, page) };
        // SAFETY: nobody runs these pages.
        let hole = unsafe { Patch::begin(start + 2 * page, 2 * page) };
        assert!(matches!(hole, Err(Error::Mixed { .. })), "{hole:?}");
        // SAFETY: as above; an address of no process.
        let wrapped = unsafe { Patch::begin(usize::MAX, 2) };
        assert!(matches!(wrapped, Err(Error::Invalid { .. })));
        drop(pages);
    }

    #[cfg(target_arch = "x86_64")]
    std::arch::global_asm!(
        ".pushsection .text.sksm_patch_test,\"ax\",@progbits",
        ".globl sksm_patch_test",
        "sksm_patch_test:",
        "mov eax, 1",
        "ret",
        ".popsection",
    );

    /// New instructions run: a function that returns one number is made to return another.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn patched_code_runs() {
        unsafe extern "C" {
            safe fn sksm_patch_test() -> i32;
        }
        assert_eq!(sksm_patch_test(), 1);
        let number = sksm_patch_test as *const () as usize + 1;
        let before = protection(number);
        // SAFETY: only this test runs the function, and not meanwhile.
        let mut patch = unsafe { Patch::begin(number, 4) }.unwrap();
        patch.write(number, &7i32.to_le_bytes()).unwrap();
        patch.finish().unwrap();
        assert_eq!(sksm_patch_test(), 7);
        assert_eq!(protection(number), before);
    }
}
