//! Prints how many interleavings each scenario has, and how long they take.

use std::time::Instant;

use sksm_model::SCENARIOS;

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    for scenario in SCENARIOS.iter().filter(|s| s.name.contains(&only)) {
        let start = Instant::now();
        let executions = scenario.explore(None);
        let seconds = start.elapsed().as_secs_f64();
        println!("{executions:8} {seconds:6.1} s  {}", scenario.name);
    }
}
