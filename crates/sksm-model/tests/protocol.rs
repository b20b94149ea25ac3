//! The protocol as it is holds in every interleaving that is explored.

use sksm_model::SCENARIOS;

#[test]
fn holds() {
    for scenario in SCENARIOS {
        let executions = scenario.explore(None);
        println!("{executions:8}  {}", scenario.name);
        // One interleaving would mean that the threads never met.
        assert!(executions > 1, "{}", scenario.name);
    }
}
