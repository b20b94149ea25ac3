//! The CPU of the host that a guest with one processor keeps to.

use std::{
    process,
    sync::{Mutex, MutexGuard},
};

use rustix::thread::{CpuSet, sched_getaffinity};

/// Those that guests of this invocation have, once for each.
static TAKEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// One guest's, until dropped.
pub struct Cpu(usize);

impl Cpu {
    /// The one that the fewest guests have, so that those side by side do not share it; `None` where nobody says which there are.
    pub fn take() -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        let mut cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| allowed.is_set(cpu))
            .collect();
        // Not the same for each invocation of the tool.
        let first = process::id() as usize % cpus.len().max(1);
        cpus.rotate_left(first);
        let mut taken = taken();
        let cpu = least_taken(&cpus, &taken)?;
        taken.push(cpu);
        Some(Self(cpu))
    }

    pub fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(self.0);
        set
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let mut taken = taken();
        if let Some(at) = taken.iter().position(|&cpu| cpu == self.0) {
            taken.swap_remove(at);
        }
    }
}

fn taken() -> MutexGuard<'static, Vec<usize>> {
    TAKEN.lock().expect("nobody panics with it")
}

fn least_taken(cpus: &[usize], taken: &[usize]) -> Option<usize> {
    let guests = |cpu: &&usize| taken.iter().filter(|one| one == cpu).count();
    cpus.iter().min_by_key(guests).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_side_by_side_keep_apart() {
        assert_eq!(least_taken(&[3, 1], &[]), Some(3));
        assert_eq!(least_taken(&[3, 1], &[3]), Some(1));
        assert_eq!(least_taken(&[3, 1], &[3, 1]), Some(3));
        assert_eq!(least_taken(&[3, 1], &[3, 1, 3]), Some(1));
        assert_eq!(least_taken(&[], &[]), None);
    }
}
