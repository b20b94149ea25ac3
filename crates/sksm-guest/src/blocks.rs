//! Memory blocks, which can be taken offline and put back.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::memory::PAGE;
use crate::pagemap::Flags;

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

    pub fn holds(&self, pfn: u64) -> bool {
        (self.first_pfn..self.first_pfn + self.pages).contains(&pfn)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    pub fn is_online(&self) -> Result<bool> {
        Ok(self.read("state")? == "online")
    }

    /// Whether it can be emptied, as all of its pages can move, and put back, as none of them has failed.
    pub fn can_go(&self) -> Result<bool> {
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
