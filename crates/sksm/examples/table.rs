//! Workers that each build the same table, as prefork servers do, merge it, and look at what that brought:
//! `cargo run --example table`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use sksm::{Error, ProcessStatistics, Support};

const WORKERS: usize = 8;
const NUMBERS: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return worker();
    }
    println!("this kernel offers: {:?}", sksm::support());
    let mut workers: Vec<Child> = (0..WORKERS)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .arg("worker")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    for worker in &mut workers {
        let output = worker.stdout.as_mut().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        println!("process {}: {}", worker.id(), line.trim());
    }
    let mut merged = 0;
    for worker in &workers {
        merged += ProcessStatistics::of(worker.id())?.ksm;
    }
    println!("{} MiB of {WORKERS} processes are merged", merged >> 20);
    for mut worker in workers {
        drop(worker.stdin.take());
        worker.wait()?;
    }
    Ok(())
}

fn worker() -> Result<(), Box<dyn std::error::Error>> {
    let table: Vec<u64> = (1..=NUMBERS).map(|n| n.wrapping_mul(n)).collect();
    let (result, effect) = sksm::measure(|| sksm::merge(&table))?;
    match result {
        Ok(()) => println!("{} KiB merged in {:?}", effect.merged / 1024, effect.time),
        // Said, and a decision of this program; nothing of the kind happens by itself.
        Err(Error::Unsupported {
            instead: Support::Ksm,
            ..
        }) => {
            sksm::advise_ksm(&table)?;
            println!("no MADV_MERGE here: handed to KSM, which may merge it some time later");
        }
        Err(error) => println!("{error}"),
    }
    // Until the parent has looked.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(table);
    Ok(())
}
