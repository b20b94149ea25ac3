//! Builds the kernel after each patch of the series, as those do who bisect.
//!
//! It is x86_64's, without the engine until there is a symbol for it. What clang with W=1, sparse and clippy find must be
//! found in the tree as it came, too. What was built is remembered by content: an interrupted run goes on, and after a
//! change only the patch with it and those that follow are built.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::series::Series;
use crate::{
    ground::{cache, files::Files, packages, project::Project, step},
    kernel::{
        Arch, Origin, compiled, config, fetch, objects, objects_of, source::Source,
        toolchain::Toolchain,
    },
    terminal::progress::Step,
};

/// What the tree as it came is called among the steps.
const BASE: &str = "base";

/// Builds what has not been built yet; returns how many patches had been.
pub fn build(project: &Project, origin: &Origin, series: &Series) -> Result<usize> {
    packages::ensure_checkers(project)?;
    let filling = project.lock_cache()?;
    let toolchain = Toolchain::prepare(project, origin.base)?;
    let source = fetch::source(project, origin, false)?;
    let _kept = source.keep()?;
    drop(filling);
    let objects = objects_of(&source, "steps", &toolchain);
    let before = objects::with(&objects, || {
        let of = fs::read_to_string(source.dir.join("unpacked"))?;
        let tree = tree(project, &source, &of)?;
        let mut builder = Builder {
            project,
            origin,
            toolchain: &toolchain,
            tree,
            objects: &objects,
            of,
            record: Record::read(&objects.with_extension("record"))?,
        };
        builder.build(series)
    })?;
    objects::prune(&objects)?;
    Ok(before)
}

/// A copy of the source for the steps alone, as it came or as some step left it.
fn tree(project: &Project, source: &Source, of: &str) -> Result<Source> {
    let own = Source::at(&source.dir.join("steps"));
    let stamp = own.dir.join("unpacked");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == of) {
        return Ok(own);
    }
    let step = Step::begin("copying the kernel's source");
    cache::remove(&own.dir)?;
    fs::create_dir_all(&own.dir)?;
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--reflink=auto"])
        .args([&source.tree, &own.tree]);
    step::run(&mut copy, &project.log("copy-steps")?, &step, |_| {})?;
    cache::write(&stamp, of)?;
    step.done();
    Ok(own)
}

struct Builder<'a> {
    project: &'a Project,
    origin: &'a Origin,
    toolchain: &'a Toolchain,
    tree: Source,
    objects: &'a Path,
    /// What the tree was made of.
    of: String,
    record: Record,
}

