//! What this kernel offers to the operations, found out once.

use std::fs::{self, File};

use crate::machine::cgroup::Cgroup;
use crate::machine::disk::Disk;
use crate::machine::kcov::Coverage;
use crate::machine::swap::SwapFile;
use crate::machine::sysfs::{KSM, SKSM};
use crate::memory::file::with_contents;
use crate::memory::map::Map;
use crate::memory::pagemap::Pagemap;
use crate::memory::userfault;
use anyhow::Result;

use super::faults;
use super::operation::{Mix, Operation};
use super::shadow::{CONTENTS, FILE_PAGES};
use super::shared::{AREA_PAGES, AREAS};

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
    /// Control groups with the memory controller, of processes that are to have different ones.
    pub groups: Vec<Cgroup>,
    /// Swap space that can be taken away.
    pub swap_file: Option<SwapFile>,
    /// Where it is counted what of the kernel's code ran.
    pub coverage: Option<Coverage>,
    pub mix: Mix,
    /// Whether each process tells on stderr what it is about to do.
    pub telling: bool,
    lacks: Vec<(Operation, String)>,
}

impl System {
    pub fn new(mix: Mix) -> Result<Self> {
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
            groups: Vec::new(),
            swap_file: None,
            coverage: None,
            mix,
            telling: false,
            lacks: Vec::new(),
        };
        if !fs::exists(HUGE_PAGES)? {
            system.lack(&[Huge, Collapse], "no huge pages in this kernel");
        }
        if mix == Mix::Ordinary {
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
            system.lack(&[MergeFaulty, FailNth], "no fault injection in this kernel");
        }
        let groups: Result<Vec<_>> = ["left", "right"].map(Cgroup::new).into_iter().collect();
        match groups {
            Ok(groups) => system.groups = groups,
            Err(error) => system.lack(&[Enter, Mark, Reclaim], &format!("{error:#}")),
        }
        if mix == Mix::Fuzz {
            system.add_for_fuzzer(&map)?;
        }
        Ok(system)
    }

    fn add_for_fuzzer(&mut self, map: &Map) -> Result<()> {
        use Operation::*;
        if map.advise_pages(0..0, libc::MADV_HWPOISON).is_err() {
            self.lack(&[Poison], "no memory failure handling in this kernel");
        }
        match SwapFile::on() {
            Ok(file) => self.swap_file = Some(file),
            Err(error) => self.lack(&[SwapOff], &format!("{error:#}")),
        }
        let features = [
            (Supply, 0, "supply"),
            (Carry, userfault::FEATURES_MOVE, "moving"),
            (Track, userfault::FEATURES_WP_ASYNC, "write protection"),
        ];
        for (operation, features, what) in features {
            if let Err(error) = userfault::open(features, what) {
                self.lack(&[operation], &format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// Puts settings that operations change to where they were, whatever became of the processes that changed them.
    pub fn reset(&self) -> Result<()> {
        KSM.write("run", 0)?;
        KSM.write("use_zero_pages", 0)?;
        SKSM.write("domain", "cgroup")?;
        SKSM.write("max_page_sharing", 256)?;
        if self.nodes.len() > 1 {
            SKSM.write("merge_across_nodes", 1)?;
        }
        for group in &self.groups {
            group.write("memory.merge_domain", "inherit")?;
        }
        match &self.swap_file {
            Some(file) => file.on_again(),
            None => Ok(()),
        }
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
