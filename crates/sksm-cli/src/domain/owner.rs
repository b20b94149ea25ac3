//! Who owns the memory of a process, and so which domain it is in, as far as /proc tells. The kernel asks the memory itself, whose
//! user namespace is that of the last exec.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::apart::Apart;
use super::group::{Group, Mark};
use super::mode::Mode;

/// Processes of one domain merge with each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain {
    /// The control group that is the scope; none: the whole machine.
    pub(super) group: Option<String>,
    /// None: all users.
    pub(super) uid: Option<u32>,
    pub(super) user_namespace: u64,
    /// None below a mark of a control group's own, where containers of one tenant share.
    pub(super) cgroup_namespace: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Real, effective and saved.
    users: [u32; 3],
    pub user_namespace: u64,
    pub cgroup_namespace: u64,
    pub group: Group,
}

impl Owner {
    pub fn of(pid: u32) -> io::Result<Self> {
        // With a name in it that may be no text.
        let status = fs::read(format!("/proc/{pid}/status"))?;
        let users = users(&String::from_utf8_lossy(&status));
        Ok(Owner {
            users: users.ok_or(io::ErrorKind::InvalidData)?,
            user_namespace: namespace(pid, "user")?,
            cgroup_namespace: namespace(pid, "cgroup")?,
            group: Group::of(pid)?,
        })
    }

    /// The real one.
    pub fn user(&self) -> u32 {
        self.users[0]
    }

    /// The domain where this is the machine's mark.
    pub fn domain(&self, mode: Mode) -> Result<Domain, Apart> {
        let [real, ..] = self.users;
        let user = Some(real);
        let (group, uid, marked) = match (mode, &self.group.mark) {
            (Mode::Off, _) => return Err(Apart::Off),
            (_, Some((Mark::None, group))) => return Err(Apart::Group(group.clone())),
            (_, Some((Mark::User, group))) => (Some(group), user, true),
            (_, Some((Mark::All, group))) => (Some(group), None, true),
            (Mode::None, None) => return Err(Apart::Machine),
            (Mode::Cgroup, None) => (Some(&self.group.path), user, false),
            (Mode::User, None) => (None, user, false),
            (Mode::Global, None) => (None, None, false),
        };
        if self.users.iter().any(|other| *other != real) {
            return Err(Apart::Users(self.users));
        }
        Ok(Domain {
            group: group.cloned(),
            uid,
            user_namespace: self.user_namespace,
            cgroup_namespace: (!marked).then_some(self.cgroup_namespace),
        })
    }

    /// Whether its memory may be dumped, and so be advised by others: its files in /proc belong to root where not. Of root's own
    /// processes that cannot be told.
    pub fn dumpable(&self, pid: u32) -> Option<bool> {
        let [_, effective, _] = self.users;
        // Not the directory, which is the user's in any case.
        let owner = fs::metadata(format!("/proc/{pid}/stat")).ok()?.uid();
        (effective != 0).then_some(owner == effective)
    }
}

impl Owner {
    /// Whether others may not merge it, as it is not dumpable and no mark says otherwise.
    pub fn left_alone(&self, pid: u32) -> bool {
        self.dumpable(pid) == Some(false) && self.group.mark.is_none()
    }
}

fn users(status: &str) -> Option<[u32; 3]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_whitespace().map(str::parse);
    let mut next = || users.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// Its number; 0 where the kernel has no such namespaces.
fn namespace(pid: u32, kind: &str) -> io::Result<u64> {
    match fs::metadata(format!("/proc/{pid}/ns/{kind}")) {
        Ok(file) => Ok(file.ino()),
        Err(_) if fs::metadata(format!("/proc/self/ns/{kind}")).is_err() => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn owner(mark: Option<(Mark, &str)>) -> Owner {
        Owner {
            users: [1000; 3],
            user_namespace: 1,
            cgroup_namespace: 2,
            group: Group {
                path: "/a/b".into(),
                mark: mark.map(|(mark, group)| (mark, group.into())),
                hidden: false,
            },
        }
    }

    fn domain(group: Option<&str>, uid: Option<u32>, cgroup: Option<u64>) -> Domain {
        Domain {
            group: group.map(str::to_owned),
            uid,
            user_namespace: 1,
            cgroup_namespace: cgroup,
        }
    }

    #[test]
    fn scope_and_identity_are_the_kernels() {
        let (a, user, cgroup) = (Some("/a"), Some(1000), Some(2));
        let machine = Err(Apart::Machine);
        for (mark, mode, right) in [
            (None, Mode::Cgroup, Ok(domain(Some("/a/b"), user, cgroup))),
            (None, Mode::User, Ok(domain(None, user, cgroup))),
            (None, Mode::Global, Ok(domain(None, None, cgroup))),
            (None, Mode::None, machine),
            (Some(Mark::User), Mode::Global, Ok(domain(a, user, None))),
            (Some(Mark::All), Mode::Cgroup, Ok(domain(a, None, None))),
            // A mark of its own is nearer than the machine's.
            (Some(Mark::All), Mode::None, Ok(domain(a, None, None))),
            (Some(Mark::None), Mode::User, Err(Apart::Group("/a".into()))),
            (Some(Mark::All), Mode::Off, Err(Apart::Off)),
        ] {
            let owner = owner(mark.map(|mark| (mark, "/a")));
            assert_eq!(owner.domain(mode), right, "{mark:?} {mode:?}");
        }
    }

    #[test]
    fn who_changed_its_user_is_apart() {
        for users in [[0, 1000, 1000], [1000, 0, 1000], [1000, 1000, 0]] {
            let mut owner = owner(Some((Mark::All, "/a")));
            owner.users = users;
            assert_eq!(owner.domain(Mode::Global), Err(Apart::Users(users)));
        }
    }

    #[test]
    fn users_are_read() {
        let status = "Name:\tUid:\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n";
        assert_eq!(users(status.split_once('\n').unwrap().1), Some([1, 2, 3]));
        assert_eq!(users("Uid:\t1\t2\n"), None);
        assert_eq!(users("Name:\tx\n"), None);
    }

    #[test]
    fn own_processes_are_in_one_domain() {
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        let [own, parent] = [own, parent].map(|pid| Owner::of(pid).unwrap());
        for mode in [Mode::User, Mode::Cgroup, Mode::Global] {
            assert_eq!(own.domain(mode).unwrap(), parent.domain(mode).unwrap());
        }
        Owner::of(i32::MAX as u32).unwrap_err();
    }
}
