//! What kernels are made of: which base, and whose tree of it.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{base::Base, package::Package};

/// Where a kernel's source comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    pub base: Base,
    /// The user's tree; Debian's if there is none.
    pub tree: Option<PathBuf>,
}

impl Origin {
    /// Of what the command line says. A tree tells its base itself.
    pub fn of(base: Option<Base>, tree: Option<PathBuf>) -> Result<Self> {
        let Some(dir) = &tree else {
            let base = base.unwrap_or_default();
            return Ok(Self { base, tree });
        };
        if !dir.is_dir() {
            bail!("--linux-src: no directory {}", dir.display());
        }
        let (found, version) = Base::of_tree(dir)?;
        if let Some(base) = base.filter(|&base| base != found) {
            bail!(
                "--base {base}: {}, given as --linux-src, is Linux {version}, which is base {found}; leave one of the two out",
                dir.display()
            );
        }
        Ok(Self { base: found, tree })
    }

    /// Whether no package of the source has to be installed.
    pub fn needs_no_package(&self) -> bool {
        self.tree.is_some() || !matches!(self.base.source(), Package::Installed(_))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernel::base::tests::makefile;

    #[test]
    fn a_trees_base_need_not_be_said_and_cannot_be_another() {
        let dir = tempfile::tempdir().unwrap();
        let tree = || Some(dir.path().to_owned());
        fs::write(dir.path().join("Makefile"), makefile(7, 4)).unwrap();
        let origin = Origin::of(None, tree()).unwrap();
        assert_eq!((origin.base, &origin.tree), (Base::Linux7_3, &tree()));
        assert_eq!(Origin::of(Some(Base::Linux7_3), tree()).unwrap(), origin);
        let error = Origin::of(Some(Base::Linux6_12), tree()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("--base 6.12: "), "{error}");
        assert!(error.contains("Linux 7.4.74, which is base 7.3"), "{error}");
        let nowhere = Some(dir.path().join("nowhere"));
        let error = Origin::of(None, nowhere).unwrap_err().to_string();
        assert!(error.contains("no directory"), "{error}");
    }

    #[test]
    fn debians_package_is_wanted_where_nothing_else_is_said() {
        assert!(!Origin::of(None, None).unwrap().needs_no_package());
        let newer = Origin::of(Some(Base::Linux7_3), None).unwrap();
        assert!(newer.needs_no_package());
        assert_eq!(newer.base, Base::Linux7_3);
    }
}
