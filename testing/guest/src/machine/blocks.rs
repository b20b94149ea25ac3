//! Memory blocks, which can be taken offline and put back.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::machine::numa;
use crate::memory::map::Map;
use crate::memory::pagemap::Flags;
use crate::page::PAGE;
use crate::skip::skip;

const BLOCKS: &str = "/sys/devices/system/memory";

/// A block of memory.
#[derive(Debug)]
pub struct Block {
    path: PathBuf,
    first_pfn: u64,
    pages: u64,
}

impl Block {
    /// All blocks; none in a kernel that cannot take memory away.
    pub fn all() -> Result<Vec<Self>> {
        let Ok(size) = fs::read_to_string(format!("{BLOCKS}/block_size_bytes")) else {
            return Ok(Vec::new());
        };
        let pages = u64::from_str_radix(size.trim(), 16).context("block_size_bytes")? / PAGE as u64;
        let mut blocks = Vec::new();
        for entry in fs::read_dir(BLOCKS)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(number) = name
                .strip_prefix("memory")
                .and_then(|number| number.parse::<u64>().ok())
            {
                blocks.push(Self {
                    first_pfn: number * pages,
                    pages,
                    path,
                });
            }
        }
        Ok(blocks)
    }

    pub fn that_can_go() -> Result<Vec<Self>> {
        let mut blocks = Vec::new();
        for block in Self::all()? {
            if block.can_go()? {
                blocks.push(block);
            }
        }
        Ok(blocks)
    }

    /// How many of these pages are in it.
    pub fn held(&self, pfns: &[u64]) -> usize {
        let range = self.first_pfn..self.first_pfn + self.pages;
        pfns.iter().filter(|pfn| range.contains(pfn)).count()
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// The NUMA node that it belongs to.
    fn node(&self) -> Result<i32> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if let Some(Ok(node)) =
                (name.to_str().and_then(|name| name.strip_prefix("node"))).map(str::parse)
            {
                return Ok(node);
            }
        }
        bail!("{} belongs to no NUMA node", self.path.display())
    }

    pub fn is_online(&self) -> Result<bool> {
        Ok(self.read("state")? == "online")
    }

    /// Whether it can be emptied, as all of its pages can move, and put back, as none of them has failed.
    fn can_go(&self) -> Result<bool> {
        // arm64 keeps what was there at boot, and lets only memory go that was added.
        if cfg!(target_arch = "aarch64") {
            return Ok(false);
        }
        if !self.is_online()? || self.read("valid_zones")? != "Movable" {
            return Ok(false);
        }
        let flags = Flags::range(self.first_pfn, self.pages as usize)?;
        let stays = |flags: Flags| flags.reserved() || flags.poisoned();
        Ok(!flags.into_iter().any(stays))
    }

    /// Moves all pages away, and takes the block out of use.
    pub fn offline(&self) -> io::Result<()> {
        fs::write(self.path.join("state"), "offline")
    }

    pub fn online(&self) -> io::Result<()> {
        fs::write(self.path.join("state"), "online_movable")
    }
}

/// Pages in blocks that can be taken away.
pub struct Ground {
    pub map: Map,
    /// Where those blocks are. This process's new pages come from there too.
    pub node: i32,
    /// Fills what the allocator would rather hand out.
    _ballast: Vec<Map>,
}

impl Ground {
    /// The kernel's own boot-time memory lies at the top of each node, and what is left free in those blocks, which must stay,
    /// is handed out first; so is what was freed last. Used up, that leaves only the blocks that can go. On machines with
    /// memory above 4 GiB only that is movable, and only the last node has it.
    pub fn find(pages: usize) -> Result<Self> {
        let blocks = Block::that_can_go()?;
        let Some(block) = blocks.last() else {
            return skip(
                "no memory block that can be taken offline (CONFIG_MEMORY_HOTREMOVE, movablecore=)",
            );
        };
        let node = block.node()?;
        numa::prefer(node)?;
        let mut ballast = Vec::new();
        // Movable memory is handed out before the node's other memory.
        for _ in 0..numa::free(node)? * 3 / 4 / pages {
            let map = Map::anon(pages)?;
            map.no_huge();
            (0..pages).for_each(|page| map.put(page, 0, 0));
            let pfns = map.pfns()?;
            if blocks.iter().any(|block| block.held(&pfns) >= pages / 2) {
                return Ok(Self {
                    map,
                    node,
                    _ballast: ballast,
                });
            }
            ballast.push(map);
        }
        bail!("none of node {node}'s memory came from {blocks:?}")
    }
}

/// Puts back all blocks that were taken offline.
pub fn online_all() -> Result<()> {
    for block in Block::all()? {
        if !block.is_online()? {
            block
                .online()
                .with_context(|| format!("cannot put back {block:?}"))?;
        }
    }
    Ok(())
}
