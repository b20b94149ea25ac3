//! Merge domains: who shares with whom. Zero pages are everybody's.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use sksm_guest::cgroup::Cgroup;
use sksm_guest::memory::Map;
use sksm_guest::pagemap::Pagemap;
use sksm_guest::process::{Child, Gate, become_user, check};
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
    test("domain/same-user-namespace", same_namespace),
    test("domain/mapped-users-of-two-namespaces", mapped_users),
    test(
        "domain/mapped-user-and-the-same-outside",
        mapped_and_outside,
    ),
    test("domain/cgroup-whatever-user-namespace", group_of_namespaces),
    test("domain/global-whatever-group-and-namespace", global_of_all),
    test("domain/mode-is-for-later-merges", mode_change),
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
    separate(
        merging(&map, new_namespace)?,
        merging(&map, || Ok(()))?,
        &map,
    )
}

/// Moves this process into a user namespace of its own.
fn new_namespace() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
        .context("unshare of the user namespace")
        .map(drop)
}

/// Moves this process into a user namespace of its own, where it is user `inside`, who is `outside` on the host.
fn mapped_namespace(inside: u32, outside: u32) -> Result<()> {
    // Who writes the map stays outside, where all users may be mapped.
    let pid = std::process::id();
    let gate = Gate::closed()?;
    let mapper = Child::spawn(|_| {
        gate.wait()?;
        for file in ["uid_map", "gid_map"] {
            fs::write(
                format!("/proc/{pid}/{file}"),
                format!("{inside} {outside} 1"),
            )
            .context(file)?;
        }
        Ok(())
    })?;
    new_namespace()?;
    gate.open()?;
    mapper.join()?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::setresgid(inside, inside, inside) }).context("setresgid")?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(inside, inside, inside) }).context("setresuid")?;
    Ok(())
}

/// Two processes of one user in one namespace that is not the first one.
fn same_namespace() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    // The pages of both must be looked at from outside.
    let (first, second) = (Gate::closed()?, Gate::closed()?);
    let inside = Child::spawn(|parent| {
        mapped_namespace(0, 1001)?;
        let children = [&first, &second].map(|gate| {
            Child::spawn(|parent| {
                map.fill_all(|page| [5, 5, 0][page]);
                map.merge()?;
                parent.go()?;
                gate.wait()?;
                map.expect_all(|page| [5, 5, 0][page])
            })
        });
        let children = children.into_iter().collect::<Result<Vec<_>>>()?;
        for child in &children {
            child.pause()?;
            parent.send(child.pid() as u64)?;
        }
        children.into_iter().try_for_each(Child::join)
    })?;
    let pids = [inside.receive()?, inside.receive()?];
    let pages = pids.map(|pid| Pagemap::of(pid as i32)?.pfns(map.addr(), 3));
    let [one, other] = pages;
    ensure!(one? == other?, "one domain, two pages");
    first.open()?;
    second.open()?;
    inside.join()
}

/// Inside both are root, outside both are the same user; still they are in two namespaces.
fn mapped_users() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let of = |inside, outside| merging(&map, move || mapped_namespace(inside, outside));
    separate(of(0, 1001)?, of(0, 1001)?, &map)?;
    separate(of(0, 1001)?, of(0, 1002)?, &map)?;
    separate(of(0, 1001)?, of(7, 1001)?, &map)
}

/// A user of a namespace is neither the user whom it stands for outside, nor the one outside who has its number.
fn mapped_and_outside() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let inside = || merging(&map, || mapped_namespace(1001, 1002));
    let outside = |uid| merging(&map, move || become_user(uid));
    separate(inside()?, outside(1001)?, &map)?;
    separate(inside()?, outside(1002)?, &map)?;
    separate(merging(&map, || mapped_namespace(0, 0))?, outside(0)?, &map)
}

fn group_of_namespaces() -> Result<()> {
    let groups = [Cgroup::new("one")?, Cgroup::new("other")?];
    SKSM.write("domain", "cgroup")?;
    let map = pages()?;
    let within = |group: usize| {
        let group = &groups[group];
        merging(&map, move || {
            group.enter()?;
            mapped_namespace(0, 1001)
        })
    };
    together(within(0)?, within(0)?, &map)?;
    separate(within(0)?, within(1)?, &map)
}

fn global_of_all() -> Result<()> {
    let group = Cgroup::new("one")?;
    SKSM.write("domain", "global")?;
    let map = pages()?;
    let apart = merging(&map, || {
        group.enter()?;
        mapped_namespace(0, 1001)
    })?;
    together(apart, merging(&map, || become_user(1002))?, &map)
}

/// What is merged stays so. Pages merge with those of the same kind of domain only, also when that kind comes back.
fn mode_change() -> Result<()> {
    let group = Cgroup::new("one")?;
    let map = pages()?;
    let users = || merging(&map, || become_user(1001));
    let page = |child: &Child| anyhow::Ok(pfns(child, &map)?[0]);
    let set = |mode| SKSM.write("domain", mode);
    set("user")?;
    let by_user = [users()?, merging(&map, || become_user(1002))?];
    let before = [page(&by_user[0])?, page(&by_user[1])?];
    apart(&before)?;
    set("global")?;
    let by_all = [users()?, merging(&map, || Ok(()))?];
    one_page(&[page(&by_all[0])?, page(&by_all[1])?])?;
    set("cgroup")?;
    let by_group = merging(&map, || {
        group.enter()?;
        become_user(1001)
    })?;
    apart(&[before[0], before[1], page(&by_all[0])?, page(&by_group)?])?;
    set("user")?;
    let again = users()?;
    set("global")?;
    let all_again = users()?;
    one_page(&[page(&again)?, before[0]])?;
    one_page(&[page(&all_again)?, page(&by_all[0])?])?;
    ensure!(
        [page(&by_user[0])?, page(&by_user[1])?] == before,
        "merged pages changed with the mode"
    );
    let [one, other] = by_user;
    part(one, other)?;
    let [one, other] = by_all;
    part(one, other)?;
    part(by_group, again)?;
    all_again.go()?;
    all_again.join()
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
