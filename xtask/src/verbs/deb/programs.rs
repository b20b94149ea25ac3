//! The packages `sksm`, `libsksm0` and `libsksm-dev`: everything is built and laid out as installed, and debhelper makes
//! packages of it as `packaging/debian` says.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{documents, licences, version};
use crate::{
    ground::{cache, files, packages, project::Project, step},
    guest::programs,
    terminal::progress::Step,
};

/// The library's, which its file is named after.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Whose code is in the packages.
const CONTENTS: [&str; 3] = ["sksm-cli", "sksm-capi", "sksm-preload"];

/// Builds the packages and leaves them in `out`.
pub fn build(project: &Project, maintainer: &str, out: &Path) -> Result<Vec<PathBuf>> {
    packages::ensure_packaging(project)?;
    let built = programs::packaged_programs(project)?;
    let step = Step::begin("packaging");
    let scratch = project.scratch()?;
    let root = scratch.path().join(format!("sksm-{VERSION}"));
    let debian = root.join("debian");
    for (path, content) in files::below(&project.root.join("packaging/debian"))? {
        cache::write(&debian.join(path), content)?;
    }
    fs::set_permissions(debian.join("rules"), fs::Permissions::from_mode(0o755))?;
    fill(&debian.join("control"), &[("@MAINTAINER@", maintainer)])?;
    let mit = fs::read_to_string(project.root.join("LICENSE-MIT"))?;
    let packages = licences::of(project, &CONTENTS)?;
    fill(
        &debian.join("copyright"),
        &[("@MIT@", &mit), ("@PACKAGES@\n", &packages)],
    )?;
    cache::write(&debian.join("changelog"), changelog(project, maintainer)?)?;
    for (path, content) in files::below(&project.root.join("packaging/systemd"))? {
        cache::write(
            &root.join("built/usr/lib/systemd/system").join(path),
            content,
        )?;
    }
    for (path, content) in files::below(&project.root.join("packaging/etc"))? {
        cache::write(&root.join("built/etc").join(path), content)?;
    }
    let capi = project.root.join("crates/sksm-capi");
    fs::copy(capi.join("examples/table.c"), root.join("table.c"))?;
    documents::install(&project.root, &root.join("documents"))?;
    let pages = root.join("built/usr/share/man/man7");
    fs::create_dir_all(&pages)?;
    let page = "sksm-preload.7";
    fs::copy(
        project.root.join("crates/sksm-preload").join(page),
        pages.join(page),
    )?;
    install(&capi, &built, &root.join("built/usr"))?;

    let log = project.log("deb")?;
    let mut rules = Command::new("debian/rules");
    rules
        .arg("binary")
        .current_dir(&root)
        .env("LC_ALL", "C.UTF-8")
        // Release builds have nothing that a debugger could use.
        .env("DEB_BUILD_OPTIONS", "noautodbgsym");
    step::run(&mut rules, &log, &step, |line| step.detail(line))?;
    // debhelper leaves them beside the source.
    let mut packages = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            let package = out.join(path.file_name().context("no name")?);
            cache::write(&package, fs::read(&path)?)?;
            packages.push(package);
        }
    }
    packages.sort();
    step.done();
    Ok(packages)
}

/// Lays everything out as it will be below /usr.
fn install(capi: &Path, built: &programs::Packaged, usr: &Path) -> Result<()> {
    let put = |from: &Path, to: &str| -> Result<()> {
        let to = usr.join(to);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    let lib = format!("lib/{}", multiarch()?);
    put(&built.command, "bin/sksm")?;
    put(&built.preload, "lib/sksm/libsksm_preload.so")?;
    put(&built.library, &format!("{lib}/libsksm.so.{VERSION}"))?;
    symlink(
        format!("libsksm.so.{VERSION}"),
        usr.join(&lib).join("libsksm.so.0"),
    )?;
    symlink("libsksm.so.0", usr.join(&lib).join("libsksm.so"))?;
    put(&built.archive, &format!("{lib}/libsksm.a"))?;
    put(&capi.join("include/sksm.h"), "include/sksm.h")?;
    put(
        &capi.join("sksm.pc.in"),
        &format!("{lib}/pkgconfig/sksm.pc"),
    )?;
    fill(
        &usr.join(&lib).join("pkgconfig/sksm.pc"),
        &[
            ("@prefix@", "/usr"),
            ("@libdir@", &format!("${{prefix}}/{lib}")),
            ("@version@", VERSION),
        ],
    )?;
    let made = tempfile::tempdir()?;
    step::output(
        Command::new(&built.command)
            .args(["generate", "--dir"])
            .arg(made.path()),
    )?;
    for name in files::below(made.path())?.keys() {
        let text = name.to_string_lossy();
        let to = match text.as_ref() {
            "sksm.bash" => "share/bash-completion/completions/sksm".to_owned(),
            "_sksm" => "share/zsh/vendor-completions/_sksm".to_owned(),
            "sksm.fish" => "share/fish/vendor_completions.d/sksm.fish".to_owned(),
            page if page.ends_with(".1") => format!("share/man/man1/{page}"),
            other => bail!("`sksm generate` made {other}, which has no place in the package"),
        };
        put(&made.path().join(name), &to)?;
    }
    Ok(())
}

fn fill(file: &Path, values: &[(&str, &str)]) -> Result<()> {
    let mut text = fs::read_to_string(file)?;
    for (name, value) in values {
        if !text.contains(name) {
            bail!("{} has no {}", file.display(), name.trim());
        }
        text = text.replace(name, value);
    }
    cache::write(file, text)
}

/// Names the version and where it was built from.
fn changelog(project: &Project, maintainer: &str) -> Result<String> {
    let version = version::of(&project.root)?;
    Ok(format!(
        "sksm ({}) unstable; urgency=medium\n\n  * Built from {}.\n\n -- {maintainer}  {}\n",
        version.number, version.source, version.date
    ))
}

/// Where Debian has this machine's libraries, below /usr/lib.
pub fn multiarch() -> Result<String> {
    let triplet = step::output(Command::new("dpkg-architecture").arg("-qDEB_HOST_MULTIARCH"))?;
    Ok(triplet.trim().to_owned())
}
