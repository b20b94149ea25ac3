//! Debian packages that the tool needs.

use std::{
    fmt, fs,
    io::IsTerminal,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    ground::{
        interrupt,
        project::{self, Project},
        qemu::{self, Emulator},
        step,
    },
    terminal::progress::Step,
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
    &[&[BINDGEN]],
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
    &[&[qemu::X86_64.package]],
    &[&["busybox-static"]],
    &[&["pkgconf"]],
    // For the package for Python: to install it as people do, and programs that it is tried on.
    &[&["python3-pip"]],
    &[&["python3-hatchling"]],
    &[&["python3-numpy"]],
    &[&["gunicorn"]],
    // For the packages of the command and the libraries.
    &[&["debhelper"]],
    // To see that its pages can be read.
    &[&["man-db"]],
    // To try what the package of the command sets at boot.
    &[&["systemd-standalone-tmpfiles"], &["systemd"]],
];

/// Of these, what the packages of the command and the libraries are built with: no kernel is, and the Rust is the one that built
/// this tool. git tells the version.
const PACKAGING: [&str; 4] = ["debhelper", "gcc", "git", "libc6-dev"];

const OPTIONS: [&str; 3] = ["--yes", "--no-install-recommends", "--no-remove"];

/// The oldest Rust that Linux 6.12 builds with. An older package counts as not installed.
const OLDEST_RUST: (u32, u32) = (1, 78);

/// Debian 12's is too old, so that one is built there.
const BINDGEN: &str = "bindgen";

/// Only needed for base 6.12 without `--linux-src`.
const SOURCE: &str = "linux-source-6.12";

/// What is to be done about packages that are missing.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// What apt is to install.
    pub names: Vec<String>,
    /// QEMU, which cannot be installed beside what is there, is unpacked into the cache.
    pub own_qemu: Vec<&'static Emulator>,
    /// apt does not know all of them yet.
    update: bool,
}

impl Plan {
    /// Whatever is on the machine may be somebody's, so nothing is removed. QEMU is what cannot be installed only if the
    /// others can.
    fn of(
        missing: &[&str],
        available: impl Fn(&str) -> bool,
        fit: impl Fn(&[&str]) -> bool,
    ) -> Self {
        let update = !missing.iter().all(|&package| available(package));
        let mut others = missing.to_vec();
        others.retain(|&package| qemu::of_package(package).is_none());
        let emulators = missing
            .iter()
            .filter_map(|&package| qemu::of_package(package));
        let mut own_qemu: Vec<_> = emulators.collect();
        if own_qemu.is_empty() || update || fit(missing) || !fit(&others) {
            own_qemu.clear();
        }
        let names = match own_qemu.is_empty() {
            true => missing,
            false => &others,
        };
        Self {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            own_qemu,
            update,
        }
    }

    pub fn of_this_machine(missing: &[&str]) -> Self {
        Self::of(missing, available, fit)
    }

    /// What a QEMU in the cache needs from outside it.
    pub fn add_libraries(&mut self) -> Result<()> {
        for emulator in &self.own_qemu {
            self.names.extend(emulator.libraries()?);
        }
        Ok(())
    }

    /// How to become root.
    fn sudo(&self) -> Result<&'static [&'static str]> {
        if rustix::process::geteuid().is_root() {
            Ok(&[])
        } else if succeeds("sudo", &["-n", "true"]) {
            Ok(&["sudo", "-n"])
        } else if succeeds("sudo", &["--version"]) && std::io::stdin().is_terminal() {
            Ok(&["sudo"])
        } else {
            bail!("packages are missing; as root, run\n  {self}");
        }
    }
}

impl fmt::Display for Plan {
    /// The line that installs them.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.update {
            f.write_str("apt-get update && ")?;
        }
        let options = OPTIONS.join(" ");
        write!(f, "apt-get install {options} {}", self.names.join(" "))
    }
}

/// Installs what is missing; `own_source` says that Debian's kernel source is not needed.
pub fn ensure(project: &Project, own_source: bool) -> Result<()> {
    project.check_cache()?;
    install(project, || missing(project, own_source))
}

/// Installs what is missing to build the packages of the command and the libraries.
pub fn ensure_packaging(project: &Project) -> Result<()> {
    project.check_cache()?;
    ensure_packages(project, &PACKAGING)
}

