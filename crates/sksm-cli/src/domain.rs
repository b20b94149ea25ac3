//! What the pages of a process may merge with.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// What makes a domain on this kernel: `/sys/kernel/mm/sksm/domain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    User,
    Cgroup,
    Global,
}

impl Mode {
    /// None where the kernel has no SKSM.
    pub fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/sys/kernel/mm/sksm/domain").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let chosen = text.split_whitespace().find(|word| word.starts_with('['))?;
        match chosen {
            "[user]" => Some(Mode::User),
            "[cgroup]" => Some(Mode::Cgroup),
            "[global]" => Some(Mode::Global),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::User => "user",
            Mode::Cgroup => "cgroup",
            Mode::Global => "global",
        }
    }
}

/// The real user of a process, and its user namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    namespace: u64,
    uid: u32,
}

impl User {
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = fs::metadata(format!("/proc/{pid}"))?;
        let namespace = fs::metadata(format!("/proc/{pid}/ns/user"))?;
        // With a name in it that may be no text.
        let status = fs::read(format!("/proc/{pid}/status"))?;
        let status = String::from_utf8_lossy(&status);
        // The real user, which the owner of the directory is not for programs that changed it.
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let uid = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(User {
            namespace: namespace.ino(),
            uid: uid.unwrap_or(process.uid()),
        })
    }

    /// Numbers of namespaces have 32 bits.
    pub fn number(self) -> u64 {
        self.namespace << 32 | u64::from(self.uid)
    }
}

/// The names of domains: of users, as in /etc/passwd.
pub struct Names {
    users: BTreeMap<u32, String>,
    own_namespace: Option<u64>,
}

impl Names {
    pub fn new() -> Self {
        let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let users = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.nth(2)?.parse().ok()?, line.split(':').next()?.into()))
        });
        Names {
            users: users.collect(),
            own_namespace: fs::metadata("/proc/self/ns/user")
                .ok()
                .map(|file| file.ino()),
        }
    }

    /// Of the domain that a process is in.
    pub fn of(&self, mode: Mode, pid: u32) -> io::Result<String> {
        match mode {
            Mode::Global => Ok("all processes".into()),
            Mode::User => User::of(pid).map(|user| self.user(user)),
            Mode::Cgroup => {
                let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
                let group = text.lines().find_map(|line| line.strip_prefix("0::"));
                Ok(group.unwrap_or("no control group").into())
            }
        }
    }

    fn user(&self, user: User) -> String {
        let name = self.users.get(&user.uid);
        let name = name.map_or_else(|| user.uid.to_string(), String::clone);
        if self.own_namespace == Some(user.namespace) {
            name
        } else {
            format!("{name}, user namespace {}", user.namespace)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_in_brackets_is_in_force() {
        assert_eq!(Mode::parse("[user] cgroup global\n"), Some(Mode::User));
        assert_eq!(Mode::parse("user [cgroup] global\n"), Some(Mode::Cgroup));
        assert_eq!(Mode::parse("user cgroup global\n"), None);
    }

    #[test]
    fn own_processes_are_in_one_domain() {
        let names = Names::new();
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        for mode in [Mode::User, Mode::Cgroup, Mode::Global] {
            let name = names.of(mode, own).unwrap();
            assert!(!name.is_empty() && !name.contains("namespace"), "{name}");
        }
        assert!(User::of(own).unwrap() == User::of(parent).unwrap());
        let mut other = User::of(own).unwrap();
        other.namespace += 1;
        assert!(names.user(other).contains("user namespace"));
    }
}
