//! A kernel package: Debian's own configuration, and the engine.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    ground::{cache, interrupt, packages, project::Project, step},
    kernel::{
        Origin, Package, compiled, config, fetch, objects, source::Source, toolchain::Toolchain,
        tree,
    },
    terminal::progress::Step,
};

/// What signs modules and reads debug information.
const PACKAGES: [&str; 2] = ["openssl", "pahole"];
const ARCH: &str = "x86_64";

/// Which of Debian's kernels of this architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub enum Flavour {
    /// For machines of all kinds
    #[default]
    #[value(name = "amd64")]
    Amd64,
    /// For virtual machines in clouds: fewer drivers, so it is built sooner
    #[value(name = "cloud-amd64")]
    CloudAmd64,
}

impl Flavour {
    /// Debian's configuration.
    fn config(self) -> &'static str {
        match self {
            Flavour::Amd64 => "config.amd64_none_amd64.xz",
            Flavour::CloudAmd64 => "config.amd64_none_cloud-amd64.xz",
        }
    }

    /// What is merged over that.
    fn fragments(self) -> &'static [&'static str] {
        match self {
            Flavour::Amd64 => &["debian"],
            Flavour::CloudAmd64 => &["debian", "debian-cloud"],
        }
    }

    /// Where it is built.
    fn directory(self) -> &'static str {
        match self {
            Flavour::Amd64 => "debian",
            Flavour::CloudAmd64 => "debian-cloud",
        }
    }
}

/// What Debian sets and a kernel built with clang, which RUST asks for, cannot have.
const NOT_WITH_CLANG: [(&str, &str); 2] = [
    (
        "X86_X32_ABI",
        "llvm-objcopy does not convert what its vDSO needs",
    ),
    (
        "X86_X32_DISABLED",
        "it had x32 off unless asked for; now it is off always",
    ),
];

/// Builds the packages of the kernel and of its headers, and leaves them in `out`.
pub fn build(
    project: &Project,
    origin: &Origin,
    flavour: Flavour,
    maintainer: &str,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    prepare(project, origin, flavour, |place| {
        let parent = place.objects.parent().context("no directory")?;
        let made = || -> Result<Vec<PathBuf>> {
            let files = fs::read_dir(parent)?.collect::<Result<Vec<_>, _>>()?;
            let mut packages: Vec<_> = files.into_iter().map(|file| file.path()).collect();
            packages.retain(|path| path.extension().is_some_and(|ext| ext == "deb"));
            packages.sort();
            Ok(packages)
        };
        for old in made()? {
            cache::remove(&old)?;
        }
        let step = Step::begin("building Debian's kernel with SKSM");
        let (name, mail) = maintainer.split_once(" <").unwrap_or_default();
        let mut make = place.make();
        make.arg("bindeb-pkg")
            .env("DEBFULLNAME", name)
            .env("DEBEMAIL", mail.trim_end_matches('>'))
            .env("KDEB_CHANGELOG_DIST", "unstable")
            // A package of debugging symbols is as large as all others together.
            .env("DEB_BUILD_PROFILES", "pkg.linux-upstream.nokerneldbg");
        compile(project, &step, &mut make)?;
        step.done();
        let mut packages = Vec::new();
        for package in made()? {
            let name = package.file_name().context("no name")?.to_owned();
            // linux-libc-dev is better left to Debian: programs are built for it.
            if ["linux-image-", "linux-headers-"]
                .iter()
                .any(|start| name.to_string_lossy().starts_with(start))
            {
                cache::copy(&package, &out.join(&name))?;
                packages.push(out.join(name));
            }
        }
        Ok(packages)
    })
}

/// Sees that the configuration holds and that the engine compiles under it; says how it differs from Debian's.
pub fn check(project: &Project, origin: &Origin, flavour: Flavour) -> Result<String> {
    prepare(project, origin, flavour, |place| {
        let step = Step::begin("compiling the engine under Debian's configuration");
        let engine = place.objects.join("mm/sksm/sksm.o");
        compile(project, &step, place.make().args(["prepare", "mm/sksm/"]))?;
        if !engine.is_file() {
            bail!("mm/sksm was not compiled: there is no {}", engine.display());
        }
        step.done();
        Ok(format!("{}the engine compiles under it\n", place.report))
    })
}

/// Where the kernel is built.
struct Place {
    toolchain: Toolchain,
    source: Source,
    objects: PathBuf,
    /// How its configuration differs from Debian's.
    report: String,
}

