//! VMMs whose guests hold the same pages, as those that booted one image do, and merge them when their guests have come to rest. Guest
//! memory is that of rust-vmm's `vm-memory`; to merge it takes no more than [`merge_guest`].

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};

use sksm::{MergeStatistics, Support};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const VMS: usize = 3;
const MIB: usize = 1 << 20;
/// Below the hole for devices and above it, as a PC has its memory.
const RANGES: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 48 * MIB),
    (GuestAddress(4 << 30), 16 * MIB),
];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What became of a guest's memory, in bytes.
#[derive(Default)]
struct Merged {
    advised: usize,
    /// Shared with others already: memfd, or a file of hugetlbfs, as vhost-user needs it. That never merges.
    shared: usize,
}

/// Merges all of a guest's memory. The guest may run meanwhile: what it writes is copied first, as after a fork.
///
/// Memory that a device reaches by itself (VFIO) is pinned, and stays as it is.
fn merge_guest(memory: &GuestMemoryMmap) -> std::result::Result<Merged, sksm::Error> {
    let mut merged = Merged::default();
    for region in memory.iter() {
        if region.flags() & libc::MAP_SHARED != 0 {
            merged.shared += region.size();
            continue;
        }
        sksm::merge_range(region.as_ptr() as usize, region.size())?;
        merged.advised += region.size();
    }
    Ok(merged)
}

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("vm") => vm(),
        _ => host(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs VMMs one after the other, each until all have merged.
fn host() -> Result<()> {
    println!("this kernel offers: {:?}", sksm::support());
    let mut vms = Vec::new();
    for _ in 0..VMS {
        let mut vm: Child = Command::new(std::env::current_exe()?)
            .arg("vm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = vm.stdout.as_mut().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        println!("VMM {}: {}", vm.id(), line.trim());
        vms.push(vm);
    }
    // All are let go before one is found to have failed, or the others would wait for ever.
    let mut failed = Vec::new();
    for mut vm in vms {
        drop(vm.stdin.take());
        let status = vm.wait()?;
        if !status.success() {
            failed.push(format!("VMM {}: {status}", vm.id()));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.join(", ").into()),
    }
}

fn vm() -> Result<()> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&RANGES)?;
    boot(&memory)?;
    if sksm::support() == Support::Merge {
        let merged = merge_guest(&memory)?;
        let counts = MergeStatistics::own()?;
        let mib = |pages: Option<i64>| pages.unwrap_or(0) * sksm::page_size() as i64 / MIB as i64;
        println!(
            "{} MiB of guest memory advised, {} MiB shared before: saved {} MiB, zero pages {} MiB",
            merged.advised / MIB,
            merged.shared / MIB,
            mib(counts.merged_pages),
            mib(counts.zero_pages),
        );
    } else {
        println!("nothing merged: boot a kernel with CONFIG_SKSM");
    }
    check(&memory)?;
    // Until the others have merged.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What a guest does as far as its memory shows it: an image that is the same in all, some that is not, zeros that it cleared.
fn boot(memory: &GuestMemoryMmap) -> Result<()> {
    each_page(|page, address| {
        memory.write_slice(&content(page), address)?;
        Ok(())
    })
}

fn check(memory: &GuestMemoryMmap) -> Result<()> {
    each_page(|page, address| {
        let mut found = [0; 4096];
        memory.read_slice(&mut found, address)?;
        if found != content(page) {
            return Err(format!("page {page} of the guest has changed").into());
        }
        Ok(())
    })
}

fn each_page(mut see: impl FnMut(usize, GuestAddress) -> Result<()>) -> Result<()> {
    let addresses = RANGES.iter().flat_map(|(start, len)| {
        (0..*len)
            .step_by(4096)
            .map(|offset| GuestAddress(start.0 + offset as u64))
    });
    addresses
        .enumerate()
        .try_for_each(|(page, address)| see(page, address))
}

/// Of four pages two are of the image, one is the guest's own, one is zeros.
fn content(page: usize) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    let own = u64::from(std::process::id()) << 32;
    let start = match page % 4 {
        0 | 1 => page as u64,
        2 => page as u64 | own,
        _ => return bytes,
    };
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(start + ((at as u64) << 20)).to_le_bytes());
    }
    bytes
}
