//! How often the TLB is flushed, as the kernel's trace events tell.

use std::path::Path;

use anyhow::Result;
use sksm_guest::machine::tracefs::{Event, Trace};

const EVENT: &str = "tlb/tlb_flush";

/// Flushes that one thread ordered.
#[derive(Debug, Default, PartialEq)]
pub struct Flushes {
    /// Of its own CPU's TLB.
    pub own: usize,
    /// Interrupts to others.
    pub remote: usize,
}

/// Where the flushes are heard of; none in a kernel that does not tell.
pub fn trace() -> Result<Option<Trace>> {
    if !Path::new("/sys/kernel/tracing").is_dir() {
        return Ok(None);
    }
    let trace = Trace::new()?;
    Ok(trace.has(EVENT).then_some(trace))
}

/// What the calling thread orders during the work.
pub fn during<T>(trace: &Trace, work: impl FnOnce() -> Result<T>) -> Result<(T, Flushes)> {
    // SAFETY: has no preconditions.
    let thread = unsafe { libc::gettid() };
    trace.set(EVENT, true)?;
    let result = work();
    trace.set(EVENT, false)?;
    let events = trace.take()?;
    Ok((result?, count(&events, thread)))
}

/// Their texts are like `pages:511 reason:local mm shootdown (3)`.
fn count(events: &[Event], thread: i32) -> Flushes {
    let mut flushes = Flushes::default();
    for event in events.iter().filter(|event| event.pid == thread) {
        if event.text.contains("reason:local mm") {
            flushes.own += 1;
        } else if event.text.contains("reason:remote ipi send") {
            flushes.remote += 1;
        }
    }
    flushes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_thread_and_kind() {
        let event = |pid, text: &str| Event {
            pid,
            name: "tlb_flush".to_owned(),
            text: text.to_owned(),
        };
        let events = [
            event(12, "pages:512 reason:local mm shootdown (3)"),
            event(12, "pages:512 reason:remote ipi send (4)"),
            event(13, "pages:512 reason:local mm shootdown (3)"),
            event(12, "pages:512 reason:local mm shootdown (3)"),
            event(12, "pages:0 reason:flush on task switch (0)"),
        ];
        assert_eq!(count(&events, 12), Flushes { own: 2, remote: 1 });
    }
}
