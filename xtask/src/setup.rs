//! Debian packages that the tool needs.

use std::{
    fmt, fs,
    io::IsTerminal,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    interrupt,
    progress::Step,
    project::{self, Project},
    qemu,
};

/// What is needed, each with the packages that offer it, the preferred first. Debian 12 has the
/// Rust that the kernel wants under other names than Debian 13.
const NEEDED: &[&[&[&str]]] = &[
    &[&["rustc-web", "rust-web-src"], &["rustc", "rust-src"]],
    &[&["linux-source-6.12"]],
    &[&["clang-19"]],
    &[&["llvm-19"]],
    &[&["lld-19"]],
    &[&["libclang-19-dev"]],
    &[&["make"]],
    &[&["gcc"]],
    &[&["g++"]],
    &[&["libc6-dev"]],
    &[&["flex"]],
    &[&["bison"]],
    &[&["libelf-dev"]],
    &[&["libssl-dev"]],
    // For the kernel's own tests.
    &[&["libcap-dev"]],
    &[&["libnuma-dev"]],
    &[&["liburing-dev"]],
    &[&["bc"]],
    &[&["cpio"]],
    &[&["kmod"]],
    &[&["perl"]],
    &[&["python3"]],
    &[&["rsync"]],
    &[&["git"]],
    // Programs that the preload object is tried on, beside bash, perl, python3 and git.
    &[&["openssl"]],
    &[&["sqlite3"]],
    &[&["xz-utils"]],
    &[&[qemu::PACKAGE]],
    &[&["busybox-static"]],
    &[&["pkgconf"]],
    // For the packages of the command and the libraries.
    &[&["debhelper"]],
];

const OPTIONS: [&str; 3] = ["--yes", "--no-install-recommends", "--no-remove"];

/// The oldest Rust that Linux 6.12 builds with. An older package counts as not installed.
const OLDEST_RUST: (u32, u32) = (1, 78);

/// Only needed without `--linux-src`.
const SOURCE: &str = "linux-source-6.12";

/// The packages that are missing.
pub struct Missing(Vec<&'static str>);

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has_qemu(&self) -> bool {
        self.0.contains(&qemu::PACKAGE)
    }
}

impl fmt::Display for Missing {
    /// The line that installs them.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "apt-get install {} {}",
            OPTIONS.join(" "),
            self.0.join(" ")
        )
    }
}

/// The verb `setup --check`: true when nothing is missing.
pub fn check(project: &Project) -> Result<bool> {
    let missing = missing(project, false)?;
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(true);
    }
    println!("missing packages:");
    for package in &missing.0 {
        println!("  {package}");
    }
    if missing.has_qemu() && !fits(&missing.0) {
        println!(
            "{} cannot be installed beside what is there; `cargo xtask setup` unpacks it into the cache",
            qemu::PACKAGE
        );
    } else {
        println!("install them with:\n  {missing}");
    }
    Ok(false)
}

/// Installs what is missing; `own_source` says that Debian's kernel source is not needed.
pub fn ensure(project: &Project, own_source: bool) -> Result<()> {
    install(project, || missing(project, own_source))
}

/// Installs what only some verb needs.
pub fn ensure_packages(project: &Project, names: &[&'static str]) -> Result<()> {
    install(project, || {
        let installed = installed()?;
        let missing = names.iter().copied();
        Ok(Missing(
            missing
                .filter(|&name| !installed.iter().any(|other| other == name))
                .collect(),
        ))
    })
}

fn install(project: &Project, missing: impl Fn() -> Result<Missing>) -> Result<()> {
    let mut packages = missing()?;
    if packages.is_empty() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    let sudo: &[&str] = if root {
        &[]
    } else if succeeds("sudo", &["-n", "true"]) {
        &["sudo", "-n"]
    } else if succeeds("sudo", &["--version"]) && std::io::stdin().is_terminal() {
        &["sudo"]
    } else {
        bail!("packages are missing; as root, run\n  {packages}");
    };
    if packages.0.iter().any(|package| !available(package)) {
        apt(sudo, &["update"])?;
        // With the lists at hand the choice may be another one.
        packages = missing()?;
    }
    // Whatever is on the machine may be somebody's: nothing is removed.
    let own_qemu = packages.has_qemu() && !fits(&packages.0);
    let libraries = if own_qemu {
        packages.0.retain(|&package| package != qemu::PACKAGE);
        qemu::libraries()?
    } else {
        Vec::new()
    };
    let names = packages.0.into_iter();
    let names: Vec<&str> = names.chain(libraries.iter().map(String::as_str)).collect();
    if !names.is_empty() {
        eprintln!("installing: {}", names.join(" "));
        let mut install = vec!["install"];
        install.extend(OPTIONS);
        install.extend(names);
        apt(sudo, &install)?;
    }
    if own_qemu {
        qemu::unpack(project)?;
    }
    Ok(())
}

/// Whether apt can install them without removing anything.
fn fits(packages: &[&str]) -> bool {
    let mut args = vec!["install", "--simulate"];
    args.extend(OPTIONS);
    args.extend(packages);
    succeeds("apt-get", &args)
}

fn missing(project: &Project, own_source: bool) -> Result<Missing> {
    let mut packages = installed()?;
    if qemu::is_unpacked(project) {
        packages.push(qemu::PACKAGE.into());
    }
    let installed = |package: &str| packages.iter().any(|name| name == package);
    let mut missing = choose(installed, available, bookworm(), own_source);
    if !(cargo_has("fmt") && cargo_has("clippy")) {
        missing.extend(lints(installed));
    }
    Ok(Missing(missing))
}

/// What the host checks need, where cargo is Debian's. A cargo from elsewhere says itself how its
/// parts are installed.
fn lints(installed: impl Fn(&str) -> bool) -> &'static [&'static str] {
    if installed("cargo-web") {
        &["rustfmt-web", "rust-web-clippy"]
    } else if installed("cargo") {
        &["rustfmt", "rust-clippy"]
    } else {
        &[]
    }
}

