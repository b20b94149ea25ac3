//! Protection keys: they guard an address, so pages with different keys may be one, and the key still decides.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::memory::map::{Map, WRITE};
use sksm_guest::memory::process::{Child, Ended};
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use crate::expect::one_page;

pub const TESTS: &[Test] = &[
    test("pkeys/denied-range-merges", denied_range_merges),
    test("pkeys/different-keys-share", different_keys_share),
];

/// What a key takes from the thread.
#[derive(Clone, Copy)]
enum Deny {
    Nothing = 0,
    Access = 1,
    Write = 2,
}

/// A key of this process.
struct Key(u32);

impl Key {
    /// Skips the test where there are no keys.
    fn new() -> Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            return skip("only the protection keys of x86_64 are known here");
        }
        // SAFETY: takes numbers only.
        match check(unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) }) {
            Ok(key) => Ok(Self(key as u32)),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                skip("no protection keys in this kernel")
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                skip("this processor has no protection keys")
            }
            Err(error) => Err(error).context("pkey_alloc"),
        }
    }

    fn guard(&self, map: &Map) -> Result<()> {
        let call = libc::SYS_pkey_mprotect;
        // SAFETY: of this mapping, whose contents are accessed by volatile reads and writes only.
        check(unsafe { libc::syscall(call, map.addr(), map.len(), WRITE, self.0) })
            .context("pkey_mprotect")
            .map(drop)
    }

    /// For this thread, and for those that it starts.
    fn deny(&self, what: Deny) {
        let change = |rights: u32| rights & !(3 << (2 * self.0)) | (what as u32) << (2 * self.0);
        #[cfg(target_arch = "x86_64")]
        {
            let rights: u32;
            // SAFETY: the kernel and the processor have keys, or this one would not be there.
            unsafe { asm!("rdpkru", in("ecx") 0, out("eax") rights, out("edx") _) };
            // SAFETY: as above; forbids access to memory that only tests of this file touch.
            unsafe { asm!("wrpkru", in("eax") change(rights), in("ecx") 0, in("edx") 0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("rights of a key: {:#x}", change(0));
    }
}

/// A process that does this must die of it.
fn forbidden<T>(what: &str, access: impl FnOnce() -> T) -> Result<()> {
    let child = Child::spawn(|_| {
        access();
        Ok(())
    })?;
    let ended = child.ended()?;
    ensure!(ended == Ended::Signal(libc::SIGSEGV), "{what}: {ended}");
    Ok(())
}

fn denied_range_merges() -> Result<()> {
    let key = Key::new()?;
    let plain = Map::filled(&[5])?;
    let map = Map::filled(&[5, 5, 0, 6])?;
    key.guard(&map)?;
    key.deny(Deny::Access);
    plain.merge()?;
    map.merge()?;
    one_page(&[map.pfn(0)?, map.pfn(1)?, plain.pfn(0)?])?;
    for page in 0..4 {
        forbidden("reading", || map.get(page, 0))?;
        forbidden("writing", || map.put(page, 0, 1))?;
    }
    // The page that the others share can be read without the key.
    plain.expect(0, 5)?;
    key.deny(Deny::Write);
    map.expect_all(|page| [5, 5, 0, 6][page])?;
    forbidden("writing", || map.put(0, 0, 1))?;
    key.deny(Deny::Nothing);
    map.fill(0, 7);
    map.fill(2, 8);
    map.expect_all(|page| [7, 5, 8, 6][page])?;
    plain.expect(0, 5)?;
    key.deny(Deny::Access);
    for page in [0, 2] {
        forbidden("reading a page that was copied", || map.get(page, 0))?;
    }
    Ok(())
}

fn different_keys_share() -> Result<()> {
    let (one, other) = (Key::new()?, Key::new()?);
    let map = Map::filled(&[5; 4])?;
    one.guard(&map.part(0..2))?;
    other.guard(&map.part(2..4))?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    one.deny(Deny::Access);
    map.expect(2, 5)?;
    forbidden("reading with the first key", || map.get(0, 0))?;
    one.deny(Deny::Nothing);
    other.deny(Deny::Write);
    map.put(1, 0, 1);
    map.expect(3, 5)?;
    forbidden("writing with the second key", || map.put(2, 0, 1))?;
    one_page(&[map.pfn(0)?, map.pfn(2)?, map.pfn(3)?])?;
    other.deny(Deny::Nothing);
    map.fill(3, 6);
    map.expect(0, 5)?;
    map.expect_after(1, 1, 5)?;
    map.expect(2, 5)?;
    map.expect(3, 6)
}
