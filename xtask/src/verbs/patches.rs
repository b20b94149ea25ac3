//! The verb `patches`: the whole change as one series for `git am`.
//!
//! The hooks are patches already and keep their order. What `kernel/` lays over the tree goes between them, in parts that
//! can be read one after the other. A hook makes the engine's Kconfig symbol known once all of it is there, so that every step
//! builds.

mod maintainers;
mod parts;
mod repo;
mod sender;
mod series;
mod steps;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

use crate::{
    ground::{cache, files, interrupt, packages, project::Project, step},
    kernel::{Origin, checkpatch},
    terminal::progress::Step,
};
pub use sender::{PLACEHOLDER, sender};
pub use series::make;

#[derive(clap::Args)]
pub struct Args {
    /// Where to; a new directory, or an empty one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Who sends the series, as in "Name <mail>" (default: git's user.name and user.email)
    #[arg(long, value_name = "NAME")]
    signoff: Option<String>,
    /// Build the kernel after each patch, and have sparse and clippy look at it: an hour or two the first time; goes on
    /// where it was interrupted
    #[arg(long)]
    build: bool,
}

pub fn run(project: &Project, args: &Args, origin: &Origin) -> Result<ExitCode> {
    let sender = sender(project, "--signoff", args.signoff.as_deref())?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    if fs::read_dir(&args.out)?.next().is_some() {
        bail!(
            "--out: {} is not empty; name a new directory",
            args.out.display()
        );
    }
    packages::ensure(project, origin.needs_no_package())?;
    let out = args.out.canonicalize()?;
    // Elsewhere at first, so that `out` is empty still if anything fails.
    let scratch = tempfile::tempdir()?;
    let step = Step::begin("writing the series");
    let made = make(project, origin, &sender, scratch.path())?;
    step.done();
    let step = Step::begin("checking its style");
    let log = project.log("patches-checkpatch")?;
    let mut checkpatch = checkpatch::command(&made.tree);
    checkpatch.args(&made.patches);
    let mut findings = 0;
    let result = step::run(&mut checkpatch, &log, &step, |line| {
        findings += 1;
        let from_name = Path::new(line).strip_prefix(scratch.path());
        step.print(&from_name.unwrap_or(Path::new(line)).to_string_lossy());
    });
    if findings == 0 {
        result?;
    }
    interrupt::check()?;
    deliver(scratch.path(), &out)?;
    if findings > 0 {
        bail!(
            "checkpatch.pl --strict has {findings} findings, above; the series is in {} all the same",
            out.display()
        );
    }
    step.done();
    let built = match args.build {
        true => Some(steps::build(project, origin, &made)?),
        false => None,
    };
    println!(
        "{} patches and a cover letter, signed off by {sender}\n\
         `git am` turns {} into what the kernels here are built of; checkpatch.pl --strict finds nothing\n{}",
        made.patches.len(),
        made.applies_to,
        out.display()
    );
    if let Some(before) = built {
        println!(
            "each of them builds ({before} did before), and clang (W=1), sparse and clippy find nothing new"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies all files, or leaves none.
fn deliver(from: &Path, to: &Path) -> Result<()> {
    let files = files::below(from)?;
    let copied = files
        .iter()
        .try_for_each(|(name, content)| cache::write(&to.join(name), content));
    if copied.is_err() {
        for name in files.keys() {
            let _ = cache::remove(&to.join(name));
        }
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_arrives_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for name in ["0000-cover-letter.patch", "0001-first.patch"] {
            cache::write(&from.join(name), name).unwrap();
        }
        // Where a directory is in the way, no file can be put.
        fs::create_dir_all(to.join("0001-first.patch/in-the-way")).unwrap();
        deliver(&from, &to).unwrap_err();
        assert!(files::below(&to).unwrap().is_empty());
        deliver(&from, &to).unwrap();
        assert_eq!(files::below(&to).unwrap(), files::below(&from).unwrap());
    }
}
