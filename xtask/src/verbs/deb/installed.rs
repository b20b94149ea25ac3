//! The packages as they are once installed: unpacked below a directory, and used from there.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{documents as documented, programs, units};
use crate::ground::{cache, files, project::Project, step::output};

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
    documents(root)?;
    service(packages, root)?;
    scanner(packages, root)?;
    domain(packages, root)?;
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
            "libsksm-dev" => format!("libsksm0 (= {})", field(package, "Version")?),
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

/// The guide and what it needs, with no link that leads nowhere.
fn documents(root: &Path) -> Result<()> {
    let dir = root.join("usr/share/doc/sksm");
    for document in documented::DOCUMENTS {
        let name = Path::new(document).file_name().context("no name")?;
        let text = fs::read_to_string(dir.join(name))
            .with_context(|| format!("{document} is not installed"))?;
        if !document.ends_with(".md") {
            continue;
        }
        for link in documented::links(&text) {
            ensure!(
                dir.join(&link).is_file(),
                "{document} has a link to {link}, which is not installed"
            );
        }
    }
    Ok(())
}

/// The command takes the service's command line: it says that there is no unit of that name.
fn service(packages: &[PathBuf], root: &Path) -> Result<()> {
    let dir = root.join(units::UNITS);
    ensure!(dir.join("sksm-merge@.timer").is_file(), "there is no timer");
    let service = fs::read_to_string(dir.join("sksm-merge@.service")).context("no service")?;
    let line = service
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/"))
        .context("the service starts nothing")?;
    let mut words = line.split_whitespace();
    let program = root.join(words.next().context("the service starts nothing")?);
    let name = "no-such-unit.service";
    let said = Command::new(program)
        .args(words.map(|word| word.replace("%i", name)))
        // Or it would say only that this kernel cannot.
        .arg("--dry-run")
        .output()?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(
        said.status.code() == Some(1) && error.contains(&format!("{name} is no control group")),
        "the service's command line: {error}"
    );
    for (name, part) in [
        (
            "prerm",
            "deb-systemd-invoke stop sksm-scan.socket sksm-scan.service 'sksm-merge@*.timer'",
        ),
        ("postrm", "timers.target.wants/sksm-merge@*.timer"),
        ("postrm", "multi-user.target.wants/sksm-scan.service"),
        ("postrm", "sockets.target.wants/sksm-scan.socket"),
    ] {
        let script = script(packages, name)?;
        ensure!(
            script.contains(part) && !script.contains("#DEBHELPER#"),
            "{name}: {script}"
        );
        output(Command::new("sh").args(["-n", "-c", &script]))?;
    }
    Ok(())
}

/// The command takes the scanner's command line, with the configuration that is installed; and the administrator's changes to that
/// stay.
fn scanner(packages: &[PathBuf], root: &Path) -> Result<()> {
    const CONFIGURATION: &str = "etc/sksm/scan.conf";
    let unit = root.join(units::UNITS).join(units::SCANNER);
    let unit = fs::read_to_string(unit).context("no scanner")?;
    let started = format!("ExecStart=/usr/bin/sksm scan --config=/{CONFIGURATION}");
    ensure!(
        unit.lines().any(|line| line == started),
        "the scanner's unit does not have {started}"
    );
    let kept = script(packages, "conffiles")?;
    ensure!(
        kept.lines()
            .any(|line| line.trim() == format!("/{CONFIGURATION}")),
        "{CONFIGURATION} is no conffile: {kept}"
    );
    let configuration = root.join(CONFIGURATION);
    let scan = || {
        let mut command = Command::new(root.join("usr/bin/sksm"));
        command
            .arg("scan")
            .arg(format!("--config={}", configuration.display()));
        // None of its own is running for longer than this look.
        command.args(["--once", "--stable=100ms", "--pid=2147483647"]);
        command.output()
    };
    let error = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let installed = error(scan()?);
    ensure!(
        installed.contains("MADV_MERGE") || installed.contains("no process 2147483647"),
        "with the configuration as installed: {installed}"
    );
    let text = fs::read_to_string(&configuration)?;
    cache::write(&configuration, format!("{text}colour = red\n"))?;
    let mistaken = error(scan()?);
    cache::write(&configuration, text)?;
    ensure!(
        mistaken.contains("scan.conf: line ") && mistaken.contains("colour"),
        "with a mistake in its configuration: {mistaken}"
    );
    Ok(())
}

