//! The recorded results, `docs/selftests.json`, and the same to read, `docs/selftests.md`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    outcome::Status,
    programs::{LEFT_OUT, Program},
};
use crate::{
    ground::{cache, project::Project},
    kernel::Base,
};

/// What one program said in one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What its exit status means.
    pub end: Status,
    /// What it ended with, if neither passed nor skipped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Its tests, by how they ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tests: BTreeMap<Status, Vec<String>>,
}

/// A program's name, and how it fared.
pub type Column = BTreeMap<String, Entry>;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// As in `6.12.3`.
    pub kernel: String,
    /// What counts: a test is as good here as in the worst of several runs.
    pub unpatched: Column,
    /// The last results with the engine; nothing is compared with them.
    pub patched: Column,
}

impl Entry {
    pub fn new(end: Status, why: String, tests: Vec<(String, Status)>) -> Self {
        let mut by_status: BTreeMap<Status, Vec<String>> = BTreeMap::new();
        for (name, status) in tests {
            by_status.entry(status).or_default().push(name);
        }
        Self {
            end,
            why,
            tests: by_status,
        }
    }

    fn status_of(&self, test: &str) -> Option<Status> {
        self.tests()
            .find(|(name, _)| *name == test)
            .map(|(_, status)| status)
    }

    fn tests(&self) -> impl Iterator<Item = (&str, Status)> {
        self.tests
            .iter()
            .flat_map(|(&status, names)| names.iter().map(move |name| (name.as_str(), status)))
    }

    /// As in `12 ok, 1 skipped`, or of a program that only has a status `ok`.
    pub fn summary(&self) -> String {
        let mut parts: Vec<String> = self
            .tests
            .iter()
            .map(|(status, names)| format!("{} {}", names.len(), status.word()))
            .collect();
        if parts.is_empty() {
            parts.push(self.end.word().to_owned());
        }
        if !self.why.is_empty() {
            parts.push(self.why.clone());
        }
        parts.join(", ")
    }

    /// What ended worse here than there.
    pub fn worse_than(&self, there: &Entry) -> Vec<String> {
        self.compare(there, true)
    }

    /// The same, of programs from kernels of different versions: a test that only one of them has may be new, gone, or
    /// called otherwise. That a program came to a bad end counts all the same, if no such test explains it.
    pub fn worse_than_other_version(&self, there: &Entry) -> Vec<String> {
        self.compare(there, false)
    }

    fn compare(&self, there: &Entry, same_tests: bool) -> Vec<String> {
        let mut worse = Vec::new();
        let mut new_failed = false;
        for (test, then) in there.tests() {
            match self.status_of(test) {
                Some(now) if now <= then => {}
                Some(now) => {
                    worse.push(format!("{test}: {}, unpatched {}", now.word(), then.word()))
                }
                None if then == Status::Fail || !same_tests => {}
                None => worse.push(format!(
                    "{test}: did not come to it, unpatched {}",
                    then.word()
                )),
            }
        }
        for (test, now) in self.tests() {
            if now == Status::Fail && there.status_of(test).is_none() {
                new_failed = true;
                if same_tests {
                    worse.push(format!(
                        "{test}: failed, and unpatched there was no such test"
                    ));
                }
            }
        }
        // Where tests failed the status only repeats it.
        let explained = (new_failed || !worse.is_empty()) && self.why == "status 1";
        if self.end > there.end && !explained {
            let why = if self.why.is_empty() {
                self.end.word()
            } else {
                &self.why
            };
            worse.push(format!(
                "the program: {why}, unpatched {}",
                there.end.word()
            ));
        }
        worse
    }

    /// Of each test the worse of two runs.
    pub fn worst(&self, other: &Entry) -> Entry {
        let mut tests: Vec<(String, Status)> = Vec::new();
        for (test, status) in self.tests() {
            let other = other.status_of(test).unwrap_or(Status::Fail);
            tests.push((test.to_owned(), status.max(other)));
        }
        for (test, _) in other.tests() {
            if self.status_of(test).is_none() {
                tests.push((test.to_owned(), Status::Fail));
            }
        }
        let ending = if other.end > self.end { other } else { self };
        Entry::new(ending.end, ending.why.clone(), tests)
    }
}

/// Each base has its own.
fn file(base: Base, extension: &str) -> String {
    format!("{}.{extension}", base.named("selftests"))
}

impl Table {
    /// The recorded one of a base.
    pub fn path(project: &Project, base: Base) -> PathBuf {
        project.root.join("docs").join(file(base, "json"))
    }

    /// That of the tree that it is of.
    pub fn base(&self) -> Base {
        Base::of_version(&self.kernel).unwrap_or_default()
    }

