//! Memory tags of arm64 (MTE): each granule of 16 bytes has one, beside its bytes.

use anyhow::{Context, Result, ensure};

use crate::memory::map::{Map, WRITE};
use crate::page::PAGE;
use crate::skip::skip;
use crate::syscall::check;

/// Bytes that have one tag.
pub const GRANULE: usize = 16;
/// From the kernel's asm/mman.h.
const PROT_MTE: i32 = 0x20;
/// Memory with tags that can be written.
pub const TAGGED: i32 = WRITE | PROT_MTE;

/// That this processor and this kernel have tags. Accesses are not checked until somebody asks for it.
#[derive(Clone, Copy)]
pub struct Tags(());

impl Tags {
    /// Skips the test where there are none.
    pub fn new() -> Result<Self> {
        const HWCAP2_MTE: u64 = 1 << 18;
        if !cfg!(target_arch = "aarch64") {
            return skip("only arm64 has memory tags");
        }
        // SAFETY: reads what the kernel gave to this process.
        match unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_MTE {
            0 => skip("this processor has no memory tags"),
            _ => Ok(Self(())),
        }
    }

    /// Private anonymous memory with these contents and tags of zero.
    pub fn filled(self, contents: &[u64]) -> Result<Map> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = Map::new(contents.len(), TAGGED, flags, None).context("mmap with PROT_MTE")?;
        map.no_huge();
        for (page, id) in contents.iter().enumerate() {
            map.fill(page, *id);
        }
        Ok(map)
    }

    /// Gives each granule of a page its tag.
    pub fn put(self, map: &Map, page: usize, tag: impl Fn(usize) -> u8) {
        for granule in 0..PAGE / GRANULE {
            let tag = tag(granule);
            assert!(tag < 16);
            store(map.page(page) + granule * GRANULE, tag);
        }
    }

    /// The tags of a page.
    pub fn get(self, map: &Map, page: usize) -> Vec<u8> {
        let granules = 0..PAGE / GRANULE;
        granules
            .map(|granule| load(map.page(page) + granule * GRANULE))
            .collect()
    }

    /// They must be these.
    pub fn expect(self, map: &Map, page: usize, tag: impl Fn(usize) -> u8) -> Result<()> {
        for (granule, found) in self.get(map, page).into_iter().enumerate() {
            let right = tag(granule);
            ensure!(
                found == right,
                "granule {granule} of page {page} has tag {found} instead of {right}"
            );
        }
        Ok(())
    }

    /// From now on this thread dies of an access by a pointer with another tag than the memory's.
    pub fn checked(self) -> Result<()> {
        const TAGGED_ADDR_ENABLE: u64 = 1;
        const MTE_TCF_SYNC: u64 = 1 << 1;
        const SET_TAGGED_ADDR_CTRL: i32 = 55;
        let how = TAGGED_ADDR_ENABLE | MTE_TCF_SYNC;
        // SAFETY: takes numbers only.
        check(unsafe { libc::prctl(SET_TAGGED_ADDR_CTRL, how, 0, 0, 0) })
            .context("PR_SET_TAGGED_ADDR_CTRL")
            .map(drop)
    }

    /// A word read by a pointer with this tag.
    pub fn read(self, map: &Map, page: usize, word: usize, tag: u8) -> u64 {
        let addr = map.page(page) + word * 8;
        let pointer = (addr | usize::from(tag) << 56) as *const u64;
        // SAFETY: inside the mapping; the processor ignores the tag but for its check, of which the process may die.
        unsafe { pointer.read_volatile() }
    }
}

/// Sets a granule's tag.
fn store(addr: usize, tag: u8) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller has memory with tags there, and the bytes stay.
    unsafe {
        let tagged = addr | usize::from(tag) << 56;
        std::arch::asm!(".arch_extension memtag", "stg {0}, [{1}]", in(reg) tagged, in(reg) addr);
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("no tag {tag} at {addr:#x}");
}

/// A granule's tag; 0 where the memory has none.
fn load(addr: usize) -> u8 {
    #[cfg(target_arch = "aarch64")]
    {
        let mut tagged = addr;
        // SAFETY: only reads.
        unsafe {
            std::arch::asm!(".arch_extension memtag", "ldg {0}, [{1}]", inout(reg) tagged, in(reg) addr);
        }
        (tagged >> 56 & 15) as u8
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("no tag at {addr:#x}");
}
