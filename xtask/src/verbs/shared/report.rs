//! What tests report, and the tally over all of them.

use std::path::{Path, PathBuf};

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

#[derive(Default)]
pub struct Tally {
    passed: usize,
    skipped: usize,
    /// What has passed before and cannot have changed.
    not_again: usize,
    failures: Vec<Failure>,
    /// In seconds, of those whose time is known.
    times: Vec<(f64, String)>,
}

impl Tally {
    /// Counts a test, and returns the line that tells of it.
    pub fn add(&mut self, name: &str, verdict: Verdict, log: Option<&Path>) -> String {
        match verdict {
            Verdict::Passed(note) => {
                self.passed += 1;
                if let Some(seconds) = seconds(&note) {
                    self.add_time(name, seconds);
                }
                format!("ok   {name} {note}").trim_end().to_owned()
            }
            Verdict::Skipped(reason) => {
                self.skipped += 1;
                format!("SKIP {name}: {reason}")
            }
            Verdict::Failed(reason) => {
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

    /// Counts tests that some other runner has run.
    pub fn add_passed(&mut self, count: usize) {
        self.passed += count;
    }

    /// Counts tests that need not run.
    pub fn add_not_again(&mut self, count: usize) {
        self.not_again += count;
    }

    pub fn add_time(&mut self, name: &str, seconds: f64) {
        self.times.push((seconds, name.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.passed + self.skipped + self.not_again + self.failures.len() == 0
    }

    /// Nothing failed, and something ran or need not.
    pub fn success(&self) -> bool {
        self.failures.is_empty() && self.passed + self.not_again > 0
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
        if self.not_again > 0 {
            text += &format!(
                "{} not run again, as nothing in them has changed since they passed (--again runs them)\n",
                self.not_again
            );
        }
        text += &format!("{} passed, {} failed", self.passed, self.failures.len());
        if self.skipped > 0 {
            text += &format!(", {} skipped", self.skipped);
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
        tally.add_passed(2);
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
    fn what_need_not_run_is_counted_for_itself() {
        let mut tally = Tally::default();
        tally.add_not_again(342);
        assert!(tally.success() && !tally.is_empty());
        let closing = tally.closing();
        let lines: Vec<_> = closing.lines().collect();
        assert!(lines[0].starts_with("342 not run again"), "{closing}");
        assert_eq!(lines[1..], ["0 passed, 0 failed"]);
    }
}
