//! What the kernel says of a process that it killed for want of memory.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel's report of that, if there is one in its log: who asked for memory, the limits, and what there was. All of it
/// goes to standard error.
pub fn report(pid: i32) -> Option<String> {
    let lines = log()?;
    let end = format!("Killed process {pid} ");
    let last = lines.iter().rposition(|line| line.contains(&end))?;
    let invoked = |line: &String| line.contains("invoked oom-killer");
    let first = lines[..last].iter().rposition(invoked).unwrap_or(last);
    let report = &lines[first..=last];
    for line in report {
        eprintln!("{line}");
    }
    let said: Vec<_> = (report.iter().enumerate())
        .filter(|(at, line)| [0, report.len() - 1].contains(at) || line.contains("usage "))
        .map(|(_, line)| line.as_str())
        .collect();
    Some(said.join("; "))
}

/// The lines of the kernel's log; `None` where it cannot be read.
fn log() -> Option<Vec<String>> {
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok()?;
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(count) => {
                let record = String::from_utf8_lossy(&record[..count]);
                let (_, text) = record.split_once(';').unwrap_or(("", &record));
                lines.extend(text.lines().next().map(str::to_owned));
            }
            // Older lines made room for new ones while this read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            // The end.
            Err(_) => return Some(lines),
        }
    }
}
