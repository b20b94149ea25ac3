//! The kernels that the engine is laid over, and all in which they differ for this tool.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::package::{Download, Package};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Base {
    /// Linux 6.12.y, as Debian 13 and the backports of Debian 12 have it
    #[default]
    #[value(name = "6.12")]
    Linux6_12,
    /// Linux 7.3, as the backports of Debian 13 have it
    #[value(name = "7.3")]
    Linux7_3,
}

impl Base {
    pub const ALL: [Base; 2] = [Base::Linux6_12, Base::Linux7_3];

    pub fn name(self) -> &'static str {
        match self {
            Base::Linux6_12 => "6.12",
            Base::Linux7_3 => "7.3",
        }
    }

    /// Trees that can be given in place of Debian's.
    fn takes(self) -> &'static str {
        match self {
            Base::Linux6_12 => "6.12.y",
            Base::Linux7_3 => "7.y from 7.3 on",
        }
    }

    /// The base of a version as in `6.12.3` or `7.3.4-1~bpo13+1`, if there is one.
    pub fn of_version(version: &str) -> Option<Self> {
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next()?.parse::<u32>().ok();
        match (number()?, number()?) {
            (6, 12) => Some(Base::Linux6_12),
            (7, 3..) => Some(Base::Linux7_3),
            _ => None,
        }
    }

    /// The base of a tree, and its version, as in `6.12.3`.
    pub fn of_tree(tree: &Path) -> Result<(Self, String)> {
        let makefile = fs::read_to_string(tree.join("Makefile"))
            .with_context(|| format!("{} holds no kernel source", tree.display()))?;
        let Some(version) = version(&makefile) else {
            bail!("{} holds no kernel source", tree.display());
        };
        let Some(base) = Self::of_version(&version) else {
            bail!(
                "{} is Linux {version}; the patches are for {}, so give a tree of these",
                tree.display(),
                Self::ALL.map(Self::takes).join(" and for ")
            );
        };
        Ok((base, version))
    }

    /// Debian's package of the source.
    pub fn source(self) -> Package {
        match self {
            Base::Linux6_12 => Package::Installed("linux-source-6.12"),
            Base::Linux7_3 => Package::Downloaded(Download {
                name: "linux-source-7.3",
                version: "7.3.4-1~bpo13+1",
                architecture: "all",
                suite: "trixie-backports",
                sha256: "703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3",
            }),
        }
    }

    /// Debian's package of the configurations that its kernels are built with.
    pub fn debian_config(self) -> Package {
        match self {
            Base::Linux6_12 => Package::Installed("linux-config-6.12"),
            Base::Linux7_3 => Package::Downloaded(Download {
                name: "linux-config-7.3",
                version: "7.3.4-1~bpo13+1",
                architecture: "amd64",
                suite: "trixie-backports",
                sha256: "1161d8946bd74094857fc1950da809a14e1b3aafe4f3defbec83150520e3e82c",
            }),
        }
    }

    /// The oldest Rust that it builds with.
    pub fn oldest_rust(self) -> [u32; 2] {
        match self {
            Base::Linux6_12 => [1, 78],
            Base::Linux7_3 => [1, 85],
        }
    }

    /// The hooks, and the words about them, in `kernel/`.
    pub fn patches(self) -> PathBuf {
        Path::new("patches").join(self.name())
    }

    /// Files in `kernel/` that are laid over this base's tree only.
    pub fn overlay(self) -> PathBuf {
        Path::new("base").join(self.name())
    }

    /// Whether a file of `kernel/` is there for another base only.
    pub fn is_others(self, path: &Path) -> bool {
        Self::ALL.into_iter().any(|other| {
            let configs = Path::new("configs").join(other.name());
            other != self
                && [other.patches(), other.overlay(), configs]
                    .iter()
                    .any(|dir| path.starts_with(dir))
        })
    }

    /// What is made of it goes there instead of into `dir`, beside what is made of the first base.
    pub fn within(self, dir: PathBuf) -> PathBuf {
        match self {
            Base::Linux6_12 => dir,
            _ => dir.join(self.name()),
        }
    }

    /// The same for the name of a file.
    pub fn named(self, stem: &str) -> String {
        match self {
            Base::Linux6_12 => stem.to_owned(),
            _ => format!("{stem}-{self}"),
        }
    }

    /// What `named` was given, and of which base.
    pub fn of_name(name: &str) -> (&str, Self) {
        let of = |base: Self| Some((name.strip_suffix(&base.named(""))?, base));
        let newer = Self::ALL
            .into_iter()
            .filter(|&base| base != Self::default());
        newer
            .filter_map(of)
            .next()
            .unwrap_or((name, Self::default()))
    }

    /// How a command line chooses it.
    pub fn option(self) -> &'static str {
        match self {
            Base::Linux6_12 => "",
            Base::Linux7_3 => " --base 7.3",
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The version in a kernel's Makefile.
fn version(makefile: &str) -> Option<String> {
    let field = |name: &str| {
        makefile.lines().take(10).find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    Some(format!(
        "{}.{}.{}",
        field("VERSION")?,
        field("PATCHLEVEL")?,
        field("SUBLEVEL")?
    ))
}

#[cfg(test)]
pub mod tests {
    use clap::ValueEnum;

    use super::*;

    /// Of a tree whose version begins so.
    pub fn makefile(major: u32, minor: u32) -> String {
        format!(
            "# SPDX\nVERSION = {major}\nPATCHLEVEL = {minor}\nSUBLEVEL = 74\nEXTRAVERSION =\nNAME = x\n"
        )
    }

    #[test]
    fn a_base_is_asked_for_by_its_name() {
        for base in Base::ALL {
            assert_eq!(Base::from_str(base.name(), false), Ok(base));
            assert_eq!(base.option().is_empty(), base == Base::default());
        }
    }

    #[test]
    fn a_tree_tells_which_base_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Base::of_tree(dir.path()).is_err());
        let of = |makefile: &str| {
            fs::write(dir.path().join("Makefile"), makefile).unwrap();
            Base::of_tree(dir.path())
        };
        assert!(of("all:\n").is_err());
        let known = |major, minor| of(&makefile(major, minor)).unwrap();
        assert_eq!(known(6, 12), (Base::Linux6_12, "6.12.74".into()));
        assert_eq!(known(7, 3), (Base::Linux7_3, "7.3.74".into()));
        assert_eq!(known(7, 11), (Base::Linux7_3, "7.11.74".into()));
        for (major, minor) in [(6, 1), (6, 13), (7, 2), (8, 3)] {
            let error = of(&makefile(major, minor)).unwrap_err().to_string();
            assert!(
                error.contains(&format!("Linux {major}.{minor}.74; the patches are for")),
                "{error}"
            );
            assert!(error.contains("for 6.12.y and for 7.y from 7.3"), "{error}");
        }
    }

    #[test]
    fn debians_versions_tell_it_too() {
        let of = Base::of_version;
        assert_eq!(of("6.12.73-1~deb12u1"), Some(Base::Linux6_12));
        assert_eq!(of("7.3.4-1~bpo13+1"), Some(Base::Linux7_3));
        assert_eq!(of("7.4~rc1-1"), Some(Base::Linux7_3));
        assert_eq!(of("6.1.12-1"), None);
        assert_eq!(of("next"), None);
        for base in Base::ALL {
            if let Package::Downloaded(download) = base.source() {
                assert_eq!(of(download.version), Some(base));
            }
        }
    }

    #[test]
    fn a_bases_own_files_are_no_other_bases() {
        let others = |path: &str| Base::Linux6_12.is_others(Path::new(path));
        assert!(others("patches/7.3/0001-hook.patch"));
        assert!(others("base/7.3/mm/sksm/base.h"));
        assert!(others("configs/7.3/um.config"));
        assert!(!others("patches/6.12/0001-hook.patch"));
        assert!(!others("mm/sksm/sksm.rs"));
        assert!(!others("configs/um.config"));
    }

    #[test]
    fn what_is_made_of_bases_is_kept_apart() {
        let dir = || PathBuf::from("sksm/bench");
        assert_eq!(Base::Linux6_12.within(dir()), dir());
        assert_eq!(Base::Linux7_3.within(dir()), dir().join("7.3"));
        assert_eq!(Base::Linux6_12.named("selftests"), "selftests");
        assert_eq!(Base::Linux7_3.named("selftests"), "selftests-7.3");
        assert_eq!(Base::of_name("um"), ("um", Base::Linux6_12));
        assert_eq!(Base::of_name("um-7.3"), ("um", Base::Linux7_3));
    }
}
