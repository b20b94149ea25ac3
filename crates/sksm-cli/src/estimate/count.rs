//! How many physical pages merging would free.

use super::{KINDS, Page, Saving};

/// What pages merge with.
#[derive(Clone, Copy, PartialEq)]
pub enum Scope {
    /// Those of the same user.
    User,
    /// All.
    All,
}

#[derive(Default)]
pub struct Counted {
    pub total: Saving,
    pub zero: Saving,
    pub kinds: Vec<Saving>,
    pub processes: Vec<Saving>,
}

/// `domains` tells each process's domain. Equal pages that are one physical page already, since a fork or a merge, save nothing
/// more; one merged page serves `most` mappings; pages of zeros need none.
pub fn count(
    pages: &mut [Page],
    domains: &[u64],
    scope: Scope,
    most: u64,
    processes: usize,
) -> Counted {
    let domain = |page: &Page| match scope {
        Scope::User => domains.get(page.process as usize).copied().unwrap_or(0),
        Scope::All => 0,
    };
    // Unknown page frames are all different.
    let place = |page: &Page| match page.pfn {
        0 => (0, page.process, page.addr),
        pfn => (pfn, 0, 0),
    };
    pages.sort_unstable_by_key(|page| (domain(page), page.hash, place(page)));
    let mut counted = Counted {
        kinds: vec![Saving::default(); KINDS.len()],
        processes: vec![Saving::default(); processes],
        ..Counted::default()
    };
    for group in pages.chunk_by(|a, b| domain(a) == domain(b) && a.hash == b.hash) {
        let mappings = group.len() as u64;
        let frames = || group.chunk_by(|a, b| place(a) == place(b));
        let physical = frames().count() as u64;
        let zero = group.first().is_some_and(|page| page.zero);
        let after = if zero { 0 } else { mappings.div_ceil(most) };
        let saved = physical.saturating_sub(after) as f64;
        for frame in frames() {
            let share = Saving {
                mapped_pages: 1,
                // A page with several mappings belongs to each in part.
                pages: 1.0 / frame.len() as f64,
                saved_pages: saved / physical as f64 / frame.len() as f64,
            };
            for page in frame {
                counted.total.add(share);
                if zero {
                    counted.zero.add(share);
                }
                if let Some(kind) = counted.kinds.get_mut(usize::from(page.kind)) {
                    kind.add(share);
                }
                if let Some(process) = counted.processes.get_mut(page.process as usize) {
                    process.add(share);
                }
            }
        }
    }
    counted
}

impl Saving {
    fn add(&mut self, more: Saving) {
        self.mapped_pages += more.mapped_pages;
        self.pages += more.pages;
        self.saved_pages += more.saved_pages;
    }
}

/// The pages that hold the same in both looks.
pub fn unchanged(mut before: Vec<Page>, mut after: Vec<Page>) -> Vec<Page> {
    let place = |page: &Page| (page.process, page.addr);
    before.sort_unstable_by_key(place);
    after.sort_unstable_by_key(place);
    let mut after = after.into_iter().peekable();
    before.retain(|page| {
        while after.next_if(|other| place(other) < place(page)).is_some() {}
        after
            .peek()
            .is_some_and(|other| place(other) == place(page) && other.hash == page.hash)
    });
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(hash: u128, pfn: u64, process: u32) -> Page {
        Page {
            hash,
            pfn,
            addr: u64::from(process) << 32 | pfn << 12,
            process,
            kind: 4,
            zero: hash == 0,
        }
    }

    fn saved(pages: &[Page], scope: Scope, most: u64) -> (u64, f64, f64) {
        let counted = count(&mut pages.to_vec(), &[7, 7, 8], scope, most, 3);
        let sum: f64 = counted
            .processes
            .iter()
            .map(|saving| saving.saved_pages)
            .sum();
        assert!((sum - counted.total.saved_pages).abs() < 1e-9);
        let kinds: f64 = counted.kinds.iter().map(|saving| saving.saved_pages).sum();
        assert!((kinds - sum).abs() < 1e-9);
        let total = counted.total;
        (
            total.mapped_pages,
            total.pages.round(),
            (total.saved_pages * 1e6).round() / 1e6,
        )
    }

    #[test]
    fn equal_pages_leave_one() {
        let pages = [
            page(1, 10, 0),
            page(1, 11, 0),
            page(1, 12, 1),
            page(2, 13, 1),
        ];
        assert_eq!(saved(&pages, Scope::User, 256), (4, 4.0, 2.0));
    }

    #[test]
    fn users_are_apart() {
        let pages = [page(1, 10, 0), page(1, 11, 2)];
        assert_eq!(saved(&pages, Scope::User, 256), (2, 2.0, 0.0));
        assert_eq!(saved(&pages, Scope::All, 256), (2, 2.0, 1.0));
    }

    #[test]
    fn what_is_shared_already_is_not_saved_again() {
        let pages = [page(1, 10, 0), page(1, 10, 1), page(1, 11, 0)];
        assert_eq!(saved(&pages, Scope::User, 256), (3, 2.0, 1.0));
    }

    #[test]
    fn zeros_need_no_page() {
        assert_eq!(
            saved(&[page(0, 10, 0), page(0, 11, 1)], Scope::User, 256),
            (2, 2.0, 2.0)
        );
        assert_eq!(saved(&[page(0, 10, 0)], Scope::User, 256), (1, 1.0, 1.0));
    }

    #[test]
    fn one_copy_serves_so_many_mappings() {
        let pages: Vec<Page> = (0..10).map(|pfn| page(1, 10 + pfn, 0)).collect();
        assert_eq!(saved(&pages, Scope::User, 4), (10, 10.0, 7.0));
    }

    #[test]
    fn unknown_frames_are_apart() {
        let mut pages = [page(1, 0, 0), page(1, 0, 1)];
        pages[1].addr = pages[0].addr;
        assert_eq!(saved(&pages, Scope::User, 256), (2, 2.0, 1.0));
    }

    #[test]
    fn changed_and_new_pages_are_not_stable() {
        let before = vec![page(1, 10, 0), page(2, 11, 0), page(3, 12, 0)];
        let mut changed = page(9, 11, 0);
        changed.pfn = 99;
        let after = vec![page(1, 10, 0), changed, page(4, 13, 0)];
        let stable = unchanged(before, after);
        assert_eq!(stable.len(), 1);
        assert!(stable[0] == page(1, 10, 0));
    }
}
