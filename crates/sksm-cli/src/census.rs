//! What a process has that merging leaves as it is, and why: from /proc/PID/smaps and status.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;
use sksm::{Kinds, maps};

use crate::output;

/// In bytes; of private memory, only of the kinds that were asked for.
#[derive(Serialize, Default, Clone, Debug, PartialEq)]
pub struct Census {
    /// Private memory that only its process may merge, each counted by the first of its reasons.
    pub locked_bytes: u64,
    pub undumped_bytes: u64,
    pub wiped_on_fork_bytes: u64,
    /// Present memory of shared mappings, which never merges, and what has the most of it.
    pub shared_bytes: u64,
    #[serde(serialize_with = "names")]
    pub shared_files: BTreeMap<String, u64>,
    /// Pages of hugetlbfs.
    pub hugetlb_bytes: u64,
    /// Swapped out of private mappings.
    pub swapped_bytes: u64,
    /// In use by a device or the kernel, for long.
    pub pinned_bytes: u64,
    /// In huge pages, of private memory that others may merge.
    pub huge_bytes: u64,
}

/// The largest of them, the first one first.
fn names<S: serde::Serializer>(files: &BTreeMap<String, u64>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(largest(files))
}

fn largest(files: &BTreeMap<String, u64>) -> Vec<&str> {
    let mut all: Vec<_> = files.iter().collect();
    all.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    all.into_iter()
        .take(3)
        .map(|(name, _)| name.as_str())
        .collect()
}

/// One mapping.
#[derive(Default)]
struct Mapping {
    wanted: bool,
    shared: bool,
    name: String,
    fields: BTreeMap<&'static str, u64>,
}

const FIELDS: [&str; 6] = [
    "Rss",
    "Anonymous",
    "AnonHugePages",
    "Swap",
    "Shared_Hugetlb",
    "Private_Hugetlb",
];

impl Census {
    /// As far as it can be told; what may not be read counts as nothing.
    pub fn of(pid: u32, kinds: Kinds) -> Self {
        let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let mut census = Self::parse(&String::from_utf8_lossy(&read("smaps")), kinds);
        let status = read("status");
        let status = String::from_utf8_lossy(&status);
        let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
        census.pinned_bytes = pinned.map_or(0, kib);
        census
    }

    fn parse(smaps: &str, kinds: Kinds) -> Self {
        let mut census = Census::default();
        let mut mapping = Mapping::default();
        for line in smaps.lines() {
            // Fields start with a capital, addresses with a digit.
            if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
                let mut words = line.splitn(6, ' ').skip(1);
                let kind = maps::Line::parse(line.as_bytes()).map(|line| line.kind());
                mapping = Mapping {
                    wanted: kind.is_some_and(|kind| kinds.has(kind)),
                    shared: words.next().is_some_and(|flags| flags.ends_with('s')),
                    name: words.nth(3).unwrap_or_default().trim_start().into(),
                    ..Mapping::default()
                };
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                // The last of a mapping.
                census.add(&mapping, flags);
            } else if let Some((name, value)) = line.split_once(':') {
                if let Some(name) = FIELDS.into_iter().find(|field| *field == name) {
                    mapping.fields.insert(name, kib(value));
                }
            }
        }
        census
    }

    fn add(&mut self, mapping: &Mapping, flags: &str) {
        let has = |flag| flags.split_whitespace().any(|one| one == flag);
        let bytes = |field| mapping.fields.get(field).copied().unwrap_or(0);
        if has("ht") {
            self.hugetlb_bytes += bytes("Shared_Hugetlb") + bytes("Private_Hugetlb");
        } else if mapping.shared {
            self.shared_bytes += bytes("Rss");
            if bytes("Rss") > 0 {
                let name = mapping.name.strip_suffix(" (deleted)");
                let name = name.unwrap_or(&mapping.name);
                // Made without a file.
                let name = if name == "/dev/zero" {
                    "anonymous"
                } else {
                    name
                };
                let name = name
                    .strip_prefix('/')
                    .filter(|name| name.starts_with("memfd:"))
                    .unwrap_or(name);
                *self.shared_files.entry(name.into()).or_default() += bytes("Rss");
            }
        } else if mapping.wanted {
            let own = match () {
                () if has("lo") => Some(&mut self.locked_bytes),
                () if has("dd") => Some(&mut self.undumped_bytes),
                () if has("wf") => Some(&mut self.wiped_on_fork_bytes),
                () => None,
            };
            match own {
                Some(own) => *own += bytes("Anonymous"),
                None => self.huge_bytes += bytes("AnonHugePages"),
            }
            self.swapped_bytes += bytes("Swap");
        }
    }

    /// What only the process itself may merge.
    pub fn left_alone(&self) -> u64 {
        self.locked_bytes + self.undumped_bytes + self.wiped_on_fork_bytes
    }

    pub fn and(&mut self, more: &Census) {
        for (sum, more) in [
            (&mut self.locked_bytes, more.locked_bytes),
            (&mut self.undumped_bytes, more.undumped_bytes),
            (&mut self.wiped_on_fork_bytes, more.wiped_on_fork_bytes),
            (&mut self.hugetlb_bytes, more.hugetlb_bytes),
            (&mut self.swapped_bytes, more.swapped_bytes),
            (&mut self.pinned_bytes, more.pinned_bytes),
            (&mut self.huge_bytes, more.huge_bytes),
        ] {
            *sum += more;
        }
        // The same memory, in each of the processes that have it.
        for (name, bytes) in &more.shared_files {
            let most = self.shared_files.entry(name.clone()).or_default();
            self.shared_bytes += bytes.saturating_sub(*most);
            *most = (*most).max(*bytes);
        }
    }

    /// Sentences about what does not merge, each with the reason.
    pub fn sentences(&self) -> Vec<String> {
        let size = |bytes: u64| output::bytes(bytes as i64);
        let mut said = Vec::new();
        let alone = [
            (self.locked_bytes, "locked"),
            (self.undumped_bytes, "left out of dumps (MADV_DONTDUMP)"),
            (self.wiped_on_fork_bytes, "wiped on fork"),
        ];
        let told = alone.iter().filter(|(bytes, _)| *bytes > 0);
        let told: Vec<String> = told
            .map(|(bytes, how)| format!("{} {how}", size(*bytes)))
            .collect();
        if !told.is_empty() {
            said.push(format!(
                "may hold secrets, and is left alone: {}; only the process itself may merge it: see `sksm run`",
                told.join(", ")
            ));
        }
        // Less is what every process has.
        if self.shared_bytes >= 1 << 20 {
            said.push(format!(
                "{} are shared memory, which never merges ({})",
                size(self.shared_bytes),
                largest(&self.shared_files).join(", ")
            ));
        }
        if self.hugetlb_bytes > 0 {
            said.push(format!(
                "{} are pages of hugetlbfs, which never merge",
                size(self.hugetlb_bytes)
            ));
        }
        if self.pinned_bytes > 0 {
            said.push(format!(
                "{} are pinned (by vfio, RDMA or io_uring), and do not merge while they are in use",
                size(self.pinned_bytes)
            ));
        }
        if self.swapped_bytes > 0 {
            said.push(format!(
                "{} are swapped out, and merge only once they are back",
                size(self.swapped_bytes)
            ));
        }
        said
    }
}

