//! What tests expect of physical pages and of errors.

use anyhow::{Result, ensure};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Flags;
pub use sksm_guest::memory::pagemap::copies;

/// All of these are one physical page.
pub fn one_page(pfns: &[u64]) -> Result<()> {
    ensure!(copies(pfns) == 1, "not one page: {pfns:x?}");
    Ok(())
}

/// No two of these are the same physical page.
pub fn apart(pfns: &[u64]) -> Result<()> {
    ensure!(
        copies(pfns) == pfns.len(),
        "{} mappings on {} pages",
        pfns.len(),
        copies(pfns)
    );
    Ok(())
}

/// Every page of the mapping is the shared zero page.
pub fn zero_pages(map: &Map) -> Result<()> {
    for pfn in map.pfns()? {
        ensure!(
            Flags::of(pfn)?.zero_page(),
            "page {pfn:#x} is not the zero page"
        );
    }
    Ok(())
}

/// Pages of the same content, merged.
pub fn merged(pages: usize, id: u64) -> Result<Map> {
    let map = Map::filled(&vec![id; pages])?;
    map.merge()?;
    one_page(&map.pfns()?)?;
    Ok(map)
}

/// The error number of a merge, 0 for success.
pub fn errno<T>(result: Result<T, sksm::Error>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// A merge of a range must end with this error number.
pub fn merge_gives(wanted: i32, addr: usize, len: usize) -> Result<()> {
    let found = errno(sksm::merge_exact(addr, len));
    let name = |errno| match errno {
        0 => "success".to_owned(),
        _ => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    ensure!(
        found == wanted,
        "wanted {}, got {}",
        name(wanted),
        name(found)
    );
    Ok(())
}

/// Something must have merged while `work` ran, or it has shown nothing.
pub fn merging<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    let start = Counters::now()?;
    let result = work()?;
    let merged = start.change()?.pages_merged;
    ensure!(merged > 0, "nothing was merged meanwhile");
    Ok(result)
}
