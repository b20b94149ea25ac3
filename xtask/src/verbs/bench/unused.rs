//! What the engine costs those who do not use it: the same operations in a kernel with CONFIG_SKSM and in one of the same
//! sources without it, in instructions. Time would need hundreds of boots to tell such small differences from noise.

use std::{
    ffi::OsString,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sksm_records::{
    bench::{
        Report, Row,
        names::{ORDINARY, family},
    },
    statistics::Summary,
};

use crate::{
    ground::project::Project,
    guest::Boot,
    kernel::Kernel,
    verbs::shared::measurement::{self, Measured},
};

/// The families that any kernel can run.
pub const FAMILIES: [&str; 2] = [family::FAULTS, family::PROCESSES];

/// Of each kernel, by turns.
const BOOTS: usize = 3;

/// Instructions in either kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unused {
    /// Of each kernel.
    pub boots: usize,
    /// How long all of them took.
    pub seconds: f64,
    pub rows: Vec<Compared>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub what: String,
    /// In the kernel with the engine. The other one has no merged pages: there they are ordinary ones.
    pub variant: String,
    /// Medians, one of each boot.
    pub without: Summary,
    pub with: Summary,
}

impl Compared {
    pub fn ratio(&self) -> f64 {
        self.with.median / self.without.median
    }

    /// How far the boots of one kernel lie apart, as a share.
    pub fn spread(&self) -> f64 {
        let spread = |boots: &Summary| (boots.max - boots.min) / boots.median;
        spread(&self.without).max(spread(&self.with))
    }
}

pub fn measure(
    project: &Project,
    without: &Kernel,
    with: &Kernel,
    program: &Path,
) -> Result<Unused> {
    let start = Instant::now();
    // Instructions are the same each time, or nearly: a few repeats are enough.
    let options = ["--quick", "--instructions", "--only", &FAMILIES.join(",")];
    let mut command = vec![program.as_os_str().to_owned()];
    command.extend(options.map(OsString::from));
    let mut reports = [Vec::new(), Vec::new()];
    for boot in 1..=BOOTS {
        for (kernel, reports) in [without, with].into_iter().zip(&mut reports) {
            let doing = format!(
                "counting instructions in the {} kernel, {boot} of {BOOTS}",
                kernel.arch
            );
            let boot = Boot::new(project, kernel)
                .mem("1G")
                .parameters("")
                .counting_instructions()
                .timeout(Duration::from_secs(600));
            let Measured {
                report, outcome, ..
            } = measurement::run::<Report>(boot, doing, &command, &[0])?;
            outcome.check_splats()?;
            reports.push(report);
        }
    }
    let [without, with] = reports;
    Ok(Unused {
        boots: BOOTS,
        seconds: start.elapsed().as_secs_f64(),
        rows: compare(&without, &with),
    })
}

/// The rows of the kernel with the engine, each beside the other one's row of its name, or of ordinary pages.
fn compare(without: &[Report], with: &[Report]) -> Vec<Compared> {
    let rows = with.iter().take(1).flat_map(all_rows);
    rows.filter_map(|row| {
        let medians = |reports: &[Report], variant: &str| {
            let found = reports.iter().flat_map(|report| {
                all_rows(report).find(|other| other.what == row.what && other.variant == variant)
            });
            Summary::of(found.map(|row| row.value.median).collect())
        };
        let there = medians(without, &row.variant).or_else(|| medians(without, ORDINARY))?;
        Some(Compared {
            what: row.what.clone(),
            variant: row.variant.clone(),
            without: there,
            with: medians(with, &row.variant)?,
        })
    })
    .collect()
}

fn all_rows(report: &Report) -> impl Iterator<Item = &Row> {
    report.families.iter().flat_map(|family| &family.rows)
}
