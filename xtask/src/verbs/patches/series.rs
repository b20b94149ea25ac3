//! Writes the series, and tries it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    maintainers::MAINTAINERS,
    parts::{PARTS, Part},
    repo::Repo,
    sender::PLACEHOLDER,
};
use crate::{
    ground::{
        files::{self, Files},
        interrupt,
        project::Project,
    },
    kernel::{Base, Origin, fetch, tree},
};

/// Beside the hooks.
const COVER: &str = "cover-letter.txt";

/// A series that was written and tried.
pub struct Series {
    /// Without the cover letter, in order.
    pub patches: Vec<PathBuf>,
    /// The tree whose checkpatch is asked.
    pub tree: PathBuf,
    /// What the series applies to.
    pub applies_to: String,
    /// The files that it touches, and its patches as commits.
    pub repo: Repo,
}

/// Writes the series, applies it to a tree as it came, and compares the result with what is built.
pub fn make(project: &Project, origin: &Origin, sender: &str, out: &Path) -> Result<Series> {
    let _lock = project.lock_cache()?;
    let source = fetch::source(project, origin, true)?;
    let wanted = tree::wanted(project, origin.base, &source)?;
    let mut pristine = Files::new();
    for path in wanted.keys() {
        if let Ok(content) = fs::read(source.pristine(path)) {
            pristine.insert(path.clone(), content);
        }
    }
    let name = Path::new(MAINTAINERS);
    pristine.insert(name.into(), fs::read(source.tree.join(name))?);
    let (base, version) = Base::of_tree(&source.tree)?;
    let applies_to = format!("Linux {version}");
    let kernel = project.kernel();
    let patches = write(&kernel, base, PARTS, &pristine, &applies_to, sender, out)?;
    let repo = prove(&patches, &pristine, wanted)?;
    Ok(Series {
        repo,
        patches,
        tree: source.tree,
        applies_to,
    })
}

/// Writes the series into `out` and returns its patches in order.
fn write(
    kernel: &Path,
    base: Base,
    parts: &[Part],
    pristine: &Files,
    applies_to: &str,
    sender: &str,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let mut overlay = tree::overlay(kernel, base)?;
    let hooks = tree::hooks(kernel, base)?;
    let repo = Repo::of(pristine, sender)?;
    let mut maintained = BTreeSet::new();
    let mut placed = 0;
    for (name, content) in &hooks {
        interrupt::check()?;
        let stem = name.file_stem().unwrap_or_default().to_string_lossy();
        for part in parts.iter().filter(|part| stem.ends_with(part.before)) {
            placed += 1;
            repo.commit(part, &mut overlay, pristine, &mut maintained)?;
        }
        let patch = String::from_utf8_lossy(content).replace(PLACEHOLDER, sender);
        let file = repo.scratch.path().join(name);
        fs::write(&file, patch)?;
        repo.git(["am", "--quiet", "--keep-non-patch"], [&file])
            .with_context(|| {
                let hook = base.patches().join(name);
                format!("kernel/{} does not apply", hook.display())
            })?;
    }
    if placed != parts.len() {
        bail!(
            "a part of the series comes before a hook that is not there: see PARTS in xtask/src/verbs/patches/parts.rs"
        );
    }
    if let Some(path) = overlay.keys().next() {
        bail!(
            "kernel/{} is in no part of the series: add it to PARTS in xtask/src/verbs/patches/parts.rs",
            path.display()
        );
    }
    let cover = base.patches().join(COVER);
    let cover = fs::read_to_string(kernel.join(&cover))
        .with_context(|| format!("cannot read kernel/{}", cover.display()))?;
    let cover = format!("{}\n\nIt applies to {applies_to}.\n", cover.trim_end());
    repo.git(["config", "branch.series.description"], [&cover])?;
    repo.git(
        [
            "format-patch",
            "--quiet",
            "--rfc",
            "--cover-letter",
            "--cover-from-description=subject",
            "--zero-commit",
            "--abbrev=12",
            "--no-signature",
            "--no-renames",
            "base..series",
            "--output-directory",
        ],
        [out],
    )?;
    let mut patches: Vec<_> = files::below(out)?
        .into_keys()
        .map(|name| out.join(name))
        .collect();
    // The cover letter has the number 0000.
    patches.remove(0);
    Ok(patches)
}

