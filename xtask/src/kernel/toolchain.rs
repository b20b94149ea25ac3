//! The compilers that the kernel is built with.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::base::Base;
use crate::{
    ground::{
        cache,
        project::{self, Project},
        step,
    },
    terminal::progress::Step,
};

/// Debian's, whatever rustup has put on the path.
const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "19";
/// Built where the system has none that will do.
const BINDGEN: &str = "0.71.1";
const SYSTEM_BINDGEN: &str = "/usr/bin/bindgen";
/// The kernels take older ones, but they do not know LLVM 19.
const OLDEST_BINDGEN: [u32; 2] = [0, 71];
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct Toolchain {
    bindgen: PathBuf,
    library: PathBuf,
    pub version: String,
}

impl Toolchain {
    /// Finds the compilers, and builds bindgen when the cache has none. Needs the cache's lock.
    pub fn prepare(project: &Project, base: Base) -> Result<Self> {
        let version = Self::version()?;
        let rustc = version.lines().next().unwrap_or_default();
        if !since(rustc, "rustc", base.oldest_rust()) {
            let [major, minor] = base.oldest_rust();
            bail!(
                "Linux {base} needs Rust {major}.{minor}, and {RUSTC} is {rustc}; upgrade Debian's package of it"
            );
        }
        let sysroot = step::output(Command::new(RUSTC).args(["--print", "sysroot"]))?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
        if !library.join("core/src/lib.rs").is_file() {
            bail!(
                "no source of Rust's library in {}; run `cargo xtask setup`",
                library.display()
            );
        }
        Ok(Self {
            bindgen: bindgen(project)?,
            library,
            version,
        })
    }

    /// What objects depend on.
    pub fn version() -> Result<String> {
        let rustc = version(RUSTC)?;
        let clang = version(&format!("clang-{LLVM}"))?;
        let bindgen = system_bindgen().unwrap_or_else(|| format!("bindgen {BINDGEN}"));
        Ok(format!("{}\n{}\n{bindgen}", rustc.trim(), clang.trim()))
    }

    /// `make` in a kernel tree, untouched by the environment that cargo and rustup set up.
    pub fn make(&self, tree: &Path, objects: &Path, arch: &str) -> Command {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut make = self.command("make");
        make.arg("-C")
            .arg(tree)
            .arg(format!("O={}", objects.display()))
            .arg(format!("ARCH={arch}"))
            .arg(format!("LLVM=-{LLVM}"))
            .arg(format!("RUSTC={RUSTC}"))
            .arg(format!("HOSTRUSTC={RUSTC}"))
            .arg(format!("RUST_LIB_SRC={}", self.library.display()))
            .arg(format!("BINDGEN={}", self.bindgen.display()))
            .arg(format!("-j{jobs}"));
        make
    }

    /// A program with a plain environment, system directories first.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C");
        command.env("LIBCLANG_PATH", libclang());
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{SYSTEM_PATH}:{path}"));
        for name in ["HOME", "TMPDIR"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }
}

fn libclang() -> String {
    format!("/usr/lib/llvm-{LLVM}/lib")
}

/// What the system's bindgen calls itself, if it is new enough and works.
fn system_bindgen() -> Option<String> {
    let said = |args: &[&str]| {
        let mut command = Command::new(SYSTEM_BINDGEN);
        step::output(command.args(args).env("LIBCLANG_PATH", libclang())).ok()
    };
    let version =
        said(&["--version"]).filter(|version| since(version, "bindgen", OLDEST_BINDGEN))?;
    // It finds libclang only once it reads a header.
    said(&["/dev/null", "--", "-x", "c"])?;
    Some(version.trim().to_owned())
}

/// Whether what a program calls itself, as in `rustc 1.85.1 (4eb161250 2025-03-15)`, is that version or a later one.
fn since(said: &str, program: &str, oldest: [u32; 2]) -> bool {
    let mut words = said.split_whitespace();
    if words.next() != Some(program) {
        return false;
    }
    let numbers: Option<Vec<u32>> = (words.next().unwrap_or_default().split('.').take(2))
        .map(|number| number.parse().ok())
        .collect();
    numbers.is_some_and(|numbers| numbers[..] >= oldest[..])
}

/// The system's bindgen, or the one in the cache.
fn bindgen(project: &Project) -> Result<PathBuf> {
    if system_bindgen().is_some() {
        return Ok(SYSTEM_BINDGEN.into());
    }
    let root = project.cache.join(format!("bindgen-{BINDGEN}"));
    let program = root.join("bin/bindgen");
    // `cargo install` puts the program in place last and whole.
    if program.is_file() {
        return Ok(program);
    }
    let step = Step::begin("building bindgen");
    let objects = root.join("objects");
    let mut install = project::cargo();
    install
        .args([
            "install",
            "bindgen-cli",
            "--version",
            BINDGEN,
            "--locked",
            "--force",
            // Neither its log nor another formatter than rustfmt, which the kernel's build asks for.
            "--no-default-features",
            "--features",
            "runtime",
        ])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(&objects)
        // Outside the repository, so that its settings do not apply.
        .current_dir(&project.cache)
        .env("LIBCLANG_PATH", libclang())
        // It runs for seconds, and would be compiled for a minute more.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        install.env_remove(name);
    }
    step::run(&mut install, &project.log("bindgen")?, &step, |line| {
        step.detail(line)
    })?;
    cache::remove(&objects)?;
    step.done();
    Ok(program)
}

fn version(program: &str) -> Result<String> {
    step::output(Command::new(program).arg("--version"))
        .with_context(|| format!("{program} does not work; run `cargo xtask setup`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bindgen_that_is_too_old_is_not_used() {
        let new_enough = |said| since(said, "bindgen", OLDEST_BINDGEN);
        for good in ["bindgen 0.71.1\n", "bindgen 0.72.0", "bindgen 1.0.0"] {
            assert!(new_enough(good), "{good}");
        }
        for bad in [
            "bindgen 0.60.1",
            "bindgen 0.70.1",
            "bindgen 0",
            "0.71.1",
            "",
        ] {
            assert!(!new_enough(bad), "{bad}");
        }
    }

    #[test]
    fn a_later_base_may_want_a_later_rust() {
        let enough = |said, base: Base| since(said, "rustc", base.oldest_rust());
        let of_bookworm = "rustc 1.78.0 (9b00956e5 2024-04-29) (built from a source tarball)";
        assert!(enough(of_bookworm, Base::Linux6_12));
        assert!(!enough(of_bookworm, Base::Linux7_3));
        assert!(enough(
            "rustc 1.85.0 (4d91de4e4 2025-02-17)",
            Base::Linux7_3
        ));
    }
}