impl Place {
    fn make(&self) -> Command {
        self.toolchain.make(&self.source.tree, &self.objects, ARCH)
    }
}

fn compile(project: &Project, step: &Step, make: &mut Command) -> Result<()> {
    let log = project.log("build-debian")?;
    step::run(make, &log, step, |line| {
        if let Some(file) = compiled(line) {
            step.detail(file);
        }
    })
}

/// Configures the kernel, then does `work`; nobody changes the tree meanwhile.
fn prepare<T>(
    project: &Project,
    origin: &Origin,
    flavour: Flavour,
    work: impl FnOnce(&Place) -> Result<T>,
) -> Result<T> {
    if std::env::consts::ARCH != ARCH {
        bail!("Debian's configuration is taken for amd64 only, and this machine is another one");
    }
    packages::ensure(project, origin.needs_no_package())?;
    packages::ensure_packages(project, &PACKAGES)?;
    let config = origin.base.debian_config();
    if let Package::Installed(name) = config {
        packages::ensure_packages(project, &[name])?;
    }
    let filling = project.lock_cache()?;
    let toolchain = Toolchain::prepare(project, origin.base)?;
    let source = fetch::source(project, origin, true)?;
    let changes = tree::sync(project, origin.base, &source)?;
    let debian = format!("usr/src/{}/{}", config.name(), flavour.config());
    let debian = config.content(project, &debian)?;
    let _kept = source.keep()?;
    drop(filling);
    // The packages are left beside the objects, so both are in a directory of their own.
    let dir = source.dir.join(format!(
        "{}-{}",
        flavour.directory(),
        &cache::fingerprint(&toolchain.version)[..8]
    ));
    let objects = dir.join("objects");
    let fragments = flavour.fragments().iter();
    let fragments = fragments.flat_map(|name| config::with_own(project, name, origin.base));
    let fragments: &[PathBuf] = &fragments.collect::<Vec<_>>();
    let done = objects::with(&objects, || {
        let mut place = Place {
            toolchain,
            source,
            objects: objects.clone(),
            report: String::new(),
        };
        place.report = configure(project, fragments, &debian.path, &place, &changes.kconfig)?;
        interrupt::check()?;
        work(&place)
    })?;
    objects::prune(&dir)?;
    Ok(done)
}

/// Makes `.config` if need be, and says how it differs from Debian's; it is an error if that was not meant.
fn configure(
    project: &Project,
    fragments: &[PathBuf],
    debian: &Path,
    place: &Place,
    kconfig: &str,
) -> Result<String> {
    let mut unpack = Command::new("xz");
    unpack.args(["--decompress", "--stdout"]).arg(debian);
    let debian = step::output(&mut unpack)?;
    let fragment = config::read(fragments)?;
    let step = Step::begin("configuring Debian's kernel with SKSM");
    let file = place.objects.join(".config");
    let inputs = format!("{debian}\n{fragment}");
    let unpacked = fs::read_to_string(place.source.dir.join("unpacked"))?;
    let wanted = cache::fingerprint((&inputs, kconfig, &place.toolchain.version, unpacked));
    let stamp = place.objects.join(".sksm-config");
    if !fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        cache::remove(&stamp)?;
        cache::write(&file, inputs)?;
        let log = project.log("config-debian")?;
        step::run(place.make().arg("olddefconfig"), &log, &step, |line| {
            step.detail(line)
        })?;
        cache::write(&stamp, wanted)?;
    }
    let made = fs::read_to_string(&file)?;
    let lost = config::lost(&fragment, &made);
    if !lost.is_empty() {
        bail!(
            "with Debian's configuration the kernel cannot have these lines of debian.config in kernel/configs:\n  {}",
            lost.join("\n  ")
        );
    }
    let report = compare(&debian, &fragment, &made, &asked(&place.source.tree)?)?;
    step.done();
    Ok(report)
}

