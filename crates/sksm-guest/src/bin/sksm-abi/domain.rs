//! Merge domains: who shares with whom. Zero pages are everybody's.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use sksm_guest::cgroup::Cgroup;
use sksm_guest::memory::Map;
use sksm_guest::process::{Child, become_user};
use sksm_guest::report::{Test, test};
use sksm_guest::sysfs::SKSM;

use crate::expect::{apart, one_page};

pub const TESTS: &[Test] = &[
    test("domain/default-is-user", default_is_user),
    test("domain/user", user),
    test("domain/user-asked-by-another", asked_by_another),
    test("domain/user-namespace", user_namespace),
    test("domain/global", global),
    test("domain/cgroup", cgroup),
    test("domain/bad-value", bad_value),
];

/// A page of zeros behind pages of equal content.
fn pages() -> Result<Map> {
    Map::filled(&[5, 5, 0])
}

/// A child that prepares itself, builds the pages, merges them, and stays.
fn merging(map: &Map, prepare: impl FnOnce() -> Result<()>) -> Result<Child> {
    let child = Child::spawn(|parent| {
        prepare()?;
        map.fill_all(|page| [5, 5, 0][page]);
        map.merge()?;
        parent.meet()?;
        map.expect_all(|page| [5, 5, 0][page])
    })?;
    child.pause()?;
    Ok(child)
}

fn pfns(child: &Child, map: &Map) -> Result<[u64; 2]> {
    let pfns = child.pagemap()?.pfns(map.addr(), 3)?;
    one_page(&pfns[..2])?;
    Ok([pfns[0], pfns[2]])
}

fn part(one: Child, other: Child) -> Result<()> {
    [one, other].into_iter().try_for_each(|child| {
        child.go()?;
        child.join()
    })
}

/// The two share everything.
fn together(one: Child, other: Child, map: &Map) -> Result<()> {
    let (first, second) = (pfns(&one, map)?, pfns(&other, map)?);
    ensure!(first == second, "one domain, two pages");
    part(one, other)
}

/// The two share the zero page and nothing else.
fn separate(one: Child, other: Child, map: &Map) -> Result<()> {
    let (first, second) = (pfns(&one, map)?, pfns(&other, map)?);
    apart(&[first[0], second[0]]).context("two domains share a page")?;
    ensure!(first[1] == second[1], "two zero pages");
    part(one, other)
}

fn default_is_user() -> Result<()> {
    let text = SKSM.text("domain")?;
    ensure!(
        text == "user" || text.contains("[user]"),
        "the default domain is {text:?}"
    );
    Ok(())
}

fn user() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let of = |uid| merging(&map, move || become_user(uid));
    separate(of(1001)?, of(1002)?, &map)?;
    separate(of(1001)?, of(0)?, &map)?;
    together(of(1001)?, of(1001)?, &map)
}

/// It is the domain of the memory's owner that counts, also when root asks.
fn asked_by_another() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let remotely = |uid| -> Result<Child> {
        let child = Child::spawn(|parent| {
            become_user(uid)?;
            map.fill_all(|page| [5, 5, 0][page]);
            parent.meet()?;
            map.expect_all(|page| [5, 5, 0][page])
        })?;
        child.pause()?;
        sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
        Ok(child)
    };
    let itself = |uid| merging(&map, move || become_user(uid));
    separate(remotely(1001)?, remotely(1002)?, &map)?;
    separate(remotely(1001)?, itself(0)?, &map)?;
    together(remotely(1001)?, itself(1001)?, &map)
}

/// The same user in another user namespace is another domain.
fn user_namespace() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let inside = || {
        // SAFETY: takes numbers only.
        sksm_guest::process::check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
            .context("unshare of the user namespace")
            .map(drop)
    };
    separate(merging(&map, inside)?, merging(&map, || Ok(()))?, &map)
}

fn global() -> Result<()> {
    SKSM.write("domain", "global")?;
    let map = pages()?;
    let of = |uid| merging(&map, move || become_user(uid));
    together(of(1001)?, of(1002)?, &map)?;
    together(of(0)?, of(1002)?, &map)
}

fn cgroup() -> Result<()> {
    let groups = [Cgroup::new("one")?, Cgroup::new("other")?];
    SKSM.write("domain", "cgroup")?;
    let map = pages()?;
    let within = |group: usize, uid| {
        let group = &groups[group];
        merging(&map, move || {
            group.enter()?;
            become_user(uid)
        })
    };
    separate(within(0, 0)?, within(1, 0)?, &map)?;
    together(within(0, 0)?, within(0, 1001)?, &map)
}

fn bad_value() -> Result<()> {
    let path = SKSM.path("domain");
    let before = SKSM.text("domain")?;
    for value in ["", "nobody", "users", "us"] {
        ensure!(
            fs::write(&path, value).is_err() || value.is_empty(),
            "{value:?} was taken"
        );
    }
    ensure!(
        SKSM.text("domain")? == before,
        "a refused value had an effect"
    );
    for value in ["global", "cgroup", "user\n"] {
        SKSM.write("domain", value)?;
        ensure!(
            SKSM.text("domain")?.contains(value.trim()),
            "{value:?} did not stay"
        );
    }
    Ok(())
}
