//! An apt of the tool's own, with its own settings and lists: it takes no rights, and the system's is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    ground::{cache, packages, project::Project, step},
    terminal::progress::Step,
};

/// Where Debian's archive is if this machine's apt does not say.
pub const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Apt<'a> {
    dir: PathBuf,
    log: PathBuf,
    step: &'a Step,
}

impl<'a> Apt<'a> {
    /// Works in `dir`, and fetches the lists of what this architecture has there: `sources` are archives and suites, as in
    /// `http://deb.debian.org/debian bookworm`.
    pub fn new(
        project: &Project,
        dir: &Path,
        architecture: Option<&str>,
        sources: &[String],
        step: &'a Step,
    ) -> Result<Self> {
        for needed in ["state/lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(dir.join(needed))?;
        }
        let put = |name: &str, text: &str| cache::write(&dir.join(name), text);
        put("status", "")?;
        let line = |source: &String| format!("deb [signed-by={KEYRING}] {source} main\n");
        put(
            "sources.list",
            &sources.iter().map(line).collect::<String>(),
        )?;
        put("apt.conf", &settings(dir, architecture))?;
        let apt = Self {
            dir: dir.to_owned(),
            log: project.log("apt")?,
            step,
        };
        apt.run(&["--error-on=any", "update"])?;
        Ok(apt)
    }

    /// Downloads packages, as in `hello` or `hello=1.0-1`; returns the directory of all that were downloaded.
    pub fn download(&self, packages: &[String]) -> Result<PathBuf> {
        // It tells how far it is on its standard output.
        let mut words = vec!["--option", "APT::Status-Fd=1", "download"];
        words.extend(packages.iter().map(String::as_str));
        self.run(&words)?;
        Ok(self.dir.join("packages"))
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let mut apt = Command::new("apt-get");
        // After the system's, so that it has the last word.
        apt.arg("--config-file").arg(self.dir.join("apt.conf"));
        apt.args(words)
            .env("LC_ALL", "C")
            .current_dir(self.dir.join("packages"));
        step::run(&mut apt, &self.log, self.step, |line| {
            match progress(line) {
                Some(percent) => self.step.percent(percent),
                None => self.step.detail(line),
            }
        })
    }
}

/// For an apt that has nothing to do with the system's, whose proxies it takes all the same.
fn settings(dir: &Path, architecture: Option<&str>) -> String {
    let dir = dir.display();
    let architecture = architecture.map_or(String::new(), |architecture| {
        format!(
            "APT::Architecture \"{architecture}\";\n\
             #clear APT::Architectures;\n\
             APT::Architectures {{ \"{architecture}\"; }};\n"
        )
    });
    format!(
        "// What the system does after an update is about the system.\n\
         #clear APT::Update;\n\
         #clear APT::Default-Release;\n\
         {architecture}\
         Dir::State \"{dir}/state\";\n\
         Dir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Acquire::Languages \"none\";\n\
         // Of root: another user could not write where it works.\n\
         APT::Sandbox::User \"root\";\n"
    )
}

/// Percents of a download, in a line as in `dlstatus:1:20.5:Retrieving file 1 of 1`.
fn progress(line: &str) -> Option<u64> {
    let percent = line.strip_prefix("dlstatus:")?.split(':').nth(1)?;
    Some(percent.parse::<f64>().ok()? as u64)
}

/// What this machine's apt says of the parts `main` of Debian's, a line each; nothing if it has no lists yet.
pub fn targets(format: &str, more: &[&str]) -> String {
    let mut targets = Command::new("apt-get");
    targets
        .args(["indextargets", "--format", format])
        .args(["Created-By: Packages", "Origin: Debian", "Component: main"])
        .args(more);
    step::output(&mut targets).unwrap_or_default()
}

/// Archives and suites that this machine's packages are from.
pub fn sources() -> Result<Vec<String>> {
    let mut sources: Vec<String> = targets("$(SITE) $(RELEASE)", &[])
        .lines()
        .filter(|line| line.starts_with("http") && line.split_whitespace().count() == 2)
        .map(str::to_owned)
        .collect();
    sources.sort();
    sources.dedup();
    if sources.is_empty() {
        let release = fs::read_to_string(packages::RELEASE)?;
        let name = packages::release_field(&release, "VERSION_CODENAME").unwrap_or("stable");
        sources = vec![
            format!("{ARCHIVE} {name}"),
            format!("{SECURITY} {name}-security"),
        ];
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_tells_how_far_it_is() {
        assert_eq!(
            progress("dlstatus:1:20.5952:Retrieving file 1 of 1"),
            Some(20)
        );
        assert_eq!(progress("Fetched 167 MB in 3s (50 MB/s)"), None);
    }

    #[test]
    fn an_architecture_is_the_only_one() {
        let dir = Path::new("/apt");
        let said = settings(dir, Some("arm64"));
        assert!(
            said.contains("APT::Architectures { \"arm64\"; };"),
            "{said}"
        );
        assert!(!settings(dir, None).contains("Architecture"));
    }

    #[test]
    fn there_is_always_a_source() {
        assert!(!sources().unwrap().is_empty());
    }
}
