//! The kernel's configuration: fragments over tinyconfig, every line of which must survive.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::{arch::Arch, base::Base, source::Source, toolchain::Toolchain};
use crate::{
    ground::{cache, project::Project, step},
    terminal::progress::Step,
};

/// Makes `.config` in `objects` when `inputs` differ from those it was made of; returns what it is made of.
pub fn configure(
    project: &Project,
    toolchain: &Toolchain,
    source: &Source,
    objects: &std::path::Path,
    arch: Arch,
    fragments: &[PathBuf],
    inputs: &str,
) -> Result<String> {
    let stamp = objects.join(".sksm-config");
    let text = read(fragments)?;
    let wanted = format!("{inputs}\n{text}");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(wanted);
    }
    cache::remove(&stamp)?;
    fs::create_dir_all(objects)?;
    let step = Step::begin(format!("configuring the {arch} kernel"));
    let log = project.logs()?.join(format!("config-{arch}.log"));
    // `make` keeps the time of headers whose symbols did not change, so starting afresh is cheap.
    let mut tinyconfig = toolchain.make(&source.tree, objects, arch.make());
    step::run(tinyconfig.arg("tinyconfig"), &log, &step, |line| {
        step.detail(line)
    })?;
    let mut merge = toolchain.command(source.tree.join("scripts/kconfig/merge_config.sh"));
    merge
        .current_dir(objects)
        .arg("-m")
        .arg("-O")
        .arg(objects)
        .arg(objects.join(".config"))
        .args(fragments);
    step::run(&mut merge, &log, &step, |_| {})?;
    let mut olddefconfig = toolchain.make(&source.tree, objects, arch.make());
    step::run(olddefconfig.arg("olddefconfig"), &log, &step, |line| {
        step.detail(line)
    })?;
    let made = fs::read_to_string(objects.join(".config"))?;
    let lost = lost(&text, &made);
    if !lost.is_empty() {
        let names: Vec<_> = fragments
            .iter()
            .map(|path| path.strip_prefix(&project.root).unwrap_or(path))
            .map(|path| path.display().to_string())
            .collect();
        bail!(
            "the {arch} kernel cannot have these lines of {}:\n  {}\n\
             each needs something that is not set, or does not exist in this kernel",
            names.join(", "),
            lost.join("\n  ")
        );
    }
    cache::write(&stamp, &wanted)?;
    step.done();
    Ok(wanted)
}

/// What a kernel's configuration is merged of, in order.
pub fn fragments(project: &Project, arch: Arch, base: Base) -> Vec<PathBuf> {
    of_names(project, names(arch), base)
}

/// The same with one more.
pub fn fragments_and(project: &Project, arch: Arch, last: &str, base: Base) -> Vec<PathBuf> {
    let names: Vec<_> = names(arch).iter().copied().chain([last]).collect();
    of_names(project, &names, base)
}

fn of_names(project: &Project, names: &[&str], base: Base) -> Vec<PathBuf> {
    let of = |&name: &&str| with_own(project, name, base);
    names.iter().flat_map(of).collect()
}

fn names(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::Um => &["common", "um"],
        Arch::X86_64 => &["common", "qemu", "x86_64"],
        Arch::Arm64 => &["common", "qemu", "arm64"],
        Arch::Debug => &["common", "qemu", "x86_64", "debug"],
        Arch::Kcsan => &["common", "qemu", "x86_64", "kcsan"],
        Arch::Fuzz => &["common", "qemu", "x86_64", "fuzz"],
        Arch::Without => &["common", "qemu", "x86_64", "without"],
        Arch::Unpatched => &["common", "qemu", "x86_64", "unpatched"],
    }
}

/// The fragment of that name for every base, and after it, as a later line wins, the one for this base if it has any.
pub fn with_own(project: &Project, name: &str, base: Base) -> Vec<PathBuf> {
    let configs = project.kernel().join("configs");
    let name = format!("{name}.config");
    let own = configs.join(base.name()).join(&name);
    let mut fragments = vec![configs.join(name)];
    fragments.extend(own.is_file().then_some(own));
    fragments
}

/// The fragments' lines, one after the other.
pub fn read(fragments: &[PathBuf]) -> Result<String> {
    let read = |path: &PathBuf| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    fragments.iter().map(read).collect()
}

/// Symbols and their values; a later line wins, and an unset symbol has the value `n`.
pub fn settings(config: &str) -> BTreeMap<&str, &str> {
    config
        .lines()
        .filter_map(|line| {
            if let Some(rest) = line.strip_prefix("# CONFIG_") {
                let symbol = rest.strip_suffix(" is not set")?;
                return Some((symbol, "n"));
            }
            line.strip_prefix("CONFIG_")?.split_once('=')
        })
        .collect()
}

/// The lines of the fragments that the configuration does not have.
pub fn lost(fragments: &str, config: &str) -> Vec<String> {
    let made = settings(config);
    settings(fragments)
        .into_iter()
        .filter_map(|(symbol, wanted)| {
            let got = made.get(symbol).copied().unwrap_or("n");
            (got != wanted).then(|| format!("CONFIG_{symbol}={wanted} (is {got})"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bases_own_fragment_comes_after_the_common_one() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        let configs = project.kernel().join("configs");
        cache::write(&configs.join("7.3/common.config"), "").unwrap();
        let own = ["common.config", "7.3/common.config", "um.config"];
        assert_eq!(
            fragments(&project, Arch::Um, Base::Linux7_3),
            own.map(|name| configs.join(name))
        );
        let all = ["common.config", "um.config"];
        assert_eq!(
            fragments(&project, Arch::Um, Base::Linux6_12),
            all.map(|name| configs.join(name))
        );
        // What the other base has, and this one does not.
        let text = "CONFIG_A=y\n# CONFIG_A is not set\nCONFIG_B=y\n";
        assert!(lost(text, "CONFIG_B=y\n").is_empty());
    }

    #[test]
    fn lost_lines_are_named() {
        let fragments = "\
# A comment
CONFIG_A=y
CONFIG_B=y
CONFIG_S=\"x=y\"
# CONFIG_C is not set
CONFIG_D=n
CONFIG_E=8
# CONFIG_A2 is not set
CONFIG_A2=y
";
        let config =
            "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x=y\"\nCONFIG_E=4\nCONFIG_A2=y\n";
        assert_eq!(
            lost(fragments, config),
            ["CONFIG_B=y (is n)", "CONFIG_E=8 (is 4)"]
        );
        assert_eq!(
            lost("# CONFIG_A is not set\n", "CONFIG_A=y\n"),
            ["CONFIG_A=n (is y)"]
        );
        assert!(lost("CONFIG_SKSM=y\n", "").contains(&"CONFIG_SKSM=y (is n)".to_owned()));
    }
}
