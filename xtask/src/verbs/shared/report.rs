//! What tests report, and the tally over all of them.

use std::path::{Path, PathBuf};

use crate::terminal::table::Table;

/// How one test ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// With what the test says about it, its time first.
    Passed(String),
    Failed(String),
    Skipped(String),
}

/// A line of the protocol: `ok NAME (TIME)[: NOTE]`, `FAIL NAME: REASON` or `SKIP NAME: REASON`.
pub fn parse(line: &str) -> Option<(String, Verdict)> {
    let (word, rest) = line.trim_end().split_once(' ')?;
    let (name, text) = match word {
        "ok" => rest.split_once(' ').unwrap_or((rest, "")),
        "FAIL" | "SKIP" => rest.split_once(": ")?,
        _ => return None,
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    let text = text.to_owned();
    let verdict = match word {
        "ok" => Verdict::Passed(text),
        "FAIL" => Verdict::Failed(text),
        _ => Verdict::Skipped(text),
    };
    Some((name.to_owned(), verdict))
}

/// The time that a test's note begins with.
fn seconds(note: &str) -> Option<f64> {
    note.strip_prefix('(')?.split_once(" s)")?.0.parse().ok()
}

struct Failure {
    name: String,
    reason: String,
    log: Option<PathBuf>,
}

/// How many of the longest tests are named at the end.
const LONGEST: usize = 10;

/// How tests ended.
#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// What has passed before and cannot have changed.
    not_again: usize,
}

#[derive(Default)]
pub struct Tally {
    /// By what the names begin with, in the order they came in.
    groups: Vec<(String, Counts)>,
    failures: Vec<Failure>,
    /// In seconds, of those whose time is known.
    times: Vec<(f64, String)>,
}

impl Tally {
    /// Counts a test, and returns the line that tells of it.
    pub fn add(&mut self, name: &str, verdict: Verdict, log: Option<&Path>) -> String {
        match verdict {
            Verdict::Passed(note) => {
                self.counts(name).passed += 1;
                if let Some(seconds) = seconds(&note) {
                    self.add_time(name, seconds);
                }
                format!("ok   {name} {note}").trim_end().to_owned()
            }
            Verdict::Skipped(reason) => {
                self.counts(name).skipped += 1;
                format!("SKIP {name}: {reason}")
            }
            Verdict::Failed(reason) => {
                self.counts(name).failed += 1;
                let first = reason.lines().next().unwrap_or_default();
                let line = format!("FAIL {name}: {first}");
                self.failures.push(Failure {
                    name: name.into(),
                    reason,
                    log: log.map(Path::to_owned),
                });
                line
            }
        }
    }

    /// Counts one that some other runner has run.
    pub fn add_passed(&mut self, name: &str) {
        self.counts(name).passed += 1;
    }

    /// Counts tests of this program that need not run.
    pub fn add_not_again(&mut self, program: &str, count: usize) {
        self.counts(program).not_again += count;
    }

    /// Of a kernel's program, as in `um/sksm-abi`, or of all checks of the host.
    fn counts(&mut self, name: &str) -> &mut Counts {
        let parts = if name.starts_with("host/") { 1 } else { 2 };
        let group: Vec<_> = name.split('/').take(parts).collect();
        let group = group.join("/");
        let at = match self.groups.iter().position(|(of, _)| *of == group) {
            Some(at) => at,
            None => {
                self.groups.push((group, Counts::default()));
                self.groups.len() - 1
            }
        };
        &mut self.groups[at].1
    }

    fn all(&self) -> Counts {
        let sum = |of: fn(&Counts) -> usize| self.groups.iter().map(|(_, counts)| of(counts)).sum();
        Counts {
            passed: sum(|counts| counts.passed),
            failed: sum(|counts| counts.failed),
            skipped: sum(|counts| counts.skipped),
            not_again: sum(|counts| counts.not_again),
        }
    }

