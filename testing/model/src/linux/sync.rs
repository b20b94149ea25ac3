//! `kernel::sync`.

pub(crate) mod rcu {
    use std::thread::panicking;

    use crate::world::world;

    /// A read section.
    pub(crate) struct Guard;

    impl Drop for Guard {
        fn drop(&mut self) {
            if !panicking() {
                world().rcu.read_unlock();
            }
        }
    }

    pub(crate) fn read_lock() -> Guard {
        world().rcu.read();
        Guard
    }

    /// A grace period.
    pub(crate) fn synchronize_rcu() {
        world().rcu.write();
        world().rcu.write_unlock();
    }
}

pub(crate) mod barrier {
    use loom::sync::atomic::{fence, Ordering};

    pub(crate) use crate::linux::atomic::Full;

    pub(crate) fn smp_mb(_: Full) {
        fence(Ordering::SeqCst);
    }
}

pub(crate) use super::atomic;
