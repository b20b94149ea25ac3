//! How often the TLB is flushed, as the kernel's trace events tell.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const TRACING: &str = "/sys/kernel/debug/tracing";
const EVENT: &str = "events/tlb/tlb_flush/enable";

/// Flushes that one thread ordered.
#[derive(Debug, Default, PartialEq)]
pub struct Flushes {
    /// Of its own CPU's TLB.
    pub own: usize,
    /// Interrupts to others.
    pub remote: usize,
}

/// Whether this kernel can tell.
pub fn known() -> bool {
    Path::new(TRACING).join(EVENT).exists()
}

/// What the calling thread orders during the work.
pub fn during(work: impl FnOnce() -> Result<()>) -> Result<Flushes> {
    // SAFETY: has no preconditions.
    let thread = unsafe { libc::gettid() };
    write("set_event_pid", &thread.to_string())?;
    write("trace", "")?;
    write(EVENT, "1")?;
    let result = work();
    write(EVENT, "0")?;
    let text =
        fs::read_to_string(Path::new(TRACING).join("trace")).context("cannot read the trace")?;
    result?;
    Ok(count(&text, thread))
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(Path::new(TRACING).join(file), text)
        .with_context(|| format!("cannot write {text:?} to {TRACING}/{file}"))
}

/// Lines like `sksm-bench-12  [000] ...1.  3.456: tlb_flush: pages:511 reason:local mm shootdown (3)`.
fn count(trace: &str, thread: i32) -> Flushes {
    let mut flushes = Flushes::default();
    for line in trace.lines() {
        let Some((head, event)) = line.split_once("tlb_flush:") else {
            continue;
        };
        let of = head
            .split('[')
            .next()
            .and_then(|task| task.trim().rsplit('-').next());
        if of != Some(&*thread.to_string()) {
            continue;
        }
        if event.contains("reason:local") {
            flushes.own += 1;
        } else if event.contains("reason:remote ipi send") {
            flushes.remote += 1;
        }
    }
    flushes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_thread_and_kind() {
        let trace = "# tracer: nop\n\
            \x20     sksm-bench-12      [000] d..1.     3.1: tlb_flush: pages:512 reason:local mm shootdown (3)\n\
            \x20     sksm-bench-12      [000] d..1.     3.2: tlb_flush: pages:512 reason:remote ipi send (4)\n\
            \x20     sksm-bench-13      [001] d..1.     3.3: tlb_flush: pages:512 reason:local mm shootdown (3)\n\
            \x20     sksm-bench-12      [000] d..1.     3.4: tlb_flush: pages:512 reason:local mm shootdown (3)\n\
            \x20     sksm-bench-12      [000] d..1.     3.5: tlb_flush: pages:0 reason:flush on task switch (0)\n";
        assert_eq!(count(trace, 12), Flushes { own: 2, remote: 1 });
    }
}
