//! How fast `sksm estimate` looks at memory, from its start to its end, beside XXH3 over the same memory where it is:
//! `cargo bench --package sksm-cli`. The memory is of the same kind for both, in huge or in small pages, and larger than the
//! caches. Where it says "each core", what counts is the time on the processor, so that a busy machine does not matter much.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use twox_hash::XxHash3_64;

const PAGE: usize = 4096;
/// XXH3 and what is beside it are tried in turn, so many times: shown is the one in the middle.
const TRIES: usize = 5;
/// So many pages the command reads at once, or bytes of each.
const AT_ONCE: usize = 128;
const SAMPLE: usize = 128;

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
    let pages = len / PAGE;
    fill(memory, |number| number);
    let own = std::process::id() as i32;
    println!("  on each core");
    show_alone("XXH3 where it is", || hash_each(memory));
    show("process_vm_readv of all", memory, hash_each, || {
        copy_all(own, memory, PAGE)
    });
    show(
        "process_vm_readv of 128 bytes a page",
        memory,
        hash_each,
        || copy_all(own, memory, SAMPLE),
    );
    let each = |memory: &[u8], what| {
        show(what, memory, hash_each, || estimate(&[own], memory.len()).0);
    };
    each(memory, "estimate, all differ");
    // SAFETY: the child only waits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    show(
        "estimate, in common with a child",
        memory,
        hash_each,
        || estimate(&[own, child], 2 * len).0,
    );
    // SAFETY: our own child, not waited for yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    println!("  on all cores, by the clock");
    show_alone("XXH3 where it is", || hash_together(memory));
    show("estimate, all differ", memory, hash_together, || {
        estimate(&[own], len).1
    });
    println!("  on each core");
    // One page in eight is the twin of one far from it.
    fill(memory, |number| match number % 8 {
        0 => (number + pages / 2) % pages + 1,
        _ => number,
    });
    each(memory, "estimate, a quarter are twins");
    fill(memory, |number| number % (pages / 2));
    each(memory, "estimate, all are twins");
    fill(memory, |number| number);
    for page in memory.chunks_exact_mut(PAGE).step_by(2) {
        page.fill(0);
    }
    each(memory, "estimate, every other one is of zeros");
    fill(memory, |number| number);
    memory[len / 2..].fill(0);
    each(memory, "estimate, the second half is zeros");
    // SAFETY: of the mapping above, used for the last time.
    unsafe { libc::munmap(memory.as_mut_ptr().cast(), len) };
}

/// Fills pages that have the same number with the same, and others with nothing alike.
fn fill(memory: &mut [u8], content: impl Fn(usize) -> usize) {
    for (number, page) in memory.chunks_exact_mut(PAGE).enumerate() {
        let mut word = content(number) as u64;
        for bytes in page.chunks_exact_mut(8) {
            word = (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bytes.copy_from_slice(&(word ^ word >> 32).to_le_bytes());
        }
    }
}

fn show_alone(what: &str, mut measure: impl FnMut() -> f64) {
    let speed = middle((0..TRIES).map(|_| measure()).collect());
    println!("    {what:38} {:6.2} GB/s", speed / 1e9);
}

/// Beside the yardstick.
fn show(what: &str, memory: &[u8], yardstick: impl Fn(&[u8]) -> f64, measure: impl Fn() -> f64) {
    let tries = (0..TRIES).map(|_| (yardstick(memory), measure()));
    let (shares, speeds) = tries.map(|(all, speed)| (speed / all, speed)).unzip();
    println!(
        "    {what:38} {:6.2} GB/s  {:3.0} %",
        middle(speeds) / 1e9,
        100.0 * middle(shares)
    );
}

fn middle(mut tries: Vec<f64>) -> f64 {
    tries.sort_by(f64::total_cmp);
    tries[tries.len() / 2]
}

fn hash_each(memory: &[u8]) -> f64 {
    let start = cpu_time();
    hash_all(memory);
    memory.len() as f64 / (cpu_time() - start)
}

fn hash_together(memory: &[u8]) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in memory.chunks(memory.len() / threads) {
            scope.spawn(|| hash_all(part));
        }
    });
    memory.len() as f64 / start.elapsed().as_secs_f64()
}

fn hash_all(memory: &[u8]) {
    for page in memory.chunks_exact(PAGE) {
        black_box(XxHash3_64::oneshot(black_box(page)));
    }
}

/// As the command reads so much of the pages of a process that nobody else has.
fn copy_all(own: i32, memory: &[u8], each: usize) -> f64 {
    let start = cpu_time();
    let mut room = vec![0; AT_ONCE * each];
    for part in memory.chunks_exact(AT_ONCE * PAGE) {
        let vector = |start: *const u8, len| libc::iovec {
            iov_base: start.cast_mut().cast(),
            iov_len: len,
        };
        let here = vector(room.as_mut_ptr(), room.len());
        let there: Vec<libc::iovec> = match each {
            PAGE => vec![vector(part.as_ptr(), part.len())],
            _ => (part.chunks_exact(PAGE))
                .map(|page| vector(page[PAGE / 4..].as_ptr(), each))
                .collect(),
        };
        let count = there.len() as libc::c_ulong;
        // SAFETY: writes the room alone, and reads memory of this process that nobody writes to.
        let read = unsafe { libc::process_vm_readv(own, &here, 1, there.as_ptr(), count, 0) };
        assert_eq!(read, room.len() as isize);
        black_box(&mut room);
    }
    memory.len() as f64 / (cpu_time() - start)
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
    let pages = report["within_domains"]["mapped_pages"].as_f64().unwrap();
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
