//! Why a process is in no domain.

use std::fmt;

/// Why nothing of a process merges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Apart {
    /// The kernel was booted with `sksm=off`.
    Off,
    /// The machine's mark is `none`.
    Machine,
    /// This control group is marked `none`.
    Group(String),
    /// The real, effective and saved user differ.
    Users([u32; 3]),
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Apart::Off => write!(f, "the kernel was booted with sksm=off"),
            Apart::Machine => write!(f, "the machine's merge domain is none"),
            Apart::Group(group) => write!(f, "its control group {group} is marked none"),
            Apart::Users([real, effective, saved]) => write!(
                f,
                "its real, effective and saved user differ ({real}, {effective}, {saved})"
            ),
        }
    }
}

impl Apart {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Apart::Off => "to merge at all, boot without sksm=off".into(),
            Apart::Machine => {
                "to merge, choose a domain: echo user > /sys/kernel/mm/sksm/domain".into()
            }
            Apart::Group(group) => format!(
                "to merge, take the mark away: echo inherit > memory.merge_domain of {group}"
            ),
            Apart::Users(_) => "to merge, run it as one user: set-uid programs never share".into(),
        }
    }
}
