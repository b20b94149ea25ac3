//! The engine as it is holds in every interleaving that is explored.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sksm_model::SCENARIOS;

#[test]
fn holds() {
    let next = AtomicUsize::new(0);
    let explore = || {
        while let Some(scenario) = SCENARIOS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let executions = scenario.explore(None);
            println!("{executions:8}  {}", scenario.name);
            // One interleaving would mean that the threads never met.
            assert!(executions > 1, "{}", scenario.name);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(explore);
        }
    });
}
