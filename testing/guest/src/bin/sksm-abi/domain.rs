//! Merge domains: who shares with whom, as the root's mark says, `/sys/kernel/mm/sksm/domain`. Zero pages are everybody's.

use std::fs;
use std::io::{Read, Write, stdin, stdout};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use libc::EINVAL;
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::{Flags, Pagemap};
use sksm_guest::memory::process::{Child, Gate, Link, become_user, before_others, stay_on_one_cpu};
use sksm_guest::memory::rights::{keep_rights, set_users};
use sksm_guest::syscall::check;

use crate::expect::{apart, one_page};
use crate::program::Program;

pub const TESTS: &[Test] = &[
    test("domain/default-is-cgroup", default_is_cgroup),
    test("domain/cgroup", cgroup),
    test("domain/user", user),
    test("domain/user-asked-by-another", asked_by_another),
    test("domain/global", global),
    test("domain/none", none),
    test("domain/one-content-of-many-users", many_users),
    test("domain/user-namespace", user_namespace),
    test("domain/user-namespace-entered", entered_namespace),
    test("domain/same-user-namespace", same_namespace),
    test("domain/mapped-users-of-two-namespaces", mapped_users),
    test(
        "domain/mapped-user-and-the-same-outside",
        mapped_and_outside,
    ),
    test("domain/cgroup-of-two-namespaces", group_of_namespaces),
    test("domain/global-of-two-namespaces", global_of_namespaces),
    test("domain/mode-is-for-later-merges", mode_change),
    test("domain/bad-value", bad_value),
];

/// A page of zeros behind pages of equal content.
const IDS: [u64; 3] = [5, 5, 0];

pub fn pages() -> Result<Map> {
    Map::filled(&IDS)
}

/// A process that has merged its pages, and stays.
pub struct Holder {
    /// It, or its parent.
    child: Child,
    pid: i32,
    addr: usize,
}

impl Holder {
    fn pagemap(&self) -> Result<Vec<u64>> {
        Pagemap::of(self.pid)?.pfns(self.addr, IDS.len())
    }

    /// Its merged page, and its zero page.
    fn merged(&self) -> Result<[u64; 2]> {
        let pfns = self.pagemap()?;
        one_page(&pfns[..2])?;
        Ok([pfns[0], pfns[2]])
    }

    /// It checks its pages and goes.
    fn end(self) -> Result<()> {
        self.child.go()?;
        self.child.join()
    }
}

/// A child that prepares itself, builds the pages, and then does `merge`.
fn holding(
    map: &Map,
    prepare: impl FnOnce() -> Result<()>,
    merge: impl FnOnce() -> Result<()>,
) -> Result<Holder> {
    let child = Child::spawn(|parent| {
        prepare()?;
        map.fill_all(|page| IDS[page]);
        merge()?;
        parent.meet()?;
        map.expect_all(|page| IDS[page])
    })?;
    child.pause()?;
    Ok(Holder {
        pid: child.pid(),
        addr: map.addr(),
        child,
    })
}

/// A child that prepares itself, builds the pages, merges them, and stays.
pub fn merging(map: &Map, prepare: impl FnOnce() -> Result<()>) -> Result<Holder> {
    holding(map, prepare, || map.merge())
}

/// The same, of a child that executes a program when it is prepared, as containers do: memory belongs to the user namespace that a
/// program was executed in, too.
pub fn merging_program(prepare: impl FnOnce() -> Result<()>) -> Result<Holder> {
    let child = Child::spawn(|parent| {
        prepare()?;
        hold_for(parent)
    })?;
    let pid = child.receive()? as i32;
    let addr = child.receive()? as usize;
    Ok(Holder { child, pid, addr })
}

/// Tells where a program has its pages, and lets it go when told to.
fn hold_for(parent: &Link) -> Result<()> {
    let mut program = Program::start("domain")?;
    parent.send(program.pid().into())?;
    parent.send(program.number()? as u64)?;
    parent.pause()?;
    program.end()
}

