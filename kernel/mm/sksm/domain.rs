// SPDX-License-Identifier: GPL-2.0-only

//! Merge domains: who may share a page with whom.
//!
//! Whether a page is shared tells whether somebody else holds the same bytes: by the time that a
//! merge or a write takes, and plainly in `/proc/PID/pagemap` and in counters. So pages merge
//! within one domain only, and the domain is part of all that an outcome or a time depends on.
//!
//! A domain is a scope and an identity. The scope is the nearest memory cgroup with a mark, or, if
//! none has one, what the root's mark says. The identity is the user and the namespaces of the
//! process whose memory it is.

use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::types::Opaque;

use super::base::atomic::{Atomic, AtomicType, Relaxed};
use super::content::Secret;
use super::mm::{functions, methods, Mm, Vma};

/// The mark of the root: `/sys/kernel/mm/sksm/domain`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum Root {
    /// No mark: each memory cgroup is for itself.
    Cgroup,
    /// Each user is for himself.
    User,
    /// Users may share with each other.
    Global,
    /// Nothing merges.
    None,
}

// SAFETY: Of the size and the alignment of an `i8`, and each value is one of that.
unsafe impl AtomicType for Root {
    type Repr = i8;
}

impl Root {
    pub(crate) const ALL: [Self; 4] = [Self::Cgroup, Self::User, Self::Global, Self::None];
    /// Their names in sysfs, in the order of `ALL`.
    pub(crate) const NAMES: [&'static str; 4] = ["cgroup", "user", "global", "none"];
}

static ROOT: Atomic<Root> = Atomic::new(Root::Cgroup);

functions! {
    /// Whether `sksm=off` was given at boot.
    fn is_off() -> bool = sksm_is_off;
}

/// The mark of the root.
pub(crate) fn root() -> Root {
    if is_off() {
        return Root::None;
    }
    ROOT.load(Relaxed)
}

/// Changes the mark of the root; pages that are merged already stay so.
pub(crate) fn set_root(root: Root) -> Result {
    if is_off() {
        return Err(EPERM);
    }
    ROOT.store(root, Relaxed);
    Ok(())
}

/// A part of the machine within which pages merge.
#[derive(Clone, Copy)]
struct Scope {
    /// The serial number of a memory cgroup, or 0.
    group: u64,
    /// Whether users are apart.
    by_user: bool,
    /// Whether the administrator of the group marked it.
    marked: bool,
}

impl Scope {
    const fn marked(group: u64, by_user: bool) -> Self {
        Self {
            group,
            by_user,
            marked: true,
        }
    }

    const fn unmarked(group: u64, by_user: bool) -> Self {
        Self {
            group,
            by_user,
            marked: false,
        }
    }

    /// The scope of memory of `mm`; `None` where nothing merges.
    fn of(mm: &Mm, rcu: &rcu::Guard) -> Option<Self> {
        let own = Memcg::of(mm, rcu);
        let mut group = own;
        while let Some(at) = group {
            match at.mark() {
                bindings::sksm_mark_SKSM_NONE => return None,
                bindings::sksm_mark_SKSM_USER => return Some(Self::marked(at.serial(), true)),
                bindings::sksm_mark_SKSM_ALL => return Some(Self::marked(at.serial(), false)),
                _ => group = at.parent(),
            }
        }
        match root() {
            Root::Cgroup => Some(Self::unmarked(own.map_or(0, Memcg::serial), true)),
            Root::User => Some(Self::unmarked(0, true)),
            Root::Global => Some(Self::unmarked(0, false)),
            Root::None => None,
        }
    }
}

/// A memory cgroup, in an RCU read section: that keeps it and its ancestors.
#[repr(transparent)]
struct Memcg(Opaque<bindings::mem_cgroup>);

impl Memcg {
    /// That of an address space, unless its owner has gone.
    fn of<'a>(mm: &Mm, _rcu: &'a rcu::Guard) -> Option<&'a Self> {
        // SAFETY: `mm` is valid, and this is within a read section.
        unsafe { bindings::sksm_mm_memcg(mm.as_ptr()).cast::<Self>().as_ref() }
    }

    fn parent(&self) -> Option<&Self> {
        // SAFETY: The group is in use, and with it its ancestors.
        unsafe {
            bindings::sksm_memcg_parent(self.as_ptr())
                .cast::<Self>()
                .as_ref()
        }
    }

    fn as_ptr(&self) -> *mut bindings::mem_cgroup {
        self.0.get()
    }

    methods! {
        /// What `memory.merge_domain` says.
        fn mark() -> u32 = sksm_memcg_mark;
        /// A number that no other group ever has, and not 0.
        fn serial() -> u64 = sksm_memcg_serial;
    }
}

/// One merge domain.
#[derive(Clone, Copy)]
pub(crate) struct Domain {
    /// Stands for scope and identity: nobody can make two domains that have the same.
    id: u64,
}

impl Domain {
    /// The domain that memory of `mm` belongs to; `None` when it is in none: nothing of it merges.
    /// `remote` says that another process asks.
    pub(crate) fn of(mm: &Mm, remote: bool, secret: &Secret) -> Option<Self> {
        if is_off() {
            return None;
        }
        let rcu = rcu::read_lock();
        let scope = Scope::of(mm, &rcu)?;
        // Who marked the group has said that its processes are one unit. Elsewhere nobody else
        // decides for a process that does not let others look at its memory.
        if remote && !scope.marked && !mm.is_dumpable() {
            return None;
        }
        let mut owner = bindings::sksm_owner::default();
        // SAFETY: `mm` is valid, and this is within a read section.
        if !unsafe { bindings::sksm_mm_owner(mm.as_ptr(), &mut owner) } {
            // It has gone.
            return None;
        }
        // Who is somebody else as well is in nobody's domain.
        if owner.uid != owner.euid || owner.uid != owner.suid {
            return None;
        }
        let user = if scope.by_user {
            u64::from(owner.uid) << 2 | 1
        } else {
            0
        };
        let place = if scope.marked {
            2
        } else {
            // A container is not its host, nor another one.
            owner.cgroup_ns << 2
        };
        // Both namespaces: a process that has moved into one keeps memory of the other until exec.
        Some(Self {
            id: secret.digest([scope.group, user, owner.mm_user_ns, owner.user_ns, place, 0]),
        })
    }

    /// The word for this domain and a NUMA node in keys of the index.
    pub(crate) fn word(self, nid: i32, secret: &Secret) -> u64 {
        if nid == bindings::NUMA_NO_NODE {
            self.id
        } else {
            secret.digest([self.id, nid as u64])
        }
    }
}

/// Whether other processes' advice passes over a VMA: memory that its owner has locked, keeps out
/// of core dumps, or keeps from children.
pub(crate) fn is_private(vma: &Vma) -> bool {
    let private =
        bindings::SKSM_VM_LOCKED | bindings::SKSM_VM_DONTDUMP | bindings::SKSM_VM_WIPEONFORK;
    vma.flags() & private as usize != 0
}
