//! How fast `sksm estimate` looks at memory, from its start to its end, beside XXH3 over the same memory where it is:
//! `cargo bench --package sksm-cli`. The memory is of the same kind for both, in huge or in small pages, and larger than the
//! caches. Where it says "each core", what counts is the time on the processor, so that a busy machine does not matter much.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use twox_hash::XxHash3_64;

const PAGE: usize = 4096;
/// Of so many tries the best counts, as other programs can only make one slower.
const TRIES: usize = 4;
/// So many pages the command reads at once.
const AT_ONCE: usize = 128;

fn main() {
    let len = (4 * largest_cache()).next_power_of_two().max(1 << 30);
    for (name, advice) in [
        ("huge pages", libc::MADV_HUGEPAGE),
        ("pages of 4 KiB", libc::MADV_NOHUGEPAGE),
    ] {
        println!("{:.0} GiB in {name}:", len as f64 / (1u64 << 30) as f64);
        measure(len, advice);
    }
}

/// In bytes; 0 if it cannot be told.
fn largest_cache() -> usize {
    (0..10)
        .filter_map(|index| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
            let text = std::fs::read_to_string(path).ok()?;
            Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
        })
        .max()
        .unwrap_or(0)
}

fn measure(len: usize, advice: i32) {
    // SAFETY: a new mapping, placed by the kernel, of this function alone.
    let memory = unsafe {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::madvise(start, len, advice), 0, "no huge pages here");
        std::slice::from_raw_parts_mut(start.cast::<u8>(), len)
    };
    // Pages that all differ.
    for (number, page) in memory.chunks_exact_mut(PAGE).enumerate() {
        page.fill(1);
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    let own = std::process::id() as i32;
    let hash = best(|| {
        let start = cpu_time();
        hash_all(memory);
        len as f64 / (cpu_time() - start)
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let hash_together = best(|| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(len / threads) {
                scope.spawn(|| hash_all(part));
            }
        });
        len as f64 / start.elapsed().as_secs_f64()
    });
    let copy = best(|| {
        let start = cpu_time();
        copy_all(own, memory);
        len as f64 / (cpu_time() - start)
    });
    println!("  on each core");
    show("XXH3 where it is", hash, hash);
    show("process_vm_readv, nothing else", copy, hash);
    show("estimate", best(|| estimate(&[own], len).0), hash);
    // SAFETY: the child only waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    let shared = best(|| estimate(&[own, child], 2 * len).0);
    // SAFETY: our own child, not waited for yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    show("estimate, in common with a child", shared, hash);
    println!("  on all cores, {threads}, by the clock");
    show("XXH3 where it is", hash_together, hash_together);
    show(
        "estimate, from start to exit",
        best(|| estimate(&[own], len).1),
        hash_together,
    );
    for page in memory.chunks_exact_mut(PAGE).step_by(2) {
        page.fill(0);
    }
    show(
        "estimate, half of it zeros",
        best(|| estimate(&[own], len).1),
        hash_together,
    );
    // SAFETY: of the mapping above, used for the last time.
    unsafe { libc::munmap(memory.as_mut_ptr().cast(), len) };
}

fn show(what: &str, speed: f64, yardstick: f64) {
    println!(
        "    {what:34} {:6.2} GB/s  {:3.0} %",
        speed / 1e9,
        100.0 * speed / yardstick
    );
}

fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..TRIES).map(|_| measure()).fold(0.0, f64::max)
}

fn hash_all(memory: &[u8]) {
    for page in memory.chunks_exact(PAGE) {
        black_box(XxHash3_64::oneshot(black_box(page)));
    }
}

/// As the command reads the pages of a process that nobody else has.
fn copy_all(own: i32, memory: &[u8]) {
    let mut room = vec![0; AT_ONCE * PAGE];
    for part in memory.chunks_exact(room.len()) {
        let vector = |start: *const u8| libc::iovec {
            iov_base: start.cast_mut().cast(),
            iov_len: part.len(),
        };
        let (here, there) = (vector(room.as_mut_ptr()), vector(part.as_ptr()));
        // SAFETY: writes the room alone, and reads memory of this process that nobody writes to.
        let read = unsafe { libc::process_vm_readv(own, &here, 1, &there, 1, 0) };
        assert_eq!(read, part.len() as isize);
        black_box(&mut room);
    }
}

/// Bytes looked at in a second of all threads' time, and in one by the clock.
fn estimate(pids: &[i32], len: usize) -> (f64, f64) {
    let start = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(["estimate", "--json", "--pid"])
        .args(pids.iter().map(i32::to_string))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let clock = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |name: &str| report[name].as_f64().unwrap();
    let pages = report["within_users"]["mapped_pages"].as_f64().unwrap();
    assert!(pages * PAGE as f64 >= len as f64, "{report}");
    (len as f64 / figure("cpu_seconds"), len as f64 / clock)
}

/// Of this thread, in seconds: what other programs take does not count.
fn cpu_time() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, into ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