/// What became of Debian's settings. `asked` are the symbols that a person can set.
fn compare(debian: &str, fragment: &str, made: &str, asked: &BTreeSet<String>) -> Result<String> {
    let (before, after) = (config::settings(debian), config::settings(made));
    let meant = config::settings(fragment);
    let mut report = format!("{} settings\nchanged on purpose:\n", before.len());
    for (symbol, value) in &meant {
        let was = before.get(symbol).unwrap_or(&"n");
        writeln!(report, "  CONFIG_{symbol}: {was} -> {value}")?;
    }
    let changed: Vec<_> = before
        .iter()
        .map(|(&symbol, &was)| (symbol, was, after.get(symbol).copied().unwrap_or("n")))
        .filter(|(symbol, was, is)| was != is && !meant.contains_key(symbol))
        .collect();
    writeln!(report, "not to be had with clang:")?;
    for (symbol, why) in NOT_WITH_CLANG {
        if let Some((_, was, is)) = changed.iter().find(|(other, ..)| *other == symbol) {
            writeln!(report, "  CONFIG_{symbol}: {was} -> {is} ({why})")?;
        }
    }
    let excused = |symbol: &str| NOT_WITH_CLANG.iter().any(|(other, _)| *other == symbol);
    let (wrong, derived): (Vec<_>, Vec<_>) = changed
        .iter()
        .filter(|(symbol, ..)| !excused(symbol))
        .partition(|(symbol, ..)| asked.contains(*symbol));
    writeln!(
        report,
        "that nobody sets, as they follow from the compiler and from the above:"
    )?;
    for (symbol, was, is) in derived {
        writeln!(report, "  CONFIG_{symbol}: {was} -> {is}")?;
    }
    writeln!(report, "that Debian was not asked, with their defaults:")?;
    for (symbol, is) in &after {
        let new =
            asked.contains(*symbol) && !before.contains_key(symbol) && !meant.contains_key(symbol);
        if new {
            writeln!(report, "  CONFIG_{symbol}={is}")?;
        }
    }
    if !wrong.is_empty() {
        let lines: Vec<_> = wrong
            .iter()
            .map(|(symbol, was, is)| format!("CONFIG_{symbol}: {was} -> {is}"))
            .collect();
        bail!(
            "Debian's settings are not kept:\n  {}\neither something that they need is missing on this machine, \
             or they are to be named in xtask/src/verbs/deb/kernel.rs",
            lines.join("\n  ")
        );
    }
    Ok(report)
}

/// The symbols that have a prompt.
fn asked(tree: &Path) -> Result<BTreeSet<String>> {
    let mut symbols = BTreeSet::new();
    let mut pending = vec![tree.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with("Kconfig") {
                prompts(&fs::read_to_string(entry.path())?, &mut symbols);
            }
        }
    }
    Ok(symbols)
}

fn prompts(kconfig: &str, symbols: &mut BTreeSet<String>) {
    let mut symbol = None;
    for line in kconfig.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("config" | "menuconfig") if !line.starts_with([' ', '\t']) => {
                symbol = words.next()
            }
            Some("bool" | "tristate" | "string" | "int" | "hex" | "prompt") => {
                let prompt = words
                    .next()
                    .is_some_and(|word| word.starts_with(['"', '\'']));
                if let (true, Some(symbol)) = (prompt, symbol) {
                    symbols.insert(symbol.to_owned());
                }
            }
            Some("choice" | "menu" | "comment") => symbol = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> BTreeSet<String> {
        let mut symbols = BTreeSet::new();
        let kconfig = "\
config A
\tbool \"A prompt\"
menuconfig B
\ttristate
\tprompt \"Another\"
config DERIVED
\tbool
\tdefault y
config C
\tint 'Third'
choice
\tprompt \"None of the symbols\"
endchoice
";
        prompts(kconfig, &mut symbols);
        symbols
    }

    #[test]
    fn symbols_with_prompts_are_told() {
        assert_eq!(asked().into_iter().collect::<Vec<_>>(), ["A", "B", "C"]);
    }

    #[test]
    fn a_setting_that_is_not_kept_is_an_error() {
        let debian = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_DERIVED=y\nCONFIG_X86_X32_ABI=y\n# CONFIG_C is not set\n";
        let fragment = "# CONFIG_A is not set\n";
        let made = "# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_NEW=y\n";
        let report = compare(debian, fragment, made, &asked()).unwrap();
        assert!(
            report.contains("on purpose:\n  CONFIG_A: y -> n\nnot"),
            "{report}"
        );
        assert!(report.contains("CONFIG_DERIVED: y -> n"), "{report}");
        assert!(
            report.contains("CONFIG_X86_X32_ABI: y -> n (llvm"),
            "{report}"
        );
        let made = "CONFIG_B=y\n";
        let error = compare(debian, fragment, made, &asked())
            .unwrap_err()
            .to_string();
        assert!(error.contains("kept:\n  CONFIG_B: m -> y\n"), "{error}");
        let error = compare("CONFIG_C=4\n", "", "", &asked())
            .unwrap_err()
            .to_string();
        assert!(error.contains("CONFIG_C: 4 -> n"), "{error}");
    }
}
