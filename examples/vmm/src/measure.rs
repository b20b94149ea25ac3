//! What looking at a page costs, the scanner's own work included.

use std::time::Duration;

use sksm_scan::{Settings, Tracker, Twins};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::Result;
use crate::guest::PAGE;

const PAGES: usize = 16 << 10;

/// Each page is alone with what it holds, so that nothing is merged.
fn write(memory: &GuestMemoryMmap, round: u64) -> Result<()> {
    for page in 0..PAGES {
        // Where samples are: 128 bytes from 1024 on.
        let address = GuestAddress((page * PAGE + 1024) as u64);
        memory.write_obj((page as u64 + 1) | (round << 32), address)?;
    }
    Ok(())
}

/// Huge pages are read each time, which is another figure.
fn small_pages(memory: &GuestMemoryMmap) -> Result<()> {
    let start = memory.get_host_address(GuestAddress(0))?;
    // SAFETY: that memory, and changes none of its contents.
    let done = unsafe { libc::madvise(start.cast(), PAGES * PAGE, libc::MADV_NOHUGEPAGE) };
    let error = std::io::Error::last_os_error();
    match (done, error.raw_os_error()) {
        // The second: a kernel without huge pages.
        (0, _) | (_, Some(libc::EINVAL)) => Ok(()),
        _ => Err(error.into()),
    }
}

pub fn run() -> Result<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGES * PAGE)])?;
    small_pages(&memory)?;
    let mut settings = Settings::default();
    settings.stable = Duration::from_millis(500);
    settings.cpu = None;
    write(&memory, 0)?;
    let tracker = match Tracker::for_memory(&memory, settings, Twins::Own) {
        Ok(tracker) => tracker,
        Err(reason) => {
            println!("nothing is tracked: {reason}");
            return Ok(());
        }
    };
    round(&tracker, "read for the first time")?;
    round(&tracker, "nothing changed")?;
    round(&tracker, "nothing changed")?;
    write(&memory, 1)?;
    round(&tracker, "all written")?;
    Ok(())
}

/// Looks at all of it once.
fn round(tracker: &Tracker, what: &str) -> Result<()> {
    let before = tracker.ledger();
    let end = before.looked + PAGES as u64;
    loop {
        match tracker.step()?.wait() {
            None => {}
            // Not after each step, as asking takes time too, which is not the tracker's.
            Some(_) if tracker.ledger().looked >= end => break,
            Some(wait) => std::thread::sleep(wait),
        }
    }
    let after = tracker.ledger();
    let (looked, read) = (after.looked - before.looked, after.sampled - before.sampled);
    let nanos = (after.cpu - before.cpu).as_nanos() as f64 / looked as f64;
    println!("{what}: {nanos:.1} ns a page ({looked} looked at, {read} samples read)");
    Ok(())
}
