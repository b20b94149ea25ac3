//! Keeps the cached kernel tree equal to: pristine source + hook patches + the files of `kernel/`.
//!
//! Beside the tree, `patched/` holds the patches' result and `applied/` the patches that made it. A file of the tree is
//! written only when its content differs, so that `make` rebuilds no more than it must.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{base::Base, source::Source};
use crate::ground::{
    cache,
    files::{self, Files},
    git::git,
    interrupt,
    project::Project,
    step,
};

/// Parts of `kernel/` that are not laid over the tree: of `base`, what is in its directory is.
const NOT_OVERLAID: [&str; 3] = ["base", "configs", "patches"];

/// Fingerprints of what differs from the pristine tree.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub all: String,
    /// Of the files that decide which settings there are.
    pub kconfig: String,
}

/// Brings the tree up to date; waits for those who build from it only if something has to change. Needs the cache's lock.
pub fn sync(project: &Project, base: Base, source: &Source) -> Result<Changes> {
    let wanted = wanted(project, base, source)?;
    for path in wanted.keys() {
        source.remember(path)?;
    }
    let mut changing = None;
    for path in source.managed()? {
        interrupt::check()?;
        let in_tree = source.tree.join(&path);
        let pristine = || fs::read(source.pristine(&path)).ok();
        let content = wanted.get(&path).cloned().or_else(pristine);
        if fs::read(&in_tree).ok() == content {
            continue;
        }
        if changing.is_none() {
            changing = Some(source.change()?);
        }
        match content {
            Some(content) => cache::write(&in_tree, content)?,
            None => cache::remove(&in_tree)?,
        }
    }
    let kconfig: Vec<_> = wanted
        .iter()
        .filter(|(path, _)| path.file_name().is_some_and(|name| name == "Kconfig"))
        .collect();
    Ok(Changes {
        kconfig: cache::fingerprint(kconfig),
        all: cache::fingerprint(&wanted),
    })
}

/// Every file that the change adds or touches, as the kernel is built with it.
pub fn wanted(project: &Project, base: Base, source: &Source) -> Result<Files> {
    let mut wanted = patch(source, base, &hooks(&project.kernel(), base)?)?;
    for (path, content) in overlay(&project.kernel(), base)? {
        if wanted.contains_key(&path) {
            bail!(
                "{} is laid over the tree from kernel/, and a patch of base {base} makes it too",
                path.display()
            );
        }
        wanted.insert(path, content);
    }
    Ok(wanted)
}

/// The patches of a base, in order.
pub fn hooks(kernel: &Path, base: Base) -> Result<Files> {
    let mut patches = files::below(&kernel.join(base.patches()))
        .with_context(|| format!("there are no patches for Linux {base}"))?;
    patches.retain(|name, _| name.extension().is_some_and(|ext| ext == "patch"));
    Ok(patches)
}

/// The files of `kernel/` that are laid over the tree: those for every base, and those for this one.
pub fn overlay(kernel: &Path, base: Base) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(kernel)? {
        let entry = entry?;
        let name = entry.file_name();
        if !entry.path().is_dir() || NOT_OVERLAID.iter().any(|&not| name == not) {
            continue;
        }
        for (path, content) in files::below(&entry.path())? {
            files.insert(Path::new(&name).join(path), content);
        }
    }
    let own = kernel.join(base.overlay());
    if own.is_dir() {
        for (path, content) in files::below(&own)? {
            if files.contains_key(&path) {
                let (path, own) = (path.display(), base.overlay());
                bail!("kernel/{}/{path} is in kernel/{path} too", own.display());
            }
            files.insert(path, content);
        }
    }
    Ok(files)
}

