//! Which of a kernel's code says that it has run.
//!
//! The kernel's own rules instrument all of its C code, or the files that a Makefile names. What is named here is named on
//! make's command line instead, so that the sources are those of every other kernel.

use super::arch::Arch;

/// Files of mm that the engine works with: what they do with its pages is worth finding too.
const BESIDE: [&str; 6] = ["ksm", "memory", "migrate", "rmap", "swapfile", "vmscan"];

/// Only these tell of which function an instruction is, inlined ones too.
const LINES: &str = "-gline-tables-only";
/// rustc runs the pass that clang runs for `-fsanitize-coverage=trace-pc`, which the kernel's rules know for C only.
const RUST: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
                    -Cllvm-args=-sanitizer-coverage-trace-pc -Cdebuginfo=line-tables-only";

/// Variables for make.
pub fn variables(arch: Arch) -> Vec<String> {
    if arch != Arch::Fuzz {
        return Vec::new();
    }
    let in_directory = |variable: &str, directory: &str, value: &str| {
        // Elsewhere a file may have the same name.
        format!("{variable}.o=$(if $(filter {directory},$(obj)),{value})")
    };
    let mut variables: Vec<_> = BESIDE
        .iter()
        .map(|file| in_directory(&format!("KCOV_INSTRUMENT_{file}"), "mm", "y"))
        .collect();
    let engine = "mm/sksm";
    variables.push(in_directory("KCOV_INSTRUMENT_glue", engine, "y"));
    variables.push(in_directory("CFLAGS_glue", engine, LINES));
    variables.push(in_directory("RUSTFLAGS_sksm", engine, RUST));
    variables
}
