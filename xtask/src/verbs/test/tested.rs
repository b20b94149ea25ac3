//! Which kernels the tests run in, and how these are called in the names of tests.

use super::args::Args;
use crate::kernel::{Arch, Base, Origin};

/// A kernel that tests run in.
#[derive(Clone, Debug, PartialEq)]
pub struct Tested {
    pub arch: Arch,
    pub origin: Origin,
}

impl Tested {
    /// All that are asked for, in the order they are built in.
    pub fn kernels(args: &Args, asked: Option<&Origin>) -> Vec<Self> {
        let of = |arch, origin: &Origin| Self {
            arch,
            origin: origin.clone(),
        };
        let usual = |base| Origin { base, tree: None };
        let arches = args.arches().iter().copied();
        match (asked, args.all) {
            (Some(origin), _) => arches.map(|arch| of(arch, origin)).collect(),
            (None, true) => Base::ALL
                .into_iter()
                .flat_map(|base| arches.clone().map(move |arch| of(arch, &usual(base))))
                .collect(),
            (None, false) => arches.map(|arch| of(arch, &usual(base_of(arch)))).collect(),
        }
    }

    /// The first part of the names of its tests: `um`, or `um-7.3` where it is not of the first base.
    pub fn name(&self) -> String {
        self.arch.of(self.origin.base)
    }

    /// That, and without the base: who narrows tests down need not know which base is tested where.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![self.name(), self.arch.to_string()];
        names.dedup();
        names
    }

    /// Whether a test of it, or what its name begins with, has `pattern` in its name.
    pub fn matches(&self, pattern: &str, test: &str) -> bool {
        let mut names = self.names().into_iter();
        names.any(|name| format!("{name}/{test}").contains(pattern))
    }

    /// Whether any of its tests may have `pattern` in its name, as far as one can tell before names are known.
    pub fn may_match(&self, pattern: &str) -> bool {
        let starts = |name: &str| pattern.starts_with(&format!("{name}/"));
        let mut others = Base::ALL
            .into_iter()
            .flat_map(|base| Arch::ALL.map(|arch| arch.of(base)));
        self.names().iter().any(|name| starts(name))
            || !(starts("host") || others.any(|name| starts(&name)))
    }
}

/// Which base a kernel is of where none is asked for: each base has its turn in every run of all tests.
fn base_of(arch: Arch) -> Base {
    match arch {
        // The one that has huge pages and all kinds of tests.
        Arch::X86_64 => Base::Linux7_3,
        _ => Base::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(args: &Args, asked: Option<Base>) -> Vec<String> {
        let asked = asked.map(|base| Origin { base, tree: None });
        let kernels = Tested::kernels(args, asked.as_ref());
        kernels.iter().map(Tested::name).collect()
    }

    #[test]
    fn every_base_is_tested_where_none_is_asked_for() {
        let usual = Args::default();
        assert_eq!(names(&usual, None), ["um", "x86_64-7.3", "debug"]);
        let one = names(&usual, Some(Base::Linux7_3));
        assert_eq!(one, ["um-7.3", "x86_64-7.3", "debug-7.3"]);
        let quick = Args {
            quick: true,
            ..Args::default()
        };
        assert_eq!(names(&quick, None), ["um", "x86_64-7.3"]);
        let named = Args {
            arch: Some(Arch::Arm64),
            ..Args::default()
        };
        assert_eq!(names(&named, None), ["arm64"]);
        assert_eq!(names(&named, Some(Base::Linux7_3)), ["arm64-7.3"]);
        let all = Args {
            all: true,
            ..Args::default()
        };
        let both = names(&all, None);
        assert_eq!(both.len(), 2 * Arch::ALL.len());
        assert!(both.contains(&"kcsan-7.3".to_owned()), "{both:?}");
        assert!(both.contains(&"arm64-7.3".to_owned()), "{both:?}");
        assert_eq!(names(&all, Some(Base::Linux6_12)).len(), Arch::ALL.len());
    }

    #[test]
    fn a_kernel_is_left_out_when_another_is_named() {
        let of = |arch, base| Tested {
            arch,
            origin: Origin { base, tree: None },
        };
        let um = of(Arch::Um, Base::Linux6_12);
        for pattern in ["", "hole", "um/sksm"] {
            assert!(um.may_match(pattern), "{pattern}");
        }
        for pattern in ["debug/sksm", "host/fmt", "um-7.3/sksm"] {
            assert!(!um.may_match(pattern), "{pattern}");
        }
        let newer = of(Arch::Um, Base::Linux7_3);
        for pattern in ["um/sksm", "um-7.3/sksm", "fork"] {
            assert!(newer.may_match(pattern), "{pattern}");
        }
        assert!(newer.matches("um/sksm-abi", "sksm-abi/fork"));
        assert!(newer.matches("7.3/sksm-abi/f", "sksm-abi/fork"));
        assert!(!um.matches("7.3/sksm-abi/f", "sksm-abi/fork"));
    }
}
