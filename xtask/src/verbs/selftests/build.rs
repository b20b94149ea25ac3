//! Builds the kernel tree's `tools/testing/selftests/mm` with the host's compiler.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use super::programs::Program;
use crate::{
    ground::{cache, files, packages, project::Project, step},
    kernel::{Base, Origin, fetch, source::Source, toolchain::Toolchain, tree},
    terminal::progress::Step,
};

/// What they are built from, by path in the kernel's tree.
const NEEDED: &[&str] = &[
    "include/vdso/time64.h",
    "mm/gup_test.h",
    "tools/include/uapi",
    "tools/testing/selftests/clone3/clone3_selftests.h",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/mm",
    "tools/testing/selftests/pidfd/pidfd.h",
    "tools/testing/selftests/x86/check_cc.sh",
    "tools/testing/selftests/x86/trivial_32bit_program.c",
    "tools/testing/selftests/x86/trivial_64bit_program.c",
    "tools/testing/selftests/x86/trivial_program.c",
];

/// Built programs, the same for every kernel.
pub struct Built {
    pub dir: PathBuf,
    /// Of the tree that they are from, as in `6.12.3`.
    pub version: String,
}

/// Builds them from a copy, because their makefile writes beside their source.
pub fn build(project: &Project, origin: &Origin) -> Result<Built> {
    project.check_target()?;
    packages::ensure(project, origin.needs_no_package())?;
    let dir = origin.base.within(project.target.join("sksm/selftests"));
    let stamp = dir.join("made-of");
    let programs = dir.join("programs");
    let version = dir.join("version");
    let built = |version: &str| Built {
        dir: programs.clone(),
        version: version.trim().to_owned(),
    };
    if origin.tree.is_none() {
        let source = fetch::debian(project, origin.base, true)?;
        if fs::read_to_string(&stamp)
            .is_ok_and(|made| made == ingredients(project, origin.base, &source))
        {
            return Ok(built(&fs::read_to_string(&version)?));
        }
    }
    let _lock = project.lock_cache()?;
    let toolchain = Toolchain::prepare(project, origin.base)?;
    let source = fetch::source(project, origin, true)?;
    tree::sync(project, origin.base, &source)?;
    let made_of = ingredients(project, origin.base, &source);
    if fs::read_to_string(&stamp).is_ok_and(|made| made == made_of) {
        return Ok(built(&fs::read_to_string(&version)?));
    }
    cache::remove(&stamp)?;
    let step = Step::begin("building the kernel's selftests");
    let copy = dir.join("tree");
    for old in [&programs, &copy] {
        cache::remove(old)?;
        fs::create_dir_all(old)?;
    }
    let mut rsync = Command::new("rsync");
    rsync
        .args(["--archive", "--relative"])
        .args(NEEDED)
        .arg(&copy)
        .current_dir(&source.tree);
    step::run(&mut rsync, &project.log("copy-selftests")?, &step, |_| {})?;
    // Those of the patched tree, for both kernels.
    let headers = dir.join("headers");
    step.detail("headers");
    step::run(
        toolchain
            .make(&source.tree, &headers, "x86_64")
            .arg("headers"),
        &project.log("build-selftest-headers")?,
        &step,
        |_| {},
    )?;
    let wanted = files(origin.base);
    let mut make = toolchain.command("make");
    make.arg("-C")
        .arg(copy.join("tools/testing/selftests/mm"))
        .arg("ARCH=x86_64")
        .arg(format!("OUTPUT={}", programs.display()))
        .arg(format!(
            "KHDR_INCLUDES=-isystem {}/usr/include",
            headers.display()
        ))
        // 6.12's khugepaged.c says it without including what defines it.
        .arg("USERCFLAGS=-DKSFT_SKIP=4")
        .arg(format!(
            "-j{}",
            std::thread::available_parallelism().map_or(1, usize::from)
        ))
        .args(wanted.iter().map(|name| programs.join(name)));
    let mut done = 0;
    step::run(&mut make, &project.log("build-selftests")?, &step, |line| {
        let compiled = line
            .strip_prefix("  CC ")
            .or_else(|| Some(line.strip_prefix("gcc ")?.rsplit_once('/')?.1));
        if let Some(name) = compiled {
            done += 1;
            step.percent((done * 100 / wanted.len() as u64).min(99));
            step.detail(name);
        }
    })?;
    if let Some(name) = wanted.iter().find(|name| !programs.join(name).is_file()) {
        bail!("the selftests' makefile made no {name}");
    }
    cache::write(&version, Base::of_tree(&source.tree)?.1)?;
    cache::write(&stamp, made_of)?;
    step.done();
    Ok(built(&fs::read_to_string(&version)?))
}

/// What to build.
fn files(base: Base) -> BTreeSet<&'static str> {
    Program::all(base).map(Program::file).collect()
}

/// Names what they are made of. Most of `kernel/` does not reach them.
fn ingredients(project: &Project, base: Base, source: &Source) -> String {
    let parts = [
        "include".into(),
        "tools".into(),
        base.patches(),
        base.overlay(),
    ];
    let parts = parts.map(|part| files::below(&project.kernel().join(part)).ok());
    let unpacked = fs::read_to_string(source.dir.join("unpacked")).ok();
    let compiler = Command::new("gcc")
        .arg("--version")
        .output()
        .map(|output| output.stdout)
        .ok();
    cache::fingerprint((parts, unpacked, compiler, files(base), &source.dir))
}
