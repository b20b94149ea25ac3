//! Counters as text for Prometheus, in two formats: OpenMetrics 1.0, and the older text format, which node_exporter's textfile
//! collector reads. They name a counter differently, so that no text is right in both.

use std::fmt::Write;

use crate::output;
use crate::stat::{Row, System};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Prometheus,
}

/// A file of sysfs: its name there, the metric's, and what it tells.
struct File {
    file: &'static str,
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only grows.
    Counter,
    Gauge,
    /// A gauge of bytes, with that at the end of its name.
    Bytes,
}

const fn file(file: &'static str, name: &'static str, kind: Kind, help: &'static str) -> File {
    File {
        file,
        name,
        kind,
        help,
    }
}

use Kind::{Bytes, Counter, Gauge};

const SKSM: &[File] = &[
    file(
        "pages_shared",
        "sksm_pages_shared",
        Gauge,
        "Merged pages with more than one mapping",
    ),
    file(
        "pages_sharing",
        "sksm_pages_sharing",
        Gauge,
        "Mappings beyond the first of shared pages: pages saved",
    ),
    file(
        "pages_unshared",
        "sksm_pages_unshared",
        Gauge,
        "Merged pages with one mapping",
    ),
    file(
        "pages_zero",
        "sksm_pages_zero",
        Gauge,
        "Zero pages placed by SKSM and KSM",
    ),
    file(
        "calls",
        "sksm_calls",
        Counter,
        "Calls that asked for merging",
    ),
    file(
        "pages_scanned",
        "sksm_pages_scanned",
        Counter,
        "Pages whose bytes were looked at",
    ),
    file(
        "pages_merged",
        "sksm_pages_merged",
        Counter,
        "Mappings redirected to a merged or zero page",
    ),
    file(
        "pages_published",
        "sksm_pages_published",
        Counter,
        "Pages that became merged pages",
    ),
    file(
        "pages_withdrawn",
        "sksm_pages_withdrawn",
        Counter,
        "Merged pages taken back by their only user",
    ),
    file(
        "pages_busy",
        "sksm_pages_busy",
        Counter,
        "Pages left alone because somebody else used them",
    ),
    file(
        "bytes_metadata",
        "sksm_metadata",
        Bytes,
        "Memory for nodes and reverse maps",
    ),
    file(
        "max_page_sharing",
        "sksm_max_page_sharing",
        Gauge,
        "How many mappings one merged page takes",
    ),
];

const KSM: &[File] = &[
    file(
        "run",
        "ksm_run",
        Gauge,
        "0: stopped, 1: the scanner runs, 2: stopped and unmerged",
    ),
    file(
        "pages_shared",
        "ksm_pages_shared",
        Gauge,
        "Shared pages of KSM",
    ),
    file(
        "pages_sharing",
        "ksm_pages_sharing",
        Gauge,
        "Mappings beyond the first of those: pages saved",
    ),
    file(
        "pages_unshared",
        "ksm_pages_unshared",
        Gauge,
        "Pages that are scanned again and again, and have no twin",
    ),
    file(
        "pages_volatile",
        "ksm_pages_volatile",
        Gauge,
        "Pages that change too fast",
    ),
    file(
        "ksm_zero_pages",
        "ksm_zero_pages",
        Gauge,
        "Zero pages placed by KSM and SKSM",
    ),
    file(
        "full_scans",
        "ksm_full_scans",
        Counter,
        "Scans of all that can merge",
    ),
    file(
        "pages_scanned",
        "ksm_pages_scanned",
        Counter,
        "Pages that were scanned",
    ),
    file(
        "max_page_sharing",
        "ksm_max_page_sharing",
        Gauge,
        "How many mappings one page of KSM takes",
    ),
];

/// A metric with its values, each with its labels.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: Vec<(String, u64)>,
}

impl Family {
    fn write(&self, format: Format, text: &mut String) {
        let unit = if self.kind == Bytes { "_bytes" } else { "" };
        let family = format!("{}{unit}", self.name);
        let sample = match self.kind {
            Counter => format!("{family}_total"),
            Gauge | Bytes => family.clone(),
        };
        let described = match format {
            Format::OpenMetrics => &family,
            Format::Prometheus => &sample,
        };
        let kind = match self.kind {
            Counter => "counter",
            Gauge | Bytes => "gauge",
        };
        // Writing to a String cannot fail.
        _ = writeln!(text, "# HELP {described} {}", self.help);
        _ = writeln!(text, "# TYPE {described} {kind}");
        if format == Format::OpenMetrics && self.kind == Bytes {
            _ = writeln!(text, "# UNIT {described} bytes");
        }
        for (labels, value) in &self.samples {
            _ = writeln!(text, "{sample}{labels} {value}");
        }
    }
}

