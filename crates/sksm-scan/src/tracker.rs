//! For programs that merge their own memory, a guest's in its VMM above all.

mod local;
mod memory;
mod service;
mod tables;
mod twins;
mod unsupported;
mod userfault;
#[cfg(feature = "vm-memory")]
mod vm_memory;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sksm::{Kind, Process, Region};

use crate::{Ledger, Scanner, Settings, Step, World};
use local::Local;
use userfault::Userfault;

pub use twins::Twins;
pub use unsupported::{Failed, Unsupported};

/// Finds what is worth merging in memory of this process, private and anonymous, and merges it.
///
/// The kernel notes which pages are written, by userfaultfd's asynchronous write protection, and only those are read: a page to which
/// nobody has written for the [stable time](Settings::stable) is merged where it has a twin, as [`Twins`] says. The first write to a
/// page after a look costs a fault of its own, some microseconds at most.
///
/// Huge pages are not write-protected, as the first write to such a one would split it: their samples are read each time.
///
/// [`run`](Self::run) is for a thread of its own; [`step`](Self::step) for a loop that does other things as well. All of it may be
/// called by any thread.
pub struct Tracker {
    state: Mutex<State>,
    wake: Condvar,
    /// Callers that wait for a step to end.
    waiting: AtomicUsize,
}

struct State {
    local: Local,
    scanner: Scanner,
    settings: Settings,
    paused: bool,
    stopped: bool,
    /// What was done before all was forgotten.
    before: Ledger,
    /// Keeps the memory mapped; after `local`, which reads it.
    _memory: Option<Box<dyn Send>>,
}

/// Nothing waits longer at once.
const LONG: Duration = Duration::from_secs(3600);

impl Tracker {
    /// Whether the kernel notes for this process which pages are written, without which nothing can be tracked.
    pub fn can_note_writes() -> bool {
        Userfault::open().is_ok()
    }

    /// Tracks these regions, which are whole pages of private anonymous memory. They may be written by anybody at any
    /// time: by virtual processors, and by threads that do it by volatile or atomic stores. Memory in them may be freed by
    /// `MADV_DONTNEED`, and what is in them may be locked or huge.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] where this kernel, or this memory, cannot be tracked or merged: to be told and gone on without.
    ///
    /// # Safety
    ///
    /// All of it stays mapped and readable until the tracker has been dropped, and no `&mut` to it is held meanwhile.
    pub unsafe fn new(
        regions: &[Region],
        settings: Settings,
        twins: Twins,
    ) -> Result<Self, Unsupported> {
        // SAFETY: the caller's.
        unsafe { Self::keeping(regions, settings, twins, None) }
    }

    /// The same, with what keeps the memory mapped.
    unsafe fn keeping(
        regions: &[Region],
        settings: Settings,
        twins: Twins,
        memory: Option<Box<dyn Send>>,
    ) -> Result<Self, Unsupported> {
        match sksm::require() {
            Ok(()) => {}
            Err(sksm::Error::Unsupported { instead, .. }) => {
                return Err(Unsupported::Merging(instead));
            }
            Err(undecided) => return Err(Unsupported::Undecided(undecided)),
        }
        let regions = joined(regions);
        if regions.is_empty() {
            return Err(Unsupported::Nothing);
        }
        only_private(&regions)?;
        // SAFETY: the caller's.
        let local = unsafe { Local::new(&regions, twins)? };
        let state = State {
            scanner: Scanner::new(settings.clone(), &local),
            local,
            settings,
            paused: false,
            stopped: false,
            before: Ledger::default(),
            _memory: memory,
        };
        Ok(Tracker {
            state: Mutex::new(state),
            wake: Condvar::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Does one small piece of work, a few milliseconds at most, or tells how long there is nothing to do: without end while paused.
    ///
    /// # Errors
    ///
    /// What stopped it. It may be called again, then it begins anew; whether that makes sense the caller knows.
    pub fn step(&self) -> Result<Step, Failed> {
        self.lock().step()
    }

    /// Works until [`stop`](Self::stop) is called, by another thread.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step).
    pub fn run(&self) -> Result<(), Failed> {
        loop {
            // Or others would hardly ever come in between.
            while self.waiting.load(Ordering::Acquire) > 0 {
                std::thread::yield_now();
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut state.stopped) {
                return Ok(());
            }
            let Some(wait) = state.step()?.wait() else {
                continue;
            };
            drop(self.wake.wait_timeout(state, wait.min(LONG)));
        }
    }

    /// Ends [`run`](Self::run), after a step at most; if nobody runs it, then the next time it is called. What is merged stays merged.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_all();
    }

    /// Stops looking, and takes the write protection away: until [`resume`](Self::resume) others may track writes to this memory, by
    /// userfaultfd too, for a migration or a snapshot. What is merged stays merged; readers need not care.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.paused = true;
        state.local.pause();
    }

    /// Looks again. Nothing was noted meanwhile: each page is read once, and one whose sample is as it was counts as unchanged.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] where another userfaultfd has this memory by now; it stays paused then.
    pub fn resume(&self) -> Result<(), Unsupported> {
        let mut state = self.lock();
        if state.paused {
            state.local.resume()?;
            state.paused = false;
        }
        drop(state);
        self.wake.notify_all();
        Ok(())
    }

    /// Pauses, and has each page be this process's alone again. It takes as much memory as merging had saved.
    ///
    /// # Errors
    ///
    /// Those of [`sksm::unmerge_exact`]; part of it may be done then, and it is paused in any case.
    pub fn unmerge(&self) -> Result<(), sksm::Error> {
        let mut state = self.lock();
        state.paused = true;
        state.local.pause();
        state.begin_anew();
        let mut regions = state.local.ranges();
        regions.try_for_each(|region| sksm::unmerge_exact(region.start, region.len))
    }

    /// Other settings, from now on; what is known stays.
    pub fn set(&self, settings: Settings) {
        let mut state = self.lock();
        let State { local, scanner, .. } = &mut *state;
        scanner.set(settings.clone(), local);
        state.settings = settings;
        drop(state);
        self.wake.notify_all();
    }

    /// What was done so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let state = self.lock();
        let mut total = state.before;
        total.add(&state.scanner.total());
        total
    }

