//! What `estimate` tells; docs/json.md lists it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::nodes::Nodes;
use super::subject::Unread;
use crate::census::Census;

/// What puts processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The program's name
    Program,
    /// The unit of systemd, or else the control group
    Unit,
    /// The real user
    User,
    /// Nothing: each by itself
    Process,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            By::Program => "program",
            By::Unit => "unit",
            By::User => "user",
            By::Process => "process",
        }
    }
}

/// The kinds that are told apart, by the number that a page has of it: as `--what` has them.
pub const KINDS: [&str; 4] = ["text", "data", "heap", "stack"];

/// What merging would do to some pages.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Saving {
    /// Mappings of private pages.
    pub mapped_pages: u64,
    /// Physical pages behind them now.
    #[serde(serialize_with = "whole")]
    pub pages: f64,
    /// Physical pages that merging would free.
    #[serde(serialize_with = "whole")]
    pub saved_pages: f64,
}

impl Saving {
    /// In per cent; none of nothing.
    pub fn share(&self) -> Option<f64> {
        (self.pages > 0.0).then(|| 100.0 * self.saved_pages / self.pages)
    }
}

/// The nearest whole number: parts of pages that belong to several add up to it.
fn whole<S: serde::Serializer>(pages: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(pages.round() as u64)
}

/// Processes that belong together.
#[derive(Serialize, Default)]
pub struct Group {
    pub name: String,
    pub processes: usize,
    #[serde(flatten)]
    pub saving: Saving,
}

#[derive(Serialize)]
pub struct Report {
    pub page_size: usize,
    pub max_page_sharing: u64,
    /// What the machine's merge domain was taken for.
    pub domain: &'static str,
    /// Whether only pages of one NUMA node were taken for twins.
    pub within_nodes: bool,
    #[serde(skip)]
    pub nodes: Nodes,
    /// Where the processes of such a domain share.
    pub within_domains: Saving,
    /// Where the machine's is `user`.
    pub within_users: Saving,
    /// Where it is `global`.
    pub across_users: Saving,
    /// Of `within_domains`: by pages that hold nothing but zeros.
    pub zero: Saving,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<Saving>,
    pub kinds: BTreeMap<&'static str, Saving>,
    /// What `groups` are: `program`, `unit`, `user` or `process`.
    pub by: By,
    pub groups: Vec<Group>,
    pub processes: Vec<Row>,
    /// Huge pages in what was looked at, which a merge splits where it takes pages of them.
    pub huge_pages: u64,
    /// What does not merge, of all these processes.
    pub left: Census,
    pub unread: Vec<Unread>,
    /// Pages that went while they were looked at.
    pub vanished_pages: u64,
    /// Pages that other processes may hold as well, which cannot be told without CAP_SYS_ADMIN.
    pub maybe_shared_pages: u64,
    /// What was read; a frame that several processes have only once, where that can be told.
    pub read_bytes: u64,
    /// How long it took to read, hash and count all, on the clock and in all threads together.
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// The most memory that this command itself took.
    pub own_peak_bytes: u64,
}

#[derive(Serialize)]
pub struct Row {
    pub pid: u32,
    pub name: String,
    #[serde(flatten)]
    pub saving: Saving,
    /// Why it merges with nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<String>,
    /// Whether it is left alone, as it is not dumpable.
    pub undumpable: bool,
    #[serde(skip)]
    pub user: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_pages_are_told_as_whole_ones() {
        let saving = Saving {
            mapped_pages: 3,
            pages: 21_934.999_999_995_81,
            saved_pages: 0.4,
        };
        let text = serde_json::to_string(&saving).unwrap();
        assert_eq!(text, r#"{"mapped_pages":3,"pages":21935,"saved_pages":0}"#);
        assert_eq!(Saving::default().share(), None);
    }
}