/// At the first installation and at boot the machine's merge domain becomes `user`; a kernel without the file is no error.
fn domain(packages: &[PathBuf], root: &Path) -> Result<()> {
    let own = "usr/lib/tmpfiles.d/sksm.conf";
    ensure!(root.join(own).is_file(), "there is no {own}");
    // Only this file: others below the root concern other packages.
    let create = || {
        output(
            Command::new("systemd-tmpfiles")
                .arg("--create")
                .arg(format!("--root={}", root.display()))
                .arg("sksm.conf"),
        )
    };
    create().context("without the file of the kernel")?;
    let file = root.join("sys/kernel/mm/sksm/domain");
    ensure!(!file.exists(), "{} was made", file.display());
    cache::write(&file, "")?;
    create()?;
    let set = fs::read_to_string(&file)?;
    ensure!(set == "user", "the domain is {set:?}");
    configuring(&script(packages, "postinst")?)
}

/// What is done once the files of the package are there: the domain is set at the first installation, and by no upgrade; units
/// that are enabled run again after a removal has stopped them, and none is otherwise, but that a scanner which runs is replaced.
fn configuring(postinst: &str) -> Result<()> {
    const SET: &str = "systemd-tmpfiles --create sksm.conf";
    const RELOAD: &str = "systemctl --system daemon-reload";
    const START: &str = r"deb-systemd-invoke start sksm-merge@a\x2db.service.timer";
    const SCAN: &str = "deb-systemd-invoke start sksm-scan.service";
    const SOCKET: &str = "deb-systemd-invoke start sksm-scan.socket";
    const AGAIN: &str = "deb-systemd-invoke try-restart sksm-scan.service";
    let timer = [r"sksm-merge@a\x2db.service.timer"];
    for (words, enabled, expected) in [
        (&["configure", ""], &[][..], &[SET, RELOAD][..]),
        (&["configure", ""], &timer, &[SET, RELOAD, START]),
        (&["configure", ""], &[units::SCANNER], &[SET, RELOAD, SCAN]),
        // A service that runs already would not be given the socket.
        (
            &["configure", ""],
            &[units::SCANNER, units::SOCKET],
            &[SET, RELOAD, SOCKET, SCAN],
        ),
        (&["configure", "0.1"], &timer, &[RELOAD, START, AGAIN]),
        (&["abort-upgrade", "0.1.0"], &timer, &[]),
    ] {
        let asked = asked_for(postinst, words, enabled)?;
        ensure!(asked == expected, "postinst {words:?}: {asked:?}");
    }
    Ok(())
}

/// What a maintainer script asks of systemd, on a machine of its own that has these units enabled.
fn asked_for(script: &str, words: &[&str], enabled: &[&str]) -> Result<Vec<String>> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    let log = at("log");
    cache::write(&log, "")?;
    for tool in ["systemd-tmpfiles", "systemctl", "deb-systemd-invoke"] {
        let tool = at("bin").join(tool);
        // It fails as well: no reason not to install.
        let text = format!(
            "#!/bin/sh\necho \"${{0##*/}} $*\" >> '{}'\nexit 1\n",
            log.display()
        );
        cache::write(&tool, text)?;
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
    }
    let running = at("running");
    fs::create_dir(&running)?;
    let wanted = |target: &str| at(&format!("{target}.wants"));
    let targets = ["timers.target", "sockets.target", "multi-user.target"];
    for target in targets {
        fs::create_dir(wanted(target))?;
    }
    for unit in enabled {
        let target = match unit.rsplit('.').next() {
            Some("timer") => targets[0],
            Some("socket") => targets[1],
            _ => targets[2],
        };
        symlink("/usr/lib/systemd/system", wanted(target).join(unit))?;
    }
    let mut script = script.to_owned();
    let mut others = vec![("/run/systemd/system".to_owned(), running)];
    for target in targets {
        let own = format!("/etc/systemd/system/{target}.wants");
        others.push((own, wanted(target)));
    }
    for (own, other) in others {
        ensure!(script.contains(&own), "{own} is not looked at: {script}");
        script = script.replace(&own, &other.display().to_string());
    }
    let path = format!(
        "{}:{}",
        at("bin").display(),
        env::var("PATH").unwrap_or_default()
    );
    output(
        Command::new("sh")
            .args(["-c", &script, "postinst"])
            .args(words)
            .env("PATH", path)
            .env("DPKG_ROOT", ""),
    )?;
    let asked = fs::read_to_string(log)?;
    Ok(asked.lines().map(str::to_owned).collect())
}