impl Builder<'_> {
    fn build(&mut self, series: &Series) -> Result<usize> {
        let total = series.patches.len();
        let mut contents = Vec::new();
        for number in 0..=total {
            contents.push(series.repo.at(&format!("series~{}", total - number))?);
        }
        let touched: BTreeSet<_> = contents
            .iter()
            .flat_map(|(_, files)| files.keys())
            .collect();
        let mut before = 0;
        for (number, (id, files)) in contents.iter().enumerate() {
            if self.record.built.contains(id) {
                before += usize::from(number > 0);
                continue;
            }
            let (name, found_as) = match number {
                0 => (BASE.to_owned(), BASE),
                _ => (named(&series.patches[number - 1]), id.as_str()),
            };
            let changed = self.put(files, &touched)?;
            let step = Step::begin(format!("building {number} of {total}, {name}"));
            self.step(files, &changed, found_as, &step)
                .with_context(|| format!("the kernel does not build after {name}"))?;
            self.record.note("built", id, "")?;
            step.done();
        }
        let ids = contents.iter().map(|(id, _)| id.as_str()).skip(1);
        let findings: Vec<_> = ids
            .zip(&series.patches)
            .flat_map(|(id, patch)| {
                let found = self.record.new_in(id).into_iter();
                found.map(|what| format!("{}: {what}", named(patch)))
            })
            .collect();
        if !findings.is_empty() {
            bail!(
                "the series brings {} findings of clang (W=1), sparse or clippy:\n  {}",
                findings.len(),
                findings.join("\n  ")
            );
        }
        Ok(before)
    }

    /// Makes the tree as one step has it; returns what differed.
    fn put(&self, files: &Files, touched: &BTreeSet<&PathBuf>) -> Result<Vec<PathBuf>> {
        let mut changed = Vec::new();
        for &path in touched {
            let in_tree = self.tree.tree.join(path);
            let wanted = files.get(path);
            if fs::read(&in_tree).ok().as_ref() != wanted {
                match wanted {
                    Some(content) => cache::write(&in_tree, content)?,
                    None => cache::remove(&in_tree)?,
                }
                changed.push(path.clone());
            }
        }
        Ok(changed)
    }

    fn step(&mut self, files: &Files, changed: &[PathBuf], id: &str, step: &Step) -> Result<()> {
        let has_engine = files
            .get(Path::new("mm/Kconfig"))
            .is_some_and(|text| String::from_utf8_lossy(text).contains("mm/sksm/Kconfig"));
        let arch = match has_engine {
            true => Arch::X86_64,
            false => Arch::Without,
        };
        let kconfig = files.iter().filter(|(path, _)| path.ends_with("Kconfig"));
        let kconfig = cache::fingerprint(kconfig.collect::<Vec<_>>());
        let inputs = format!("{}\n{}\n{kconfig}", self.toolchain.version, self.of);
        let fragments = config::fragments(self.project, arch, self.origin.base);
        config::configure(
            self.project,
            self.toolchain,
            &self.tree,
            self.objects,
            arch,
            &fragments,
            &inputs,
        )?;
        self.make(&["vmlinux"], "build", id, step)?;
        // It reads headers, so that one of those changes what is said of any file.
        let all = id == BASE || !changed.iter().all(|path| is_c(path));
        let sources = files.keys().filter(|path| is_c(path));
        let objects = sources
            .filter(|path| all || changed.contains(path))
            .map(|path| path.with_extension("o"))
            .filter(|object| self.objects.join(object).is_file())
            .map(|object| object.to_string_lossy().into_owned());
        let objects: Vec<_> = objects.collect();
        if objects.is_empty() {
            return Ok(());
        }
        let mut words = vec!["C=2", "CHECK=sparse"];
        words.extend(objects.iter().map(String::as_str));
        self.make(&words, "sparse", id, step)
    }

    fn make(&mut self, words: &[&str], kind: &str, id: &str, step: &Step) -> Result<()> {
        let mut make = self
            .toolchain
            .make(&self.tree.tree, self.objects, Arch::X86_64.make());
        make.args(["W=1", "CLIPPY=1", "CLIPPY_DRIVER=/usr/bin/clippy-driver"])
            .args(words);
        let log = self
            .project
            .log(&self.origin.base.named(&format!("steps-{kind}")))?;
        let mut reader = Reader::default();
        let mut noted = Ok(());
        step::run(&mut make, &log, step, |line| {
            if let Some(file) = compiled(line) {
                step.detail(file);
            }
            if let Some(finding) = reader.finding(line) {
                let before = self.record.new_in(id).len();
                if noted.is_ok() {
                    noted = self.record.note("found", id, &finding);
                }
                if id != BASE && self.record.new_in(id).len() > before {
                    step.print(&finding);
                }
            }
        })?;
        noted
    }
}

fn named(patch: &Path) -> String {
    let name = patch.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn is_c(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "c") && !path.starts_with("tools")
}

/// What has been built, and what was found meanwhile: a line for each in a file, which is only added to.
struct Record {
    file: PathBuf,
    built: BTreeSet<String>,
    /// Each with the step it was found in.
    found: BTreeSet<(String, String)>,
}

impl Record {
    fn read(file: &Path) -> Result<Self> {
        let mut record = Self {
            file: file.to_owned(),
            built: BTreeSet::new(),
            found: BTreeSet::new(),
        };
        // Without the objects it was a record of, it is none.
        if !file.with_extension("").join(".config").is_file() {
            cache::remove(file)?;
        }
        let text = match file.is_file() {
            true => fs::read_to_string(file)?,
            false => String::new(),
        };
        for line in text.lines() {
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("built"), Some(id), _) => {
                    record.built.insert(id.to_owned());
                }
                (Some("found"), Some(id), Some(what)) => {
                    record.found.insert((id.to_owned(), what.to_owned()));
                }
                _ => {}
            }
        }
        Ok(record)
    }

    fn note(&mut self, kind: &str, id: &str, what: &str) -> Result<()> {
        let new = match kind {
            "built" => self.built.insert(id.to_owned()),
            _ => self.found.insert((id.to_owned(), what.to_owned())),
        };
        if new {
            let open = fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.file);
            open.and_then(|mut file| writeln!(file, "{kind} {id} {what}"))
                .with_context(|| format!("cannot write {}", self.file.display()))?;
        }
        Ok(())
    }

    /// What was found in a step and not in the tree as it came.
    fn new_in(&self, id: &str) -> Vec<&str> {
        let of = |step: &str, what: &str| self.found.contains(&(step.into(), what.into()));
        let found = self.found.iter();
        found
            .filter(|(step, what)| step == id && !of(BASE, what))
            .map(|(_, what)| what.as_str())
            .collect()
    }
}

