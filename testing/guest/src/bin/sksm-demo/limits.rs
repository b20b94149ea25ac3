//! How many mappings a merged page may have: more processes than that would need several copies, by either engine.

use anyhow::Result;
use sksm_guest::machine::ksmd;
use sksm_guest::machine::sysfs::{Dir, KSM, SKSM};
use sksm_records::demo::Limit;

const FILE: &str = "max_page_sharing";

/// The raised limits; lowered again when dropped.
pub struct Limits(Vec<(Dir, Limit)>);

impl Limits {
    /// KSM's only if it is to merge, too.
    pub fn raise(processes: usize, ksm: bool) -> Result<Self> {
        let mut raised = Self(Vec::new());
        for (engine, name) in [(SKSM, "SKSM"), (KSM, "KSM")] {
            if !engine.exists() || (name == "KSM" && !ksm) {
                continue;
            }
            let default = engine.number(FILE)?;
            let raised_to = default.max(processes as i64);
            if raised_to > default {
                if name == "KSM" {
                    // It takes a new limit only while it shares nothing.
                    ksmd::forget()?;
                }
                engine.write(FILE, raised_to)?;
                eprintln!("max_page_sharing of {name} raised from {default} to {raised_to}");
            }
            raised.0.push((
                engine,
                Limit {
                    engine: name.to_owned(),
                    default,
                    raised_to,
                },
            ));
        }
        Ok(raised)
    }

    pub fn list(&self) -> Vec<Limit> {
        self.0.iter().map(|(_, limit)| limit.clone()).collect()
    }

    pub fn restore(mut self) -> Result<()> {
        self.lower()
    }

    fn lower(&mut self) -> Result<()> {
        for (engine, limit) in self.0.drain(..) {
            if limit.raised_to != limit.default {
                engine.write(FILE, limit.default)?;
            }
        }
        Ok(())
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        if let Err(error) = self.lower() {
            eprintln!("{error:#}");
        }
    }
}
