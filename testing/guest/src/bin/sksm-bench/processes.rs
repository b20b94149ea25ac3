//! Fork, exec and exit. What is about ordinary pages alone runs in any kernel, so that one without CONFIG_SKSM can be compared.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use sksm_guest::memory::file::memfd;
use sksm_guest::memory::process::{Child, Ended, Gate, Link, exit_now, fork, pipe, wait};
use sksm_records::bench::Unit;
use sksm_records::bench::names::{EXEC, EXIT, EXIT_MANY, FORK, FORK_MANY, FORK_ONLY};

use crate::measure::{Bench, Make, TABLE_PAGES, each_kind, name, settle, timed};

pub fn run(bench: &mut Bench) -> Result<()> {
    let repeats = bench.size(10, 101);
    bench.each(name(FORK_ONLY, ""), repeats, || {
        timed(|| Child::spawn(|_| Ok(()))?.join())
    })?;
    let program = tiny_program()?;
    bench.each(name(EXEC, ""), repeats, || timed(|| exec(&program)))?;

    let pages = bench.size(1, 4) * TABLE_PAGES;
    let repeats = bench.size(5, 25);
    each_kind(pages, |kind, make| {
        let values = in_child(repeats, |parent| {
            let _map = make()?;
            for _ in 0..=repeats {
                let taken = timed(|| Child::spawn(|_| Ok(()))?.join())?;
                parent.send(taken.as_nanos() as u64)?;
            }
            Ok(())
        })?;
        bench.row(name(FORK, kind).at(pages), Unit::Ns, values)
    })?;
    each_kind(pages, |kind, make| {
        bench.each(name(EXIT, kind).at(pages), repeats, || exit(make))
    })?;
    family(bench)
}

/// A program that only exits: an ELF header, one segment, three instructions. A file in memory, so that no disk is waited for.
fn tiny_program() -> Result<File> {
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]; // exit(0)
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + CODE.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| image.extend(bytes);
    // An executable for x86_64; entry, program headers, section headers; flags, sizes and counts.
    [2u16, 62].iter().for_each(|half| put(&half.to_le_bytes()));
    put(&1u32.to_le_bytes());
    [BASE + HEADERS, 64, 0]
        .iter()
        .for_each(|long| put(&long.to_le_bytes()));
    put(&0u32.to_le_bytes());
    [64u16, 56, 1, 0, 0, 0]
        .iter()
        .for_each(|half| put(&half.to_le_bytes()));
    // A segment to load, readable and executable: offset, addresses, sizes, alignment.
    [1u32, 5].iter().for_each(|word| put(&word.to_le_bytes()));
    [0, BASE, BASE, length, length, 4096]
        .iter()
        .for_each(|long: &u64| put(&long.to_le_bytes()));
    put(&CODE);
    let mut file = memfd(0)?;
    file.write_all(&image)?;
    Ok(file)
}

fn exec(program: &File) -> Result<()> {
    const NAME: &CStr = c"tiny";
    let pid = fork()?;
    if pid == 0 {
        let (argv, envp) = ([NAME.as_ptr(), std::ptr::null()], [std::ptr::null()]);
        // SAFETY: both arrays hold valid strings and end with a null.
        unsafe { libc::fexecve(program.as_raw_fd(), argv.as_ptr(), envp.as_ptr()) };
        exit_now(1);
    }
    let ended = wait(pid)?;
    ensure!(
        ended == Ended::Exit(0),
        "the program that was executed: {ended}"
    );
    Ok(())
}

/// Numbers that a process of its own sends, one to warm up and so many that count: what else the benchmark's process has is
/// not forked with its pages.
fn in_child(count: usize, body: impl FnOnce(&Link) -> Result<()>) -> Result<Vec<f64>> {
    let child = Child::spawn(body)?;
    child.receive()?;
    let values = (0..count).map(|_| Ok(child.receive()? as f64));
    let values = values.collect::<Result<_>>()?;
    child.join()?;
    settle()?;
    Ok(values)
}

/// The time from the word that it may go to the end of a process that has such pages.
fn exit(make: Make) -> Result<Duration> {
    let child = Child::spawn(|parent| {
        let map = make()?;
        parent.meet()?;
        std::mem::forget(map);
        Ok(())
    })?;
    child.pause()?;
    let taken = timed(|| {
        child.go()?;
        child.join()
    })?;
    settle()?;
    Ok(taken)
}

/// A process that has many children at the same time, each of which maps its pages.
fn family(bench: &mut Bench) -> Result<()> {
    let children = if bench.once {
        20
    } else {
        bench.size(300, 1000)
    };
    let repeats = bench.size(1, 3);
    each_kind(TABLE_PAGES, |kind, make| {
        bench.tell(FORK_MANY);
        let child = Child::spawn(|parent| {
            let _map = make()?;
            for _ in 0..=repeats {
                for taken in many(children)? {
                    parent.send(taken.as_nanos() as u64)?;
                }
            }
            Ok(())
        })?;
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..=repeats {
            for times in &mut times {
                let each = child.receive()? as f64 / children as f64;
                // The first round warms up.
                if round > 0 {
                    times.push(each);
                }
            }
        }
        child.join()?;
        settle()?;
        for (what, times) in [FORK_MANY, EXIT_MANY].into_iter().zip(times) {
            bench.row(name(what, kind).at(children), Unit::Ns, times)?;
        }
        Ok(())
    })
}

/// How long it takes until so many children run, and then until all have gone. Each is forked while its elder siblings live.
fn many(children: usize) -> Result<[Duration; 2]> {
    let gate = Gate::closed()?;
    let (mut arrived, arrive) = pipe()?;
    let mut pids = Vec::with_capacity(children);
    let forking = timed(|| {
        for _ in 0..children {
            let pid = fork()?;
            if pid == 0 {
                let done = (&arrive).write_all(&[0]).is_ok() && gate.wait().is_ok();
                exit_now(i32::from(!done));
            }
            pids.push(pid);
        }
        // What a child does before it waits would else be counted for some and not for others.
        Ok(arrived.read_exact(&mut vec![0; children])?)
    })?;
    let exiting = timed(|| {
        gate.open()?;
        for pid in pids {
            let ended = wait(pid)?;
            ensure!(ended == Ended::Exit(0), "a child: {ended}");
        }
        Ok(())
    })?;
    Ok([forking, exiting])
}