fn kib(value: &str) -> u64 {
    let number = value.trim().strip_suffix(" kB").map(str::parse::<u64>);
    number.and_then(Result::ok).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use sksm::Kind;

    fn parsed(kinds: &[Kind]) -> Census {
        Census::parse(SMAPS, Kinds::of(kinds))
    }

    const SMAPS: &str = "\
1000-2000 rw-p 0 0 0
Anonymous: 8 kB
Swap: 4 kB
AnonHugePages: 2048 kB
VmFlags: rd wr ac
2000-3000 rw-p 0 0 0
Anonymous: 12 kB
VmFlags: rd wr lo dd
3000-4000 rw-p 0 0 0
Anonymous: 16 kB
VmFlags: rd wr dd
4000-5000 rw-s 00000000 00:01 1034                       /memfd:guest (deleted)
Rss: 524288 kB
VmFlags: rd wr sh
5000-6000 rw-s 0 0 7   /dev/zero (deleted)
Rss: 4 kB
VmFlags: rd wr sh
6000-7000 rw-p 0 0 7   /hugepages/a
Private_Hugetlb: 2048 kB
VmFlags: rd wr ht
";

    #[test]
    fn reasons_are_told_apart() {
        let census = parsed(&Kind::MERGEABLE);
        let kib = 1024;
        assert_eq!(
            (census.locked_bytes, census.undumped_bytes),
            (12 * kib, 16 * kib)
        );
        assert_eq!(
            (census.swapped_bytes, census.huge_bytes),
            (4 * kib, 2048 * kib)
        );
        assert_eq!(
            (census.hugetlb_bytes, census.wiped_on_fork_bytes),
            (2048 * kib, 0)
        );
        let said = census.sentences().join("\n");
        let shared = "512.0 MiB are shared memory, which never merges (memfd:guest, anonymous)";
        assert!(said.contains(shared), "{said}");
        for part in [
            "12 KiB locked",
            "16 KiB left out of dumps",
            "4 KiB are swapped out",
            "hugetlbfs",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(Census::default().sentences().is_empty());
    }

    /// Of memory that nobody asked for nothing would be split, nor is any of it left.
    #[test]
    fn only_the_kinds_asked_for_count() {
        let (heap, text) = (parsed(&[Kind::Heap]), parsed(&[Kind::Text]));
        assert_eq!((heap.huge_bytes, text.huge_bytes), (2048 << 10, 0));
        assert_eq!((text.swapped_bytes, text.left_alone()), (0, 0));
        assert_eq!(text.shared_bytes, heap.shared_bytes);
        // What is locked stays whole: nothing of it is merged.
        let locked = SMAPS.replace("VmFlags: rd wr ac", "VmFlags: rd wr lo");
        let census = Census::parse(&locked, Kinds::of(&[Kind::Heap]));
        assert_eq!(census.huge_bytes, 0);
    }

    #[test]
    fn what_processes_share_is_counted_once() {
        let (mut all, one) = (Census::default(), parsed(&Kind::MERGEABLE));
        all.and(&one);
        all.and(&one);
        assert_eq!(all.shared_bytes, one.shared_bytes);
        assert_eq!(all.locked_bytes, 2 * one.locked_bytes);
    }

    #[test]
    fn own_memory_is_seen() {
        let of = |pid| Census::of(pid, Kinds::of(&Kind::MERGEABLE));
        assert!(of(std::process::id()).pinned_bytes < 1 << 30);
        assert_eq!(of(i32::MAX as u32), Census::default());
    }
}
