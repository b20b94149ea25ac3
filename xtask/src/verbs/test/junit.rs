//! What cargo-nextest writes about a run, in JUnit's XML.

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use crate::verbs::shared::report::{self, Verdict};

/// A test that has run.
#[derive(Debug, PartialEq)]
pub struct Case {
    /// With the package and the program that it is in.
    pub name: String,
    pub seconds: f64,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// Parts of it that it says cannot run here, each with the reason.
    pub skipped: Vec<(String, String)>,
}

pub fn parse(xml: &str) -> Result<Vec<Case>> {
    let document = Document::parse(xml).context("this is no XML")?;
    let cases = document.descendants();
    cases
        .filter(|node| node.has_tag_name("testcase"))
        .map(case)
        .collect()
}

fn case(node: Node) -> Result<Case> {
    let attribute = |name: &str| {
        let value = node.attribute(name);
        value.with_context(|| format!("a test has no {name}"))
    };
    let child = |name: &str| node.children().find(|child| child.has_tag_name(name));
    let failure = child("failure").or_else(|| child("error"));
    // Not what goes to standard output, where tests of this tool show results that they made up.
    let said = child("system-err").and_then(|said| said.text());
    let lines = said.into_iter().flat_map(str::lines);
    Ok(Case {
        name: format!("{}/{}", attribute("classname")?, attribute("name")?),
        seconds: attribute("time")?
            .parse()
            .context("a test's time is no number")?,
        failed: failure.map(|failure| {
            let reason = failure.attribute("message").or(failure.text());
            reason.unwrap_or_default().trim().to_owned()
        }),
        skipped: lines
            .filter_map(|line| match report::parse(line)? {
                (name, Verdict::Skipped(reason)) => Some((name, reason)),
                _ => None,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" time="0.5">
    <testsuite name="sksm" tests="2" disabled="0" errors="0" failures="1">
        <testcase name="a::good" classname="sksm" timestamp="2025-01-01T00:00:00.000+00:00" time="1.250">
            <system-out>running 1 test&#10;SKIP made-up: by a test&#10;</system-out>
            <system-err>
SKIP preload/node: it is not installed
</system-err>
        </testcase>
        <testcase name="a::bad" classname="sksm" time="0.004">
            <failure message="thread 'a::bad' panicked at src/lib.rs:1: left &lt; right" type="test failure">stdout</failure>
        </testcase>
    </testsuite>
    <testsuite name="sksm-cli::top" tests="1" failures="0">
        <testcase name="screen" classname="sksm-cli::top" time="0.000"/>
    </testsuite>
</testsuites>
"#;

    #[test]
    fn each_test_is_found() {
        let cases = parse(REPORT).unwrap();
        let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(
            names,
            ["sksm/a::good", "sksm/a::bad", "sksm-cli::top/screen"]
        );
        assert_eq!(cases[0].seconds, 1.25);
        assert_eq!(cases[0].failed, None);
        assert_eq!(
            cases[1].failed.as_deref(),
            Some("thread 'a::bad' panicked at src/lib.rs:1: left < right")
        );
        assert!(cases[1].skipped.is_empty());
    }

    #[test]
    fn parts_that_are_skipped_are_found() {
        let cases = parse(REPORT).unwrap();
        let skipped = [("preload/node", "it is not installed")];
        let skipped = skipped.map(|(name, reason)| (name.to_owned(), reason.to_owned()));
        assert_eq!(cases[0].skipped, skipped);
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        assert!(parse("error: no such command").is_err());
        assert!(parse("<testsuites><testcase name='a'/></testsuites>").is_err());
    }
}
