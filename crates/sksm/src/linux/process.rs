use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::maps::Line;
use crate::os::errno;
use crate::proc::{is_kernel_thread, lines, no_process, read};
use crate::{
    Error, Kind, Kinds, Partial, ProcessStatistics, Region, merge_exact, merge_remote_each,
    unmerge_exact, unmerge_remote_each,
};

/// A process whose mappings can be merged, and be given pages of their own again: this one, or another.
#[derive(Debug)]
pub struct Process(Option<Other>);

#[derive(Debug)]
struct Other {
    pid: u32,
    pidfd: OwnedFd,
}

/// One mapping of a process, and how much of it is where.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// The addresses.
    pub region: Region,
    /// What it holds.
    pub kind: Kind,
    /// The file's path, or a name such as `[heap]`; empty for anonymous memory.
    pub path: PathBuf,
    /// Its pages.
    pub statistics: ProcessStatistics,
    /// Whether the kernel takes any of its pages: not if it belongs to a device, holds huge pages of hugetlbfs, and the like.
    pub mergeable: bool,
    /// Whether only the process itself can merge it: the kernel passes over it when another one asks, as it is locked, left out of
    /// dumps, or wiped on fork.
    pub passed_over: bool,
    /// Whether KSM may scan it (`mg` among its flags in smaps): the program asked for it by `MADV_MERGEABLE`, or whoever started the
    /// program by `prctl(PR_SET_MEMORY_MERGE)`.
    pub opted_in: bool,
}

impl Mapping {
    /// Whether some of its pages may be merged now. They may have become the zero page, which is no private page, and the
    /// mapping may be of no kind since it cannot be accessed any more.
    #[must_use]
    pub fn may_be_merged(&self) -> bool {
        self.mergeable && !self.path.as_os_str().as_bytes().starts_with(b"[v")
    }
}

impl Process {
    /// This process. It merges by `madvise(2)`, which needs no rights.
    #[must_use]
    pub fn own() -> Self {
        Process(None)
    }

