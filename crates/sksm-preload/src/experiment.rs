use crate::environment::variable;
use crate::report::{Line, report_fd};
use crate::text::{self, Text};

/// What `SKSM_EXPERIMENT` asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Only reports: what the preload object itself costs.
    Idle,
    /// Writes once to every executable page of libc, each byte as it was: what libraries do that patch their code.
    Patch,
    /// Patches, then merges exactly that text.
    Merge,
    /// Patches, then hands exactly that text to KSM.
    Ksm,
    /// Patches, then shares exactly that text by the store.
    Store,
}

impl Step {
    fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"idle" => Some(Step::Idle),
            b"patch" => Some(Step::Patch),
            b"merge" => Some(Step::Merge),
            b"ksm" => Some(Step::Ksm),
            b"store" => Some(Step::Store),
            _ => None,
        }
    }
}

/// How far a step came; a failure is an errno.
#[derive(Default)]
struct Outcome {
    pages: usize,
    /// How long the advice took.
    nanoseconds: u64,
    failure: Option<(&'static [u8], i32)>,
}

/// Does what the environment asks for, and reports it.
pub fn run() {
    let Some(name) = variable(c"SKSM_EXPERIMENT") else {
        return;
    };
    let Some(step) = Step::from_name(name) else {
        return;
    };
    let outcome = if step == Step::Idle {
        Outcome::default()
    } else {
        patch_and_advise(step)
    };

    let Some(fd) = variable(c"SKSM_EXPERIMENT_FD").and_then(report_fd) else {
        return;
    };
    let (failed, errno) = outcome.failure.unwrap_or((b"nothing", 0));
    // SAFETY: getpid cannot fail.
    let pid = unsafe { libc::getpid() };
    let mut line = Line::default();
    line.text(b"step=").text(name);
    line.text(b" pid=").number(pid as u64);
    line.text(b" pages=").number(outcome.pages as u64);
    line.text(b" ns=").number(outcome.nanoseconds);
    line.text(b" failed=").text(failed);
    line.text(b" errno=").number(errno as u64);
    line.send(fd);
}

fn patch_and_advise(step: Step) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(text) = text::of_libc() else {
        outcome.failure = Some((b"find", libc::ENOENT));
        return outcome;
    };
    outcome.pages = text.pages();
    if let Err(errno) = text.write_every_page() {
        outcome.failure = Some((b"patch", errno));
        return outcome;
    }
    if step == Step::Patch {
        return outcome;
    }
    let start = now();
    let result = advise(step, &text);
    outcome.nanoseconds = now().saturating_sub(start);
    outcome.failure = result.err().map(|errno| (b"advise".as_slice(), errno));
    outcome
}

fn advise(step: Step, text: &Text) -> Result<(), i32> {
    match step {
        Step::Idle | Step::Patch => Ok(()),
        // The bare call, as for KSM: the library first asks whether this kernel has it, and keeps the answer in a page.
        Step::Merge => text.madvise(sksm::MADV_MERGE),
        Step::Ksm => text.madvise(libc::MADV_MERGEABLE),
        Step::Store => share(text),
    }
}

/// All that it takes, from opening the store on.
fn share(text: &Text) -> Result<(), i32> {
    let object = sksm_store::Object::Holding(text.start);
    let store = sksm_store::Store::open_named(variable(c"SKSM_STORE_DIR"));
    let shared = store.and_then(|store| store.share_text(object));
    let number = |error: sksm_store::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    match shared.map_err(number)? {
        sksm_store::Shared {
            fault: Some(error), ..
        } => Err(number(error)),
        _ => Ok(()),
    }
}

fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, into ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
