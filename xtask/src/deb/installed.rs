//! The packages as they are once installed: unpacked below a directory, and used from there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::programs;
use crate::{project::Project, step::output, tree};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Fails if anything in the packages does not work.
pub fn check(project: &Project, packages: &[PathBuf]) -> Result<()> {
    let root = project.scratch()?;
    let root = root.path();
    let mut names = Vec::new();
    for package in packages {
        output(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(package)
                .arg(root),
        )?;
        names.push(field(package, "Package")?);
    }
    ensure!(
        names == ["libsksm-dev", "libsksm0", "sksm"],
        "the packages are {names:?}"
    );
    control(packages, root)?;
    command(root)?;
    library(project, root)?;
    pages(root)?;
    completions(root)
}

/// What the packages need, and the papers that they have to have.
fn control(packages: &[PathBuf], root: &Path) -> Result<()> {
    for package in packages {
        let name = field(package, "Package")?;
        let depends = field(package, "Depends")?;
        let needed = match name.as_str() {
            "libsksm-dev" => format!("libsksm0 (= {VERSION})"),
            _ => "libc6 (>= ".to_owned(),
        };
        ensure!(depends.contains(&needed), "{name} needs {depends}");
        let copyright = fs::read_to_string(root.join(format!("usr/share/doc/{name}/copyright")))
            .with_context(|| format!("{name} says nothing about its licence"))?;
        for text in ["Permission is hereby granted", "\n  libc "] {
            ensure!(
                copyright.contains(text),
                "{name}: no {text:?} in its copyright"
            );
        }
    }
    Ok(())
}

/// The command, and the object that it finds without being told.
fn command(root: &Path) -> Result<()> {
    let sksm = || {
        let mut command = Command::new(root.join("usr/bin/sksm"));
        command.env_remove("SKSM_PRELOAD");
        command
    };
    let version = output(sksm().arg("--version"))?;
    ensure!(
        version == format!("sksm {VERSION}\n"),
        "sksm --version: {version}"
    );
    let doctor = output(sksm().args(["doctor", "--json"]))?;
    let doctor: serde_json::Value = serde_json::from_str(&doctor).context("sksm doctor --json")?;
    ensure!(doctor.is_object(), "sksm doctor --json: {doctor}");
    output(sksm().args(["run", "--", "true"]))?;
    let maps = output(sksm().args(["run", "--", "cat", "/proc/self/maps"]))?;
    let help = output(sksm().arg("--help"))?;
    let page = "usr/share/doc/sksm/json.md";
    ensure!(
        help.contains(page) && root.join(page).is_file(),
        "{page} is not there, or sksm --help does not name it"
    );
    let object = root
        .join("usr/lib/sksm/libsksm_preload.so")
        .canonicalize()?;
    ensure!(
        maps.contains(&object.display().to_string()),
        "sksm run does not load {}",
        object.display()
    );
    Ok(())
}

/// A C program finds the library by pkg-config, and runs with it.
fn library(project: &Project, root: &Path) -> Result<()> {
    let lib = root.join("usr/lib").join(programs::multiarch()?);
    let flags = output(
        Command::new("pkg-config")
            .args(["--cflags", "--libs", "sksm"])
            .env("PKG_CONFIG_LIBDIR", lib.join("pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", root)
            .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
            .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1"),
    )?;
    let example = root.join("usr/share/doc/libsksm-dev/examples/table.c");
    let own = project.root.join("crates/sksm-capi/examples/table.c");
    ensure!(
        fs::read(&example)? == fs::read(own)?,
        "another example is installed"
    );
    let program = root.join("table");
    output(
        Command::new("cc")
            .arg("-o")
            .arg(&program)
            .arg(&example)
            .args(flags.split_whitespace()),
    )?;
    let said = output(Command::new(&program).env("LD_LIBRARY_PATH", &lib))?;
    ensure!(said.starts_with("merge: "), "the example says {said}");
    Ok(())
}

/// man shows each page and complains of none.
fn pages(root: &Path) -> Result<()> {
    let dir = root.join("usr/share/man/man1");
    let pages = tree::files_below(&dir)?;
    ensure!(
        pages.contains_key(Path::new("sksm.1.gz")),
        "the command has no man page"
    );
    for name in pages.keys() {
        let page = Command::new("man")
            .args(["--warnings", "--local-file"])
            .arg(dir.join(name))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .context("cannot run man")?;
        let complaints = String::from_utf8_lossy(&page.stderr);
        ensure!(
            page.status.success() && complaints.is_empty() && page.stdout.len() > 200,
            "man does not like {}: {complaints}",
            name.display()
        );
    }
    Ok(())
}

/// bash completes the command's verbs. zsh and fish may not be here; their files are what the command makes.
fn completions(root: &Path) -> Result<()> {
    let script = root.join("usr/share/bash-completion/completions/sksm");
    let completed = output(
        Command::new("bash")
            .args(["--norc", "-c"])
            .arg(
                "set -e; source \"$1\"; complete -p sksm; COMP_WORDS=(sksm do); COMP_CWORD=1; \
                 _sksm sksm do sksm; echo \"${COMPREPLY[@]}\"",
            )
            .arg("bash")
            .arg(&script),
    )?;
    ensure!(
        completed.ends_with("\ndoctor\n"),
        "bash completes `sksm do` to {completed}"
    );
    for (file, start) in [
        ("share/zsh/vendor-completions/_sksm", "#compdef sksm"),
        ("share/fish/vendor_completions.d/sksm.fish", ""),
    ] {
        let text = fs::read_to_string(root.join("usr").join(file))
            .with_context(|| format!("no {file}"))?;
        ensure!(
            text.starts_with(start) && text.contains("estimate"),
            "{file} is not right"
        );
    }
    Ok(())
}

fn field(package: &Path, name: &str) -> Result<String> {
    let text = output(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(package)
            .arg(name),
    )?;
    Ok(text.trim().to_owned())
}