/// What that program does.
pub fn hold() -> Result<()> {
    let map = pages()?;
    map.merge()?;
    println!("{}", map.addr());
    stdout().flush()?;
    stdin().read_to_end(&mut Vec::new())?;
    map.expect_all(|page| IDS[page])
}

fn part(one: Holder, other: Holder) -> Result<()> {
    one.end()?;
    other.end()
}

/// The two share everything.
pub fn together(one: Holder, other: Holder) -> Result<()> {
    ensure!(one.merged()? == other.merged()?, "one domain, two pages");
    part(one, other)
}

/// The two share the zero page and nothing else.
pub fn separate(one: Holder, other: Holder) -> Result<()> {
    let (first, second) = (one.merged()?, other.merged()?);
    apart(&[first[0], second[0]]).context("two domains share a page")?;
    ensure!(first[1] == second[1], "two zero pages");
    part(one, other)
}

/// Nothing of it has merged, zeros neither.
fn unmerged(holder: Holder) -> Result<()> {
    let pfns = holder.pagemap()?;
    apart(&pfns).context("pages merged that are in no domain")?;
    for pfn in pfns {
        let flags = Flags::of(pfn)?;
        ensure!(!flags.ksm() && !flags.zero_page(), "merged: {flags:x?}");
    }
    holder.end()
}

/// A process like that merges in vain, and its call succeeds.
pub fn alone(prepare: impl FnOnce() -> Result<()>) -> Result<()> {
    unmerged(merging(&pages()?, prepare)?)
}

/// So does root's for it.
pub fn alone_by_root(prepare: impl FnOnce() -> Result<()>) -> Result<()> {
    let map = pages()?;
    let holder = holding(&map, prepare, || Ok(()))?;
    let advised = sksm::merge_remote(holder.child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    ensure!(advised == map.len(), "{advised} bytes advised");
    unmerged(holder)
}

fn default_is_cgroup() -> Result<()> {
    let text = SKSM.text("domain")?;
    ensure!(
        text == "[cgroup] user global none",
        "the default domain is {text:?}"
    );
    Ok(())
}

fn user() -> Result<()> {
    SKSM.write("domain", "user")?;
    let group = Cgroup::new("elsewhere")?;
    let map = pages()?;
    let of = |uid| merging(&map, move || become_user(uid));
    separate(of(1001)?, of(1002)?)?;
    separate(of(1001)?, of(0)?)?;
    together(of(1001)?, of(1001)?)?;
    let elsewhere = merging(&map, || {
        group.enter()?;
        become_user(1001)
    })?;
    together(of(1001)?, elsewhere)
}

/// It is the domain of the memory's owner that counts, also when root asks.
fn asked_by_another() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let remotely = |uid| -> Result<Holder> {
        let holder = holding(&map, move || become_user(uid), || Ok(()))?;
        sksm::merge_remote(holder.child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
        Ok(holder)
    };
    let itself = |uid| merging(&map, move || become_user(uid));
    separate(remotely(1001)?, remotely(1002)?)?;
    separate(remotely(1001)?, itself(0)?)?;
    together(remotely(1001)?, itself(1001)?)
}

/// Nothing merges, whoever asks, and the call succeeds. What is merged stays so.
fn none() -> Result<()> {
    let map = pages()?;
    let both = [merging(&map, || Ok(()))?, merging(&map, || Ok(()))?];
    SKSM.write("domain", "none")?;
    alone(|| Ok(()))?;
    alone(|| become_user(1001))?;
    alone_by_root(|| Ok(()))?;
    let [one, other] = both;
    together(one, other)
}

/// Users who all have the same content stand nowhere in each other's way, as the content alone decides of no place in the index.
/// If it did, all would stand in one row, and the table would refuse more until a work item had made another, which gets no turn here.
fn many_users() -> Result<()> {
    const USERS: usize = 100;
    SKSM.write("domain", "user")?;
    let map = Map::filled(&[5; USERS])?;
    let child = Child::spawn(|_| {
        keep_rights()?;
        stay_on_one_cpu()?;
        let start = Counters::now()?;
        before_others(true)?;
        for page in 0..USERS {
            let user = 2000 + page as u32;
            set_users(user, user, user)?;
            map.merge_pages(page..page + 1)?;
        }
        before_others(false)?;
        let change = start.change()?;
        let found = (change.pages_published as usize, change.pages_busy);
        ensure!(
            found == (USERS, 0),
            "{USERS} users with one page each: {found:?} published and busy"
        );
        apart(&map.pfns()?).context("users share pages")?;
        map.expect_all(|_| 5)
    })?;
    child.join()
}

/// Moves this process into a user namespace of its own.
fn new_namespace() -> Result<()> {
    unshare(libc::CLONE_NEWUSER).context("unshare of the user namespace")
}

/// The same, of its cgroup namespace.
pub fn new_cgroup_namespace() -> Result<()> {
    unshare(libc::CLONE_NEWCGROUP).context("unshare of the cgroup namespace")
}

fn unshare(what: i32) -> std::io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::unshare(what) }).map(drop)
}

