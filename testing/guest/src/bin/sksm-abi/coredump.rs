//! Core dumps of a process with merged pages.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::{EXECUTE, Map, WRITE};
use sksm_guest::memory::process::{Child, Ended};
use sksm_guest::page::{PAGE, WORDS};
use sksm_guest::syscall::check;

use crate::expect::{merged, one_page};
use crate::file::private;

pub const TESTS: &[Test] = &[test("coredump/merged-pages", merged_pages)];

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// The memory in a core file.
struct Core(Vec<u8>);

impl Core {
    /// What is left of a process that `body` and then `abort` have run in.
    fn of(body: impl FnOnce() -> Result<()>) -> Result<Self> {
        fs::write(PATTERN, "/tmp/sksm-core.%p").context("cannot set core_pattern")?;
        let child = Child::spawn(|_| {
            body()?;
            let limit = libc::rlimit {
                rlim_cur: libc::RLIM_INFINITY,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: a valid limit.
            check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) }).context("setrlimit")?;
            std::process::abort()
        })?;
        let path = format!("/tmp/sksm-core.{}", child.pid());
        let mut said = Vec::new();
        let error = child.receive().map(drop);
        if let Err(error) = error {
            said.push(format!("{error:#}"));
        }
        let ended = child.ended()?;
        ensure!(ended == Ended::Signal(libc::SIGABRT), "{ended}: {said:?}");
        let bytes = fs::read(&path).with_context(|| format!("no core file {path}"))?;
        fs::remove_file(&path)?;
        Ok(Self(bytes))
    }

    fn number(&self, at: usize, len: usize) -> Result<usize> {
        let bytes = self
            .0
            .get(at..at + len)
            .context("the core file is cut short")?;
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes);
        Ok(usize::from_le_bytes(word))
    }

    /// The page that was at this address, found by the program headers of a 64-bit ELF file.
    fn page(&self, addr: usize) -> Result<&[u8]> {
        const LOAD: usize = 1;
        ensure!(self.0.starts_with(b"\x7fELF\x02"), "no 64-bit ELF file");
        let (headers, size, count) = (
            self.number(32, 8)?,
            self.number(54, 2)?,
            self.number(56, 2)?,
        );
        for header in (0..count).map(|index| headers + index * size) {
            let (offset, start) = (self.number(header + 8, 8)?, self.number(header + 16, 8)?);
            let len = self.number(header + 32, 8)?;
            if self.number(header, 4)? == LOAD && (start..start + len).contains(&addr) {
                let at = offset + addr - start;
                return self
                    .0
                    .get(at..at + PAGE)
                    .context("the core file is cut short");
            }
        }
        bail!("{addr:#x} is not in the core file")
    }

    fn expect(&self, map: &Map, page: usize, word: impl Fn(usize) -> u64) -> Result<()> {
        let right: Vec<u8> = (0..WORDS)
            .flat_map(|index| word(index).to_ne_bytes())
            .collect();
        let found = self.page(map.page(page))?;
        ensure!(
            found == right,
            "page {page} at {:#x} differs",
            map.page(page)
        );
        Ok(())
    }
}

/// Own data, zeros and patched text: merged with pages of this process, which lives on.
fn merged_pages() -> Result<()> {
    const DATA: [u64; 6] = [5, 5, 6, 0, 7, 5];
    const PATCH: u64 = 0xcc;
    let ours = merged(2, 5)?;
    let data = Map::filled(&[0; 6])?;
    let text = private(&[1, 2, 3])?;
    let patch = || -> Result<()> {
        text.protect(WRITE)?;
        (0..3).for_each(|page| text.put(page, 9, PATCH));
        text.protect(EXECUTE)?;
        text.merge()
    };
    patch()?;
    let shared = (ours.pfn(0)?, text.pfns()?);
    let core = Core::of(|| {
        text.protect(WRITE)?;
        text.fill_all(|page| page as u64 + 1);
        patch()?;
        data.fill_all(|page| DATA[page]);
        data.merge()?;
        one_page(&[data.pfn(0)?, data.pfn(1)?, data.pfn(5)?, shared.0])?;
        ensure!(text.pfns()? == shared.1, "text is not shared");
        // Written after merging: pages 0 and 4 are the process's own again.
        data.put(0, 3, 99);
        data.put(4, 3, 99);
        Ok(())
    })?;
    for (page, id) in DATA.into_iter().enumerate() {
        core.expect(&data, page, |word| match (page, word) {
            (0 | 4, 3) => 99,
            _ => content(id, word),
        })?;
    }
    for page in 0..3 {
        core.expect(&text, page, |word| match word {
            9 => PATCH,
            _ => content(page as u64 + 1, word),
        })?;
    }
    // The dump has read; nobody lost a page by it.
    ensure!((ours.pfn(0)?, text.pfns()?) == shared, "pages changed");
    ours.expect_all(|_| 5)
}
