//! Builds the kernels.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{
    arch::Arch, base::Base, config, coverage, fetch, objects, origin::Origin, source::Source,
    toolchain::Toolchain, tree,
};
use crate::{
    ground::{cache, files, lock::Lock, packages, project::Project, qemu, step},
    terminal::progress::Step,
};

#[derive(Clone)]
pub struct Kernel {
    pub arch: Arch,
    pub base: Base,
    /// This clone's own copy, which later builds replace but never change.
    pub image: PathBuf,
}

impl Kernel {
    fn of(project: &Project, arch: Arch, base: Base) -> Self {
        let dir = base.within(project.target.join("sksm/kernels"));
        let image = dir.join(arch.to_string()).join(arch.target().0);
        Self { arch, base, image }
    }

    /// Names what it was made of.
    fn stamp(&self) -> PathBuf {
        self.image.with_file_name("made-of")
    }

    /// See [`Arch::of`].
    pub fn name(&self) -> String {
        self.arch.of(self.base)
    }

    /// The same with its symbols; only of a kernel that says which of its code ran.
    pub fn symbols(&self) -> PathBuf {
        self.image.with_file_name(SYMBOLS)
    }
}

/// The kernel, if it is up to date and one can tell without work: of a user's tree one cannot.
pub fn built(project: &Project, arch: Arch, origin: &Origin) -> Result<Option<Kernel>> {
    if origin.tree.is_some() {
        return Ok(None);
    }
    let kernel = Kernel::of(project, arch, origin.base);
    let source = fetch::debian(project, origin.base, arch.patched())?;
    let made = fs::read_to_string(kernel.stamp()).unwrap_or_default();
    let current = made == ingredients(project, arch, origin.base, &source.dir)?;
    Ok((current && kernel.image.is_file()).then_some(kernel))
}

/// What make leaves beside the image.
const SYMBOLS: &str = "vmlinux";

/// What the kernel says about its build, so that the same source makes the same image: tests that passed with it need not run again.
const SAME_EACH_TIME: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "sksm"),
    ("KBUILD_BUILD_HOST", "sksm"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// Builds whatever is not up to date, from the packages on.
pub fn build(project: &Project, arch: Arch, origin: &Origin) -> Result<Kernel> {
    packages::ensure(project, origin.needs_no_package())?;
    if arch == Arch::Arm64 {
        packages::ensure_packages(project, &[qemu::ARM64.package])?;
    }
    // Nobody has to be waited for when there is nothing to do.
    if let Some(kernel) = built(project, arch, origin)? {
        return Ok(kernel);
    }
    let kernel = Kernel::of(project, arch, origin.base);
    let stamp = kernel.stamp();
    let (target, image) = arch.target();
    let Prepared {
        toolchain,
        source,
        changes,
        kept: _kept,
        made_of,
    } = Prepared::new(project, arch, origin)?;
    let objects = objects_of(&source, &arch.to_string(), &toolchain);
    let log = project.log(&format!("build-{}", kernel.name()))?;
    let kconfig = kconfig_of(&source, &toolchain, &changes)?;
    let complete = objects.join(".sksm-built");
    let made = objects.join(image);
    objects::with(&objects, || {
        let fragments = config::fragments(project, arch, origin.base);
        let settings = config::configure(
            project, &toolchain, &source, &objects, arch, &fragments, &kconfig,
        )?;
        let variables = coverage::variables(arch);
        let wanted = format!("{settings}\n{}{}", changes.all, variables.concat());
        if made.is_file() && fs::read_to_string(&complete).is_ok_and(|made| made == wanted) {
            return Ok(());
        }
        cache::remove(&complete)?;
        let mut make = toolchain.make(&source.tree, &objects, arch.make());
        make.envs(SAME_EACH_TIME).args(variables);
        let steps = Steps::resume(project, arch, origin.base, &objects);
        compile(arch, steps, make.arg(target), &log)?;
        cache::write(&complete, wanted)
    })?;
    cache::remove(&stamp)?;
    // Other builds in the same cache leave it alone there.
    cache::copy(&made, &kernel.image)?;
    if arch == Arch::Fuzz {
        cache::copy(&objects.join(SYMBOLS), &kernel.symbols())?;
    }
    objects::prune(&objects)?;
    // Not if somebody edited a file meanwhile.
    if made_of == ingredients(project, arch, origin.base, &source.dir)? {
        cache::write(&stamp, made_of)?;
    }
    Ok(kernel)
}

/// Pages of another size than that of the kernels which are run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pages {
    Of16K,
    Of64K,
}