/// Moves this process into a user namespace of its own, where it is user `inside`, who is `outside` on the host.
pub fn mapped_namespace(inside: u32, outside: u32) -> Result<()> {
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

/// A program that is user `inside` of a namespace of its own, who is `outside` on the host.
pub fn mapped(inside: u32, outside: u32) -> Result<Holder> {
    merging_program(|| mapped_namespace(inside, outside))
}

/// The same user in another user namespace is another domain.
fn user_namespace() -> Result<()> {
    SKSM.write("domain", "user")?;
    separate(merging_program(new_namespace)?, merging_program(|| Ok(()))?)?;
    together(merging_program(|| Ok(()))?, merging(&pages()?, || Ok(()))?)
}

/// Both namespaces count, the one that the process is in and the one that its program was executed in: who enters one is apart from
/// those outside at once, and from those who were executed there.
fn entered_namespace() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let entered = || merging(&map, || mapped_namespace(0, 1001));
    separate(entered()?, merging(&map, || become_user(1001))?)?;
    separate(entered()?, mapped(0, 1001)?)?;
    // In one namespace: who has entered it with memory from outside, and a program that was executed there.
    let child = Child::spawn(|parent| {
        mapped_namespace(0, 1001)?;
        map.fill_all(|page| IDS[page]);
        map.merge()?;
        hold_for(parent)?;
        map.expect_all(|page| IDS[page])
    })?;
    let (pid, addr) = (child.receive()? as i32, child.receive()? as usize);
    let executed = Pagemap::of(pid)?.pfns(addr, IDS.len())?;
    let entered = child.pagemap()?.pfns(map.addr(), IDS.len())?;
    one_page(&executed[..2])?;
    one_page(&entered[..2])?;
    apart(&[executed[0], entered[0]])
        .context("memory from outside a namespace and from within share a page")?;
    child.go()?;
    child.join()
}

