//! The memory control group of a process, and the marks on it and above it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// What the file `memory.merge_domain` of a control group says, if it says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    None,
    User,
    All,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "none" => Some(Mark::None),
            "user" => Some(Mark::User),
            "all" => Some(Mark::All),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mark::None => "none",
            Mark::User => "user",
            Mark::All => "all",
        }
    }
}

/// The memory control group of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub path: String,
    /// The nearest mark, and the group that has it.
    pub mark: Option<(Mark, String)>,
    /// Whether there are groups above that cannot be seen from here and may have one.
    pub hidden: bool,
}

impl Group {
    pub fn of(pid: u32) -> io::Result<Self> {
        let groups = fs::read(format!("/proc/{pid}/cgroup"))?;
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let [groups, mounts] = [&groups, &mounts].map(|text| String::from_utf8_lossy(text));
        // Its namespace stays where it began, and so does what is mounted in a container.
        static PLACE: OnceLock<Option<Place>> = OnceLock::new();
        let place = PLACE.get_or_init(|| Place::find(&mounts)).as_ref();
        Ok(look(&groups, &mounts, place))
    }
}

fn look(groups: &str, mounts: &str, place: Option<&Place>) -> Group {
    let path_of = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            wanted(controllers).then(|| fields.next().unwrap_or_default().to_owned())
        })
    };
    // Of the old kind, in a hierarchy of its own: those have no marks.
    if let Some(path) = path_of(&|all| all.split(',').any(|one| one == "memory")) {
        let (mark, hidden) = (None, false);
        return Group { path, mark, hidden };
    }
    let path = path_of(&str::is_empty).unwrap_or_else(|| "/".into());
    if let Some((tree, path)) = place.and_then(|place| place.tree_of(&path)) {
        return tree.look(&path);
    }
    let Some(tree) = Tree::of(&path, mounts) else {
        let (mark, hidden) = (None, true);
        return Group { path, mark, hidden };
    };
    tree.look(Path::new(&path))
}

/// What is mounted of the control groups, and where.
fn mounted(mounts: &str) -> impl Iterator<Item = (&Path, &Path)> {
    mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, mount) = (Path::new(fields.next()?), Path::new(fields.next()?));
        kind.starts_with("cgroup2 ").then_some((root, mount))
    })
}

/// How many groups up a path begins, and what follows: in a namespace that begins at a group, others are told from there.
fn ups(path: &Path) -> (usize, PathBuf) {
    let mut parts = path.components().peekable();
    parts.next_if_eq(&Component::RootDir);
    let mut ups = 0;
    while parts.next_if_eq(&Component::ParentDir).is_some() {
        ups += 1;
    }
    (ups, parts.collect())
}

/// In a container that also has the machine's groups mounted: where those are, and which of them its namespace begins at.
struct Place {
    mount: PathBuf,
    own: PathBuf,
}

impl Place {
    fn find(mounts: &str) -> Option<Self> {
        let (_, own) = mounted(mounts).find(|(root, _)| *root == Path::new("/"))?;
        let above = mounted(mounts).filter_map(|(root, mount)| match ups(root) {
            (depth, rest) if depth > 0 && rest.as_os_str().is_empty() => Some((depth, mount)),
            _ => None,
        });
        let (depth, mount) = above.max_by_key(|(depth, _)| *depth)?;
        // A group has one number, wherever it is mounted; its name is told nowhere.
        let number = fs::metadata(own).ok()?.ino();
        let found = with_number(mount, depth, number)?;
        Some(Place {
            mount: mount.into(),
            own: found.strip_prefix(mount).ok()?.into(),
        })
    }

    /// All that is mounted, and the path of a group in it.
    fn tree_of(&self, path: &str) -> Option<(Tree, PathBuf)> {
        let (ups, rest) = ups(Path::new(path));
        let from = self.own.ancestors().nth(ups)?;
        let tree = Tree {
            mount: self.mount.clone(),
            root: "/".into(),
        };
        let top = Path::new("/");
        let path = [top, from, &rest].map(Path::components);
        Some((tree, path.into_iter().flatten().collect()))
    }
}

/// The group with this number, so deep below another one.
fn with_number(top: &Path, depth: usize, number: u64) -> Option<PathBuf> {
    if depth == 0 {
        return (fs::metadata(top).ok()?.ino() == number).then(|| top.into());
    }
    let groups = fs::read_dir(top).ok()?.flatten();
    let groups = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups
        .map(|entry| entry.path())
        .find_map(|group| with_number(&group, depth - 1, number))
}

/// Control groups as they are mounted here.
struct Tree {
    /// Where.
    mount: PathBuf,
    /// What: as paths in /proc/PID/cgroup start.
    root: PathBuf,
}

impl Tree {
    /// The one that shows this group.
    fn of(path: &str, mounts: &str) -> Option<Self> {
        let path = Path::new(path);
        // Outside of what this process's namespace shows.
        if path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let (root, mount) = mounted(mounts).find(|(root, _)| path.starts_with(root))?;
        Some(Tree {
            mount: mount.into(),
            root: root.into(),
        })
    }