/// The files that the patches change, as they leave them.
fn patch(source: &Source, base: Base, patches: &Files) -> Result<Files> {
    let applied = source.dir.join("applied");
    let patched = source.dir.join("patched");
    if applied.is_dir() && files::below(&applied)? == *patches {
        return files::below(&patched);
    }
    cache::remove(&applied)?;
    cache::remove(&patched)?;
    fs::create_dir_all(&patched)?;
    let mut touched = BTreeSet::new();
    for content in patches.values() {
        touched.extend(touched_by(&String::from_utf8_lossy(content)));
    }
    for path in &touched {
        source.remember(path)?;
        if let Ok(content) = fs::read(source.pristine(path)) {
            cache::write(&patched.join(path), content)?;
        }
    }
    let new = source.dir.join("applied.new");
    cache::remove(&new)?;
    fs::create_dir_all(&new)?;
    for (name, content) in patches {
        let file = new.join(name);
        cache::write(&file, content)?;
        step::output(
            git(&patched)
                .args(["apply", "-p1", "--whitespace=nowarn"])
                .arg(&file)
                // The cache may lie inside some repository, which is none of git's business here.
                .env("GIT_CEILING_DIRECTORIES", &source.dir),
        )
        .with_context(|| {
            format!(
                "kernel/{} does not apply to {}",
                base.patches().join(name).display(),
                source.tree.display()
            )
        })?;
    }
    fs::rename(&new, &applied)?;
    files::below(&patched)
}