pub fn text(system: &System, rows: &[Row], format: Format) -> String {
    let mut families = Vec::new();
    for (files, counters) in [(SKSM, &system.sksm), (KSM, &system.ksm)] {
        for file in files {
            let value = counters.iter().find_map(|counters| counters.get(file.file));
            families.extend(value.map(|value| Family {
                name: file.name,
                kind: file.kind,
                help: file.help,
                samples: vec![(String::new(), *value)],
            }));
        }
    }
    let process = |name, help, value: fn(&Row) -> u64| Family {
        name,
        kind: Bytes,
        help,
        samples: rows.iter().map(|row| (labels(row), value(row))).collect(),
    };
    if !rows.is_empty() {
        families.extend([
            process("sksm_process_resident", "Present memory", |row| {
                row.rss_bytes
            }),
            process(
                "sksm_process_anonymous",
                "Private memory, merged or not",
                |row| row.anonymous_bytes,
            ),
            process("sksm_process_merged", "Memory in merged pages", |row| {
                row.merged_bytes
            }),
        ]);
    }
    let mut text = String::new();
    for family in families {
        family.write(format, &mut text);
    }
    if format == Format::OpenMetrics {
        text += "# EOF\n";
    }
    text
}

fn labels(row: &Row) -> String {
    let name = output::clean(&row.name)
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("{{pid=\"{}\",name=\"{name}\"}}", row.pid)
}

#[cfg(test)]
mod tests {
    use sksm::SystemStatistics;

    use super::*;

    fn example() -> (System, Row) {
        let system = System {
            sksm: Some([("calls", 3), ("bytes_metadata", 96)].into()),
            ksm: Some([("ksm_zero_pages", 1)].into()),
        };
        let row = Row {
            pid: 7,
            name: "a \"b\\\n".into(),
            rss_bytes: 3,
            anonymous_bytes: 2,
            merged_bytes: 1,
        };
        (system, row)
    }

    const LABELS: &str = r#"{pid="7",name="a \"b\\\\n"}"#;

    #[test]
    fn openmetrics_is_as_specified() {
        let (system, row) = example();
        let expected = format!(
            "\
# HELP sksm_calls Calls that asked for merging
# TYPE sksm_calls counter
sksm_calls_total 3
# HELP sksm_metadata_bytes Memory for nodes and reverse maps
# TYPE sksm_metadata_bytes gauge
# UNIT sksm_metadata_bytes bytes
sksm_metadata_bytes 96
# HELP ksm_zero_pages Zero pages placed by KSM and SKSM
# TYPE ksm_zero_pages gauge
ksm_zero_pages 1
# HELP sksm_process_resident_bytes Present memory
# TYPE sksm_process_resident_bytes gauge
# UNIT sksm_process_resident_bytes bytes
sksm_process_resident_bytes{LABELS} 3
# HELP sksm_process_anonymous_bytes Private memory, merged or not
# TYPE sksm_process_anonymous_bytes gauge
# UNIT sksm_process_anonymous_bytes bytes
sksm_process_anonymous_bytes{LABELS} 2
# HELP sksm_process_merged_bytes Memory in merged pages
# TYPE sksm_process_merged_bytes gauge
# UNIT sksm_process_merged_bytes bytes
sksm_process_merged_bytes{LABELS} 1
# EOF
"
        );
        assert_eq!(text(&system, &[row], Format::OpenMetrics), expected);
    }

    /// There the type is that of the name in the sample's line.
    #[test]
    fn the_older_format_names_what_it_describes() {
        let (system, _) = example();
        let expected = "\
# HELP sksm_calls_total Calls that asked for merging
# TYPE sksm_calls_total counter
sksm_calls_total 3
# HELP sksm_metadata_bytes Memory for nodes and reverse maps
# TYPE sksm_metadata_bytes gauge
sksm_metadata_bytes 96
# HELP ksm_zero_pages Zero pages placed by KSM and SKSM
# TYPE ksm_zero_pages gauge
ksm_zero_pages 1
";
        assert_eq!(text(&system, &[], Format::Prometheus), expected);
    }

    /// The library knows them by the same names.
    #[test]
    fn no_counter_is_left_out() {
        for (files, counters) in [
            (SKSM, SystemStatistics::sksm()),
            (KSM, SystemStatistics::ksm()),
        ] {
            for (name, _) in counters.iter().flat_map(SystemStatistics::iter) {
                assert!(files.iter().any(|file| file.file == name), "{name}");
            }
        }
    }
}
