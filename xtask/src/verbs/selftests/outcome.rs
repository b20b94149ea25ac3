//! What one of the kernel's test programs says, in the ways in which they say it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// How a test ended, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    /// Failed, as the test's author expected.
    Xfail,
    Skip,
    Fail,
}

impl Status {
    pub const ALL: [Status; 4] = [Status::Pass, Status::Xfail, Status::Skip, Status::Fail];

    pub fn word(self) -> &'static str {
        match self {
            Status::Pass => "ok",
            Status::Xfail => "failed as expected",
            Status::Skip => "skipped",
            Status::Fail => "failed",
        }
    }
}

/// How a program reports its tests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dialect {
    /// `ok 1 NAME`, `not ok 2 NAME`.
    Tap,
    /// `Testing NAME... done`.
    Userfaultfd,
    /// `Run test: NAME`, and lines whose colour tells how it goes.
    Khugepaged,
    /// This line at the end. Its first process ends before it does, so its exit status says nothing.
    Says(&'static str),
    /// Only its exit status counts.
    Status,
}

/// Collects tests from lines.
pub struct Parser {
    dialect: Dialect,
    /// What the lines that follow are about.
    context: Option<String>,
    /// How often each name was used.
    seen: HashMap<String, u32>,
    open: Option<(String, Status)>,
    tests: Vec<(String, Status)>,
}

impl Parser {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            context: None,
            seen: HashMap::new(),
            open: None,
            tests: Vec::new(),
        }
    }

    /// Takes a line; returns the test that it ended or began.
    pub fn line(&mut self, line: &str) -> Option<&str> {
        match self.dialect {
            Dialect::Tap => self.tap(line),
            Dialect::Userfaultfd => self.userfaultfd(line),
            Dialect::Khugepaged => self.khugepaged(line),
            Dialect::Says(text) if line.trim() == text => self.add(text.to_owned(), Status::Pass),
            Dialect::Says(_) => None,
            Dialect::Status => None,
        }
    }

    /// The tests, each under a name of its own.
    pub fn finish(mut self) -> Vec<(String, Status)> {
        self.close();
        if let (Dialect::Says(text), []) = (self.dialect, &self.tests[..]) {
            self.add(text.to_owned(), Status::Fail);
        }
        self.tests
    }

    fn tap(&mut self, line: &str) -> Option<&str> {
        if let Some(context) = line.strip_prefix("# [RUN] ") {
            self.context = Some(context.trim().to_owned());
            return None;
        }
        let (name, status) = tap_result(line)?;
        // What such a line says then depends on how far the test came.
        let name = self.context.clone().unwrap_or(name);
        self.add(name, status)
    }

    fn userfaultfd(&mut self, line: &str) -> Option<&str> {
        let (name, result) = line.strip_prefix("Testing ")?.split_once("... ")?;
        let status = if result.ends_with("done") {
            Status::Pass
        } else if result.contains("skipped [") {
            Status::Skip
        } else {
            Status::Fail
        };
        self.add(name.to_owned(), status)
    }

    fn khugepaged(&mut self, line: &str) -> Option<&str> {
        if let Some(name) = line.strip_prefix("Run test: ") {
            self.close();
            self.open = Some((name.trim().to_owned(), Status::Pass));
        } else if let Some((_, status)) = &mut self.open {
            for (colour, meaning) in [("\x1b[33m", Status::Skip), ("\x1b[31m", Status::Fail)] {
                if line.contains(colour) {
                    *status = meaning.max(*status);
                }
            }
        }
        self.open.as_ref().map(|(name, _)| name.as_str())
    }

    fn close(&mut self) {
        if let Some((name, status)) = self.open.take() {
            self.add(name, status);
        }
    }

    fn add(&mut self, mut name: String, status: Status) -> Option<&str> {
        let count = self.seen.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            name += &format!(" #{count}");
        }
        self.tests.push((name, status));
        self.tests.last().map(|(name, _)| name.as_str())
    }
}

