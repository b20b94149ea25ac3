//! The inputs that a fuzzer has found and that are kept: together they reach all that it ever reached.

use anyhow::{Result, anyhow};

const FILE: &str = include_str!("../../../fuzz/corpus/inputs");

pub fn inputs() -> Result<Vec<Vec<u8>>> {
    sksm_records::fuzz::inputs(FILE).map_err(|error| anyhow!("testing/fuzz/corpus/inputs: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_can_be_read() {
        let inputs = inputs().unwrap();
        assert!(!inputs.is_empty());
        assert!(inputs.iter().all(|input| !input.is_empty()));
    }
}
