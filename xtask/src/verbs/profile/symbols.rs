//! Which function an address is in.

use anyhow::{Result, ensure};

/// Functions of the kernel, as `/proc/kallsyms` names them.
#[derive(Default)]
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Takes a line of that file; what is no function is passed over.
    pub fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some("t" | "T" | "w" | "W"), Some(name)) =
            (words.next(), words.next(), words.next())
        else {
            return;
        };
        if let Ok(address) = u64::from_str_radix(address, 16) {
            self.0.push((address, name.to_owned()));
        }
    }

    pub fn sorted(mut self) -> Result<Self> {
        ensure!(
            self.0.iter().any(|(address, _)| *address != 0),
            "the kernel tells nobody where its functions are"
        );
        self.0.sort();
        Ok(self)
    }

    /// The number of the function at this address, and of all before it.
    pub fn at(&self, address: u64) -> Option<usize> {
        self.0
            .partition_point(|(start, _)| *start <= address)
            .checked_sub(1)
    }

    /// The number of the function that begins there.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(_, other)| other == name)
    }

    /// As it is written in its source.
    pub fn name(&self, number: usize) -> String {
        format!("{:#}", rustc_demangle::demangle(&self.0[number].1))
    }

    /// Where it begins.
    pub fn start(&self, number: usize) -> u64 {
        self.0[number].0
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_before_it() {
        let mut symbols = Symbols::default();
        for line in [
            "ffffffff81000100 t inner",
            "ffffffff81000000 T outer",
            "ffffffff81000080 d data",
            "no symbol",
        ] {
            symbols.add(line);
        }
        let symbols = symbols.sorted().unwrap();
        let at = |address| symbols.at(address).map(|number| symbols.name(number));
        assert_eq!(at(0xffff_ffff_8100_00ff).as_deref(), Some("outer"));
        assert_eq!(at(0xffff_ffff_8100_0100).as_deref(), Some("inner"));
        assert_eq!(at(0xffff_ffff_80ff_ffff), None);
        assert!(Symbols::default().sorted().is_err());
    }
}