    /// Why the service of [`Twins::Service`] gives no twins, or none that are new; none where it does, or none is asked.
    #[must_use]
    pub fn service_trouble(&self) -> Option<String> {
        let mut state = self.lock();
        let trouble = state.local.service()?.trouble.as_ref()?;
        Some(trouble.to_string())
    }

    /// How much memory is tracked, in bytes.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.lock().local.ranges().map(|region| region.len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        state
    }
}

impl State {
    fn step(&mut self) -> Result<Step, Failed> {
        if self.paused {
            return Ok(Step::Idle(Duration::MAX));
        }
        self.local.begin();
        self.ask_service();
        let step = self.scanner.step(&mut self.local);
        self.local.end();
        // It asks again, whatever there is to do.
        let now = self.local.now();
        let due = self
            .local
            .service()
            .map(|service| service.due.saturating_sub(now));
        let step = match (step, due) {
            (Step::Idle(wait), Some(due)) => {
                Step::Idle(wait.min(due.max(Duration::from_millis(1))))
            }
            (step, _) => step,
        };
        match self.local.failed.take() {
            Some(failed) => {
                self.begin_anew();
                Err(failed)
            }
            None => Ok(step),
        }
    }

    /// Now and then asks which twins there are elsewhere by now.
    fn ask_service(&mut self) {
        let now = self.local.now();
        let started = self.local.cpu();
        let Some(service) = self.local.service().filter(|service| service.due <= now) else {
            return;
        };
        if service.ask() {
            // Nobody has added anything to a new one.
            (self.scanner).each_stable(|_, sample| service.add(sample));
        }
        self.scanner.ask_again(&self.local);
        // Of a large memory it takes time, in which nothing else is done.
        let cost = self.local.cpu().saturating_sub(started);
        let rest = (self.settings.stable / 2).max(Duration::from_millis(100));
        if let Some(service) = self.local.service() {
            service.due = now + rest.max(cost * 200);
        }
    }

    /// Knows nothing of the memory any more.
    fn begin_anew(&mut self) {
        let mut total = self.scanner.total();
        (total.pages, total.merged) = (0, 0);
        self.before.add(&total);
        self.local.forget();
        self.scanner = Scanner::new(self.settings.clone(), &self.local);
    }
}

/// In order, and those that are next to each other, or the same, as one.
fn joined(regions: &[Region]) -> Vec<Region> {
    let mut regions: Vec<Region> = regions.to_vec();
    regions.retain(|region| region.len > 0);
    regions.sort_unstable();
    let mut joined: Vec<Region> = Vec::new();
    for region in regions {
        match joined.last_mut() {
            Some(last) if region.start <= last.end() => {
                last.len = last.end().max(region.end()) - last.start;
            }
            _ => joined.push(region),
        }
    }
    joined
}

/// Refuses what is not all private anonymous memory in whole pages.
fn only_private(regions: &[Region]) -> Result<(), Unsupported> {
    let mappings = Process::own().mappings().map_err(Unsupported::Mappings)?;
    let private: Vec<Region> = (mappings.iter())
        .filter(|mapping| mapping.mergeable && mapping.kind == Kind::Heap)
        .map(|mapping| mapping.region)
        .collect();
    let private = joined(&private);
    let page = sksm::page_size();
    for region in regions {
        let inside = |one: &Region| one.start <= region.start && region.end() <= one.end();
        let whole = region.start % page == 0 && region.len % page == 0;
        if !whole || !private.iter().any(inside) {
            return Err(Unsupported::NotPrivate(*region));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_put_in_order() {
        let all = |pairs: &[(usize, usize)]| -> Vec<Region> {
            pairs.iter().map(|pair| Region::from(*pair)).collect()
        };
        let found = joined(&all(&[(20, 10), (5, 0), (0, 10), (10, 5), (25, 1)]));
        assert_eq!(found, all(&[(0, 15), (20, 10)]));
    }

    /// Where it is supported, it works; elsewhere it says why not, and changes nothing.
    #[test]
    fn what_cannot_be_tracked_is_a_value() {
        let page = sksm::page_size();
        let mut memory = vec![1u8; 64 * page];
        let start = memory
            .as_mut_ptr()
            .expose_provenance()
            .next_multiple_of(page);
        let region = Region::new(start, 32 * page);
        // SAFETY: it is dropped before the memory.
        let tracker = unsafe { Tracker::new(&[region], Settings::default(), Twins::Own) };
        match tracker {
            Ok(tracker) => assert_eq!(tracker.tracked(), 32 * page),
            Err(reason) => assert!(!reason.to_string().is_empty()),
        }
        drop(memory);
    }
}