    /// Another process. Merging needs the permissions of `process_madvise(2)`.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] where there is no such process, [`Error::Thread`] and [`Error::KernelThread`] for numbers that are no process's,
    /// [`Error::Read`] if the kernel gives no descriptor.
    pub fn open(pid: u32) -> Result<Self, Error> {
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(match errno() {
                // Of a thread that is not the first, or of a number that none can have.
                libc::ESRCH | libc::EINVAL | libc::ENOENT => no_process(pid),
                errno => Error::Read {
                    file: "a pidfd of the process",
                    errno,
                },
            });
        }
        // SAFETY: a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Its list of mappings is merely empty.
        if is_kernel_thread(pid) {
            return Err(Error::KernelThread { pid });
        }
        Ok(Process(Some(Other { pid, pidfd })))
    }

    /// The descriptor of another process; none of this one.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|other| other.pidfd.as_fd())
    }

    /// Its mappings, in the order of their addresses.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] without `/proc` or the right to read the process's memory map, [`Error::Gone`] after its end.
    pub fn mappings(&self) -> Result<Vec<Mapping>, Error> {
        let path = match &self.0 {
            None => "/proc/self/smaps".into(),
            Some(other) => format!("/proc/{}/smaps", other.pid),
        };
        Ok(parse_smaps(&read(Path::new(&path), "/proc/PID/smaps")?))
    }

    /// Merges the mappings that are wanted, leaving out those without private pages and those that never merge. What is
    /// refused, for instance because it has been unmapped meanwhile, is noted.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] and [`Error::Undecided`] as for [`crate::merge`]; those of [`Process::mappings`]; of another process also
    /// [`Error::Denied`]. Of single mappings they are in [`Partial::refused`].
    pub fn merge(&self, wanted: impl Fn(&Mapping) -> bool) -> Result<Partial, Error> {
        let regions: Vec<Region> = (self.mappings()?.into_iter())
            .filter(|mapping| mapping.kind != Kind::Other && mapping.statistics.anonymous > 0)
            .filter(wanted)
            .map(|mapping| mapping.region)
            .collect();
        self.merge_regions(&regions)
    }

    /// Merges all mappings of these kinds.
    ///
    /// ```
    /// use sksm::{Kind, Kinds, Process};
    /// match Process::own().merge_kinds(Kinds::of(&[Kind::Text])) {
    ///     Ok(done) => println!("{} KiB of mappings with patched code", done.advised / 1024),
    ///     Err(error) => eprintln!("{error}"),
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Process::merge`].
    pub fn merge_kinds(&self, kinds: Kinds) -> Result<Partial, Error> {
        self.merge(|mapping| kinds.has(mapping.kind))
    }

    /// Merges the executable mappings with pages of the process's own: code that was patched, or made by a JIT compiler.
    ///
    /// # Errors
    ///
    /// As [`Process::merge`].
    pub fn merge_text(&self) -> Result<Partial, Error> {
        self.merge_kinds(Kinds::of(&[Kind::Text]))
    }

    /// Merges all private anonymous mappings of at least `min_len` bytes.
    ///
    /// # Errors
    ///
    /// As [`Process::merge`].
    pub fn merge_anonymous(&self, min_len: usize) -> Result<Partial, Error> {
        self.merge(|mapping| mapping.kind == Kind::Heap && mapping.region.len >= min_len)
    }

    /// Merges this process's private pages of a file, given by the path that `/proc/PID/maps` shows, which is not always the one
    /// that it was opened by: links are followed, and what has been deleted says so.
    ///
    /// # Errors
    ///
    /// [`Error::NotMapped`] if nothing private fits; else as [`Process::merge`].
    pub fn merge_file(&self, path: impl AsRef<Path>) -> Result<Partial, Error> {
        let path = path.as_ref();
        self.merge_some(|mapping| mapping.path == path)
    }

    /// Merges the mapping that holds this address.
    ///
    /// # Errors
    ///
    /// [`Error::NotMapped`] if nothing private fits; else as [`Process::merge`].
    pub fn merge_mapping_at(&self, addr: usize) -> Result<Partial, Error> {
        self.merge_some(|mapping| mapping.region.contains(addr))
    }

    /// As [`Process::merge`], but nothing to choose from is an error.
    fn merge_some(&self, wanted: impl Fn(&Mapping) -> bool) -> Result<Partial, Error> {
        let mappings = self.mappings()?;
        let mut fitting = (mappings.iter())
            .filter(|mapping| mapping.kind != Kind::Other && wanted(mapping))
            .peekable();
        fitting.peek().ok_or(Error::NotMapped)?;
        let regions: Vec<Region> = fitting.map(|mapping| mapping.region).collect();
        self.merge_regions(&regions)
    }

    fn merge_regions(&self, regions: &[Region]) -> Result<Partial, Error> {
        match self.pidfd() {
            Some(pidfd) => merge_remote_each(pidfd, regions),
            None => Self::each(regions, merge_exact),
        }
    }

    /// Gives the pages of the mappings that are wanted of those that may be merged their own copies again. What is refused, for
    /// instance because it has been unmapped meanwhile, is noted. It takes the memory that merging had saved.
    ///
    /// # Errors
    ///
    /// As [`Process::merge`]; [`Error::Unsupported`] where the kernel merges nothing, not even by KSM, and for other processes where it has
    /// only KSM.
    pub fn unmerge(&self, wanted: impl Fn(&Mapping) -> bool) -> Result<Partial, Error> {
        let regions: Vec<Region> = (self.mappings()?.into_iter())
            .filter(|mapping| mapping.may_be_merged() && wanted(mapping))
            .map(|mapping| mapping.region)
            .collect();
        match self.pidfd() {
            Some(pidfd) => unmerge_remote_each(pidfd, &regions),
            None => Self::each(&regions, unmerge_exact),
        }
    }

    /// [`Process::unmerge`] of all that may be merged.
    ///
    /// ```
    /// use sksm::{Error, Process};
    /// match Process::own().unmerge_all() {
    ///     Ok(done) => println!("{} KiB of mappings are shared with nobody", done.advised / 1024),
    ///     Err(Error::Unsupported { .. }) => println!("this kernel merges nothing"),
    ///     Err(error) => eprintln!("{error}"),
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Process::unmerge`].
    pub fn unmerge_all(&self) -> Result<Partial, Error> {
        self.unmerge(|_| true)
    }

    /// Advises regions of this process one by one.
    fn each(
        regions: &[Region],
        advise: impl Fn(usize, usize) -> Result<(), Error>,
    ) -> Result<Partial, Error> {
        let mut partial = Partial::default();
        for region in regions {
            match advise(region.start, region.len) {
                Ok(()) => partial.advised += region.len,
                Err(error @ (Error::Unsupported { .. } | Error::Undecided { .. })) => {
                    return Err(error);
                }
                Err(error) => partial.refused.push(error),
            }
        }
        Ok(partial)
    }
}

/// Flags of mappings that KSM and SKSM leave alone, as smaps names them: of page frames, devices, not to be expanded, mixed,
/// hugetlbfs, droppable, shadow stacks.
const NEVER_MERGED: &[&[u8]] = &[b"pf", b"io", b"de", b"mm", b"ht", b"dp", b"ss"];

/// Flags of mappings that SKSM passes over when another process asks: locked, left out of dumps, wiped on fork.
const PASSED_OVER: &[&[u8]] = &[b"lo", b"dd", b"wf"];

/// The flag of mappings that KSM may scan.
const OPTED_IN: &[u8] = b"mg";

fn parse_smaps(text: &[u8]) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in lines(text) {
        // Fields start with a capital, addresses with a digit.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(mapping) = mappings.last_mut() {
                mapping.statistics.add_line(line);
                mapping.mergeable &= !flags(line).any(|flag| NEVER_MERGED.contains(&flag));
                mapping.passed_over |= flags(line).any(|flag| PASSED_OVER.contains(&flag));
                mapping.opted_in |= flags(line).any(|flag| flag == OPTED_IN);
            }
        } else if let Some(line) = Line::parse(line) {
            mappings.push(Mapping {
                region: line.region,
                kind: line.kind(),
                mergeable: line.private,
                passed_over: false,
                opted_in: false,
                path: OsStr::from_bytes(line.path).into(),
                statistics: ProcessStatistics::default(),
            });
        }
    }
    mappings
}

/// Whether the mappings of these pages have this flag in smaps; none if some have and some not, or there are none.
pub(crate) fn all_flagged(smaps: &[u8], pages: Region, flag: &[u8]) -> Option<bool> {
    let mut found = None;
    let mut inside = false;
    for line in lines(smaps) {
        if let Some(line) = Line::parse(line) {
            inside = line.region.start < pages.end() && pages.start < line.region.end();
        } else if inside && line.starts_with(b"VmFlags:") {
            let has = flags(line).any(|other| other == flag);
            if found.is_some_and(|found| found != has) {
                return None;
            }
            found = Some(has);
        }
    }
    found
}

/// The mapping's flags, if that is what this line of smaps tells.
fn flags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let flags = line.strip_prefix(b"VmFlags:").unwrap_or_default();
    flags.split(|byte| *byte == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pages::Pages;

    #[test]
    fn mappings_have_their_pages() {
        let pages = Pages::new(64, |_| 7);
        let addr = pages.0.as_ptr() as usize;
        for process in [Process::own(), Process::open(std::process::id()).unwrap()] {
            let mappings = process.mappings().unwrap();
            let mapping = mappings
                .iter()
                .find(|mapping| mapping.region.contains(addr))
                .unwrap();
            assert_eq!(mapping.kind, Kind::Heap);
            assert!(mapping.statistics.anonymous >= pages.0.len() as u64);
            assert!(mapping.statistics.anonymous <= mapping.region.len as u64);
        }
    }

    #[test]
    fn what_may_be_merged_is_told_from_flags_and_names() {
        let smaps = b"1000-2000 rw-p 0 0 0\nVmFlags: rd wr ac\n\
                      2000-3000 ---p 0 0 0\nVmFlags: mr mw me\n\
                      3000-4000 rw-s 0 0 7 /a\nVmFlags: rd wr sh\n\
                      4000-5000 r--p 0 0 0 [vvar]\nVmFlags: rd mr pf io de dd\n\
                      5000-6000 --xp 0 0 0 [vsyscall]\nVmFlags: xo\n\
                      6000-7000 rw-p 0 0 0\nVmFlags: rd wr lo\n\
                      7000-8000 rw-p 0 0 0\nVmFlags: rd wr dd\n\
                      8000-9000 rw-p 0 0 0\nVmFlags: rd wr wf\n";
        let mappings = parse_smaps(smaps);
        let may: Vec<bool> = mappings.iter().map(Mapping::may_be_merged).collect();
        assert_eq!(may, [true, true, false, false, false, true, true, true]);
        let passed: Vec<bool> = mappings.iter().map(|one| one.passed_over).collect();
        assert_eq!(passed[..3], [false; 3]);
        assert_eq!(passed[5..], [true; 3]);
    }

    #[test]
    fn undoing_merges_keeps_the_contents() {
        let pages = Pages::new(64, |number| number as u8 / 32);
        let page = crate::page_size();
        let others = |result: Result<Partial, Error>| match crate::support() {
            crate::Support::Merge => assert!(result.unwrap().advised >= pages.0.len()),
            // KSM alone undoes its own for the process itself, and for no other.
            _ => _ = result,
        };
        for process in [Process::own(), Process::open(std::process::id()).unwrap()] {
            let addr = pages.0.as_ptr() as usize;
            others(process.unmerge(|mapping| mapping.region.contains(addr)));
        }
        for (number, bytes) in pages.0.chunks(page).enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == number / 32));
        }
    }

    #[test]
    fn flags_are_of_all_pages_or_of_none() {
        let smaps = b"1000-2000 r-xp 0 0 7   /a\nRss: 4 kB\nVmFlags: rd ex bt \n\
                      2000-3000 r-xp 0 0 7   /a\nRss: 4 kB\nVmFlags: rd ex bt\n\
                      3000-4000 r-xp 0 0 7   /bt bt\nRss: 4 kB\nVmFlags: rd ex mt\n";
        for (start, len, flagged) in [
            (0x1000, 0x1000, Some(true)),
            (0x1fff, 2, Some(true)),
            (0x1000, 0x2000, Some(true)),
            (0x3000, 0x1000, Some(false)),
            (0x2000, 0x2000, None),
            (0x4000, 0x1000, None),
        ] {
            let pages = Region::from((start, len));
            assert_eq!(all_flagged(smaps, pages, b"bt"), flagged, "{pages}");
        }
        let own = read(Path::new("/proc/self/smaps"), "/proc/PID/smaps").unwrap();
        let code = (parse_smaps as *const () as usize, 1).into();
        assert_eq!(all_flagged(&own, code, b"ex"), Some(true));
        let data = Pages::new(1, |_| 7);
        assert_eq!(all_flagged(&own, code, b"xx"), Some(false));
        let own = read(Path::new("/proc/self/smaps"), "/proc/PID/smaps").unwrap();
        assert_eq!(all_flagged(&own, (&*data.0).into(), b"ex"), Some(false));
    }

    /// Paths are bytes that end at a newline and nothing else.
    #[test]
    fn files_are_found_by_any_path() {
        let dir = std::env::temp_dir().canonicalize().unwrap();
        for name in [
            b"plain".as_slice(),
            b"not \xff\xfe utf-8",
            b"ends in a space ",
            b"ends in a return\r",
            b" starts with one",
        ] {
            let mut file = format!("sksm-{}-", std::process::id()).into_bytes();
            file.extend(name);
            let path = dir.join(OsStr::from_bytes(&file));
            let map = private_file(&path);
            let mapping = (Process::own().mappings().unwrap().into_iter())
                .find(|mapping| mapping.region.contains(map.0.as_ptr() as usize))
                .unwrap();
            let result = Process::own().merge_file(&path);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(mapping.path, path);
            match crate::support() {
                crate::Support::Merge => assert_eq!(result.unwrap().advised, map.0.len()),
                _ => assert!(matches!(result, Err(Error::Unsupported { .. }))),
            }
        }
    }

    /// A private page of a new file.
    fn private_file(path: &Path) -> Pages {
        use std::os::fd::AsRawFd;
        let len = crate::page_size();
        std::fs::write(path, vec![7; len]).unwrap();
        let file = std::fs::File::open(path).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE;
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: just mapped, and owned by this value alone.
        let pages = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        pages.fill(8);
        Pages(pages)
    }

    #[test]
    fn nothing_that_fits_is_an_error() {
        let own = Process::own();
        assert_eq!(own.merge_file("/no/such/file"), Err(Error::NotMapped));
        assert_eq!(own.merge_mapping_at(1), Err(Error::NotMapped));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        for pid in [0, i32::MAX as u32, u32::MAX] {
            let error = Process::open(pid).unwrap_err();
            assert_eq!(error, Error::Gone { errno: libc::ESRCH });
        }
    }

    #[test]
    fn a_thread_is_no_process() {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: gettid cannot fail.
                let tid = unsafe { libc::gettid() } as u32;
                let error = Process::open(tid).map(drop).unwrap_err();
                send.send((tid, error)).unwrap();
            });
        });
        let (tid, error) = receive.recv().unwrap();
        let process = std::process::id();
        assert_eq!(error, Error::Thread { tid, process });
        assert!(error.to_string().contains(&process.to_string()));
    }

    #[test]
    fn threads_of_the_kernel_are_named() {
        assert!(!is_kernel_thread(std::process::id()));
        // In a container none can be seen; the guests have them.
        let name = std::fs::read("/proc/2/comm").unwrap_or_default();
        if name == b"kthreadd\n" {
            let error = Err(Error::KernelThread { pid: 2 });
            assert_eq!(Process::open(2).map(drop), error);
            assert_eq!(ProcessStatistics::of(2).map(drop), error);
        }
    }
}
