//! NUMA nodes. Where the kernel merges within each node only, equal pages of two nodes are no twins: their hashes are made to differ,
//! so that whatever counts or looks for twins need not know.

use std::fs;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};

use super::memory::Place;

/// The error number of the call that failed, if one did.
static FAILED: AtomicI32 = AtomicI32::new(0);

/// What is told of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Pages merge wherever they are, or there is one node only.
    One,
    /// Pages of different nodes were taken for different.
    Apart,
    /// They are, but which page is where could not be found out.
    Unknown(i32),
}

impl Nodes {
    /// To be asked when all has been read.
    pub fn of_this_look() -> Self {
        match FAILED.load(Ordering::Relaxed) {
            _ if !apart() => Nodes::One,
            0 => Nodes::Apart,
            errno => Nodes::Unknown(errno),
        }
    }

    /// What a reader of the figures is to know.
    pub fn sentence(self) -> Option<String> {
        match self {
            Nodes::One => None,
            Nodes::Apart => Some(
                "pages of different NUMA nodes are apart here, as merge_across_nodes is 0".into(),
            ),
            Nodes::Unknown(errno) => Some(format!(
                "merge_across_nodes is 0, so that equal pages of different NUMA nodes stay apart; they are counted all the same, as \
                 nodes cannot be told: {}",
                io::Error::from_raw_os_error(errno)
            )),
        }
    }
}

/// Whether this machine has several nodes, and merges within each only.
fn apart() -> bool {
    static APART: LazyLock<bool> = LazyLock::new(|| {
        // SKSM's own setting, where it is there.
        let setting = ["sksm", "ksm"].into_iter().find_map(|engine| {
            fs::read_to_string(format!("/sys/kernel/mm/{engine}/merge_across_nodes")).ok()
        });
        let nodes = fs::read_to_string("/sys/devices/system/node/has_memory");
        is_apart(&setting.unwrap_or_default(), &nodes.unwrap_or_default())
    });
    *APART
}

/// `nodes` is a list like `0-1,4`.
fn is_apart(setting: &str, nodes: &str) -> bool {
    setting.trim() == "0" && nodes.contains(['-', ','])
}

/// Makes hashes of pages of this process differ where their nodes do; not that of zeros, which need no page of any node.
pub fn part(pid: u32, places: &[Place], hashes: &mut [Option<u64>], zero: u64) {
    if !apart() {
        return;
    }
    match ask(pid, places.iter().map(|(addr, _)| *addr)) {
        Ok(nodes) => part_by(&nodes, hashes, zero),
        Err(error) => FAILED.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed),
    }
}

fn part_by(nodes: &[i32], hashes: &mut [Option<u64>], zero: u64) {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    for (node, hash) in nodes.iter().zip(hashes.iter_mut().flatten()) {
        // A page that has gone meanwhile is like others of which that is so.
        if let (Ok(node), true) = (u64::try_from(*node), *hash != zero) {
            *hash ^= (node + 1).wrapping_mul(SPREAD);
        }
    }
}

/// The node of each of these pages, or a negative error number.
fn ask(pid: u32, addrs: impl Iterator<Item = u64>) -> io::Result<Vec<i32>> {
    let pages: Vec<usize> = addrs.map(|addr| addr as usize).collect();
    let mut nodes = vec![-libc::ENOENT; pages.len()];
    let none = std::ptr::null::<i32>();
    // SAFETY: without nodes to move them to, the pages stay where they are; a status is written for each, into ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid as libc::pid_t,
            pages.len(),
            pages.as_ptr(),
            none,
            nodes.as_mut_ptr(),
            0,
        )
    };
    match result {
        0 => Ok(nodes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: u64 = 77;

    #[test]
    fn several_nodes_are_apart_where_the_kernel_is_told_so() {
        assert!(is_apart("0\n", "0-1\n") && is_apart("0\n", "0,2\n"));
        assert!(!is_apart("1\n", "0-1\n") && !is_apart("0\n", "0\n"));
        assert!(!is_apart("", "0-1\n") && !is_apart("0\n", ""));
    }

    #[test]
    fn equal_pages_are_twins_within_a_node_only() {
        let mut hashes = [5, 5, 5, 5, 6, ZERO, ZERO].map(Some);
        hashes[4] = None;
        part_by(&[0, 1, 0, 1, 1, 0, 1], &mut hashes, ZERO);
        assert_eq!(hashes[0], hashes[2]);
        assert_eq!(hashes[1], hashes[3]);
        assert_ne!(hashes[0], hashes[1]);
        assert_eq!(hashes[4..], [None, Some(ZERO), Some(ZERO)]);
        // Where some could not be told.
        let mut hashes = [Some(5), Some(5), Some(5)];
        part_by(&[-libc::ENOENT, 0, -libc::ENOENT], &mut hashes, ZERO);
        assert_eq!(hashes[0], hashes[2]);
        assert_ne!(hashes[0], hashes[1]);
    }

    #[test]
    fn the_kernel_tells_where_pages_are() {
        let own = vec![1u8; 3 * sksm::page_size()];
        let page = sksm::page_size() as u64;
        let first = (own.as_ptr() as u64).next_multiple_of(page);
        let unmapped = 0;
        match ask(
            std::process::id(),
            [first, unmapped, first + page].into_iter(),
        ) {
            Ok(nodes) => {
                assert!(nodes[0] >= 0 && nodes[1] < 0 && nodes[2] >= 0, "{nodes:?}");
            }
            // Kernels without nodes, and filters.
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                "{error}"
            ),
        }
    }
}
