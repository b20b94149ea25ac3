//! The calls in a trace, and the functions that their instructions are in.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use sksm_records::profile::{CASES, Case};

use super::symbols::Symbols;

/// A system call begins with this one,
const ENTRY: &str = "entry_SYSCALL_64";
/// ends with this one,
const RETURN: &str = "syscall_return_via_sysret";
/// and is one of ours if it comes by this one.
const OURS: &str = "sksm_call_begin";

/// Instructions by function, for each case: of its call in the middle, when they are put in order of what they took. In others
/// the kernel may have had something else to do.
pub struct Calls(HashMap<String, [f64; CASES.len()]>);

impl Calls {
    /// Finds the calls in the order in which they were made.
    pub fn read(addresses: impl Iterator<Item = Result<u64>>, symbols: &Symbols) -> Result<Self> {
        let named = |name| {
            let missing = || format!("this kernel has no function {name}");
            symbols.named(name).with_context(missing)
        };
        let (entry, end, ours) = (named(ENTRY)?, named(RETURN)?, named(OURS)?);
        let all = |(at, case): (usize, &Case)| std::iter::repeat_n(at, case.calls);
        let mut cases = CASES.iter().enumerate().flat_map(all);
        let mut calls = CASES.map(|_| Vec::new());
        let mut call = Call::default();
        for address in addresses {
            let address = address?;
            let Some(number) = symbols.at(address) else {
                continue;
            };
            let begins = number == entry && address == symbols.start(entry);
            if begins || call.ending && number != end {
                if call.ours {
                    let case = cases
                        .next()
                        .context("more calls were made than there should be")?;
                    calls[case].push(std::mem::take(&mut call));
                }
                call = Call {
                    running: begins,
                    ..Call::default()
                };
            }
            if call.running {
                *call.counts.entry(number).or_default() += 1;
                call.ours |= number == ours;
                call.ending = number == end;
            }
        }
        if call.ours {
            let case = cases
                .next()
                .context("more calls were made than there should be")?;
            calls[case].push(call);
        }
        ensure!(cases.next().is_none(), "not all calls are in the trace");
        let mut all = Self(HashMap::new());
        for (at, mut calls) in calls.into_iter().enumerate() {
            calls.sort_by_key(Call::instructions);
            all.add(at, &calls[(calls.len() - 1) / 2], symbols);
        }
        Ok(all)
    }

    fn add(&mut self, case: usize, call: &Call, symbols: &Symbols) {
        let pages = CASES[case].pages;
        for (number, count) in &call.counts {
            let counts = self.0.entry(symbols.name(*number)).or_default();
            counts[case] += *count as f64 / pages as f64;
        }
    }

    /// By name, the most costly first.
    pub fn functions(&self) -> Vec<(String, [f64; CASES.len()])> {
        let mut functions: Vec<_> = self
            .0
            .iter()
            .map(|(name, counts)| (name.clone(), *counts))
            .collect();
        let cost = |counts: &[f64; CASES.len()]| counts.iter().sum::<f64>();
        functions.sort_by(|(name, counts), (other, others)| {
            cost(others)
                .total_cmp(&cost(counts))
                .then_with(|| name.cmp(other))
        });
        functions
    }
}

/// One system call.
#[derive(Default)]
struct Call {
    running: bool,
    ours: bool,
    /// Its last function runs.
    ending: bool,
    counts: HashMap<usize, u64>,
}

impl Call {
    fn instructions(&self) -> u64 {
        self.counts.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let mut symbols = Symbols::default();
        for line in [
            "1000 T entry_SYSCALL_64",
            "1100 T syscall_return_via_sysret",
            "1200 T do_madvise",
            "1300 T sksm_call_begin",
            "1400 T asm_exc_page_fault",
        ] {
            symbols.add(line);
        }
        symbols.sorted().unwrap()
    }

    fn read(addresses: &[u64]) -> Result<Calls> {
        Calls::read(addresses.iter().map(|address| Ok(*address)), &symbols())
    }

    /// What comes before, another system call, and a fault after ours.
    const ONE: [u64; 11] = [
        0x1402, 0x1000, 0x1204, 0x1100, 0x1000, 0x1004, 0x1200, 0x1300, 0x1100, 0x1104, 0x1400,
    ];

    #[test]
    fn only_ours_count_and_up_to_their_end() {
        let number = CASES.iter().map(|case| case.calls).sum();
        let calls = read(&ONE.repeat(number)).unwrap();
        let functions = calls.functions();
        let names: Vec<_> = functions.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [ENTRY, RETURN, "do_madvise", OURS],
            "the most costly first"
        );
        for (at, case) in CASES.iter().enumerate() {
            let per_page = 2.0 / case.pages as f64;
            assert!((functions[0].1[at] - per_page).abs() < 1e-9, "{case:?}");
        }
    }

    #[test]
    fn a_call_that_took_longer_than_most_does_not_count() {
        let number: usize = CASES.iter().map(|case| case.calls).sum();
        let mut trace = ONE.repeat(number);
        // In the very first one.
        trace.splice(7..7, [0x1204; 1000]);
        let functions = read(&trace).unwrap().functions();
        let (_, counts) = functions
            .iter()
            .find(|(name, _)| name == "do_madvise")
            .unwrap();
        assert!((counts[0] - 1.0 / CASES[0].pages as f64).abs() < 1e-9);
    }

    #[test]
    fn a_call_too_few_or_too_many_is_an_error() {
        let number: usize = CASES.iter().map(|case| case.calls).sum();
        assert!(read(&ONE.repeat(number - 1)).is_err());
        assert!(read(&ONE.repeat(number + 1)).is_err());
    }
}