impl Pages {
    /// The last of the configuration's fragments, and what the objects are called.
    pub fn name(self) -> &'static str {
        match self {
            Pages::Of16K => "arm64-16k",
            Pages::Of64K => "arm64-64k",
        }
    }
}

/// Compiles the engine for arm64 with such pages, and nothing that it does not need.
pub fn compile_engine(project: &Project, pages: Pages, origin: &Origin) -> Result<()> {
    let arch = Arch::Arm64;
    packages::ensure(project, origin.needs_no_package())?;
    let prepared = Prepared::new(project, arch, origin)?;
    let Prepared {
        toolchain,
        source,
        changes,
        ..
    } = &prepared;
    let objects = objects_of(source, pages.name(), toolchain);
    let log = project.log(&format!("build-{}", origin.base.named(pages.name())))?;
    let kconfig = kconfig_of(source, toolchain, changes)?;
    objects::with(&objects, || {
        let fragments = config::fragments_and(project, arch, pages.name(), origin.base);
        config::configure(
            project, toolchain, source, &objects, arch, &fragments, &kconfig,
        )?;
        let step = Step::begin(format!("compiling the engine for {}", pages.name()));
        let mut make = toolchain.make(&source.tree, &objects, arch.make());
        step::run(make.args(["prepare", "mm/sksm/"]), &log, &step, |line| {
            if let Some(file) = compiled(line) {
                step.detail(file);
            }
        })?;
        for object in ["sksm.o", "glue.o"] {
            let object = objects.join("mm/sksm").join(object);
            if !object.is_file() {
                bail!("there is no {}", object.display());
            }
        }
        step.done();
        Ok(())
    })?;
    objects::prune(&objects)
}

/// What a kernel is built with and of.
struct Prepared {
    toolchain: Toolchain,
    source: Source,
    changes: tree::Changes,
    /// Others may build from the same tree meanwhile.
    kept: Lock,
    made_of: String,
}

impl Prepared {
    fn new(project: &Project, arch: Arch, origin: &Origin) -> Result<Self> {
        let _filling = project.lock_cache()?;
        // Beside each other: unpacking leaves all CPUs but one to bindgen's build.
        let (toolchain, source) = std::thread::scope(|scope| {
            let toolchain = scope.spawn(|| Toolchain::prepare(project, origin.base));
            let source = fetch::source(project, origin, arch.patched());
            (toolchain.join().expect("it does not panic"), source)
        });
        let (toolchain, source) = (toolchain?, source?);
        let made_of = ingredients(project, arch, origin.base, &source.dir)?;
        let changes = match arch.patched() {
            true => tree::sync(project, origin.base, &source)?,
            false => tree::Changes::default(),
        };
        let kept = source.keep()?;
        Ok(Self {
            toolchain,
            source,
            changes,
            kept,
            made_of,
        })
    }
}

/// Where objects of that name go that these compilers make from the source.
pub fn objects_of(source: &Source, name: &str, toolchain: &Toolchain) -> PathBuf {
    let compilers = &cache::fingerprint(&toolchain.version)[..8];
    source.dir.join(format!("{name}-{compilers}"))
}

/// What a configuration depends on, but for its fragments.
fn kconfig_of(source: &Source, toolchain: &Toolchain, changes: &tree::Changes) -> Result<String> {
    // The source as it came.
    let unpacked = fs::read_to_string(source.dir.join("unpacked"))?;
    Ok(format!(
        "{}\n{unpacked}\n{}",
        toolchain.version, changes.kconfig
    ))
}

