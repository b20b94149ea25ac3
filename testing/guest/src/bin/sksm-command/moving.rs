//! Workers whose memory the garbage collector moves about, as the guide has them: Node.js and Java.

use anyhow::{Result, ensure};
use sksm::{Kind, Process};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::page::PAGE;

use crate::arrays::{javac, needed};
use crate::guide::{Workers, randomised};

pub const TESTS: &[Test] = &[
    test("guide/node-workers", node),
    test("guide/java-workers", java),
];

const NODE: &str = include_str!("../../../../../examples/workers/workers.js");
const JAVA: &str = include_str!("../../../../../examples/workers/Workers.java");

/// How much merges differs from run to run, as the guide says; something does, before and after requests.
fn node() -> Result<()> {
    randomised()?;
    needed("node")?;
    let file = ("workers.js", NODE);
    let measured = Workers::start(2, &["node", "workers.js"], file)?.measure()?;
    eprintln!("saved, after requests, merged again: {measured:.0?} %");
    ensure!(measured.len() == 4, "{measured:?}");
    ensure!(measured[0] > 2.0 && measured[3] > 2.0, "{measured:?}");
    Ok(())
}

/// Of Java's memory little merges, and of what its compiler has made next to nothing, as the guide says: both are full of addresses.
fn java() -> Result<()> {
    randomised()?;
    let dir = javac("Workers.java", JAVA)?;
    let words = ["java", "-Xmx256m", "-cp"].map(String::from);
    let words = [&words[..], &[dir.display().to_string(), "Workers".into()]].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut workers = Workers::start(4, &words, ("Workers.java", JAVA))?;
    workers.serve(10_000)?;
    let (mut all, mut made) = (0, 0);
    for pid in workers.pids()? {
        for mapping in Process::open(pid)?.mappings()? {
            let pages = mapping.statistics.anonymous as usize / PAGE;
            all += pages;
            made += pages * usize::from(mapping.kind == Kind::Text);
        }
    }
    let saved_by = |what| -> Result<usize> {
        let before = workers.frames()?;
        workers.merge(&["--what", what])?;
        Ok(before.saturating_sub(workers.frames()?))
    };
    let (of_made, of_heap) = (saved_by("text")?, saved_by("heap")?);
    eprintln!("{of_made} of {made} pages that it made are saved, {of_heap} of {all} with its heap");
    ensure!(made > 100 && of_made < made / 10, "{of_made} of {made}");
    let share = of_heap as f64 / all as f64;
    ensure!((0.02..0.3).contains(&share), "{of_heap} of {all}");
    // And what it holds is what it held.
    workers.serve(10_000)
}