fn cargo_has(part: &str) -> bool {
    project::cargo()
        .args([part, "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Of each need that no installed alternative meets, the one that is begun, as alternatives exclude each other, or else
/// the first that apt knows. Where apt knows nothing yet, Debian 12 has the first and later ones the last.
fn choose(
    installed: impl Fn(&str) -> bool,
    available: impl Fn(&str) -> bool,
    bookworm: bool,
    own_source: bool,
) -> Vec<&'static str> {
    let mut chosen = Vec::new();
    for alternatives in NEEDED {
        if own_source && alternatives[0] == [SOURCE] {
            continue;
        }
        let met = |packages: &&[&str]| packages.iter().all(|&package| installed(package));
        if alternatives.iter().any(met) {
            continue;
        }
        let choice = alternatives
            .iter()
            .find(|packages| packages.iter().any(|&package| installed(package)))
            .or_else(|| {
                alternatives
                    .iter()
                    .find(|packages| packages.iter().all(|&package| available(package)))
            })
            .unwrap_or_else(|| &alternatives[if bookworm { 0 } else { alternatives.len() - 1 }]);
        chosen.extend(choice.iter().filter(|&&package| !installed(package)));
    }
    chosen
}

fn bookworm() -> bool {
    fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "VERSION_CODENAME=bookworm"))
}

fn installed() -> Result<Vec<String>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"])
        .output()
        .context("cannot run dpkg-query; the tool needs Debian 12 or 13")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(usable)
        .collect())
}

/// The package that a line of dpkg-query's tells of, if it can be used.
fn usable(line: &str) -> Option<String> {
    let (name, version) = line.strip_prefix("ii ")?.trim().split_once(' ')?;
    let old = ["rustc", "rust-src"].contains(&name) && release(version) < Some(OLDEST_RUST);
    (!old).then(|| name.to_owned())
}

/// Major and minor of a package's version.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether apt has the package in its lists.
fn available(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .output()
        .is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Candidate:"))
                .any(|candidate| candidate.trim() != "(none)")
        })
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// apt shows its own progress; it stays in the foreground so that sudo can ask for a password.
fn apt(sudo: &[&str], args: &[&str]) -> Result<()> {
    let mut words: Vec<&str> = sudo.to_vec();
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    // Another apt may be running on a fresh machine.
    words.extend(["-o", "DPkg::Lock::Timeout=600"]);
    words.extend(args);
    let step = Step::begin(format!("apt-get {}", args[0]));
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdout(Stdio::from(rustix::io::dup(std::io::stderr())?))
        .status()
        .with_context(|| format!("cannot run {}", words[0]))?;
    interrupt::check()?;
    if !status.success() {
        bail!("`{}` failed ({status})", words.join(" "));
    }
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<&'static str> {
        NEEDED.iter().flat_map(|need| need[0]).copied().collect()
    }

    #[test]
    fn a_complete_machine_lacks_nothing() {
        let all = all();
        assert!(choose(|package| all.contains(&package), |_| true, true, false).is_empty());
    }

    #[test]
    fn debian_13_gets_its_own_rust() {
        let chosen = choose(|_| false, |package| !package.contains("-web"), true, false);
        assert_eq!(chosen[..2], ["rustc", "rust-src"]);
        // Half installed is completed.
        let chosen = choose(
            |package| package == "rustc",
            |p| !p.contains("-web"),
            true,
            false,
        );
        assert_eq!(chosen[0], "rust-src");
    }

    #[test]
    fn a_rust_that_is_there_is_completed_and_not_replaced() {
        let chosen = choose(|package| package == "rustc", |_| true, false, false);
        assert_eq!(chosen[0], "rust-src");
        assert!(!chosen.contains(&"rustc-web"));
    }

    #[test]
    fn a_rust_that_is_too_old_does_not_count() {
        let usable = |line| usable(line).unwrap_or_default();
        assert_eq!(usable("ii  rustc 1.63.0+dfsg1-2"), "");
        assert_eq!(usable("ii  rust-src 1.63.0+dfsg1-2"), "");
        assert_eq!(usable("ii  rustc 1.85.0+dfsg3-1"), "rustc");
        assert_eq!(usable("ii  bc 1.07.1-3+b1"), "bc");
        assert_eq!(usable("rc  bc 1.07.1-3+b1"), "");
    }

    #[test]
    fn debian_12_gets_the_newer_rust() {
        assert_eq!(
            choose(|_| false, |_| true, true, false)[..2],
            ["rustc-web", "rust-web-src"]
        );
    }

    #[test]
    fn the_users_own_source_replaces_the_package() {
        assert!(choose(|_| false, |_| true, true, false).contains(&SOURCE));
        assert!(!choose(|_| false, |_| true, true, true).contains(&SOURCE));
    }

    #[test]
    fn unknown_lists_name_the_preferred_package() {
        assert_eq!(choose(|_| false, |_| false, true, false), all());
        let later = choose(|_| false, |_| false, false, false);
        assert_eq!(later[..2], ["rustc", "rust-src"]);
    }
}
