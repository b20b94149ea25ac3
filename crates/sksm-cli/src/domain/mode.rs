//! The domain that the machine is set to.

use std::fs;

/// The mark of the root, which is the machine's: `/sys/kernel/mm/sksm/domain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// No mark: each memory control group is a scope of its own, as is the kernel's default
    Cgroup,
    /// The whole machine, each user apart
    User,
    /// The whole machine, all users together
    Global,
    /// Nothing merges where no control group says otherwise.
    #[value(skip)]
    None,
    /// Nothing merges, whatever control groups say: booted so.
    #[value(skip)]
    Off,
}

impl Mode {
    /// None where the kernel has no SKSM.
    pub fn read() -> Option<Self> {
        let mode = Self::parse(&fs::read_to_string("/sys/kernel/mm/sksm/domain").ok()?)?;
        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let off = line.split_whitespace().any(|word| word == "sksm=off");
        Some(match mode {
            Mode::None if off => Mode::Off,
            mode => mode,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let chosen = text.split_whitespace().find(|word| word.starts_with('['))?;
        match chosen {
            "[cgroup]" => Some(Mode::Cgroup),
            "[user]" => Some(Mode::User),
            "[global]" => Some(Mode::Global),
            "[none]" => Some(Mode::None),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Cgroup => "cgroup",
            Mode::User => "user",
            Mode::Global => "global",
            Mode::None => "none",
            Mode::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_in_brackets_is_in_force() {
        for (text, right) in [
            ("[cgroup] user global none\n", Some(Mode::Cgroup)),
            ("cgroup [user] global none\n", Some(Mode::User)),
            ("cgroup user [global] none\n", Some(Mode::Global)),
            ("cgroup user global [none]\n", Some(Mode::None)),
            ("cgroup user global none\n", None),
            ("[nonsense]\n", None),
        ] {
            assert_eq!(Mode::parse(text), right, "{text}");
        }
    }
}
