//! What this kernel offers to the operations, found out once.

use std::fs::{self, File};

use anyhow::Result;
use sksm_guest::machine::disk::Disk;
use sksm_guest::memory::file::with_contents;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;

use crate::faults;
use crate::operation::Operation;
use crate::shadow::{CONTENTS, FILE_PAGES};
use crate::shared::{AREA_PAGES, AREAS};

pub const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";
pub const SOFT_OFFLINE: i32 = 101;
const NODES: &str = "/sys/devices/system/node/has_memory";

/// Where pages of a file change.
pub struct Changing {
    file: File,
    pub first: usize,
    /// Whether it is to be written by O_DIRECT only.
    pub direct: bool,
}

impl Changing {
    pub fn file(&self) -> &File {
        &self.file
    }
}

pub struct System {
    /// The file that all processes map privately.
    pub file: File,
    /// Files that change all the time, and each one's first page that does.
    pub changing: Vec<Changing>,
    /// The pages of the file, then the areas to write to, then pages that change.
    pub disk: Option<Disk>,
    /// NUMA nodes with memory.
    pub nodes: Vec<i32>,
    pub stress: bool,
    lacks: Vec<(Operation, String)>,
}

impl System {
    pub fn new(stress: bool) -> Result<Self> {
        use Operation::*;
        let contents: Vec<u64> = (0..FILE_PAGES as u64).map(|page| page % CONTENTS).collect();
        let mut system = Self {
            file: with_contents(&contents)?,
            changing: vec![Changing {
                file: with_contents(&contents)?,
                first: 0,
                direct: false,
            }],
            disk: None,
            nodes: Vec::new(),
            stress,
            lacks: Vec::new(),
        };
        if !fs::exists(HUGE_PAGES)? {
            system.lack(&[Huge, Collapse], "no huge pages in this kernel");
        }
        if !stress {
            return Ok(system);
        }
        let mut contents = contents;
        let first = FILE_PAGES + AREAS * AREA_PAGES;
        contents.resize(first + FILE_PAGES, 0);
        match Disk::open(&contents) {
            Ok(disk) => {
                system.changing.push(Changing {
                    file: disk.try_clone()?,
                    first,
                    direct: true,
                });
                system.disk = Some(disk);
            }
            Err(error) => system.lack(
                &[DirectRead, DirectWrite, RingRegister, RingRead],
                &format!("{error:#}"),
            ),
        }
        if let Err(error) = io_uring::IoUring::new(2) {
            let reason = format!("no io_uring in this kernel: {error}");
            system.lack(&[RingRegister, RingRead], &reason);
        }
        system.nodes = nodes(&fs::read_to_string(NODES).unwrap_or_default());
        if system.nodes.len() < 2 {
            system.lack(&[MovePages], "this machine has one NUMA node");
        }
        let map = Map::anon(1)?;
        // An advice on no pages tells whether the kernel knows it.
        if map.advise_pages(0..0, SOFT_OFFLINE).is_err() {
            system.lack(&[SoftOffline], "no memory failure handling in this kernel");
        }
        map.fill(0, 1);
        if !Pagemap::own()?.entry(map.addr())?.soft_dirty() {
            system.lack(&[ClearSoftDirty], "no soft-dirty bits in this kernel");
        }
        if faults::available() {
            faults::set_up()?;
        } else {
            system.lack(&[MergeFaulty], "no fault injection in this kernel");
        }
        Ok(system)
    }

    fn lack(&mut self, operations: &[Operation], reason: &str) {
        for operation in operations {
            if !self.lacks(*operation) {
                self.lacks.push((*operation, reason.to_owned()));
            }
        }
    }

    pub fn lacks(&self, operation: Operation) -> bool {
        self.lacks.iter().any(|(lacking, _)| *lacking == operation)
    }

    /// What is left out, and why.
    pub fn left_out(&self) -> &[(Operation, String)] {
        &self.lacks
    }
}

/// The numbers of a list as in `0-2,4`.
fn nodes(list: &str) -> Vec<i32> {
    let mut nodes = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<i32>()) {
            nodes.extend::<std::ops::RangeInclusive<i32>>(first..=last);
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes() {
        assert_eq!(nodes("0-1\n"), [0, 1]);
        assert_eq!(nodes("0,2-3"), [0, 2, 3]);
        assert_eq!(nodes(""), [0; 0]);
    }
}