    pub fn add_time(&mut self, name: &str, seconds: f64) {
        self.times.push((seconds, name.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Nothing failed, and something ran or need not.
    pub fn success(&self) -> bool {
        let all = self.all();
        self.failures.is_empty() && all.passed + all.not_again > 0
    }

    /// What ran where, and how it ended; nothing if that was in one place only.
    pub fn by_program(&self) -> String {
        if self.groups.len() < 2 {
            return String::new();
        }
        let mut table = Table::new(["", "passed", "failed", "skipped", "not run again"]);
        for (group, counts) in &self.groups {
            let numbers = [
                counts.passed,
                counts.failed,
                counts.skipped,
                counts.not_again,
            ];
            let [passed, failed, skipped, not_again] = numbers.map(|number| number.to_string());
            table.row([group.clone(), passed, failed, skipped, not_again]);
        }
        format!("\n{}\n", table.render())
    }

    /// The tests that took longest, with their times; nothing if none took a second.
    pub fn longest(&self) -> String {
        let mut times: Vec<_> = self.times.iter().filter(|(time, _)| *time >= 1.0).collect();
        times.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut text = String::new();
        for (seconds, name) in times.iter().take(LONGEST) {
            text += &format!("{seconds:7.1} s {name}\n");
        }
        if !text.is_empty() {
            text.insert_str(0, "\nthe longest:\n");
        }
        text
    }

    /// Each failure with its log, then the closing line.
    pub fn closing(&self) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            text += &format!("\nFAIL {}\n", failure.name);
            for line in failure.reason.lines() {
                text += &format!("     {line}\n");
            }
            if let Some(log) = &failure.log {
                text += &format!("     log: {}\n", log.display());
            }
        }
        if !text.is_empty() {
            text.push('\n');
        }
        // On a line of its own: the last one has a form that machines read.
        let all = self.all();
        if all.not_again > 0 {
            text += &format!(
                "{} not run again, as nothing in them has changed since they passed (--again runs them)\n",
                all.not_again
            );
        }
        text += &format!("{} passed, {} failed", all.passed, all.failed);
        if all.skipped > 0 {
            text += &format!(", {} skipped", all.skipped);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_protocol() {
        let passed = |note: &str| Verdict::Passed(note.into());
        assert_eq!(
            parse("ok two-pages (0.12 s)"),
            Some(("two-pages".into(), passed("(0.12 s)")))
        );
        assert_eq!(
            parse("ok two-pages (0.12 s): 3 of 4 moved\n"),
            Some(("two-pages".into(), passed("(0.12 s): 3 of 4 moved")))
        );
        assert_eq!(
            parse("FAIL a: b: c"),
            Some(("a".into(), Verdict::Failed("b: c".into())))
        );
        assert_eq!(
            parse("SKIP a: no swap here"),
            Some(("a".into(), Verdict::Skipped("no swap here".into())))
        );
        for noise in [
            "",
            "ok",
            "ok ",
            "okay then",
            "FAIL",
            "FAIL a",
            "FAIL a b: c",
            "x y: z",
        ] {
            assert_eq!(parse(noise), None, "{noise}");
        }
    }

    #[test]
    fn the_closing_line_counts_everything() {
        let mut tally = Tally::default();
        assert_eq!(tally.closing(), "0 passed, 0 failed");
        assert!(!tally.success());
        tally.add("host/fmt", Verdict::Passed(String::new()), None);
        assert!(tally.success());
        tally.add_passed("host/test/a");
        tally.add_passed("host/test/b");
        assert_eq!(tally.closing(), "3 passed, 0 failed");
        tally.add("um/p/s", Verdict::Skipped("why".into()), None);
        assert_eq!(tally.closing(), "3 passed, 0 failed, 1 skipped");
        let line = tally.add(
            "um/p/f",
            Verdict::Failed("one\ntwo".into()),
            Some(Path::new("/log")),
        );
        assert_eq!(line, "FAIL um/p/f: one");
        assert!(!tally.success());
        let closing = tally.closing();
        assert!(closing.starts_with("\nFAIL um/p/f\n     one\n     two\n     log: /log\n"));
        assert_eq!(
            closing.lines().last(),
            Some("3 passed, 1 failed, 1 skipped")
        );
    }

    #[test]
    fn the_longest_are_named_with_their_times() {
        let mut tally = Tally::default();
        let passed = |note: &str| Verdict::Passed(note.into());
        tally.add("um/p/short", passed("(0.99 s)"), None);
        tally.add("host/timeless", passed(""), None);
        assert_eq!(tally.longest(), "");
        for seconds in 1..=LONGEST {
            let note = format!("({seconds} s): as unpatched");
            tally.add(&format!("um/p/{seconds}"), passed(&note), None);
        }
        tally.add_time("host/test", 60.0);
        let longest = tally.longest();
        let lines: Vec<_> = longest.trim_start().lines().collect();
        assert_eq!(lines.len(), 1 + LONGEST);
        assert_eq!(lines[1], "   60.0 s host/test");
        assert_eq!(lines[2], "   10.0 s um/p/10");
        assert!(!longest.contains("um/p/1\n"), "{longest}");
    }

    #[test]
    fn each_program_in_each_kernel_has_its_row() {
        let mut tally = Tally::default();
        tally.add_passed("host/test/a");
        tally.add("host/fmt", Verdict::Passed(String::new()), None);
        assert_eq!(tally.by_program(), "");
        tally.add("um-7.3/p/a/b", Verdict::Skipped("why".into()), None);
        tally.add("um-7.3/p/c", Verdict::Failed("why".into()), None);
        tally.add_not_again("um/p", 3);
        let rows: Vec<Vec<String>> = tally
            .by_program()
            .lines()
            .map(|row| row.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert!(
            rows.contains(&["host", "2", "0", "0", "0"].map(String::from).into()),
            "{rows:?}"
        );
        assert!(
            rows.contains(&["um-7.3/p", "0", "1", "1", "0"].map(String::from).into()),
            "{rows:?}"
        );
        assert!(
            rows.contains(&["um/p", "0", "0", "0", "3"].map(String::from).into()),
            "{rows:?}"
        );
    }

    #[test]
    fn what_need_not_run_is_counted_for_itself() {
        let mut tally = Tally::default();
        tally.add_not_again("um/sksm-abi", 342);
        assert!(tally.success() && !tally.is_empty());
        let closing = tally.closing();
        let lines: Vec<_> = closing.lines().collect();
        assert!(lines[0].starts_with("342 not run again"), "{closing}");
        assert_eq!(lines[1..], ["0 passed, 0 failed"]);
    }
}
