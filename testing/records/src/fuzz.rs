//! What a fuzzer in the test kernel finds: the lines that `sksm-fuzz` prints and `cargo xtask fuzz` reads, and how inputs are
//! written down.

use serde::{Deserialize, Serialize};

/// In the kernel's log, before the input that is about to run, in hexadecimal digits.
pub const RUNS: &str = "sksm-fuzz runs ";

/// One line of standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// An input that reached something that none before it had reached.
    New(String),
    /// The inputs to keep, which together reach all that was reached, and how far it is.
    Report(Report),
    /// The inputs before the last, and the last, after which something was wrong.
    Failure { inputs: Vec<String>, reason: String },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub seconds: u64,
    /// Inputs that ran, and operations of theirs.
    pub inputs: u64,
    pub operations: u64,
    pub pages_merged: u64,
    pub pages_compared: u64,
    /// Inputs that reached something new.
    pub kept: u64,
    pub corpus: Vec<String>,
    /// Addresses of instructions in the kernel, of those that tell.
    pub reached: Vec<u64>,
    /// How often each operation had an effect.
    pub done: Vec<(String, u64)>,
}

/// An input as it is written down.
pub fn encode(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// None if it is not what [`encode`] writes.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.len() % 2 != 0 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

/// The inputs of a file: one in a line, beside empty lines and those that begin with `#`.
pub fn inputs(file: &str) -> Result<Vec<Vec<u8>>, String> {
    let lines = file.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| decode(line).ok_or_else(|| format!("no input: {line}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_back_as_they_were_written() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        assert_eq!(encode(&[0, 10, 255]), "000aff");
        for wrong in ["0", "0g", "+1", "é0"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_has_an_input_in_a_line() {
        let file = "# what it is\n01ff\n\n  00  \n";
        assert_eq!(inputs(file), Ok(vec![vec![1, 255], vec![0]]));
        assert!(inputs("01\nxy\n").is_err());
    }
}
