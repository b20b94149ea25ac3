//! The units of systemd that the package of the command has: they are understood, and open no more than they have to.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::ground::{cache, files, project::Project, step};

/// Where they are, below the root directory.
pub const UNITS: &str = "usr/lib/systemd/system";
/// What has to be there for them to be loaded.
const TARGET: &str = "sysinit.target";
const SERVICE: &str = "sksm-merge@.service";
pub const SCANNER: &str = "sksm-scan.service";
pub const SOCKET: &str = "sksm-scan.socket";
/// As somebody may name them.
const INSTANCES: [&str; 4] = [
    "sksm-merge@nginx.service.timer",
    "sksm-merge@nginx.service.service",
    SCANNER,
    SOCKET,
];
/// The most that `systemd-analyze security` may say, in tenths: 100 is a service without any bounds. Three capabilities and all
/// of /proc make 13.
const EXPOSURE: &str = "16";
/// What they start.
const PROGRAMS: [&str; 2] = ["usr/bin/sksm", "bin/sh"];

/// What is missing to check them, and how it is installed.
pub fn cannot_check() -> Option<String> {
    let version = Command::new("systemd-analyze").arg("--version").output();
    match version {
        Ok(output) if output.status.success() => None,
        _ => Some("there is no systemd-analyze; `apt-get install systemd` installs it".into()),
    }
}

/// Fails where systemd would complain of them, or where they have more rights than they should.
pub fn check(project: &Project) -> Result<()> {
    check_in(&project.root.join("packaging/systemd"))
}

fn check_in(units: &Path) -> Result<()> {
    // A machine of their own, as this one need not have the command, nor units.
    let root = tempfile::tempdir()?;
    let root = root.path();
    let dir = root.join(UNITS);
    for (path, content) in files::below(units)? {
        cache::write(&dir.join(path), content)?;
    }
    cache::write(&dir.join(TARGET), "[Unit]\nDescription=System\n")?;
    for program in PROGRAMS {
        let program = root.join(program);
        cache::write(&program, "")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let analyze = || {
        let mut analyze = Command::new("systemd-analyze");
        analyze
            .arg(format!("--root={}", root.display()))
            .env("LC_ALL", "C.UTF-8");
        analyze
    };
    let mut verify = analyze();
    // The pages are not installed there; what becomes of them is looked at in the packages.
    verify.args(["verify", "--man=no"]).args(INSTANCES);
    let verified = verify.output().context("cannot run systemd-analyze")?;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    ensure!(
        verified.status.success() && complaints.is_empty(),
        "systemd does not like the units: {complaints}"
    );
    for service in [SERVICE, SCANNER] {
        let mut security = analyze();
        security
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(format!("--threshold={EXPOSURE}"))
            .arg(service);
        step::output(&mut security)
            .with_context(|| format!("{service} is more exposed than {EXPOSURE} tenths"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the repository with this in the place of that, if they can be checked here.
    fn complaint(file: &str, that: &str, this: &str) -> Option<String> {
        if cannot_check().is_some() {
            return None;
        }
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files::below(&own).unwrap() {
            let mut text = String::from_utf8(content).unwrap();
            if path == Path::new(file) {
                assert!(text.contains(that), "{text}");
                text = text.replace(that, this);
            }
            fs::write(dir.path().join(path), text).unwrap();
        }
        Some(format!("{:#}", check_in(dir.path()).unwrap_err()))
    }

    #[test]
    fn mistakes_are_found() {
        for (file, that, this, told) in [
            (
                SERVICE,
                "NoNewPrivileges=",
                "NoNewPrivilege=",
                "NoNewPrivilege",
            ),
            (SERVICE, "/usr/bin/sksm", "/usr/bin/other", "/usr/bin/other"),
            ("sksm-merge@.timer", "hourly", "often", "often"),
            (SERVICE, "DynamicUser=yes", "User=root", "more exposed"),
            (SERVICE, "CapabilityBoundingSet=", "#", "more exposed"),
            (
                SCANNER,
                "DynamicUser=yes",
                "User=root",
                "sksm-scan.service is more",
            ),
            (SCANNER, "RestartSec=10s", "RestartSec=soon", "soon"),
            (SOCKET, "SocketMode=0666", "SocketMode=all", "all"),
            (
                SCANNER,
                "ExecReload=/bin/sh",
                "ExecReload=/usr/bin/none",
                "/usr/bin/none",
            ),
        ] {
            if let Some(complaint) = complaint(file, that, this) {
                assert!(complaint.contains(told), "{this}: {complaint}");
            }
        }
    }
}