/// A C program finds the library by pkg-config, and runs with it or with a copy of its own.
fn library(project: &Project, root: &Path) -> Result<()> {
    let lib = root.join("usr/lib").join(programs::multiarch()?);
    let flags = |more: &[&str]| {
        output(
            Command::new("pkg-config")
                .args(more)
                .args(["--cflags", "--libs", "sksm"])
                .env("PKG_CONFIG_LIBDIR", lib.join("pkgconfig"))
                .env("PKG_CONFIG_SYSROOT_DIR", root)
                .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
                .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1"),
        )
    };
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
            .args(flags(&[])?.split_whitespace()),
    )?;
    let said = output(Command::new(&program).env("LD_LIBRARY_PATH", &lib))?;
    ensure!(said.starts_with("merge: "), "the example says {said}");
    let flags = flags(&["--static"])?;
    output(
        Command::new("cc")
            .arg("-o")
            .arg(&program)
            .arg(&example)
            .args(flags.split_whitespace().map(|flag| match flag {
                "-lsksm" => "-l:libsksm.a",
                flag => flag,
            })),
    )?;
    let said = output(&mut Command::new(&program))?;
    ensure!(said.starts_with("merge: "), "linked statically: {said}");
    Ok(())
}

/// man shows each page and complains of none, and each says what pages of a command are looked up for.
fn pages(root: &Path) -> Result<()> {
    let man = root.join("usr/share/man");
    let pages = files::below(&man)?;
    for wanted in [
        "man1/sksm.1.gz",
        "man1/sksm-merge.1.gz",
        "man1/sksm-scan.1.gz",
        "man1/sksm-store.1.gz",
        "man7/sksm-preload.7.gz",
    ] {
        ensure!(
            pages.contains_key(Path::new(wanted)),
            "there is no page {wanted}"
        );
    }
    for name in pages.keys() {
        let page = Command::new("man")
            .args(["--warnings", "--local-file"])
            .arg(man.join(name))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .context("cannot run man")?;
        let complaints = String::from_utf8_lossy(&page.stderr);
        ensure!(
            page.status.success() && complaints.is_empty(),
            "man does not like {}: {complaints}",
            name.display()
        );
        let text = String::from_utf8_lossy(&page.stdout);
        for section in [
            "DESCRIPTION",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "SEE ALSO",
        ] {
            ensure!(
                text.lines().any(|line| line == section),
                "{} has no section {section}",
                name.display()
            );
        }
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

/// What the package of the command runs at such a time.
fn script(packages: &[PathBuf], name: &str) -> Result<String> {
    let package = packages.iter().find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("sksm_")
    });
    let package = package.context("there is no package sksm")?;
    output(
        Command::new("dpkg-deb")
            .arg("--info")
            .arg(package)
            .arg(name),
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_leaves_the_domain_and_starts_what_is_enabled() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/debian");
        configuring(&fs::read_to_string(own.join("sksm.postinst")).unwrap()).unwrap();
        // As debhelper would have it.
        let always = r#"[ -d /run/systemd/system ] && for timer in /etc/systemd/system/timers.target.wants/*; do :; done
            for unit in /etc/systemd/system/multi-user.target.wants/* /etc/systemd/system/sockets.target.wants/*; do :; done
            systemd-tmpfiles --create sksm.conf || true"#;
        let error = configuring(always).unwrap_err().to_string();
        assert!(error.contains("postinst"), "{error}");
    }
}
