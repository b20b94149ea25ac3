//! Marks of memory cgroups, `memory.merge_domain`: within a marked group pages merge across the groups below it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::chown;

use anyhow::{Context, Result, ensure};
use libc::{EACCES, EINVAL, EPERM};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::SKSM;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, become_user};
use sksm_guest::memory::rights::{ALL, become_user_with, set_effective};

use crate::domain::{
    Holder, alone, mapped_namespace, merging, merging_program, new_cgroup_namespace, pages,
    separate, together,
};

pub const TESTS: &[Test] = &[
    test("domain/mark-user", || mark("user", false)),
    test("domain/mark-all", || mark("all", true)),
    test("domain/mark-none", mark_none),
    test("domain/mark-inherit", mark_inherit),
    test("domain/nearest-mark-counts", nearest),
    test("domain/mark-goes-before-the-root's", before_the_root),
    test("domain/mark-is-for-later-merges", later),
    test("domain/mark-of-the-memory-group", memory_group),
    test(
        "domain/mark-joins-cgroup-namespaces",
        joins_cgroup_namespaces,
    ),
    test("domain/mark-leaves-user-namespaces", user_namespaces),
    test("domain/mark-bad-word", bad_word),
    test("domain/mark-without-rights", without_rights),
    test("domain/mark-written-for-another", written_for_another),
];

pub const MARK: &str = "memory.merge_domain";

/// A group with two groups in it.
struct Family {
    inner: [Cgroup; 2],
    outer: Cgroup,
}

impl Family {
    fn new() -> Result<Self> {
        let outer = Cgroup::new("outer")?;
        let inner = [outer.inner("one")?, outer.inner("other")?];
        Ok(Self { inner, outer })
    }

    fn marked(mark: &str) -> Result<Self> {
        let family = Self::new()?;
        set(&family.outer, mark)?;
        Ok(family)
    }

    /// A user's process in one of the two, which has merged its pages.
    fn process(&self, map: &Map, inner: usize, uid: u32) -> Result<Holder> {
        merging(map, || {
            self.inner[inner].enter()?;
            become_user(uid)
        })
    }
}

pub fn set(group: &Cgroup, mark: &str) -> Result<()> {
    group
        .write(MARK, mark)
        .with_context(|| format!("cannot write {mark} to {MARK}"))
}

fn shows(group: &Cgroup, mark: &str) -> Result<()> {
    let text = group.read(MARK)?;
    ensure!(text == format!("{mark}\n"), "{MARK} shows {text:?}");
    Ok(())
}

/// Below it groups share, and users as the mark says.
fn mark(word: &str, users_too: bool) -> Result<()> {
    let family = Family::marked(word)?;
    shows(&family.outer, word)?;
    shows(&family.inner[0], "inherit")?;
    let map = pages()?;
    together(
        family.process(&map, 0, 1001)?,
        family.process(&map, 1, 1001)?,
    )?;
    let users = [
        family.process(&map, 0, 1001)?,
        family.process(&map, 1, 1002)?,
    ];
    let [one, other] = users;
    match users_too {
        true => together(one, other)?,
        false => separate(one, other)?,
    }
    // Who is not below it is somebody else.
    separate(
        family.process(&map, 0, 1001)?,
        merging(&map, || become_user(1001))?,
    )
}

/// Nothing merges there, whoever asks, and the call succeeds.
fn mark_none() -> Result<()> {
    let family = Family::marked("none")?;
    let map = pages()?;
    alone(|| family.inner[0].enter())?;
    // Beside it all is as ever.
    let beside = || merging(&map, || Ok(()));
    together(beside()?, beside()?)
}

fn mark_inherit() -> Result<()> {
    let family = Family::marked("user")?;
    let map = pages()?;
    let both = || -> Result<[Holder; 2]> {
        Ok([
            family.process(&map, 0, 1001)?,
            family.process(&map, 1, 1001)?,
        ])
    };
    set(&family.outer, "inherit")?;
    shows(&family.outer, "inherit")?;
    let [one, other] = both()?;
    separate(one, other)?;
    set(&family.outer, "user")?;
    let [one, other] = both()?;
    together(one, other)
}

/// An inner group's own mark replaces the outer one's: apart from its neighbours, and alone if it says so.
fn nearest() -> Result<()> {
    let family = Family::marked("all")?;
    let map = pages()?;
    set(&family.inner[1], "user")?;
    separate(
        family.process(&map, 0, 1001)?,
        family.process(&map, 1, 1001)?,
    )?;
    together(
        family.process(&map, 1, 1001)?,
        family.process(&map, 1, 1001)?,
    )?;
    separate(
        family.process(&map, 1, 1001)?,
        family.process(&map, 1, 1002)?,
    )?;
    set(&family.inner[1], "none")?;
    alone(|| family.inner[1].enter())?;
    set(&family.inner[1], "inherit")?;
    together(
        family.process(&map, 0, 1001)?,
        family.process(&map, 1, 1002)?,
    )
}

