//! The library on a kernel that merges: what it promises beyond the call itself.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sksm::{Error, Patch, Process, ProcessStatistics, Region, Support, SystemStatistics};
use sksm_guest::memory::{Map, PAGE, memfd};
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::Child;
use sksm_guest::report::{self, Options, Test, skip, test};

/// Checks the library sksm, one line a test; needs root
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

const TESTS: &[Test] = &[
    test("pretended-support", pretended_support),
    test("ksm-stays-out", ksm_stays_out),
    test("anonymous-above-a-size", anonymous_above_a_size),
    test("mapping-by-file", mapping_by_file),
    test("mapping-by-address", mapping_by_address),
    test("other-process", other_process),
    test("remote-with-holes", remote_with_holes),
    test("measured", measured),
    test("patched-text-is-shared", patched_text_is_shared),
    test("static-keys", static_keys),
];

fn main() -> ExitCode {
    report::run(TESTS, &Arguments::parse().options)
}

/// How many different physical pages there are.
fn copies(pfns: &[u64]) -> usize {
    let mut pfns = pfns.to_vec();
    pfns.sort_unstable();
    pfns.dedup();
    pfns.len()
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
    let path = std::env::temp_dir().join(format!("sksm-library-{}", std::process::id()));
    let file = std::fs::File::create_new(&path)?;
    file.set_len(8 * PAGE as u64)?;
    let file = std::fs::File::open(&path)?;
    let map = Map::new(
        8,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE,
        Some(&file),
    )?;
    map.fill_all(|_| 5);
    let other = Map::filled(&[5; 8])?;
    let done = Process::own().merge_file(&path);
    std::fs::remove_file(&path)?;
    ensure!(done?.advised == map.len());
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
    let done = Process::open(child.pid() as u32)?.merge_anonymous(0)?;
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
    let refused: Vec<_> = holes
        .iter()
        .map(|hole| Error::Hole {
            region: ranges[*hole],
            errno: libc::ENOMEM,
        })
        .collect();
    ensure!(done.refused == refused, "refused: {:?}", done.refused);
    let pagemap = child.pagemap()?;
    // The last hundred, without its hole.
    ensure!(copies(&pagemap.pfns(map.page(2900), 99)?) == 1);
    child.go()?;
    child.join()
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

fn patched_text_is_shared() -> Result<()> {
    let code = sksm_spare as *const () as usize;
    let children = (0..6)
        .map(|_| {
            Child::spawn(|parent| {
                ensure!(sksm_spare() == 1);
                // SAFETY: only this function runs it, and not meanwhile.
                let mut patch = unsafe { Patch::begin(code + 1, 4)? };
                patch.write(code + 1, &7i32.to_le_bytes())?;
                patch.finish_and_merge()?;
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
