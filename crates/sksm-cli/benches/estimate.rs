//! How fast `sksm estimate` reads memory, beside one thread that does nothing but hash memory of its own:
//! `cargo bench --package sksm-cli`. Each core should come
//! to 60 % of that. What counts is the time on the processor, so that a busy machine does not matter much.

use std::hint::black_box;
use std::process::{Command, Stdio};

use twox_hash::XxHash3_64;

const PAGE: usize = 4096;
const LEN: usize = 1 << 30;
/// Of so many tries the best counts, as other programs can only make one slower.
const TRIES: usize = 5;

fn main() {
    measure("huge pages", libc::MADV_HUGEPAGE);
    measure("small pages", libc::MADV_NOHUGEPAGE);
}

fn measure(what: &str, advice: i32) {
    println!("{what}:");
    // SAFETY: a new mapping, placed by the kernel, of this function alone.
    let memory = unsafe {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let start = libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::madvise(start, LEN, advice), 0, "no huge pages here");
        std::slice::from_raw_parts_mut(start.cast::<u8>(), LEN)
    };
    // Pages that all differ.
    for (number, page) in memory.chunks_exact_mut(PAGE).enumerate() {
        page.fill(1);
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut hash, mut each, mut all) = (0.0f64, 0.0f64, 0.0f64);
    for _ in 0..TRIES {
        let start = cpu_time();
        for page in memory.chunks_exact(PAGE) {
            black_box(XxHash3_64::oneshot(black_box(page)));
        }
        hash = hash.max(LEN as f64 / (cpu_time() - start));
        let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
            .args(["estimate", "--json", "--pid"])
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let figure = |name: &str| report[name].as_f64().unwrap();
        assert!(figure("read_bytes") >= LEN as f64, "{report}");
        let bytes = figure("read_bytes");
        each = each.max(bytes / figure("cpu_seconds"));
        all = all.max(bytes / figure("seconds"));
    }
    println!("  xxh3, one thread: {:6.2} GB/s", hash / 1e9);
    println!(
        "  estimate, each:   {:6.2} GB/s, {:.0} % of xxh3",
        each / 1e9,
        100.0 * each / hash
    );
    println!(
        "  estimate, all:    {:6.2} GB/s on the clock, {threads} threads",
        all / 1e9
    );
    // SAFETY: of the mapping above, used for the last time.
    unsafe { libc::munmap(memory.as_mut_ptr().cast(), LEN) };
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