/// Installs what only some verb needs.
pub fn ensure_packages(project: &Project, names: &[&'static str]) -> Result<()> {
    install(project, || {
        let installed = usable_here(project)?;
        let mut missing = names.to_vec();
        missing.retain(|&name| !installed.iter().any(|other| other == name));
        Ok(missing)
    })
}

/// Installs what looks for mistakes in kernel code: clippy has to be of the Rust that compiles it, which is Debian's.
pub fn ensure_checkers(project: &Project) -> Result<()> {
    let installed = usable_here(project)?;
    let clippy = match installed.iter().any(|name| name == "rustc-web") {
        true => "rust-web-clippy",
        false => "rust-clippy",
    };
    ensure_packages(project, &["sparse", clippy])
}

fn install(project: &Project, missing: impl Fn() -> Result<Vec<&'static str>>) -> Result<()> {
    let packages = missing()?;
    if packages.is_empty() {
        return Ok(());
    }
    let mut plan = Plan::of_this_machine(&packages);
    if plan.update {
        apt(plan.sudo()?, &["update"])?;
        // With the lists at hand the choice may be another one.
        plan = Plan::of_this_machine(&missing()?);
    }
    plan.add_libraries()?;
    if !plan.names.is_empty() {
        let sudo = plan.sudo()?;
        eprintln!("installing: {}", plan.names.join(" "));
        let mut install = vec!["install"];
        install.extend(OPTIONS);
        install.extend(plan.names.iter().map(String::as_str));
        apt(sudo, &install)?;
    }
    for emulator in plan.own_qemu {
        emulator.unpack(project)?;
    }
    Ok(())
}

/// Whether apt can install them without removing anything.
fn fit(packages: &[&str]) -> bool {
    let mut args = vec!["install", "--simulate"];
    args.extend(OPTIONS);
    args.extend(packages);
    succeeds("apt-get", &args)
}

/// The packages that are missing; `own_source` as above.
pub fn missing(project: &Project, own_source: bool) -> Result<Vec<&'static str>> {
    let packages = usable_here(project)?;
    let installed = |package: &str| packages.iter().any(|name| name == package);
    let mut missing = choose(installed, available, bookworm(), own_source);
    if !(cargo_has("fmt") && cargo_has("clippy")) {
        missing.extend(lints(installed));
    }
    Ok(missing)
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
        if own_source && alternatives[0] == [SOURCE] || bookworm && alternatives[0] == [BINDGEN] {
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

/// What this machine's system says of itself.
pub const RELEASE: &str = "/etc/os-release";

/// A field of that file, as in `VERSION_CODENAME=bookworm`.
pub fn release_field<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(field)?.strip_prefix('=');
    text.lines().find_map(value)
}

fn bookworm() -> bool {
    fs::read_to_string(RELEASE)
        .is_ok_and(|text| release_field(&text, "VERSION_CODENAME") == Some("bookworm"))
}

/// What is installed, and what is unpacked in its place.
fn usable_here(project: &Project) -> Result<Vec<String>> {
    let mut packages = installed()?;
    let unpacked = qemu::ALL.into_iter();
    let unpacked = unpacked.filter(|emulator| emulator.is_unpacked(project));
    packages.extend(unpacked.map(|emulator| emulator.package.to_owned()));
    Ok(packages)
}

/// The version of a package, if it is installed.
pub fn version(package: &str) -> Option<String> {
    let format = "${db:Status-Abbrev} ${Version}\n";
    let said = step::output(Command::new("dpkg-query").args(["-W", "-f", format, package]));
    let said = said.ok()?;
    Some(said.lines().next()?.strip_prefix("ii ")?.trim().to_owned())
}

fn installed() -> Result<Vec<String>> {
    let format = "${db:Status-Abbrev} ${Package} ${Version}\n";
    let list = step::output(Command::new("dpkg-query").args(["-W", "-f", format]))
        .context("the tool needs Debian 12 or 13")?;
    Ok(list.lines().filter_map(usable).collect())
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

    /// What Debian 12 needs.
    fn all() -> Vec<&'static str> {
        let mut all: Vec<_> = NEEDED.iter().flat_map(|need| need[0]).copied().collect();
        all.retain(|&package| package != BINDGEN);
        all
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
    fn bindgen_is_debians_where_it_is_new_enough() {
        assert!(!choose(|_| false, |_| true, true, false).contains(&BINDGEN));
        assert!(choose(|_| false, |_| true, false, false).contains(&BINDGEN));
    }

    #[test]
    fn the_users_own_source_replaces_the_package() {
        assert!(choose(|_| false, |_| true, true, false).contains(&SOURCE));
        assert!(!choose(|_| false, |_| true, true, true).contains(&SOURCE));
    }

    #[test]
    fn qemu_is_in_the_way_only_if_the_others_are_not() {
        let missing = ["bc", qemu::X86_64.package];
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let plan = |known: bool, fit: fn(&[&str]) -> bool| Plan::of(&missing, |_| known, fit);
        let all = plan(true, |_| true);
        assert_eq!((&all.names, all.own_qemu), (&names(&missing), vec![]));
        let rest = plan(true, |packages| !packages.contains(&qemu::X86_64.package));
        assert_eq!(
            (&rest.names, rest.own_qemu),
            (&names(&["bc"]), vec![&qemu::X86_64])
        );
        // With no lists, or where something else is wrong, nothing fits.
        let unknown = plan(false, |_| false);
        assert!(
            unknown
                .to_string()
                .starts_with("apt-get update && apt-get install ")
        );
        assert!(unknown.to_string().ends_with(" bc qemu-system-x86"));
        assert!(unknown.own_qemu.is_empty());
        let broken = plan(true, |_| false);
        assert_eq!(
            (&broken.names, &broken.own_qemu),
            (&names(&missing), &vec![])
        );
        assert!(broken.to_string().starts_with("apt-get install "));
        let other = Plan::of(&["bc"], |_| true, |_| false);
        assert!(other.own_qemu.is_empty());
    }

    /// Whoever has run `cargo xtask setup` has all of it, and it is little of that.
    #[test]
    fn packaging_needs_a_part_of_it() {
        let all = all();
        assert!(PACKAGING.iter().all(|package| all.contains(package)));
        for of_kernels in [
            "linux-source-6.12",
            "clang-19",
            "rust-web-src",
            qemu::X86_64.package,
        ] {
            assert!(all.contains(&of_kernels) && !PACKAGING.contains(&of_kernels));
        }
    }

    #[test]
    fn unknown_lists_name_the_preferred_package() {
        assert_eq!(choose(|_| false, |_| false, true, false), all());
        let later = choose(|_| false, |_| false, false, false);
        assert_eq!(later[..2], ["rustc", "rust-src"]);
    }
}