/// Two processes of one user in one namespace that is not the first one.
fn same_namespace() -> Result<()> {
    SKSM.write("domain", "user")?;
    // The pages of both must be looked at from outside.
    let inside = Child::spawn(|parent| {
        mapped_namespace(0, 1001)?;
        hold_for(parent)
    })?;
    let within = Child::spawn(|parent| {
        mapped_namespace(0, 1001)?;
        let mut programs = [Program::start("domain")?, Program::start("domain")?];
        for program in &mut programs {
            parent.send(program.pid().into())?;
            parent.send(program.number()? as u64)?;
        }
        parent.pause()?;
        programs.into_iter().try_for_each(Program::end)
    })?;
    let place = |child: &Child| -> Result<Vec<u64>> {
        let (pid, addr) = (child.receive()? as i32, child.receive()? as usize);
        Pagemap::of(pid)?.pfns(addr, IDS.len())
    };
    let elsewhere = place(&inside)?;
    let (one, other) = (place(&within)?, place(&within)?);
    ensure!(one == other, "one domain, two pages");
    apart(&[one[0], elsewhere[0]]).context("two namespaces share a page")?;
    for child in [inside, within] {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// Inside both are root, outside both are the same user; still they are in two namespaces.
fn mapped_users() -> Result<()> {
    SKSM.write("domain", "user")?;
    separate(mapped(0, 1001)?, mapped(0, 1001)?)?;
    separate(mapped(0, 1001)?, mapped(0, 1002)?)?;
    separate(mapped(0, 1001)?, mapped(7, 1001)?)
}

/// A user of a namespace is neither the user whom it stands for outside, nor the one outside who has its number.
fn mapped_and_outside() -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = pages()?;
    let outside = |uid| merging(&map, move || become_user(uid));
    separate(mapped(1001, 1002)?, outside(1001)?)?;
    separate(mapped(1001, 1002)?, outside(1002)?)?;
    separate(mapped(0, 0)?, outside(0)?)
}

/// A group is no unit: users and namespaces in it are apart.
fn group_of_namespaces() -> Result<()> {
    let group = Cgroup::new("one")?;
    let map = pages()?;
    let contained = || {
        merging_program(|| {
            group.enter()?;
            mapped_namespace(0, 1001)
        })
    };
    separate(contained()?, contained()?)?;
    let outside = merging(&map, || {
        group.enter()?;
        become_user(1001)
    })?;
    separate(contained()?, outside)
}

/// Where users may share with each other, containers still do not.
fn global_of_namespaces() -> Result<()> {
    SKSM.write("domain", "global")?;
    let map = pages()?;
    separate(mapped(0, 1001)?, mapped(0, 1001)?)?;
    separate(mapped(0, 1001)?, merging(&map, || become_user(1001))?)
}

/// What is merged stays so. Pages merge with those of the same kind of domain only, also when that kind comes back.
fn mode_change() -> Result<()> {
    let group = Cgroup::new("one")?;
    let map = pages()?;
    let users = || merging(&map, || become_user(1001));
    let page = |holder: &Holder| anyhow::Ok(holder.merged()?[0]);
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
    set("none")?;
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
    all_again.end()
}

fn global() -> Result<()> {
    SKSM.write("domain", "global")?;
    let group = Cgroup::new("elsewhere")?;
    let map = pages()?;
    let of = |uid| merging(&map, move || become_user(uid));
    together(of(1001)?, of(1002)?)?;
    together(of(0)?, of(1002)?)?;
    let elsewhere = merging(&map, || {
        group.enter()?;
        become_user(1001)
    })?;
    together(of(1002)?, elsewhere)
}

/// The kernel's default: the group and the user.
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
    separate(within(0, 0)?, within(1, 0)?)?;
    separate(within(0, 0)?, within(0, 1001)?)?;
    together(within(0, 1001)?, within(0, 1001)?)?;
    separate(within(0, 1001)?, merging(&map, || become_user(1001))?)
}

fn bad_value() -> Result<()> {
    let path = SKSM.path("domain");
    let before = SKSM.text("domain")?;
    for value in ["nobody", "users", "us", "all", "inherit", "[none]"] {
        let error = fs::write(&path, value).err();
        ensure!(
            error.as_ref().and_then(std::io::Error::raw_os_error) == Some(EINVAL),
            "{value:?}: {error:?}"
        );
    }
    ensure!(
        SKSM.text("domain")? == before,
        "a refused value had an effect"
    );
    for value in ["global", "cgroup", "none", "user\n"] {
        SKSM.write("domain", value)?;
        let wanted = format!("[{}]", value.trim());
        let text = SKSM.text("domain")?;
        ensure!(text.contains(&wanted), "after {value:?} it is {text:?}");
    }
    Ok(())
}