/// The name and the result in a line of the Test Anything Protocol, as kselftest.h writes it.
fn tap_result(line: &str) -> Option<(String, Status)> {
    let (failed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let (before, directive) = rest.split_once('#').unwrap_or((rest, ""));
    let (word, after) = directive
        .trim()
        .split_once(' ')
        .unwrap_or((directive.trim(), ""));
    let status = match word {
        _ if failed => Status::Fail,
        "SKIP" => Status::Skip,
        "XFAIL" => Status::Xfail,
        _ => Status::Pass,
    };
    // kselftest.h puts the name behind the directive, kselftest_harness.h before it.
    let name = match before.trim() {
        "" => after,
        name => name,
    };
    Some((steady(name), status))
}

/// The name without what differs from run to run.
fn steady(name: &str) -> String {
    // Some put what they measured into it.
    let measured = name.contains('%');
    name.split_whitespace()
        .map(|word| {
            if word.starts_with("0x") {
                "0x…"
            } else if measured && word.contains(|c: char| c.is_ascii_digit()) {
                "…"
            } else {
                word
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::*;

    fn parse(dialect: Dialect, text: &str) -> Vec<(String, Status)> {
        let mut parser = Parser::new(dialect);
        for line in text.lines() {
            parser.line(line);
        }
        parser.finish()
    }

    fn owned(tests: &[(&str, Status)]) -> Vec<(String, Status)> {
        tests
            .iter()
            .map(|&(name, status)| (name.to_owned(), status))
            .collect()
    }

    #[test]
    fn tap_as_kselftest_writes_it() {
        let text = "\
TAP version 13
1..9
ok 1 Locked
not ok 2 Locked
ok 3 # SKIP no swap here
ok 4 # XFAIL Leak from parent into child
not ok 5 # error what
ok 6 mdwe.prctl_flags
ok 7 migration.private_anon # SKIP need two nodes
ok 8 migration.shared_anon #  fine
ok 9 mapped at 0x7f001000  twice
ok 10 extra pages 25 (0.1%), faults 25.
# ok 10 commented
okay
ok then
# Totals: pass:3 fail:1 xfail:1 xpass:0 skip:2 error:1
";
        assert_eq!(
            parse(Dialect::Tap, text),
            owned(&[
                ("Locked", Pass),
                ("Locked #2", Fail),
                ("no swap here", Skip),
                ("Leak from parent into child", Xfail),
                ("what", Fail),
                ("mdwe.prctl_flags", Pass),
                ("migration.private_anon", Skip),
                ("migration.shared_anon", Pass),
                ("mapped at 0x… twice", Pass),
                ("extra pages … … faults …", Pass),
            ])
        );
    }

    #[test]
    fn what_runs_names_the_results_that_follow() {
        let text = "\
# [INFO] detected THP size: 2048 KiB
# [RUN] Basic COW after fork() ... with base page
ok 1 No leak from parent into child
# [RUN] Basic COW after fork() ... with THP (2048 kB)
ok 2 # SKIP Did not get a THP populated
# [RUN] test_prot_read
ok 3 MADV_POPULATE_READ with PROT_READ
not ok 4 MADV_POPULATE_WRITE with PROT_READ
";
        assert_eq!(
            parse(Dialect::Tap, text),
            owned(&[
                ("Basic COW after fork() ... with base page", Pass),
                ("Basic COW after fork() ... with THP (2048 kB)", Skip),
                ("test_prot_read", Pass),
                ("test_prot_read #2", Fail),
            ])
        );
    }

    #[test]
    fn userfaultfds_own_way() {
        let text = "\
Testing UFFDIO_API (with syscall)... done
Testing wp-fork on shmem... skipped [reason: feature missing]
Testing poison on anon... failed [reason: no SIGBUS]
Testing zeropage on hugetlb... ERROR: bind (errno=12, @uffd-unit-tests.c:7)
Userfaults unit tests: pass=1, skip=1, fail=1 (total=3)
";
        assert_eq!(
            parse(Dialect::Userfaultfd, text),
            owned(&[
                ("UFFDIO_API (with syscall)", Pass),
                ("wp-fork on shmem", Skip),
                ("poison on anon", Fail),
                ("zeropage on hugetlb", Fail),
            ])
        );
    }

    #[test]
    fn khugepageds_colours() {
        let text = "\
Save THP and khugepaged settings... \x1b[32mOK\x1b[0m

Run test: collapse_full (khugepaged:anon)
Collapse fully populated PTE table.... \x1b[32mOK\x1b[0m

Run test: collapse_empty (madvise:anon)
Do not collapse empty PTE table... \x1b[31mFail\x1b[0m
Allocate... \x1b[33mskip\x1b[0m
Run test: collapse_fork (madvise:anon)
Restore THP and khugepaged settings... \x1b[32mOK\x1b[0m
";
        assert_eq!(
            parse(Dialect::Khugepaged, text),
            owned(&[
                ("collapse_full (khugepaged:anon)", Pass),
                ("collapse_empty (madvise:anon)", Fail),
                ("collapse_fork (madvise:anon)", Pass),
            ])
        );
    }

    #[test]
    fn a_last_line_that_does_not_come() {
        let says = Dialect::Says("done (all tests OK)");
        let name = "done (all tests OK)";
        let text = "test 1 PASSED\ndone (all tests OK)\n";
        assert_eq!(parse(says, text), owned(&[(name, Pass)]));
        assert_eq!(parse(says, "test 1 PASSED\n"), owned(&[(name, Fail)]));
    }

    #[test]
    fn some_only_have_a_status() {
        assert!(parse(Dialect::Status, "ok 1 not really\n").is_empty());
    }
}