    pub fn load(project: &Project, base: Base) -> Result<Self> {
        let path = Self::path(project, base);
        let text = fs::read_to_string(&path).with_context(|| {
            format!(
                "no recorded table in {}; `cargo xtask selftests{} --record` makes it",
                path.display(),
                base.option()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is no table", path.display()))
    }

    /// Writes both files.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        let base = self.base();
        cache::write(&dir.join(file(base, "json")), json)?;
        cache::write(&dir.join(file(base, "md")), self.markdown())
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let option = self.base().option();
        let json = file(self.base(), "json");
        let mut text = format!(
            "# The kernel's own tests of memory management\n\n\
             `cargo xtask selftests{option} --record` made this page and `{json}` beside it, which `cargo xtask test{option}` and\n\
             `cargo xtask selftests{option}` compare with. The programs are `tools/testing/selftests/mm` of Linux {}, the kernel\n\
             is `x86_64` under QEMU with 3 CPUs and two memory nodes: with the engine, and as its authors left it with\n\
             the same configuration. Unpatched, the worst of its runs counts.\n\n\
             | program | unpatched | patched |\n| --- | --- | --- |\n",
            self.kernel
        );
        // An unpatched kernel has nothing to compare the series' own with.
        let compared = Program::all(self.base()).filter(|program| !program.own);
        for name in compared.map(|program| program.name()) {
            let cell = |column: &Column| column.get(&name).map_or("not run".into(), Entry::summary);
            let _ = writeln!(
                text,
                "| `{name}` | {} | {} |",
                cell(&self.unpatched),
                cell(&self.patched)
            );
        }
        let total = |column: &Column| {
            Status::ALL
                .iter()
                .map(|&status| {
                    let count: usize = column.values().map(|entry| entry.count(status)).sum();
                    format!("{count} {}", status.word())
                })
                .collect::<Vec<_>>()
                .join(", ")
        };
        let _ = writeln!(
            text,
            "| **all** | {} | {} |",
            total(&self.unpatched),
            total(&self.patched)
        );
        let mut worse = String::new();
        for (name, entry) in &self.patched {
            if let Some(there) = self.unpatched.get(name) {
                for line in entry.worse_than(there) {
                    let _ = writeln!(worse, "- `{name}`: {line}");
                }
            }
        }
        if worse.is_empty() {
            worse.push_str("Nothing.\n");
        }
        let _ = write!(text, "\n## Worse with the engine\n\n{worse}");
        text += "\n## Fails on both\n\n";
        let mut failing = String::new();
        for (name, there) in &self.unpatched {
            let Some(here) = self.patched.get(name) else {
                continue;
            };
            for (test, status) in there.tests() {
                if status == Status::Fail && here.status_of(test) == Some(Status::Fail) {
                    let _ = writeln!(failing, "- `{name}`: {test}");
                }
            }
            if there.tests.is_empty() && there.end == Status::Fail && here.end == Status::Fail {
                let _ = writeln!(failing, "- `{name}`: {}", there.why);
            }
        }
        if failing.is_empty() {
            failing.push_str("Nothing.\n");
        }
        text += &failing;
        text += "\n## Left out\n\n";
        for (name, why) in LEFT_OUT {
            let _ = writeln!(text, "- `{name}`: {why}");
        }
        text
    }
}

impl Entry {
    /// Tests that ended so; a program that only has a status is a test of its own.
    pub fn count(&self, status: Status) -> usize {
        if self.tests.is_empty() {
            usize::from(self.end == status)
        } else {
            self.tests.get(&status).map_or(0, Vec::len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::*;

    fn entry(end: Status, why: &str, tests: &[(&str, Status)]) -> Entry {
        let tests = tests
            .iter()
            .map(|&(name, status)| (name.to_owned(), status))
            .collect();
        Entry::new(end, why.into(), tests)
    }

    #[test]
    fn equal_and_better_is_fine() {
        let there = entry(
            Fail,
            "status 1",
            &[("a", Pass), ("b", Fail), ("c", Skip), ("d", Xfail)],
        );
        assert!(there.worse_than(&there).is_empty());
        let here = entry(
            Pass,
            "",
            &[
                ("a", Pass),
                ("b", Pass),
                ("c", Xfail),
                ("d", Pass),
                ("e", Pass),
            ],
        );
        assert!(here.worse_than(&there).is_empty());
        // What failed there need not be reached here.
        let here = entry(Fail, "status 1", &[("a", Pass), ("c", Skip), ("d", Xfail)]);
        assert!(here.worse_than(&there).is_empty());
    }

    #[test]
    fn a_planted_regression_is_found() {
        let there = entry(Pass, "", &[("a", Pass), ("b", Pass), ("c", Skip)]);
        for (here, expected) in [
            (
                entry(Fail, "status 1", &[("a", Fail), ("b", Pass), ("c", Skip)]),
                "a: failed, unpatched ok",
            ),
            (
                entry(Pass, "", &[("a", Pass), ("b", Skip), ("c", Skip)]),
                "b: skipped, unpatched ok",
            ),
            (
                entry(Pass, "", &[("a", Pass), ("c", Skip)]),
                "b: did not come to it, unpatched ok",
            ),
            (
                entry(
                    Pass,
                    "",
                    &[("a", Pass), ("b", Pass), ("c", Skip), ("d", Fail)],
                ),
                "d: failed, and unpatched there was no such test",
            ),
            (
                entry(
                    Fail,
                    "the kernel panicked",
                    &[("a", Pass), ("b", Pass), ("c", Skip)],
                ),
                "the program: the kernel panicked, unpatched ok",
            ),
        ] {
            assert_eq!(here.worse_than(&there), [expected]);
        }
        let died = entry(Fail, "the kernel panicked", &[("a", Pass), ("c", Skip)]);
        assert_eq!(died.worse_than(&there).len(), 2);
        let only_status = entry(Fail, "not done after 60 s", &[]);
        assert_eq!(only_status.worse_than(&entry(Pass, "", &[])).len(), 1);
        assert_eq!(only_status.worse_than(&entry(Skip, "", &[])).len(), 1);
    }

    #[test]
    fn a_test_of_another_version_is_no_regression_by_itself() {
        let there = entry(Pass, "", &[("a", Pass), ("gone", Pass)]);
        for here in [
            entry(Pass, "", &[("a", Pass), ("renamed", Pass)]),
            entry(Fail, "status 1", &[("a", Pass), ("new", Fail)]),
        ] {
            assert!(here.worse_than_other_version(&there).is_empty());
            assert!(!here.worse_than(&there).is_empty());
        }
        for (here, expected) in [
            (
                entry(Fail, "status 1", &[("a", Fail)]),
                "a: failed, unpatched ok",
            ),
            // It gave up before it came to the others.
            (
                entry(Fail, "status 1", &[("a", Pass)]),
                "the program: status 1, unpatched ok",
            ),
            (
                entry(Fail, "the kernel panicked", &[("a", Pass), ("new", Fail)]),
                "the program: the kernel panicked, unpatched ok",
            ),
        ] {
            assert_eq!(here.worse_than_other_version(&there), [expected]);
        }
    }

    #[test]
    fn the_worst_of_several_runs_counts() {
        let one = entry(Pass, "", &[("a", Pass), ("b", Pass), ("c", Pass)]);
        let two = entry(Fail, "status 1", &[("a", Pass), ("b", Fail), ("d", Pass)]);
        let worst = entry(
            Fail,
            "status 1",
            &[("a", Pass), ("b", Fail), ("c", Fail), ("d", Fail)],
        );
        assert_eq!(one.worst(&two), worst);
        assert_eq!(worst.worst(&one), worst);
        assert_eq!(one.worst(&one), one);
    }

    #[test]
    fn summaries() {
        let tests = [("a", Pass), ("b", Pass), ("c", Fail)];
        assert_eq!(
            entry(Fail, "status 1", &tests).summary(),
            "2 ok, 1 failed, status 1"
        );
        assert_eq!(entry(Skip, "", &[]).summary(), "skipped");
    }

    #[test]
    fn the_table_survives_its_file() {
        let column = Column::from([(
            "cow".to_owned(),
            entry(Pass, "", &[("a", Pass), ("b", Skip)]),
        )]);
        let table = Table {
            kernel: "6.12.3".into(),
            unpatched: column.clone(),
            patched: column,
        };
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
        assert!(
            table
                .markdown()
                .contains("| `cow` | 1 ok, 1 skipped | 1 ok, 1 skipped |")
        );
    }

    #[test]
    fn the_recorded_table_has_what_every_test_run_compares_and_its_page_agrees() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let project = Project {
            root: root.into(),
            target: root.into(),
            cache: root.into(),
        };
        let table = Table::load(&project, Base::default()).unwrap();
        for program in Program::all(Base::default()).filter(|program| !program.long && !program.own)
        {
            assert!(
                table.unpatched.contains_key(&program.name()),
                "{}",
                program.name()
            );
        }
        let page = fs::read_to_string(root.join("docs/selftests.md")).unwrap();
        assert_eq!(page, table.markdown());
    }
}
