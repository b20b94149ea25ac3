//! libc's executable pages, in the file and in processes.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::page::PAGE;

/// The text as the file holds it.
pub struct Text {
    library: String,
    bytes: Vec<u8>,
    contents: usize,
}

/// What stands behind libc's text in many processes.
pub struct Found {
    /// Per process: pages that are not the file's.
    pub anonymous: Vec<u64>,
    /// Per process: those of them that no other process maps.
    pub private: Vec<u64>,
    /// Physical pages behind them all.
    pub copies: usize,
}

impl Text {
    /// As this program has it mapped: the processes of the experiment load the same file.
    pub fn of_libc() -> Result<Self> {
        let map = map_of(Process::myself()?)?;
        let MMapPath::Path(path) = &map.pathname else {
            unreachable!("libc's map has a path")
        };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = vec![0; (map.address.1 - map.address.0) as usize];
        // The file may end within the last page, the rest of which is zeros then.
        let mut read = 0;
        while let count @ 1.. = file.read_at(&mut bytes[read..], map.offset + read as u64)? {
            read += count;
        }
        let contents = bytes.chunks(PAGE).collect::<HashSet<_>>().len();
        Ok(Self {
            library: path.display().to_string(),
            bytes,
            contents,
        })
    }

    pub fn library(&self) -> &str {
        &self.library
    }

    pub fn pages(&self) -> usize {
        self.bytes.len() / PAGE
    }

    /// How many of the pages differ from all others.
    pub fn contents(&self) -> usize {
        self.contents
    }

    /// Finds the physical pages of the text in each process.
    pub fn look_at(&self, pids: &[i32]) -> Result<Found> {
        // Sorted together, a page that several processes map stands beside itself: far smaller than a table of all pages.
        let mut pages: Vec<(u64, u32)> = Vec::with_capacity(pids.len() * self.pages());
        let mut anonymous = Vec::with_capacity(pids.len());
        for (number, pid) in (0..).zip(pids) {
            let start = pages.len();
            for entry in Pagemap::of(*pid)?.entries(self.address_in(*pid)?, self.pages())? {
                let Some(pfn) = entry.pfn().filter(|_| !entry.file_or_shared()) else {
                    continue;
                };
                ensure!(pfn != 0, "the kernel hides page frame numbers: run as root");
                pages.push((pfn, number));
            }
            anonymous.push((pages.len() - start) as u64);
        }
        pages.sort_unstable();
        let mut private = vec![0; pids.len()];
        let mut copies = 0;
        for same in pages.chunk_by(|one, other| one.0 == other.0) {
            copies += 1;
            if same.iter().all(|(_, number)| *number == same[0].1) {
                private[same[0].1 as usize] += same.len() as u64;
            }
        }
        Ok(Found {
            anonymous,
            private,
            copies,
        })
    }

    /// Each process must still have the text that the file has.
    pub fn compare_with_file(&self, pids: &[i32]) -> Result<()> {
        let mut bytes = vec![0; self.bytes.len()];
        for pid in pids {
            let memory = File::open(format!("/proc/{pid}/mem")).context("cannot open mem")?;
            let address = self.address_in(*pid)?;
            memory
                .read_exact_at(&mut bytes, address as u64)
                .with_context(|| format!("cannot read libc's text in process {pid}"))?;
            let mut both = bytes.chunks(PAGE).zip(self.bytes.chunks(PAGE));
            if let Some(page) = both.position(|(found, right)| found != right) {
                anyhow::bail!(
                    "page {page} of libc's text in process {pid} is not what the file holds"
                );
            }
        }
        Ok(())
    }

    /// Where a process has the text.
    fn address_in(&self, pid: i32) -> Result<usize> {
        let map = Process::new(pid)
            .map_err(Into::into)
            .and_then(map_of)
            .with_context(|| format!("process {pid}"))?;
        let pages = (map.address.1 - map.address.0) as usize / PAGE;
        ensure!(
            pages == self.pages(),
            "process {pid} has {pages} executable pages of libc in one piece, not {}",
            self.pages()
        );
        Ok(map.address.0 as usize)
    }
}

/// The executable mapping of libc.
fn map_of(process: Process) -> Result<MemoryMap> {
    let maps = process.maps().context("cannot read maps")?;
    let executable = |map: &MemoryMap| map.perms.contains(MMPermissions::EXECUTE);
    maps.into_iter()
        .find(|map| {
            executable(map) && matches!(&map.pathname, MMapPath::Path(path) if is_libc(path))
        })
        .context("no executable mapping of libc.so.6: the experiment needs glibc")
}

fn is_libc(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "libc.so.6")
}