/// Applies the patches to the files as they came; the result must be what is built.
fn prove(patches: &[PathBuf], pristine: &Files, mut wanted: Files) -> Result<Repo> {
    let repo = Repo::of(pristine, PLACEHOLDER)?;
    repo.git(["am", "--quiet"], patches)
        .context("`git am` does not take the series")?;
    let mut got = files::below(&repo.tree)?;
    got.retain(|path, _| !path.starts_with(".git"));
    // Of the patches alone, as nothing is built of it.
    let list = got.remove(Path::new(MAINTAINERS));
    if list.as_ref() == pristine.get(Path::new(MAINTAINERS)) {
        bail!("the series does not say who maintains it");
    }
    wanted.remove(Path::new(MAINTAINERS));
    let all: BTreeSet<_> = got.keys().chain(wanted.keys()).collect();
    let differing: Vec<_> = all
        .into_iter()
        .filter(|&path| got.get(path) != wanted.get(path))
        .map(|path| path.display().to_string())
        .collect();
    if !differing.is_empty() {
        bail!(
            "the series does not make what is built; these files differ:\n  {}",
            differing.join("\n  ")
        );
    }
    Ok(repo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ground::cache, verbs::patches::maintainers::tests::LIST};

    const BASE: Base = Base::Linux6_12;
    const SENDER: &str = "Jane Doe <jane@example.org>";
    const PARTS: &[Part] = &[
        Part {
            before: "second",
            message: "first part\n\nWhy.\n",
            files: &["mm/sksm/node.rs"],
        },
        Part {
            before: "second",
            message: "second part\n\nWhy.\n",
            files: &["mm/sksm/"],
        },
    ];

    struct Setting {
        dir: tempfile::TempDir,
        kernel: PathBuf,
        pristine: Files,
        wanted: Files,
    }

    fn hook(subject: &str, from: &str, to: &str) -> String {
        format!(
            "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n\
             From: {PLACEHOLDER}\nSubject: [PATCH] {subject}\n\nWhy.\n\nSigned-off-by: {PLACEHOLDER}\n---\n\
             diff --git a/mm/old.c b/mm/old.c\n--- a/mm/old.c\n+++ b/mm/old.c\n@@ -1 +1 @@\n-{from}\n+{to}\n"
        )
    }

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter()
            .map(|&(path, text)| (path.into(), text.into()))
            .collect()
    }

    fn setting() -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let put = |path: &str, text: &str| cache::write(&kernel.join(path), text).unwrap();
        put(
            "patches/6.12/0001-first.patch",
            &hook("first", "one", "two"),
        );
        put(
            "patches/6.12/0002-second.patch",
            &hook("second", "two", "three"),
        );
        put("patches/6.12/cover-letter.txt", "the change\n\nIs good.\n");
        put("mm/sksm/node.rs", "node\n");
        put("mm/sksm/sksm.rs", "root\n");
        put("configs/um.config", "CONFIG_X=y\n");
        Setting {
            dir,
            kernel,
            pristine: files(&[("mm/old.c", "one\n"), (MAINTAINERS, LIST)]),
            wanted: files(&[
                ("mm/old.c", "three\n"),
                ("mm/sksm/node.rs", "node\n"),
                ("mm/sksm/sksm.rs", "root\n"),
            ]),
        }
    }

    impl Setting {
        fn write(&self, parts: &[Part]) -> Result<Vec<PathBuf>> {
            let out = self.dir.path().join("out");
            cache::remove(&out)?;
            fs::create_dir(&out)?;
            write(
                &self.kernel,
                BASE,
                parts,
                &self.pristine,
                "Linux 6.12.3",
                SENDER,
                &out,
            )
        }

        fn error(&self, parts: &[Part]) -> String {
            format!("{:#}", self.write(parts).unwrap_err())
        }
    }

    #[test]
    fn the_series_makes_what_is_built() {
        let setting = setting();
        let patches = setting.write(PARTS).unwrap();
        let names: Vec<_> = patches
            .iter()
            .map(|patch| patch.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "0001-first.patch",
                "0002-first-part.patch",
                "0003-second-part.patch",
                "0004-second.patch"
            ]
        );
        for patch in &patches {
            let text = fs::read_to_string(patch).unwrap();
            assert!(text.contains(&format!("\nFrom: {SENDER}\n")), "{text}");
            assert!(
                text.contains(&format!("\nSigned-off-by: {SENDER}\n")),
                "{text}"
            );
        }
        let cover =
            fs::read_to_string(setting.dir.path().join("out/0000-cover-letter.patch")).unwrap();
        assert!(
            cover.contains("\nSubject: [RFC PATCH 0/4] the change\n\nIs good.\n"),
            "{cover}"
        );
        prove(&patches, &setting.pristine, setting.wanted.clone()).unwrap();

        let mut other = setting.wanted.clone();
        other.insert("mm/old.c".into(), "four\n".into());
        other.insert("mm/missing.c".into(), "\n".into());
        let error = prove(&patches, &setting.pristine, other)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("\n  mm/missing.c\n  mm/old.c"), "{error}");
        let mut more = setting.wanted.clone();
        more.remove(Path::new("mm/sksm/node.rs"));
        let error = prove(&patches, &setting.pristine, more)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("\n  mm/sksm/node.rs"), "{error}");
        let error = prove(&patches[1..], &setting.pristine, setting.wanted.clone());
        assert!(format!("{:#}", error.unwrap_err()).contains("does not take the series"));
    }

    #[test]
    fn a_bases_own_files_are_in_its_series() {
        let mut setting = setting();
        let own = |base: Base| setting.kernel.join(base.overlay()).join("mm/sksm/base.h");
        cache::write(&own(BASE), "own\n").unwrap();
        cache::write(&own(Base::Linux7_3), "another's\n").unwrap();
        let patches = setting.write(PARTS).unwrap();
        setting
            .wanted
            .insert("mm/sksm/base.h".into(), "own\n".into());
        prove(&patches, &setting.pristine, setting.wanted.clone()).unwrap();
        let with_the_rest = fs::read_to_string(&patches[2]).unwrap();
        assert!(with_the_rest.contains("+++ b/mm/sksm/base.h\n"));
    }

    #[test]
    fn what_the_parts_do_not_fit_is_named() {
        let setting = setting();
        let error = setting.error(&PARTS[..1]);
        assert!(
            error.contains("kernel/mm/sksm/sksm.rs is in no part"),
            "{error}"
        );
        let lost = Part {
            before: "first",
            message: "lost\n",
            files: &["mm/sksm/gone.rs"],
        };
        let error = setting.error(&[lost]);
        assert!(error.contains("no kernel/mm/sksm/gone.rs"), "{error}");
        let nowhere = Part {
            before: "third",
            message: "nowhere\n",
            files: &["mm/sksm/"],
        };
        let error = setting.error(&[nowhere]);
        assert!(error.contains("hook that is not there"), "{error}");
        cache::write(
            &setting.kernel.join("patches/6.12/0002-second.patch"),
            hook("second", "other", "three"),
        )
        .unwrap();
        let error = setting.error(PARTS);
        assert!(
            error.contains("0002-second.patch does not apply"),
            "{error}"
        );
    }

    #[test]
    fn the_maintainers_entry_grows_with_the_files() {
        let setting = setting();
        let patches = setting.write(PARTS).unwrap();
        let first = fs::read_to_string(&patches[1]).unwrap();
        assert!(first.contains("\n+F:\tmm/sksm/node.rs\n"), "{first}");
        let second = fs::read_to_string(&patches[2]).unwrap();
        assert!(
            second.contains("\n-F:\tmm/sksm/node.rs\n+F:\tmm/sksm/\n"),
            "{second}"
        );
    }
}
