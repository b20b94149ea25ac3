//! The verb `clean`: removes what the tool has put into the user's cache and into the target directory.

use std::{fs, process::ExitCode};

use anyhow::Result;

use crate::{
    ground::{cache, project::Project},
    kernel::source::Source,
    terminal::progress::Step,
};

pub fn run(project: &Project) -> Result<ExitCode> {
    let lock = project.lock_cache()?;
    // Whoever builds from a tree has it until then.
    let sources = Source::all(project)?;
    let alone = sources.iter().map(Source::change);
    let _alone: Vec<_> = alone.collect::<Result<_>>()?;
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

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn a_tree_stays_as_long_as_somebody_builds_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().join("target"),
            cache: dir.path().join("cache"),
        };
        let source = Source::named(&project, "debian-1", true);
        fs::create_dir_all(&source.tree).unwrap();
        let kept = source.keep().unwrap();
        thread::scope(|scope| {
            let clean = scope.spawn(|| run(&project).unwrap());
            // Long enough to remove an empty tree, if nothing held it back.
            thread::sleep(Duration::from_millis(200));
            assert!(!clean.is_finished() && source.tree.is_dir());
            drop(kept);
        });
        assert!(!source.dir.exists());
    }
}
