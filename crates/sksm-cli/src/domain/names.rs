//! Domains in words: users as in /etc/passwd, and namespaces where they are not this command's.

use std::collections::BTreeMap;
use std::fs;

use super::owner::{Domain, Owner};

/// Users as in /etc/passwd.
pub struct Users(BTreeMap<u32, String>);

impl Users {
    pub fn read() -> Self {
        let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let users = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.nth(2)?.parse().ok()?, line.split(':').next()?.into()))
        });
        Users(users.collect())
    }

    pub fn name(&self, uid: u32) -> String {
        let name = self.0.get(&uid);
        name.map_or_else(|| uid.to_string(), String::clone)
    }

    /// Of a name, or of a number as it is.
    pub fn number(&self, user: &str) -> Option<u32> {
        let named = self.0.iter().find(|(_, name)| *name == user);
        named.map_or_else(|| user.parse().ok(), |(uid, _)| Some(*uid))
    }
}

pub struct Names {
    users: Users,
    own: Option<Owner>,
}

impl Names {
    pub fn new() -> Self {
        Names {
            users: Users::read(),
            own: Owner::of(std::process::id()).ok(),
        }
    }

    pub fn of(&self, domain: &Domain) -> String {
        let mut name = match (domain.uid, &domain.group) {
            (Some(uid), None) => self.user(uid),
            (Some(uid), Some(group)) => format!("{} in {group}", self.user(uid)),
            (None, None) => "all processes".into(),
            (None, Some(group)) => format!("all of {group}"),
        };
        let own = self.own.as_ref();
        let namespaces = [
            (
                "user",
                Some(domain.user_namespace),
                own.map(|own| own.user_namespace),
            ),
            (
                "cgroup",
                domain.cgroup_namespace,
                own.map(|own| own.cgroup_namespace),
            ),
        ];
        for (kind, namespace, own) in namespaces {
            if let Some(number) = namespace.filter(|_| namespace != own) {
                name += &format!(", {kind} namespace {number}");
            }
        }
        name
    }

    fn user(&self, uid: u32) -> String {
        self.users.name(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::group::Mark;
    use crate::domain::mode::Mode;
    use crate::domain::owner::tests::owner;

    #[test]
    fn users_are_found_by_name_and_number() {
        let users = Users([(1000, "alice".into()), (7, "1000".into())].into());
        assert_eq!(users.number("alice"), Some(1000));
        // A name comes first, as elsewhere.
        assert_eq!(users.number("1000"), Some(7));
        assert_eq!(users.number("12"), Some(12));
        assert_eq!(users.number("bob"), None);
        assert_eq!(
            (users.name(1000), users.name(5)),
            ("alice".into(), "5".into())
        );
    }

    #[test]
    fn namespaces_are_named_where_they_differ() {
        let mut names = Names::new();
        names.users = Users([(1000, "alice".into())].into());
        let named = |names: &Names, mode| names.of(&owner(None).domain(mode).unwrap());
        names.own = Some(owner(None));
        assert_eq!(named(&names, Mode::User), "alice");
        assert_eq!(named(&names, Mode::Cgroup), "alice in /a/b");
        assert_eq!(named(&names, Mode::Global), "all processes");
        let all = owner(Some((Mark::All, "/a")));
        assert_eq!(names.of(&all.domain(Mode::Cgroup).unwrap()), "all of /a");
        names.own = None;
        let right = "alice, user namespace 1, cgroup namespace 2";
        assert_eq!(named(&names, Mode::User), right);
        names.users.0.clear();
        assert!(named(&names, Mode::Cgroup).starts_with("1000 in /a/b, "));
    }
}
