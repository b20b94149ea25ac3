//! A process that is killed at each of the calls that it makes while it publishes. What is found afterwards under a name is whole, and
//! whoever comes next shares.
#![cfg(target_arch = "x86_64")]

mod helpers;
mod library;

use std::fs;

use helpers::Home;
use library::Library;
use sksm_store::{Object, Store};

/// More than any of them makes; each call is seen twice, before and after it.
const STOPS: usize = 5000;

/// Runs this in a child that is killed at its so-many-th stop; whether it came that far.
fn killed_at(stop: usize, work: impl FnOnce()) -> bool {
    let child = helpers::fork(|| {
        // SAFETY: the parent is ready to trace; takes numbers.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        work();
    });
    let pid = child.pid();
    let mut status = 0;
    for seen in 0.. {
        // SAFETY: a child of this process; writes the status, into ours.
        let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(waited, pid);
        if !libc::WIFSTOPPED(status) {
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "{status:x}"
            );
            return false;
        }
        if seen == stop {
            // Its end is waited for.
            child.kill();
            return true;
        }
        // SAFETY: a child that has stopped.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, 0) };
    }
    unreachable!()
}

/// Every file has a name of the store's, and nothing else has been left.
fn check(home: &Home, files: u64) {
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
    let names = names.into_iter().map(|entry| entry.unwrap().file_name());
    let others: Vec<_> = names.filter(|name| name != ".lock").collect();
    let held = home.store().held().unwrap().files;
    assert_eq!(held, others.len() as u64, "{others:?}");
    assert!(held <= files, "{others:?}");
}

#[test]
fn while_it_freezes() {
    let data = || (0..5000u64).collect::<Vec<_>>();
    let mut last = 0;
    for stop in 1..STOPS {
        let home = Home::new();
        let came_so_far = killed_at(stop, || {
            let store = Store::open_in(home.path()).unwrap();
            assert_eq!(store.freeze(data()).unwrap()[..], data());
        });
        check(&home, 1);
        assert_eq!(home.store().freeze(data()).unwrap()[..], data());
        check(&home, 1);
        if !came_so_far {
            last = stop;
            break;
        }
    }
    assert!(last > 40, "{last}");
}

#[test]
fn while_it_makes_room() {
    let data = |seed: u64| (0..5000u64).map(|at| at * seed).collect::<Vec<_>>();
    let mut last = 0;
    for stop in 1..STOPS {
        let home = Home::new();
        let limit = 100_000;
        drop(home.store().freeze(data(1)).unwrap());
        drop(home.store().freeze(data(2)).unwrap());
        let came_so_far = killed_at(stop, || {
            let store = Store::open_in(home.path()).unwrap().with_limit(limit);
            assert_eq!(store.freeze(data(3)).unwrap()[..], data(3));
        });
        check(&home, 3);
        let store = home.store().with_limit(limit);
        for seed in 1..4 {
            assert_eq!(store.freeze(data(seed)).unwrap()[..], data(seed));
        }
        assert!(store.held().unwrap().bytes <= limit);
        if !came_so_far {
            last = stop;
            break;
        }
    }
    assert!(last > 60, "{last}");
}

#[test]
fn while_it_shares_code() {
    let path = library::path();
    let patched = |store: &Store| {
        let library = Library::load(path);
        (0..40).for_each(|at| library.patch(at, at as i32 + 1000));
        let shared = store.share_text(Object::Named("libpatched.so")).unwrap();
        assert_eq!((shared.pages, library.private()), (40, 0));
        (0..40).for_each(|at| assert_eq!(library.call(at), at as i32 + 1000));
    };
    let mut last = 0;
    for stop in 1..STOPS {
        let home = Home::new();
        let came_so_far = killed_at(stop, || patched(&home.store()));
        check(&home, 1);
        assert!(helpers::fork(|| patched(&home.store())).wait());
        check(&home, 1);
        if !came_so_far {
            last = stop;
            break;
        }
    }
    assert!(last > 200, "{last}");
}
