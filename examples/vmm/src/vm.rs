//! A VMM: its guest runs in one thread, its memory is merged by another one, and it does what it is told meanwhile.

use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sksm::MergeStatistics;
use sksm_scan::{Settings, Tracker, Twins};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::Result;
use crate::guest::{Guest, PAGE, PAGES, Rate};

/// A second is little: it is to be seen at work.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.stable = Duration::from_secs(1);
    settings.cpu = Some(0.5);
    settings
}

pub fn run(rate: &str, service: Option<&str>) -> Result<()> {
    let rate = Rate::named(rate).ok_or("no such rate")?;
    let guest = Guest::boot()?;
    // The image is in other processes, of which a service knows; without one, each page that is stable is merged.
    let twins = service.map_or(Twins::Everything, |socket| Twins::Service(socket.into()));
    let tracker = match Tracker::for_memory(&guest.memory, settings(), twins) {
        Ok(tracker) => tracker,
        Err(reason) => {
            println!("unsupported: {reason}");
            return Ok(());
        }
    };
    println!("{} MiB tracked", tracker.tracked() >> 20);
    let guest = Mutex::new(guest);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| tracker.run());
        let running = scope.spawn(|| -> std::result::Result<(), String> {
            while !end.load(Ordering::Relaxed) {
                let mut guest = guest.lock().map_err(|error| error.to_string())?;
                guest
                    .write(rate.pages())
                    .map_err(|error| error.to_string())?;
                drop(guest);
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let obeyed = obey(&tracker, &guest);
        end.store(true, Ordering::Relaxed);
        tracker.stop();
        merging.join().map_err(|_| "the tracker has panicked")??;
        running.join().map_err(|_| "the guest has panicked")??;
        obeyed
    })
}

/// Answers each line, until there are no more.
fn obey(tracker: &Tracker, guest: &Mutex<Guest>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let answer = match &*line? {
            "check" => {
                guest.lock().map_err(|error| error.to_string())?.check()?;
                "right".to_owned()
            }
            "counts" => {
                let counts = MergeStatistics::own()?;
                let merged = counts.merged_pages.unwrap_or(0) + counts.published_pages.unwrap_or(0);
                format!("{merged} {}", counts.zero_pages.unwrap_or(0))
            }
            "looked" => tracker.ledger().looked.to_string(),
            "pause" => {
                tracker.pause();
                "paused".to_owned()
            }
            "resume" => {
                tracker.resume()?;
                "resumed".to_owned()
            }
            "unmerge" => {
                tracker.unmerge()?;
                "unmerged".to_owned()
            }
            "frames" => frames(guest)?,
            "report" => report(tracker)?,
            other => return Err(format!("what is {other}?").into()),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn report(tracker: &Tracker) -> Result<String> {
    let (counts, ledger) = (MergeStatistics::own()?, tracker.ledger());
    let pages = |count: Option<i64>| count.unwrap_or(0);
    Ok(format!(
        "of {PAGES} pages {} share another's memory, {} are there to be shared, {} are zeros; {} looks, {} samples, \
         {} pages read, {} merges, {} came apart, {:.2} s of CPU time{}",
        pages(counts.merged_pages),
        pages(counts.published_pages),
        pages(counts.zero_pages),
        ledger.looked,
        ledger.sampled,
        ledger.read,
        ledger.merges,
        ledger.came_apart,
        ledger.cpu.as_secs_f64(),
        tracker
            .service_trouble()
            .map_or(String::new(), |trouble| format!("; no service: {trouble}")),
    ))
}

/// The physical pages of the image's first half, which no guest writes to; 0 where they are not told.
fn frames(guest: &Mutex<Guest>) -> Result<String> {
    let guest = guest.lock().map_err(|error| error.to_string())?;
    let start = guest.memory.get_host_address(GuestAddress(0))? as u64;
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let image = (0..PAGES as u64 / 2).filter(|page| page % 4 < 2);
    let frames = image.map(|page| {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (start / PAGE as u64 + page) * 8)?;
        Ok((u64::from_ne_bytes(entry) & ((1 << 55) - 1)).to_string())
    });
    Ok(frames.collect::<Result<Vec<_>>>()?.join(" "))
}
