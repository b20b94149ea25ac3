//! Counters as text for Prometheus, in two formats: OpenMetrics 1.0, and the older text format, which node_exporter's textfile
//! collector reads. They name a counter differently, so that no text is right in both.

mod scanner;

use std::fmt::Write;

use crate::footprint::Footprint;
use crate::output;
use crate::scan::state::State;
use crate::store::Account;
use crate::system::System;

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
    /// A gauge of bytes, with that at the end of its name; likewise the rest.
    Bytes,
    Seconds,
    Ratio,
    /// Seconds that only grow.
    CounterOfSeconds,
}

impl Kind {
    fn counts(self) -> bool {
        matches!(self, Counter | CounterOfSeconds)
    }

    fn unit(self) -> Option<&'static str> {
        match self {
            Counter | Gauge => None,
            Bytes => Some("bytes"),
            Seconds | CounterOfSeconds => Some("seconds"),
            Ratio => Some("ratio"),
        }
    }
}

const fn file(file: &'static str, name: &'static str, kind: Kind, help: &'static str) -> File {
    File {
        file,
        name,
        kind,
        help,
    }
}

use Kind::{Bytes, Counter, CounterOfSeconds, Gauge, Ratio, Seconds};

const SKSM: &[File] = &[
    file(
        "pages_shared",
        "sksm_pages_shared",
        Gauge,
        "Merged pages with mappings that merges redirected to them",
    ),
    file(
        "pages_sharing",
        "sksm_pages_sharing",
        Gauge,
        "Mappings that merges redirected and that are still there: pages saved",
    ),
    file(
        "pages_unshared",
        "sksm_pages_unshared",
        Gauge,
        "Merged pages without such mappings",
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
        "pages_refused",
        "sksm_pages_refused",
        Counter,
        "Pages of addresses that advice passed over: locked, not dumpable, in no domain",
    ),
    file(
        "pages_swapped",
        "sksm_pages_swapped",
        Counter,
        "Mappings of merged pages that were swapped out",
    ),
    file(
        "pages_swapped_in",
        "sksm_pages_swapped_in",
        Counter,
        "Mappings that came back from swap space as mappings of merged pages",
    ),
    file(
        "pages_asleep",
        "sksm_pages_asleep",
        Gauge,
        "Merged pages that are in swap space only",
    ),
    file(
        "bytes_metadata",
        "sksm_metadata",
        Bytes,
        "Memory for nodes and reverse maps",
    ),
    file(
        "general_profit",
        "sksm_general_profit",
        Bytes,
        "Memory saved, zero pages included, less that of nodes and reverse maps",
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
        "general_profit",
        "ksm_general_profit",
        Bytes,
        "Memory saved by KSM, zero pages included, less that of its metadata",
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
    samples: Vec<(String, String)>,
}

impl Family {
    /// Of one value.
    fn one(name: &'static str, kind: Kind, help: &'static str, value: impl ToString) -> Self {
        Family {
            name,
            kind,
            help,
            samples: vec![(String::new(), value.to_string())],
        }
    }

    fn write(&self, format: Format, text: &mut String) {
        let unit = self.kind.unit();
        let family = match unit {
            Some(unit) => format!("{}_{unit}", self.name),
            None => self.name.into(),
        };
        let (sample, kind) = match self.kind.counts() {
            true => (format!("{family}_total"), "counter"),
            false => (family.clone(), "gauge"),
        };
        let described = match format {
            Format::OpenMetrics => &family,
            Format::Prometheus => &sample,
        };
        // Writing to a String cannot fail.
        _ = writeln!(text, "# HELP {described} {}", self.help);
        _ = writeln!(text, "# TYPE {described} {kind}");
        if let Some(unit) = unit.filter(|_| format == Format::OpenMetrics) {
            _ = writeln!(text, "# UNIT {described} {unit}");
        }
        for (labels, value) in &self.samples {
            _ = writeln!(text, "{sample}{labels} {value}");
        }
    }
}

fn of_store(account: &Account) -> [Family; 5] {
    [
        Family::one(
            "sksm_store_files",
            Gauge,
            "Files in the store of this user",
            account.files,
        ),
        Family::one(
            "sksm_store_held",
            Bytes,
            "Memory that the store takes",
            account.held_bytes,
        ),
        Family::one(
            "sksm_store_limit",
            Bytes,
            "Memory that the store may take",
            account.limit_bytes,
        ),
        Family::one(
            "sksm_store_mapped",
            Bytes,
            "What processes have mapped of the store, each for itself",
            account.mapped_bytes,
        ),
        Family::one(
            "sksm_store_saved",
            Bytes,
            "What processes have mapped of the store, less what it takes",
            account.saved_bytes,
        ),
    ]
}

pub fn text(
    system: &System,
    scanner: Option<&State>,
    store: Option<&Account>,
    footprints: &[Footprint],
    format: Format,
) -> String {
    let mut families = Vec::new();
    for (files, counters) in [(SKSM, &system.sksm), (KSM, &system.ksm)] {
        for file in files {
            let value = counters.iter().find_map(|counters| counters.get(file.file));
            families.extend(value.map(|value| Family::one(file.name, file.kind, file.help, value)));
        }
    }
    families.extend(scanner.into_iter().flat_map(scanner::families));
    families.extend(store.into_iter().flat_map(of_store));
    let process = |name, help, value: fn(&Footprint) -> Option<i64>| {
        let sample =
            |footprint: &Footprint| Some((labels(footprint), value(footprint)?.to_string()));
        let samples: Vec<_> = footprints.iter().filter_map(sample).collect();
        (!samples.is_empty()).then_some(Family {
            name,
            kind: Bytes,
            help,
            samples,
        })
    };
    let processes = [
        process("sksm_process_resident", "Present memory", |of| {
            Some(of.rss_bytes as i64)
        }),
        process(
            "sksm_process_anonymous",
            "Private memory, merged or not",
            |of| Some(of.anonymous_bytes as i64),
        ),
        process("sksm_process_merged", "Memory in merged pages", |of| {
            Some(of.merged_bytes as i64)
        }),
        process(
            "sksm_process_zero",
            "Memory that SKSM and KSM made the zero page",
            |of| of.zero_bytes,
        ),
        process(
            "sksm_process_profit",
            "What SKSM saves of it less metadata, zero pages left out",
            |of| of.profit_bytes,
        ),
    ];
    families.extend(processes.into_iter().flatten());
    let mut text = String::new();
    for family in families {
        family.write(format, &mut text);
    }
    if format == Format::OpenMetrics {
        text += "# EOF\n";
    }
    text
}

fn labels(footprint: &Footprint) -> String {
    let name = output::clean(&footprint.name)
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("{{pid=\"{}\",name=\"{name}\"}}", footprint.pid)
}

#[cfg(test)]
mod tests {
    use sksm::SystemStatistics;

    use super::*;

    fn example() -> (System, Footprint) {
        let system = System {
            sksm: Some([("calls", 3), ("general_profit", -96)].into()),
            ksm: Some([("ksm_zero_pages", 1)].into()),
        };
        let footprint = Footprint {
            pid: 7,
            name: "a \"b\\\n".into(),
            rss_bytes: 3,
            anonymous_bytes: 2,
            merged_bytes: 1,
            zero_bytes: Some(-4096),
            ..Footprint::default()
        };
        (system, footprint)
    }

    const LABELS: &str = r#"{pid="7",name="a \"b\\\\n"}"#;

    #[test]
    fn openmetrics_is_as_specified() {
        let (system, footprint) = example();
        let expected = format!(
            "\
# HELP sksm_calls Calls that asked for merging
# TYPE sksm_calls counter
sksm_calls_total 3
# HELP sksm_general_profit_bytes Memory saved, zero pages included, less that of nodes and reverse maps
# TYPE sksm_general_profit_bytes gauge
# UNIT sksm_general_profit_bytes bytes
sksm_general_profit_bytes -96
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
# HELP sksm_process_zero_bytes Memory that SKSM and KSM made the zero page
# TYPE sksm_process_zero_bytes gauge
# UNIT sksm_process_zero_bytes bytes
sksm_process_zero_bytes{LABELS} -4096
# EOF
"
        );
        assert_eq!(
            text(&system, None, None, &[footprint], Format::OpenMetrics),
            expected
        );
    }

    /// There the type is that of the name in the sample's line.
    #[test]
    fn the_older_format_names_what_it_describes() {
        let (system, _) = example();
        let expected = "\
# HELP sksm_calls_total Calls that asked for merging
# TYPE sksm_calls_total counter
sksm_calls_total 3
# HELP sksm_general_profit_bytes Memory saved, zero pages included, less that of nodes and reverse maps
# TYPE sksm_general_profit_bytes gauge
sksm_general_profit_bytes -96
# HELP ksm_zero_pages Zero pages placed by KSM and SKSM
# TYPE ksm_zero_pages gauge
ksm_zero_pages 1
";
        assert_eq!(text(&system, None, None, &[], Format::Prometheus), expected);
    }

    #[test]
    fn what_is_saved_may_be_negative() {
        let system = System {
            sksm: None,
            ksm: None,
        };
        let account = Account {
            files: 1,
            held_bytes: 4096,
            limit_bytes: 1 << 20,
            mapped_bytes: 0,
            saved_bytes: -4096,
        };
        let text = text(&system, None, Some(&account), &[], Format::Prometheus);
        assert!(
            text.contains("# TYPE sksm_store_saved_bytes gauge\nsksm_store_saved_bytes -4096\n")
        );
        assert_eq!(text.matches("# HELP sksm_store_").count(), 5);
    }

    /// The rules for Prometheus and the dashboard of Grafana name nothing else.
    #[test]
    fn what_a_fleet_watches_is_told() {
        let all = |files: &[File]| files.iter().map(|file| (file.file, 1)).collect();
        let system = System {
            sksm: Some(all(SKSM)),
            ksm: Some(all(KSM)),
        };
        let state = crate::scan::state::tests::example();
        let text = text(&system, Some(&state), None, &[], Format::Prometheus);
        let told: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for file in [
            include_str!("../../../packaging/prometheus/sksm.rules.yml"),
            include_str!("../../../packaging/grafana/sksm.json"),
        ] {
            let words = file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
            let names = |word: &&str| word.starts_with("sksm_") || word.starts_with("ksm_");
            let mut found = 0;
            for name in words.filter(names).map(|name| name.trim_end_matches(':')) {
                assert!(told.contains(&name), "{name}");
                found += 1;
            }
            assert!(found > 10, "only {found}");
        }
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
