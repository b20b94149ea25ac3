//! Several processes flip the same static keys, so that each gets its own copy of the patched pages of the program's text; then
//! they merge, and share one copy again. Run as root, it shows the physical pages.

use std::ffi::c_void;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitCode, Stdio};

use sksm::{Patch, Process, Support};
use static_keys::code_manipulate::CodeManipulator;
use static_keys::{define_static_key_false_generic, static_branch_unlikely};

const PROCESSES: usize = 8;

/// static-keys calls it for every branch of a key that is flipped.
struct ByPatch;

impl CodeManipulator for ByPatch {
    unsafe fn write_code<const L: usize>(addr: *mut c_void, data: &[u8; L]) {
        let addr = addr as usize;
        let patched = || {
            // SAFETY: this program has one thread while it flips keys, and it does not run the branch meanwhile.
            let mut patch = unsafe { Patch::begin(addr, L)? };
            patch.write(addr, data)?;
            patch.finish()
        };
        if let Err(error) = patched() {
            // The interface has no other way to say so.
            panic!("{error}");
        }
    }
}

define_static_key_false_generic!(TRACING, ByPatch);

#[inline(never)]
fn answer() -> u32 {
    if static_branch_unlikely!(TRACING) {
        // As tracing that is off by default: out of the way of the code that runs.
        return 43;
    }
    42
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("worker") => worker().map(|()| ExitCode::SUCCESS),
        _ => parent(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Flips the key, says where the patched code is, and merges it when told to.
fn worker() -> Result<()> {
    static_keys::global_init();
    let before = answer();
    // SAFETY: after global_init, on the only thread.
    unsafe { TRACING.enable() };
    let after = answer();
    if (before, after) != (42, 43) {
        return Err(format!("the key does not switch: {before}, then {after}").into());
    }
    println!("{:x}", answer as *const () as usize);
    std::io::stdin().read_line(&mut String::new())?;
    match Process::own().merge_text() {
        Ok(done) => println!(
            "merged {} KiB of mappings with patched code",
            done.advised / 1024
        ),
        Err(error) => println!("{error}"),
    }
    if answer() != 43 {
        return Err("merging has changed the code".into());
    }
    // Until the parent has looked.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Worker {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    code: usize,
}

impl Worker {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut worker = Worker {
            child,
            output,
            code: 0,
        };
        worker.code = usize::from_str_radix(&worker.line()?, 16)?;
        Ok(worker)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim() {
            "" => Err("a worker has ended early".into()),
            line => Ok(line.to_owned()),
        }
    }

    /// The physical page of the patched function; 0 is what those without the right see.
    fn physical_page(&self) -> Result<u64> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.child.id()))?;
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (self.code / sksm::page_size() * 8) as u64)?;
        Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
    }

    /// KiB of the program's text that are this process's own copies.
    fn own_text(&self) -> Result<u64> {
        let mappings = Process::open(self.child.id())?.mappings()?;
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.region.contains(self.code));
        let statistics = mapping.ok_or("the patched code is not mapped")?.statistics;
        Ok((statistics.anonymous - statistics.ksm) / 1024)
    }
}

fn parent() -> Result<ExitCode> {
    println!("this kernel offers: {:?}", sksm::support());
    let mut workers = (0..PROCESSES)
        .map(|_| Worker::start())
        .collect::<Result<Vec<_>>>()?;
    show("keys flipped", &workers)?;
    for worker in &mut workers {
        use std::io::Write;
        worker
            .child
            .stdin
            .as_mut()
            .ok_or("no input")?
            .write_all(b"merge\n")?;
    }
    for worker in &mut workers {
        let line = worker.line()?;
        println!("process {}: {line}", worker.child.id());
    }
    let copies = show("merged", &workers)?;
    for worker in &mut workers {
        drop(worker.child.stdin.take());
        if !worker.child.wait()?.success() {
            return Err("a worker has failed".into());
        }
    }
    // None is known without the right to see them.
    let shared = copies.is_none_or(|copies| copies == 1);
    Ok(if sksm::support() != Support::Merge || shared {
        ExitCode::SUCCESS
    } else {
        eprintln!("error: the patched page is not shared by all");
        ExitCode::FAILURE
    })
}

/// Prints, and tells how many physical pages hold the patched function, if that can be seen.
fn show(when: &str, workers: &[Worker]) -> Result<Option<usize>> {
    let own = workers.iter().map(Worker::own_text).sum::<Result<u64>>()?;
    let pages = workers.iter().map(Worker::physical_page);
    let mut pages = pages.collect::<Result<Vec<_>>>()?;
    pages.sort_unstable();
    pages.dedup();
    print!("{when}: {PROCESSES} processes have {own} KiB of patched text not shared");
    let copies = (!pages.contains(&0)).then_some(pages.len());
    match copies {
        Some(copies) => println!("; the patched function is in {copies} physical pages"),
        None => println!("; run as root to see physical pages"),
    }
    Ok(copies)
}