/// Runs `make` with its progress.
fn compile(arch: Arch, mut steps: Steps, make: &mut Command, log: &Path) -> Result<()> {
    let step = Step::begin(format!("building the {arch} kernel"));
    let result = step::run(make, log, &step, |line| {
        if let Some(file) = compiled(line) {
            steps.count += 1;
            if let Some(percent) = steps.percent() {
                step.percent(percent);
            }
            step.detail(file);
        }
    });
    let saved = steps.save(result.is_ok());
    result?;
    saved?;
    step.done();
    Ok(())
}

/// The patched source alone, for those who only read it.
pub fn patched_source(project: &Project, origin: &Origin) -> Result<Source> {
    packages::ensure(project, origin.needs_no_package())?;
    let _lock = project.lock_cache()?;
    let source = fetch::source(project, origin, true)?;
    tree::sync(project, origin.base, &source)?;
    Ok(source)
}

/// Names what a kernel is made of.
fn ingredients(project: &Project, arch: Arch, base: Base, source: &Path) -> Result<String> {
    let mut files = files::below(&project.kernel())?;
    files.retain(|path, _| !base.is_others(path));
    let version = Toolchain::version()?;
    let variables = coverage::variables(arch);
    Ok(cache::fingerprint((files, version, source, variables)))
}

/// The file that a line of the build's output is about.
pub fn compiled(line: &str) -> Option<&str> {
    let line = line.strip_prefix("  ")?;
    let (tool, file) = line.split_once(' ')?;
    let is_tool = tool.starts_with(|c: char| c.is_ascii_uppercase())
        && tool
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    is_tool.then(|| file.trim())
}

/// Counts build steps, for the percentage of a first build; later builds have none to show.
struct Steps {
    /// What the last first build needed.
    total_file: PathBuf,
    /// How far an interrupted first build came; gone once it is complete.
    count_file: PathBuf,
    count: u64,
    total: u64,
    first: bool,
}

impl Steps {
    fn resume(project: &Project, arch: Arch, base: Base, objects: &Path) -> Self {
        let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let total_file = project.cache.join(base.named(&format!("steps-{arch}")));
        let count_file = objects.join(".sksm-steps");
        Self {
            count: number(&count_file).unwrap_or(0),
            total: number(&total_file).unwrap_or(arch.typical_steps()),
            first: !objects.join(arch.target().1).exists(),
            total_file,
            count_file,
        }
    }

    fn percent(&self) -> Option<u64> {
        (self.first && self.total > 0).then(|| (self.count * 100 / self.total).min(99))
    }

    fn save(&self, complete: bool) -> Result<()> {
        if !self.first {
            return Ok(());
        }
        if complete {
            cache::write(&self.total_file, self.count.to_string())?;
            cache::remove(&self.count_file)
        } else {
            cache::write(&self.count_file, self.count.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_lines_are_recognised() {
        assert_eq!(compiled("  CC      mm/ksm.o"), Some("mm/ksm.o"));
        assert_eq!(compiled("  RUSTC L rust/core.o"), Some("L rust/core.o"));
        assert_eq!(compiled("  LD      vmlinux.o"), Some("vmlinux.o"));
        assert_eq!(compiled("make[1]: Leaving directory"), None);
        assert_eq!(compiled("  int x = 0;"), None);
        assert_eq!(compiled("  195 |         writesl(PCI_IOBASE);"), None);
        assert_eq!(compiled("mm/ksm.c:1:1: warning: CC"), None);
    }

    #[test]
    fn an_interrupted_first_build_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        let objects = dir.path().join("um");
        let mut steps = Steps::resume(&project, Arch::Um, Base::Linux6_12, &objects);
        steps.count += steps.total / 2;
        assert_eq!(steps.percent(), Some(50));
        steps.save(false).unwrap();
        let mut steps = Steps::resume(&project, Arch::Um, Base::Linux6_12, &objects);
        assert_eq!(steps.percent(), Some(50));
        steps.count = 10;
        steps.save(true).unwrap();
        let mut steps = Steps::resume(&project, Arch::Um, Base::Linux6_12, &objects);
        assert_eq!((steps.count, steps.total), (0, 10));
        steps.count = 11;
        assert_eq!(steps.percent(), Some(99));
        cache::write(&objects.join("linux"), "").unwrap();
        assert_eq!(
            Steps::resume(&project, Arch::Um, Base::Linux6_12, &objects).percent(),
            None
        );
    }
}
