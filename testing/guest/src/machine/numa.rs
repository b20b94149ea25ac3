//! NUMA nodes: where pages are, and moving them.

use std::fs;
use std::io;

use anyhow::{Context, Result, ensure};

use crate::memory::map::Map;
use crate::page::PAGE;
use crate::skip::skip;
use crate::syscall::check;

/// The two nodes of the test machine.
pub const NODES: [i32; 2] = [0, 1];

/// Skips the test in a machine with one node only.
pub fn needed() -> Result<()> {
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    match online.trim() {
        "0-1" => Ok(()),
        "" => skip("no NUMA nodes in this kernel (CONFIG_NUMA)"),
        nodes => skip(format!(
            "two NUMA nodes are wanted, this machine has {nodes}"
        )),
    }
}

/// How many pages of a node are free.
pub fn free(node: i32) -> Result<usize> {
    let path = format!("/sys/devices/system/node/node{node}/meminfo");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = text.lines().find_map(|line| {
        let (_, kib) = line.split_once("MemFree:")?;
        kib.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    });
    Ok(kib.with_context(|| format!("no MemFree in {path}"))? * 1024 / PAGE)
}

/// New pages of this thread, and of threads and processes that it starts, come from this node as long as it has any.
pub fn prefer(node: i32) -> Result<()> {
    let nodes = 1u64 << node;
    let call = libc::SYS_set_mempolicy;
    // SAFETY: a mask of 64 bits, which the kernel takes for one less.
    check(unsafe { libc::syscall(call, libc::MPOL_PREFERRED, &raw const nodes, 65) })
        .context("set_mempolicy")
        .map(drop)
}

/// Moves pages of a process (0: this one) to a node, or without one only looks. For each page the node that it is on, or a
/// negative error number.
fn move_pages(pid: i32, addr: usize, pages: usize, node: Option<i32>) -> io::Result<Vec<i32>> {
    const MOVE_ALL: i32 = 4;
    let places: Vec<usize> = (0..pages).map(|page| addr + page * PAGE).collect();
    let nodes = node.map(|node| vec![node; pages]);
    let nodes = nodes
        .as_ref()
        .map_or(std::ptr::null(), |nodes| nodes.as_ptr());
    let mut found = vec![-libc::ENOENT; pages];
    let call = libc::SYS_move_pages;
    // SAFETY: three arrays of `pages` elements; moving does not change contents.
    check(unsafe {
        libc::syscall(
            call,
            pid,
            pages,
            places.as_ptr(),
            nodes,
            found.as_mut_ptr(),
            MOVE_ALL,
        )
    })?;
    Ok(found)
}

/// The node of each page of a process (0: this one).
pub fn nodes(pid: i32, map: &Map) -> Result<Vec<i32>> {
    move_pages(pid, map.addr(), map.pages(), None).context("asking for nodes")
}

/// Moves what can be moved just now.
pub fn try_move(pid: i32, map: &Map, node: i32) -> Result<()> {
    move_pages(pid, map.addr(), map.pages(), Some(node))
        .map(drop)
        .context("move_pages")
}

/// Moves all pages of a process (0: this one); each must arrive. One that is looked at meanwhile is busy for a moment only.
pub fn move_all(pid: i32, map: &Map, node: i32) -> Result<()> {
    const ATTEMPTS: usize = 20;
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        try_move(pid, map, node)?;
        found = nodes(pid, map)?;
        if found.iter().all(|found| *found == node) {
            return Ok(());
        }
        std::thread::yield_now();
    }
    ensure!(false, "pages did not move to node {node}: {found:?}");
    Ok(())
}

/// Moves all memory of a process from one node to the other; tells how many pages did not move.
pub fn migrate(pid: i32, from: i32, to: i32) -> Result<i64> {
    let (from, to) = (1u64 << from, 1u64 << to);
    let call = libc::SYS_migrate_pages;
    // SAFETY: two masks of 64 bits.
    check(unsafe { libc::syscall(call, pid, 64, &raw const from, &raw const to) })
        .context("migrate_pages")
}
