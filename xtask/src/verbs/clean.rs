//! The verb `clean`: removes what the tool has put into the user's cache and into the target directory.

use std::{fs, process::ExitCode};

use anyhow::Result;

use crate::{
    ground::{cache, project::Project},
    terminal::progress::Step,
};

pub fn run(project: &Project) -> Result<ExitCode> {
    let lock = project.lock_cache()?;
    let step = Step::begin("removing cached packages, trees and objects");
    for entry in fs::read_dir(&project.cache)? {
        let path = entry?.path();
        // The lock file stays: another invocation may be waiting for it.
        if path.file_name().is_some_and(|name| name != "lock") {
            step.detail(&path.display().to_string());
            cache::remove(&path)?;
        }
    }
    cache::remove(&project.target.join("sksm"))?;
    step.done();
    drop(lock);
    Ok(ExitCode::SUCCESS)
}