/// The paths that a patch names, new and removed files included.
fn touched_by(patch: &str) -> BTreeSet<PathBuf> {
    patch
        .lines()
        .filter_map(|line| {
            let name = line
                .strip_prefix("--- a/")
                .or_else(|| line.strip_prefix("+++ b/"))
                .or_else(|| line.strip_prefix("rename from "))
                .or_else(|| line.strip_prefix("rename to "))?;
            // Some tools add a tab and a date.
            Some(PathBuf::from(name.split('\t').next()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Setting {
        _dir: tempfile::TempDir,
        project: Project,
        source: Source,
    }

    const BASE: Base = Base::Linux6_12;
    const HOOK: &str = "\
--- a/mm/old.c
+++ b/mm/old.c
@@ -1,3 +1,4 @@
 one
+hook
 two
 three
--- /dev/null
+++ b/include/new.h
@@ -0,0 +1 @@
+new
";

    fn setting() -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repo");
        let source = Source {
            dir: dir.path().join("cache"),
            tree: dir.path().join("cache/tree"),
        };
        let put = |path: &str, text: &str| cache::write(&dir.path().join(path), text).unwrap();
        put("cache/tree/mm/old.c", "one\ntwo\nthree\n");
        put("cache/tree/mm/other.c", "other\n");
        put("repo/kernel/patches/6.12/0001-hook.patch", HOOK);
        put("repo/kernel/mm/sksm/sksm.rs", "rust\n");
        put("repo/kernel/configs/um.config", "CONFIG_X=y\n");
        put("repo/kernel/DESIGN.md", "design\n");
        let project = Project {
            target: root.join("target"),
            cache: dir.path().into(),
            root,
        };
        Setting {
            _dir: dir,
            project,
            source,
        }
    }

    impl Setting {
        fn sync(&self) -> Changes {
            sync(&self.project, BASE, &self.source).unwrap()
        }

        fn error(&self) -> String {
            format!("{:#}", sync(&self.project, BASE, &self.source).unwrap_err())
        }

        fn tree(&self) -> Vec<(String, String)> {
            files::below(&self.source.tree)
                .unwrap()
                .into_iter()
                .map(|(path, content)| {
                    (
                        path.display().to_string(),
                        String::from_utf8(content).unwrap(),
                    )
                })
                .collect()
        }
    }

    fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files
            .iter()
            .map(|&(path, text)| (path.to_owned(), text.to_owned()))
            .collect()
    }

    #[test]
    fn patches_and_overlay_come_and_go() {
        let setting = setting();
        let first = setting.sync();
        let full = owned(&[
            ("include/new.h", "new\n"),
            ("mm/old.c", "one\nhook\ntwo\nthree\n"),
            ("mm/other.c", "other\n"),
            ("mm/sksm/sksm.rs", "rust\n"),
        ]);
        assert_eq!(setting.tree(), full);
        assert_eq!(setting.sync(), first);

        let kernel = setting.project.kernel();
        fs::remove_file(kernel.join("patches/6.12/0001-hook.patch")).unwrap();
        fs::rename(
            kernel.join("mm/sksm/sksm.rs"),
            kernel.join("mm/sksm/node.rs"),
        )
        .unwrap();
        assert_ne!(setting.sync(), first);
        assert_eq!(
            setting.tree(),
            owned(&[
                ("mm/old.c", "one\ntwo\nthree\n"),
                ("mm/other.c", "other\n"),
                ("mm/sksm/node.rs", "rust\n"),
            ])
        );
    }

    #[test]
    fn a_bases_own_files_are_laid_over_it_alone() {
        let setting = setting();
        setting.sync();
        let tree = setting.tree();
        let put = |path: &str| {
            cache::write(&setting.project.kernel().join("base").join(path), "own\n").unwrap();
        };
        put("7.3/mm/sksm/base.h");
        put("7.3/mm/sksm/sksm.rs");
        setting.sync();
        assert_eq!(setting.tree(), tree);
        put("6.12/mm/sksm/base.h");
        setting.sync();
        let mut more = tree.clone();
        more.insert(3, ("mm/sksm/base.h".into(), "own\n".into()));
        assert_eq!(setting.tree(), more);
        put("6.12/mm/sksm/sksm.rs");
        assert_eq!(
            setting.error(),
            "kernel/base/6.12/mm/sksm/sksm.rs is in kernel/mm/sksm/sksm.rs too"
        );
    }

    #[test]
    fn a_base_without_patches_is_named() {
        let setting = setting();
        let error = sync(&setting.project, Base::Linux7_3, &setting.source).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("no patches for Linux 7.3"), "{error}");
    }

    #[test]
    fn unchanged_files_keep_their_time_when_a_patch_changes() {
        let setting = setting();
        setting.sync();
        let header = setting.source.tree.join("include/new.h");
        let time = fs::metadata(&header).unwrap().modified().unwrap();
        let patch = setting
            .project
            .kernel()
            .join("patches/6.12/0001-hook.patch");
        fs::write(&patch, HOOK.replace("+hook", "+better")).unwrap();
        setting.sync();
        assert_eq!(
            fs::read_to_string(setting.source.tree.join("mm/old.c")).unwrap(),
            "one\nbetter\ntwo\nthree\n"
        );
        assert_eq!(fs::metadata(&header).unwrap().modified().unwrap(), time);
    }

    #[test]
    fn an_interruption_anywhere_is_repaired() {
        let setting = setting();
        setting.sync();
        let full = setting.tree();
        cache::remove(&setting.source.dir.join("applied")).unwrap();
        fs::write(setting.source.dir.join("patched/mm/old.c"), "half").unwrap();
        fs::write(setting.source.tree.join("mm/old.c"), "half").unwrap();
        fs::remove_file(setting.source.tree.join("mm/sksm/sksm.rs")).unwrap();
        setting.sync();
        assert_eq!(setting.tree(), full);
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let setting = setting();
        fs::write(setting.source.tree.join("mm/old.c"), "different\n").unwrap();
        let error = setting.error();
        assert!(error.contains("0001-hook.patch does not apply"), "{error}");
        assert!(error.contains("mm/old.c"), "{error}");
    }

    #[test]
    fn renames_and_dates_are_understood() {
        let touched = touched_by(
            "--- a/x.c\t2024-01-01\n+++ b/x.c\t2024-01-02\nrename from p\nrename to q\n--- /dev/null\n",
        );
        let expected: BTreeSet<PathBuf> = ["x.c", "p", "q"].iter().map(PathBuf::from).collect();
        assert_eq!(touched, expected);
    }
}