    fn look(&self, path: &Path) -> Group {
        let mut own = None;
        let mut mark = None;
        let mut top = self.mount.clone();
        for group in path.ancestors() {
            let Ok(below) = group.strip_prefix(&self.root) else {
                break;
            };
            top = self.mount.join(below);
            let name = || group.display().to_string();
            // Groups without the controller count as the nearest one above that has it. The root has no such file.
            if own.is_none() && top.join("memory.current").exists() {
                own = Some(name());
            }
            let text = fs::read_to_string(top.join("memory.merge_domain")).unwrap_or_default();
            mark = mark.or_else(|| Some((Mark::parse(&text)?, name())));
        }
        Group {
            path: own.unwrap_or_else(|| "/".into()),
            mark,
            // Every group but the root has a type.
            hidden: top.join("cgroup.type").exists(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups in a directory, each with its mark; "-" without the memory controller.
    fn tree(groups: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        for (path, mark) in groups {
            let path = dir.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.type"), "domain\n").unwrap();
            if *mark != "-" {
                fs::write(path.join("memory.current"), "0\n").unwrap();
                fs::write(path.join("memory.merge_domain"), mark).unwrap();
            }
        }
        let mounts = format!(
            "22 28 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n\
             30 28 0:26 / {} rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            dir.path().display()
        );
        (dir, mounts)
    }

    fn found(groups: &str, mounts: &str) -> (String, Option<(Mark, String)>, bool) {
        let Group { path, mark, hidden } = look(groups, mounts, Place::find(mounts).as_ref());
        (path, mark, hidden)
    }

    #[test]
    fn the_nearest_mark_counts() {
        let (_dir, mounts) = tree(&[
            ("a", "all\n"),
            ("a/b", "inherit\n"),
            ("a/b/c", "user\n"),
            ("a/n", "none\n"),
            ("x", "inherit\n"),
            ("x/y", "-"),
        ]);
        let mark = |mark, group: &str| Some((mark, group.to_owned()));
        for (path, own, right) in [
            ("/a", "/a", mark(Mark::All, "/a")),
            ("/a/b", "/a/b", mark(Mark::All, "/a")),
            ("/a/b/c", "/a/b/c", mark(Mark::User, "/a/b/c")),
            ("/a/n", "/a/n", mark(Mark::None, "/a/n")),
            ("/x", "/x", None),
            // Without the controller it is the group above.
            ("/x/y", "/x", None),
            ("/", "/", None),
        ] {
            let seen = found(&format!("0::{path}\n"), &mounts);
            assert_eq!(seen, (own.into(), right, false), "{path}");
        }
    }

    #[test]
    fn a_hierarchy_of_the_old_kind_has_no_marks() {
        let (_dir, mounts) = tree(&[("a", "all\n")]);
        let groups = "9:name=systemd:/\n4:hugetlb,memory:/a:b\n0::/a\n";
        assert_eq!(found(groups, &mounts), ("/a:b".into(), None, false));
    }

    #[test]
    fn what_a_container_does_not_show_is_said() {
        let (dir, mounts) = tree(&[("", "user\n"), ("a", "inherit\n")]);
        // The root that is seen has a group above it.
        let right = Some((Mark::User, "/".into()));
        assert_eq!(found("0::/a\n", &mounts), ("/a".into(), right, true));
        // A part of the hierarchy is mounted.
        let part = mounts.replace(" / /tmp", " /deep /tmp");
        let shown = dir.path().starts_with("/tmp");
        if shown {
            let right = Some((Mark::User, "/deep".into()));
            let seen = found("0::/deep/a\n", &part);
            assert_eq!(seen, ("/deep/a".into(), right, true));
            assert_eq!(found("0::/b\n", &part), ("/b".into(), None, true));
        }
        // Outside of the namespace.
        let outside = found("0::/../b\n", &mounts);
        assert_eq!(outside, ("/../b".into(), None, true));
    }

    /// As in a pod that has the machine's groups mounted beside its own.
    #[test]
    fn a_container_sees_the_machines_groups_where_they_are_mounted() {
        let (dir, mounts) = tree(&[
            ("pods", "all\n"),
            ("pods/one/scanner", "inherit\n"),
            ("pods/other/vm", "inherit\n"),
            ("pods/quiet/vm", "none\n"),
            ("system", "inherit\n"),
        ]);
        let place = dir.path().display();
        let mounts = format!(
            "31 28 0:26 / {place}/pods/one/scanner ro - cgroup2 cgroup rw\n{}",
            mounts.replace(&format!(" / {place} "), &format!(" /../../.. {place} "))
        );
        let mark = |mark, group: &str| Some((mark, group.to_owned()));
        let all = || mark(Mark::All, "/pods");
        for (path, own, right) in [
            ("/", "/pods/one/scanner", all()),
            ("/../../other/vm", "/pods/other/vm", all()),
            (
                "/../../quiet/vm",
                "/pods/quiet/vm",
                mark(Mark::None, "/pods/quiet/vm"),
            ),
            ("/../../../system", "/system", None),
            ("/../../..", "/", None),
        ] {
            let seen = found(&format!("0::{path}\n"), &mounts);
            assert_eq!(seen, (own.into(), right, false), "{path}");
        }
        // More than is mounted.
        let above = found("0::/../../../../x\n", &mounts);
        assert_eq!(above, ("/../../../../x".into(), None, true));
    }

    #[test]
    fn this_process_has_a_group() {
        assert!(Group::of(std::process::id()).unwrap().path.starts_with('/'));
        Group::of(i32::MAX as u32).unwrap_err();
    }
}
