//! Operations that never meet a merged page: what they cost must not depend on whether the kernel has SKSM at all. Runs in any
//! kernel, so that one without CONFIG_SKSM can be compared.

use std::time::Duration;

use anyhow::{Result, ensure};
use sksm_guest::bench::Unit;
use sksm_guest::memory::{Map, TABLE};
use sksm_guest::process::Child;

use crate::measure::{Bench, TABLE_PAGES, filled, fresh, name, timed};

pub fn run(bench: &mut Bench) -> Result<()> {
    let pages = 4 * TABLE_PAGES;
    let repeats = bench.size(5, 41);
    let touch = |map: &Map| (0..pages).for_each(|page| map.put(page, 0, 1));
    bench.per_page(name("fault at a new page", ""), pages, repeats, || {
        let map = Map::aligned(pages, TABLE, 0)?;
        timed(|| {
            touch(&map);
            Ok(())
        })
    })?;
    bench.per_page(
        name("fault that copies a page after fork", ""),
        pages,
        repeats,
        || {
            let map = filled(pages, fresh(pages))?;
            let child = Child::spawn(|parent| parent.meet())?;
            child.pause()?;
            let taken = timed(|| {
                touch(&map);
                Ok(())
            })?;
            child.go()?;
            child.join()?;
            Ok(taken)
        },
    )?;
    bench.per_page(
        name("fault at a page that only fork protected", ""),
        pages,
        repeats,
        || {
            let map = filled(pages, fresh(pages))?;
            Child::spawn(|_| Ok(()))?.join()?;
            timed(|| {
                touch(&map);
                Ok(())
            })
        },
    )?;
    bench.per_page(name("munmap", ""), pages, repeats, || {
        let map = filled(pages, fresh(pages))?;
        timed(|| {
            drop(map);
            Ok(())
        })
    })?;
    let repeats = bench.size(10, 101);
    let nanoseconds = |work: &dyn Fn() -> Result<()>| -> Result<Vec<f64>> {
        work()?;
        let once = |_| Ok(timed(work)?.as_nanos() as f64);
        (0..repeats).map(once).collect()
    };
    let values = nanoseconds(&|| Child::spawn(|_| Ok(()))?.join())?;
    bench.row(name("fork, exit, wait", ""), Unit::Ns, values)?;
    let values = nanoseconds(&|| {
        let status = std::process::Command::new("/bin/true").status()?;
        ensure!(status.success(), "/bin/true: {status}");
        Ok(())
    })?;
    bench.row(name("exec of /bin/true, wait", ""), Unit::Ns, values)?;
    bench.per_page(
        name("exit of a process, its pages", ""),
        pages,
        repeats.min(21),
        || {
            let child = Child::spawn(|parent| {
                let map = filled(pages, fresh(pages))?;
                parent.meet()?;
                std::mem::forget(map);
                Ok(())
            })?;
            child.pause()?;
            let mut taken = Duration::ZERO;
            taken += timed(|| {
                child.go()?;
                child.join()
            })?;
            Ok(taken)
        },
    )
}
