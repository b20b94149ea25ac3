//! Prints how many interleavings each scenario has, and how long they take. Arguments: a part of the
//! scenarios' names, and how many thread switches to explore, `all` perhaps.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use sksm_model::SCENARIOS;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let only = args.next().unwrap_or_default();
    let switches = args.next().map(|arg| arg.parse().ok());
    let mut code = ExitCode::SUCCESS;
    for scenario in SCENARIOS.iter().filter(|s| s.name.contains(&only)) {
        let start = Instant::now();
        let bound = switches.unwrap_or(scenario.preemptions);
        let result = catch_unwind(|| scenario.explore_within(None, bound));
        let seconds = start.elapsed().as_secs_f64();
        let bound = bound.map_or("all".to_owned(), |bound| bound.to_string());
        match result {
            Ok(executions) => {
                println!(
                    "{executions:8} {bound:>3} {seconds:6.1} s  {}",
                    scenario.name
                );
            }
            Err(_) => {
                println!("  failed {bound:>3} {seconds:6.1} s  {}", scenario.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