fn before_the_root() -> Result<()> {
    let family = Family::marked("user")?;
    let map = pages()?;
    for root in ["none", "global", "user", "cgroup"] {
        SKSM.write("domain", root)?;
        let pair = |one, other| -> Result<[Holder; 2]> {
            Ok([
                family.process(&map, 0, one)?,
                family.process(&map, 1, other)?,
            ])
        };
        let [one, other] = pair(1001, 1001)?;
        together(one, other).with_context(|| format!("the root says {root}"))?;
        let [one, other] = pair(1001, 1002)?;
        separate(one, other).with_context(|| format!("the root says {root}"))?;
    }
    // And where the root lets all share, this group need not.
    SKSM.write("domain", "global")?;
    set(&family.outer, "none")?;
    alone(|| family.inner[0].enter())
}

/// What is merged stays so.
fn later() -> Result<()> {
    let family = Family::marked("all")?;
    let map = pages()?;
    let (one, other) = (
        family.process(&map, 0, 1001)?,
        family.process(&map, 1, 1002)?,
    );
    set(&family.outer, "none")?;
    together(one, other)
}

/// A group without a memory controller of its own belongs to the group whose memory it uses.
fn memory_group() -> Result<()> {
    let outer = Cgroup::new("outer")?;
    set(&outer, "user")?;
    let parts = [outer.part("one")?, outer.part("other")?];
    let map = pages()?;
    let within = |part: usize| {
        let part = &parts[part];
        merging(&map, move || {
            part.enter()?;
            become_user(1001)
        })
    };
    ensure!(
        !fs::exists(parts[0].path().join(MARK))?,
        "a mark where there is no memory controller"
    );
    together(within(0)?, within(1)?)
}

/// The administrator of a group has said that its processes are one unit, containers or not.
fn joins_cgroup_namespaces() -> Result<()> {
    let family = Family::marked("user")?;
    let map = pages()?;
    let contained = merging(&map, || {
        family.inner[0].enter()?;
        new_cgroup_namespace()?;
        become_user(1001)
    })?;
    together(contained, family.process(&map, 1, 1001)?)
}

/// Users of two namespaces are two, mark or not.
fn user_namespaces() -> Result<()> {
    let family = Family::marked("user")?;
    let contained = || {
        merging_program(|| {
            family.inner[0].enter()?;
            mapped_namespace(0, 1001)
        })
    };
    separate(contained()?, contained()?)?;
    separate(contained()?, family.process(&pages()?, 1, 1001)?)
}

fn errno(result: std::io::Result<()>) -> i32 {
    result
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

fn bad_word() -> Result<()> {
    let group = Cgroup::new("words")?;
    set(&group, "user")?;
    for word in ["users", "cgroup", "global", "al", "none all", "[all]", "1"] {
        let found = errno(group.write(MARK, word));
        ensure!(found == EINVAL, "{word:?}: error {found}");
        shows(&group, "user")?;
    }
    for word in ["all\n", "none", "inherit\n", "user"] {
        set(&group, word)?;
        shows(&group, word.trim())?;
    }
    ensure!(
        !fs::exists(format!("/sys/fs/cgroup/{MARK}"))?,
        "the root's mark is in /sys/kernel/mm/sksm"
    );
    Ok(())
}

/// To let users share takes the administrator of the machine. Who has been given a group may keep it apart.
fn without_rights() -> Result<()> {
    let group = Cgroup::new("given")?;
    let expect = |word: &str, wanted: i32, who: &str| -> Result<()> {
        let found = errno(group.write(MARK, word));
        ensure!(found == wanted, "{word} by {who}: error {found}");
        Ok(())
    };
    Child::spawn(|_| {
        become_user(1001)?;
        expect("none", EACCES, "somebody")
    })?
    .join()?;
    chown(group.path().join(MARK), Some(1001), Some(1001))?;
    Child::spawn(|_| {
        become_user(1001)?;
        expect("user", EPERM, "the group's owner")?;
        expect("all", EPERM, "the group's owner")?;
        expect("none", 0, "the group's owner")?;
        shows(&group, "none")?;
        expect("inherit", 0, "the group's owner")?;
        shows(&group, "inherit")
    })?
    .join()?;
    // Root in a namespace of one's own is not root.
    Child::spawn(|_| {
        mapped_namespace(0, 1001)?;
        expect("all", EPERM, "root of a namespace")?;
        expect("none", 0, "root of a namespace")
    })?
    .join()?;
    shows(&group, "none")?;
    Child::spawn(|_| {
        become_user_with(1002, ALL)?;
        expect("all", 0, "another user with all rights")
    })?
    .join()?;
    shows(&group, "all")
}

/// Both count, who has opened the file and who writes to it: a program with rights that writes where it is told to gives none away,
/// nor does a file that is passed on.
fn written_for_another() -> Result<()> {
    let group = Cgroup::new("given")?;
    let path = group.path().join(MARK);
    chown(&path, Some(1001), Some(1001))?;
    let open = || -> Result<File> { Ok(OpenOptions::new().write(true).open(&path)?) };
    let expect = |mut file: File, wanted: i32, who: &str| -> Result<()> {
        let found = errno(file.write_all(b"all"));
        ensure!(found == wanted, "all, {who}: error {found}");
        Ok(())
    };
    Child::spawn(|_| {
        set_effective(1001)?;
        let file = open()?;
        set_effective(0)?;
        expect(file, EPERM, "opened by the group's owner, written by root")
    })?
    .join()?;
    Child::spawn(|_| {
        let file = open()?;
        become_user(1001)?;
        expect(file, EPERM, "opened by root, written by the group's owner")
    })?
    .join()?;
    shows(&group, "inherit")?;
    expect(open()?, 0, "both root")
}
