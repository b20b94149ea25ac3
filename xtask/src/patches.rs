//! The verb `patches`: the whole change as one series for `git am`.
//!
//! The hooks are patches already and keep their order. What `kernel/` lays over the tree goes between them, in parts that
//! can be read one after the other. The last patch adds the Kconfig symbol, so that every step before it builds.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    cache, host_tests, interrupt,
    progress::Step,
    project::Project,
    setup, source, step,
    tree::{self, Files},
};

#[derive(clap::Args)]
pub struct Args {
    /// Where to; a new directory, or an empty one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Who sends the series, as in "Name <mail>" (default: git's user.name and user.email)
    #[arg(long, value_name = "NAME")]
    signoff: Option<String>,
}

/// The author of the hooks, until somebody sends them.
pub const PLACEHOLDER: &str = "SKSM maintainers <sksm@localhost.localdomain>";
const HOOKS: &str = "patches/6.12";
const COVER: &str = "patches/6.12/cover-letter.txt";

/// Files of `kernel/` that are one patch.
struct Part<'a> {
    /// The hook that it comes before, without its number.
    before: &'a str,
    /// The first line is the subject.
    message: &'a str,
    /// A directory means the files in it that no part before this one has.
    files: &'a [&'a str],
}

const PARTS: &[Part] = &[
    Part {
        before: "ksm-hand-SKSM-s-pages-over",
        message: "\
mm: declare what SKSM offers to the rest of mm

The entry points of synchronous samepage merging, for the hooks that
follow. Without CONFIG_SKSM, which nothing can set yet, they are empty.
",
        files: &["include/linux/sksm.h"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: wrap mm's macros and inlines for Rust

What the engine needs of mm and Rust cannot call: macros, static inlines,
and tracepoints. No function here decides anything.
",
        files: &[
            "mm/sksm/glue.c",
            "mm/sksm/glue.h",
            "include/trace/events/sksm.h",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add counters and merge domains

The time that a merge or a write takes tells whether somebody else holds
the same bytes, so pages merge within one domain only: a user, a memory
cgroup, or, if the administrator says so, the whole machine.
",
        files: &["mm/sksm/stats.rs", "mm/sksm/domain.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add types for folios and page table entries

References, locks and page tables as types: what needs the folio lock or
the page table lock is a method of what holds it.
",
        files: &["mm/sksm/folio.rs", "mm/sksm/pte.rs", "mm/sksm/rcu.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add nodes, their index and their reverse map

A node belongs to each merged page: it says what is equal to the page and
where it is mapped. Nodes are found by domain, NUMA node and checksum,
leave the index when their page is freed, and are released later, from
process context.
",
        files: &[
            "mm/sksm/index.rs",
            "mm/sksm/node.rs",
            "mm/sksm/release.rs",
            "mm/sksm/rmap.rs",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: merge the pages of a range

One page table at a time: collect candidates, write-protect and hash them,
then map a merged page in place of equal ones, or publish a page that is
the first of its kind. A page that somebody else uses meanwhile stays as
it is.
",
        files: &["mm/sksm/batch.rs", "mm/sksm/merge.rs"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add files in /sys/kernel/mm/sksm

Three settings, and what was saved at what price. Merged pages are counted
when somebody reads, so that merging pays nothing for it.
",
        files: &[
            "mm/sksm/sysfs.rs",
            "Documentation/ABI/testing/sysfs-kernel-mm-sksm",
        ],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
mm/sksm: add the crate's root and its Kconfig symbol

The entry points that C calls, the order of locks, and which contexts they
are called from. Nothing includes the new Kconfig file and Makefile yet.
",
        files: &["mm/sksm/sksm.rs", "mm/sksm/"],
    },
    Part {
        before: "Documentation-mm-list-the-page-about-SKSM",
        message: "\
Documentation: mm: describe SKSM for administrators

What the advice does and when, what merge domains are for, and what the
files in /sys/kernel/mm/sksm say.
",
        files: &["Documentation/admin-guide/mm/sksm.rst"],
    },
];

pub fn run(project: &Project, args: &Args, linux_src: Option<&Path>) -> Result<ExitCode> {
    let sender = sender(project, args.signoff.as_deref())?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    if fs::read_dir(&args.out)?.next().is_some() {
        bail!(
            "--out: {} is not empty; name a new directory",
            args.out.display()
        );
    }
    setup::ensure(project, linux_src.is_some())?;
    let out = args.out.canonicalize()?;
    // Elsewhere at first, so that `out` is empty still if anything fails.
    let scratch = tempfile::tempdir()?;
    let step = Step::begin("writing the series");
    let made = make(project, linux_src, &sender, scratch.path())?;
    step.done();
    let step = Step::begin("checking its style");
    let log = project.log("patches-checkpatch")?;
    let mut checkpatch = host_tests::checkpatch(&made.tree);
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
    println!(
        "{} patches and a cover letter, signed off by {sender}\n\
         `git am` turns {} into what the kernels here are built of; checkpatch.pl --strict finds nothing\n{}",
        made.patches.len(),
        made.base,
        out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Copies all files, or leaves none.
fn deliver(from: &Path, to: &Path) -> Result<()> {
    let files = tree::files_below(from)?;
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

/// A series that was written and tried.
pub struct Series {
    /// Without the cover letter, in order.
    pub patches: Vec<PathBuf>,
    /// The tree whose checkpatch is asked.
    pub tree: PathBuf,
    /// What the series applies to.
    base: String,
}

/// Writes the series, applies it to a tree as it came, and compares the result with what is built.
pub fn make(
    project: &Project,
    linux_src: Option<&Path>,
    sender: &str,
    out: &Path,
) -> Result<Series> {
    let _lock = project.lock_cache()?;
    let source = source::fetch(project, linux_src, true)?;
    let wanted = tree::wanted(project, &source)?;
    let mut pristine = Files::new();
    for path in wanted.keys() {
        if let Ok(content) = fs::read(source.dir.join("pristine").join(path)) {
            pristine.insert(path.clone(), content);
        }
    }
    let name = Path::new(MAINTAINERS);
    pristine.insert(name.into(), fs::read(source.tree.join(name))?);
    let base = format!("Linux {}", source::check_series(&source.tree)?);
    let patches = write(&project.kernel(), PARTS, &pristine, &base, sender, out)?;
    prove(&patches, &pristine, wanted)?;
    Ok(Series {
        patches,
        tree: source.tree,
        base,
    })
}

/// The name and address that the patches are sent and signed off with.
pub fn sender(project: &Project, given: Option<&str>) -> Result<String> {
    if let Some(given) = given {
        let mail = given
            .strip_suffix('>')
            .and_then(|rest| rest.split_once(" <"))
            .is_some_and(|(name, mail)| {
                !name.trim().is_empty() && mail.contains('@') && !mail.contains([' ', '<'])
            });
        if !mail || given.contains('\n') {
            bail!(
                "--signoff wants a name and an address, as in \"Jane Doe <jane@example.org>\"; this is \"{given}\""
            );
        }
        return Ok(given.to_owned());
    }
    let config = |key: &str| -> Result<String> {
        let output = Command::new("git")
            .args(["config", key])
            .current_dir(&project.root)
            .output()
            .context("cannot run git")?;
        let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if value.is_empty() {
            bail!(
                "git does not know your {key}; give --signoff \"Name <mail>\", or set it with `git config {key}`"
            );
        }
        Ok(value)
    };
    Ok(format!(
        "{} <{}>",
        config("user.name")?,
        config("user.email")?
    ))
}

/// Writes the series into `out` and returns its patches in order.
fn write(
    kernel: &Path,
    parts: &[Part],
    pristine: &Files,
    base: &str,
    sender: &str,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let mut overlay = tree::overlay(kernel)?;
    let hooks: Vec<_> = tree::files_below(&kernel.join(HOOKS))?
        .into_iter()
        .filter(|(name, _)| name.extension().is_some_and(|ext| ext == "patch"))
        .collect();
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
            .with_context(|| format!("kernel/{HOOKS}/{} does not apply", name.display()))?;
    }
    if placed != parts.len() {
        bail!(
            "a part of the series comes before a hook that is not there: see PARTS in xtask/src/patches.rs"
        );
    }
    if let Some(path) = overlay.keys().next() {
        bail!(
            "kernel/{} is in no part of the series: add it to PARTS in xtask/src/patches.rs",
            path.display()
        );
    }
    let cover = fs::read_to_string(kernel.join(COVER))
        .with_context(|| format!("cannot read kernel/{COVER}"))?;
    let cover = format!("{}\n\nIt applies to {base}.\n", cover.trim_end());
    repo.git(["config", "branch.series.description"], [&cover])?;
    repo.git(
        [
            "format-patch",
            "--quiet",
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
    let mut patches: Vec<_> = tree::files_below(out)?
        .into_keys()
        .map(|name| out.join(name))
        .collect();
    // The cover letter has the number 0000.
    patches.remove(0);
    Ok(patches)
}

/// Applies the patches to the files as they came; the result must be what is built.
fn prove(patches: &[PathBuf], pristine: &Files, mut wanted: Files) -> Result<()> {
    let repo = Repo::of(pristine, PLACEHOLDER)?;
    repo.git(["am", "--quiet"], patches)
        .context("`git am` does not take the series")?;
    let mut got = tree::files_below(&repo.tree)?;
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
    Ok(())
}

/// A repository with no more in it than the series touches.
struct Repo {
    scratch: tempfile::TempDir,
    tree: PathBuf,
    sender: String,
}

impl Repo {
    fn of(pristine: &Files, sender: &str) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let tree = scratch.path().join("tree");
        for (path, content) in pristine {
            cache::write(&tree.join(path), content)?;
        }
        let repo = Self {
            scratch,
            tree,
            sender: sender.to_owned(),
        };
        repo.git(["init", "--quiet", "--initial-branch=series"], NO)?;
        repo.git(["add", "--all"], NO)?;
        repo.git(["commit", "--quiet", "--message=base"], NO)?;
        repo.git(["tag", "base"], NO)?;
        Ok(repo)
    }

    /// Takes the part's files out of the overlay and commits them.
    fn commit(
        &self,
        part: &Part,
        overlay: &mut Files,
        pristine: &Files,
        maintained: &mut BTreeSet<String>,
    ) -> Result<()> {
        for &pattern in part.files {
            let taken: Vec<PathBuf> = overlay
                .keys()
                .filter(|path| match pattern.ends_with('/') {
                    true => path.starts_with(pattern),
                    false => path.as_path() == Path::new(pattern),
                })
                .cloned()
                .collect();
            if taken.is_empty() {
                bail!("there is no kernel/{pattern}, which PARTS in xtask/src/patches.rs names");
            }
            for path in taken {
                let content = overlay.remove(&path).unwrap_or_default();
                cache::write(&self.tree.join(path), content)?;
            }
            maintained.retain(|other| !other.starts_with(pattern) || !pattern.ends_with('/'));
            if !maintained
                .iter()
                .any(|other| other.ends_with('/') && pattern.starts_with(other.as_str()))
            {
                maintained.insert(pattern.to_owned());
            }
        }
        let name = Path::new(MAINTAINERS);
        let list = String::from_utf8_lossy(&pristine[name]);
        let list = with_entry(&list, &self.sender, maintained)?;
        cache::write(&self.tree.join(name), list)?;
        self.git(["add", "--all"], NO)?;
        let message = format!("{}\nSigned-off-by: {}\n", part.message, self.sender);
        self.git(["commit", "--quiet", "--message"], [&message])
    }

    fn git<const N: usize>(
        &self,
        words: [&str; N],
        rest: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> Result<()> {
        let (name, mail) = self.sender.split_once(" <").unwrap_or_default();
        let mail = mail.trim_end_matches('>');
        let mut command = Command::new("git");
        command
            .args(words)
            .args(rest)
            .current_dir(&self.tree)
            // What the user has configured, or a hook has set, is not meant for this repository.
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), name);
            command.env(format!("GIT_{role}_EMAIL"), mail);
        }
        step::output(&mut command)?;
        Ok(())
    }
}

const NO: [&str; 0] = [];
const MAINTAINERS: &str = "MAINTAINERS";
const TITLE: &str = "SKSM (SYNCHRONOUS KERNEL SAMEPAGE MERGING)";

/// The list of maintainers with SKSM's entry in its place. It grows with the files, as checkpatch asks each patch that
/// adds any.
fn with_entry(list: &str, sender: &str, files: &BTreeSet<String>) -> Result<String> {
    let mut entry = format!("{TITLE}\nM:\t{sender}\nL:\tlinux-mm@kvack.org\nS:\tMaintained\n");
    for file in files {
        entry += &format!("F:\t{file}\n");
    }
    // Entries are separated by empty lines; text comes before the first.
    let mut at = None;
    let mut offset = 0;
    let mut after_empty = false;
    let mut lines = list.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let is_title =
            after_empty && lines.peek().is_some_and(|next| is_field(next)) && !is_field(line);
        if is_title && line.trim_end() > TITLE && line.starts_with(|c: char| c.is_ascii_uppercase())
        {
            at = Some(offset);
            break;
        }
        after_empty = line.trim().is_empty();
        offset += line.len();
    }
    let at = at.context("this kernel's MAINTAINERS is not understood")?;
    Ok(format!("{}{entry}\n{}", &list[..at], &list[at..]))
}

/// Whether a line of MAINTAINERS is like `M:<tab>Name`.
fn is_field(line: &str) -> bool {
    let mut chars = line.chars();
    chars.next().is_some_and(|c| c.is_ascii_uppercase())
        && chars.next() == Some(':')
        && chars.next() == Some('\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: &str = "Jane Doe <jane@example.org>";
    const LIST: &str = "\
List of maintainers

Maintainers List
----------------

AN OTHER
M:\tSomebody <s@example.org>

ZZZ LAST
M:\tSomebody <s@example.org>
";

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
            cover.contains("\nSubject: [PATCH 0/4] the change\n\nIs good.\n"),
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
    fn a_series_arrives_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for name in ["0000-cover-letter.patch", "0001-first.patch"] {
            cache::write(&from.join(name), name).unwrap();
        }
        // Where a directory is in the way, no file can be put.
        fs::create_dir_all(to.join("0001-first.patch/in-the-way")).unwrap();
        deliver(&from, &to).unwrap_err();
        assert!(tree::files_below(&to).unwrap().is_empty());
        deliver(&from, &to).unwrap();
        assert_eq!(
            tree::files_below(&to).unwrap(),
            tree::files_below(&from).unwrap()
        );
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
    fn the_maintainers_entry_stands_in_order_and_grows() {
        let entry = |files: &[&str]| {
            let files = files.iter().map(|&file| file.to_owned()).collect();
            with_entry(LIST, SENDER, &files).unwrap()
        };
        let list = entry(&["mm/sksm/", "include/linux/sksm.h"]);
        let expected = format!(
            "\nAN OTHER\nM:\tSomebody <s@example.org>\n\n{TITLE}\nM:\t{SENDER}\nL:\tlinux-mm@kvack.org\n\
             S:\tMaintained\nF:\tinclude/linux/sksm.h\nF:\tmm/sksm/\n\nZZZ LAST\n"
        );
        assert!(list.contains(&expected), "{list}");
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

    #[test]
    fn a_sender_has_a_name_and_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        assert_eq!(sender(&project, Some(SENDER)).unwrap(), SENDER);
        for wrong in [
            "Jane Doe",
            "jane@example.org",
            "<jane@example.org>",
            "Jane <jane>",
            "Jane <a@b> x",
        ] {
            let error = sender(&project, Some(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
