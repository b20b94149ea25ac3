//! Whose memory it is: all users of the process's owner count, and its namespaces; who is two users is in nobody's domain.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libc::{ENOMEM, ESRCH};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::sysfs::{Counters, SKSM};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, become_user};
use sksm_guest::memory::rights::{set_dumpable, set_users};
use sksm_guest::page::PAGE;

use crate::domain::{
    alone, alone_by_root, merging, new_cgroup_namespace, pages, separate, together,
};
use crate::expect::{apart, errno};
use crate::remote::advise;
use crate::writers::for_a_while;

pub const TESTS: &[Test] = &[
    test("domain/two-users-in-one", two_users),
    test("domain/cgroup-namespace", cgroup_namespace),
    test("domain/set-uid-oracle", || oracle(set_uid)),
    test("domain/dropped-rights-oracle", || oracle(dropped_rights)),
    test("domain/owner-gone", owner_gone),
];

/// Real, effective and saved user: whenever they are not one, nothing merges, by the process itself and by root, in any mode.
fn two_users() -> Result<()> {
    for mode in ["cgroup", "user", "global"] {
        SKSM.write("domain", mode)?;
        for users in [
            [1001, 0, 0],
            [0, 1001, 0],
            [0, 0, 1001],
            [1001, 1002, 1002],
            [1001, 1001, 0],
        ] {
            let become_them = move || {
                set_users(users[0], users[1], users[2])?;
                set_dumpable(true)
            };
            alone(become_them)
                .and_then(|()| alone_by_root(become_them))
                .with_context(|| format!("domain {mode}, users {users:?}"))?;
        }
    }
    Ok(())
}

/// Without a mark a container is neither its host nor another container.
fn cgroup_namespace() -> Result<()> {
    let map = pages()?;
    let group = Cgroup::new("host")?;
    for mode in ["cgroup", "user", "global"] {
        SKSM.write("domain", mode)?;
        let outside = || {
            merging(&map, || {
                group.enter()?;
                become_user(1001)
            })
        };
        let contained = || {
            merging(&map, || {
                group.enter()?;
                new_cgroup_namespace()?;
                become_user(1001)
            })
        };
        let why = || format!("domain {mode}");
        separate(outside()?, contained()?).with_context(why)?;
        separate(contained()?, contained()?).with_context(why)?;
        together(outside()?, outside()?).with_context(why)?;
        // Two processes of one container.
        let both = Child::spawn(|_| {
            group.enter()?;
            new_cgroup_namespace()?;
            let one = merging(&map, || become_user(1001))?;
            together(one, merging(&map, || become_user(1001))?)
        })?;
        both.join().with_context(why)?;
    }
    Ok(())
}

const SECRETS: usize = 16;
/// Which of them it is.
const SECRET: usize = 11;

/// What a page holds whose owner wants nobody to know which one it is.
fn secret(number: usize) -> u64 {
    600 + number as u64
}

/// As a program looks that a user has started and that is root.
fn set_uid(map: &Map) -> Result<()> {
    map.fill_all(|_| secret(SECRET));
    set_dumpable(false)?;
    set_users(1001, 0, 0)
}

/// As a daemon looks that has read the secret as root and serves the user now.
fn dropped_rights(map: &Map) -> Result<()> {
    map.fill_all(|_| secret(SECRET));
    set_users(1001, 1001, 1001)
}

/// A user who may not look at a process's memory must not learn what is in it by having the same: not from the page tables, which
/// tell him of his own pages whether anybody else has them too.
fn oracle(become_victim: fn(&Map) -> Result<()>) -> Result<()> {
    SKSM.write("domain", "user")?;
    let map = Map::filled(&[1])?;
    let victim = Child::spawn(|parent| {
        become_victim(&map)?;
        parent.meet()?;
        map.expect(0, secret(SECRET))
    })?;
    victim.pause()?;
    let memory = format!("/proc/{}/mem", victim.pid());
    // Somebody merges whatever there is.
    sksm::merge_remote(victim.pidfd()?.as_fd(), &[(map.addr(), PAGE)])?;
    let spy = Child::spawn(|parent| {
        become_user(1001)?;
        ensure!(
            std::fs::File::open(&memory).is_err(),
            "the victim's memory is open to all"
        );
        let guesses = Map::anon(SECRETS)?;
        guesses.no_huge();
        guesses.fill_all(secret);
        let start = Counters::now()?;
        guesses.merge()?;
        let merged = start.change()?.pages_merged;
        ensure!(merged == 0, "counters tell of {merged} merged pages");
        let entries =
            sksm_guest::memory::pagemap::Pagemap::own()?.entries(guesses.addr(), SECRETS)?;
        for (guess, entry) in entries.iter().enumerate() {
            ensure!(
                entry.exclusive(),
                "guess {guess} is somebody else's page too"
            );
        }
        parent.meet()?;
        guesses.expect_all(secret)
    })?;
    spy.pause()?;
    for child in [spy, victim] {
        child.go()?;
        child.join()?;
    }
    Ok(())
}

/// A process that goes while its memory is being merged takes its domain with it: what is left of its memory never merges with
/// that of others, as its pages have no twins in its own group.
fn owner_gone() -> Result<()> {
    const PAGES: usize = 1024;
    SKSM.write("domain", "cgroup")?;
    let group = Cgroup::new("gone")?;
    let id = |page: usize| 1 + page as u64;
    let ours = Map::anon(PAGES)?;
    ours.no_huge();
    ours.fill_all(id);
    ours.merge()?;
    apart(&ours.pfns()?)?;
    let start = Counters::now()?;
    let map = Map::filled(&[0; PAGES])?;
    let (mut whole, mut cut) = (0, 0);
    for_a_while(|round| {
        let child = Child::spawn(|parent| {
            group.enter()?;
            map.fill_all(id);
            parent.meet()
        })?;
        child.pause()?;
        let pidfd = child.pidfd()?;
        let ranges: Vec<_> = (0..PAGES).map(|page| (map.page(page), PAGE)).collect();
        let killer = std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round % 64 * 40));
                child.kill();
            });
            let result = advise(&pidfd, &ranges, sksm::MADV_MERGE, 0);
            match result {
                Ok(advised) if advised == PAGES * PAGE => whole += 1,
                Ok(_) | Err(ESRCH | ENOMEM) => cut += 1,
                Err(error) => anyhow::bail!("merging a process that goes: error {error}"),
            }
            killer.join().ok().context("the killer panicked")
        });
        killer?;
        child.ended()?;
        let merged = start.change()?.pages_merged;
        ensure!(
            merged == 0,
            "{merged} pages of a process that has gone merged with another group's"
        );
        Ok(())
    })?;
    eprintln!("{whole} calls to the end, {cut} not");
    ours.expect_all(id)?;
    ensure!(
        errno(sksm::merge_exact(ours.addr(), ours.len())) == 0,
        "merging afterwards"
    );
    Ok(())
}
