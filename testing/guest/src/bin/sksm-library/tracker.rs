//! The tracker of VMMs, by its example: guests that write at different rates, in a process each.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::patience::deadline;
use sksm_guest::harness::program::beside;
use sksm_guest::skip::skip;

use crate::scratch::Scratch;

/// What the example says; a skip where the kernel does not tell what was written, which it has to say.
fn said(arguments: &[&str]) -> Result<String> {
    let output = Command::new(beside("sksm-vmm")?).args(arguments).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    match text.strip_prefix("nothing is tracked: ") {
        Some(reason) => {
            ensure!(reason.contains("Linux 6.7"), "{text}");
            skip(reason.trim())
        }
        None => Ok(text),
    }
}

/// The number at the start of what is behind this, in its line.
fn number_behind(text: &str, what: &str) -> Result<u64> {
    let (_, rest) = text.split_once(what).with_context(|| text.to_owned())?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    let digits = digits.unwrap_or_default();
    digits.parse().with_context(|| text.to_owned())
}

/// The guests check their contents all the time, and the example fails where one has changed.
pub fn guests() -> Result<()> {
    let text = said(&[])?;
    print!("{text}");
    ensure!(
        text.contains("each guest's memory is as it wrote it"),
        "{text}"
    );
    // In each two of three guests, all of it but what was just looked at.
    ensure!(
        text.contains("1024 of 1024 pages of the image are one"),
        "{text}"
    );
    // Of the busy guest, and where the slow one writes, nothing need be merged.
    let at_rest = [4096 * 3 / 4, 3072 * 3 / 4, 3072 * 3 / 4]
        .iter()
        .sum::<u64>();
    for when in ["paused: ", "resumed: "] {
        let merged = number_behind(&text, when)?;
        ensure!(merged >= at_rest, "{merged}, not {at_rest}:\n{text}");
    }
    ensure!(number_behind(&text, "taken apart: ")? == 0, "{text}");
    Ok(())
}

/// Only what has a twin in another guest, of which the service tells, is merged: nothing of what a guest has alone is published.
pub fn service() -> Result<()> {
    let scratch = Scratch::new("twins")?;
    let socket = scratch.file("socket");
    // It serves, and looks at nobody but at this process.
    let mut server = Command::new(beside("sksm")?)
        .args(["scan", "--pid", &std::process::id().to_string(), "--serve"])
        .arg(&socket)
        .spawn()?;
    let said = guests_with(&socket);
    server.kill()?;
    server.wait()?;
    let text = said?;
    print!("{text}");
    ensure!(
        text.contains("each guest's memory is as it wrote it"),
        "{text}"
    );
    ensure!(!text.contains("no service"), "{text}");
    let idle = text.lines().find(|line| line.starts_with("the idle guest"));
    let idle = idle.with_context(|| text.clone())?;
    let shared = number_behind(idle, "of 4096 pages ")?;
    let published = number_behind(idle, "another's memory, ")?;
    // What all leave alone of the image, at least. A wrong twin now and then is allowed.
    ensure!((1536..2100).contains(&(shared + published)), "{text}");
    Ok(())
}

fn guests_with(socket: &Path) -> Result<String> {
    let until = deadline();
    while !socket.exists() {
        ensure!(Instant::now() < until, "nobody serves");
        std::thread::sleep(Duration::from_millis(50));
    }
    said(&["--service", socket.to_str().context("no text")?])
}

/// Said, not judged: the machine may be emulated.
pub fn time_per_page() -> Result<()> {
    let text = said(&["measure"])?;
    print!("{text}");
    ensure!(text.contains("nothing changed: "), "{text}");
    // Who reads what nobody wrote to does not track it.
    let unread = text
        .lines()
        .filter(|line| line.starts_with("nothing changed"));
    for line in unread {
        ensure!(line.contains(", 0 samples read"), "{text}");
    }
    Ok(())
}