/// Reads what compilers and checkers complain of.
#[derive(Default)]
struct Reader {
    /// rustc names the place in the next line.
    rust: Option<String>,
}

impl Reader {
    /// The finding that this line makes complete, without numbers of lines, which every patch moves.
    fn finding(&mut self, line: &str) -> Option<String> {
        if let Some(place) = line.trim_start().strip_prefix("--> ") {
            let what = self.rust.take()?;
            return Some(format!("{}: {what}", without_numbers(place)));
        }
        let starts = |words: &[&str]| words.iter().any(|&word| line.starts_with(word));
        self.rust = starts(&["warning: ", "error: ", "error["]).then(|| line.to_owned());
        let has = |word: &str| line.contains(word);
        let of_a_file = has(": warning: ") || has(": error: ");
        let of_a_script = starts(&["WARNING: ", "Warning: ", "ERROR: "]);
        (of_a_file || of_a_script).then(|| without_numbers(line))
    }
}

/// Of `../tree/mm/ksm.c:12:3: warning: this at line 12` it leaves `mm/ksm.c: warning: this at line 12`.
fn without_numbers(line: &str) -> String {
    let line = match line.find("/tree/") {
        Some(at) if !line[..at].contains(' ') => &line[at + "/tree/".len()..],
        _ => line,
    };
    let mut parts = line.split(':');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            text.push(':');
            text.push_str(part);
        }
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_from_other_lines_and_have_no_numbers() {
        let mut reader = Reader::default();
        let mut finding = |line: &str| reader.finding(line);
        for nothing in [
            "  CC      mm/ksm.o",
            "   12 |         int unused;",
            "1 warning generated.",
            "warning: unused variable: `x`",
            "  CHECK   ../tree/mm/ksm.c",
        ] {
            assert_eq!(finding(nothing), None, "{nothing}");
        }
        let c = "../tree/mm/ksm.c:12:3: warning: unused variable 'x' [-Wunused-variable]";
        let told = "mm/ksm.c: warning: unused variable 'x' [-Wunused-variable]";
        assert_eq!(finding(c).as_deref(), Some(told));
        let absolute = "/cache/steps/tree/mm/ksm.c:7:1: error: undefined identifier";
        let told = "mm/ksm.c: error: undefined identifier";
        assert_eq!(finding(absolute).as_deref(), Some(told));
        assert_eq!(finding("warning: unused variable: `x`"), None);
        let rust = finding("  --> ../tree/mm/sksm/node.rs:3:9");
        let told = "mm/sksm/node.rs: warning: unused variable: `x`";
        assert_eq!(rust.as_deref(), Some(told));
        // One line names one place; the notes that follow have places of their own.
        assert_eq!(finding("  --> ../tree/mm/sksm/node.rs:1:9"), None);
        let kernel_doc = "Warning: ../tree/mm/rmap.c:5 no description of 'vma'";
        assert!(finding(kernel_doc).is_some());
    }

    #[test]
    fn a_record_goes_on_and_knows_what_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("steps-01234567.record");
        let config = dir.path().join("steps-01234567/.config");
        cache::write(&config, "").unwrap();
        let mut record = Record::read(&file).unwrap();
        record
            .note("found", BASE, "mm/old.c: warning: old")
            .unwrap();
        record.note("built", "0", "").unwrap();
        record.note("found", "1", "mm/old.c: warning: old").unwrap();
        record.note("found", "1", "mm/new.c: warning: new").unwrap();
        drop(record);
        let record = Record::read(&file).unwrap();
        assert_eq!(record.new_in("1"), ["mm/new.c: warning: new"]);
        assert!(record.built.contains("0") && !record.built.contains("1"));
        // Whoever removed the objects has the steps built again.
        cache::remove(&config).unwrap();
        assert!(Record::read(&file).unwrap().built.is_empty());
    }
}
