//! Debian's packages that kernels are made of: installed ones, and ones of another release, which are only unpacked. Those are
//! downloaded by an apt of the tool's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Error, Result, anyhow, bail};
use tempfile::TempDir;

use crate::{
    ground::{
        apt::{self, ARCHIVE, Apt},
        cache, interrupt,
        project::Project,
        step,
    },
    terminal::progress::Step,
};

/// A package, and how it is had.
#[derive(Debug)]
pub enum Package {
    /// This machine's release has it.
    Installed(&'static str),
    Downloaded(Download),
}

/// One version of a package, known by its content.
#[derive(Debug)]
pub struct Download {
    pub name: &'static str,
    pub version: &'static str,
    pub architecture: &'static str,
    /// Where Debian has it.
    pub suite: &'static str,
    pub sha256: &'static str,
}

/// A file of a package, for as long as this lives.
pub struct Content {
    pub path: PathBuf,
    _unpacked: Option<TempDir>,
}

impl Package {
    pub fn name(&self) -> &'static str {
        match self {
            Package::Installed(name) => name,
            Package::Downloaded(download) => download.name,
        }
    }

    /// The version of an installed one, or the one to be downloaded.
    pub fn version(&self) -> Result<String> {
        let name = match self {
            Package::Installed(name) => name,
            Package::Downloaded(download) => return Ok(download.version.to_owned()),
        };
        let output = Command::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Status} ${Version}", name])
            .output()
            .context("cannot run dpkg-query; --linux-src DIR takes an unpacked tree instead")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match said.strip_prefix("installed ") {
            Some(version) if output.status.success() => Ok(version.to_owned()),
            _ => bail!("{name} is not installed; run `cargo xtask setup`, or give --linux-src DIR"),
        }
    }

    /// A file of it, by its path from the root. Downloads the package if need be, for which it needs the cache's lock.
    pub fn content(&self, project: &Project, path: &str) -> Result<Content> {
        let content = match self {
            Package::Installed(_) => Content {
                path: Path::new("/").join(path),
                _unpacked: None,
            },
            Package::Downloaded(download) => {
                let package = download.get(project)?;
                let dir = project.scratch()?;
                let step = Step::begin(format!("unpacking {}", download.file()));
                let mut extract = Command::new("dpkg-deb");
                extract.arg("--extract").arg(package).arg(dir.path());
                step::run(&mut extract, &project.log("dpkg-deb")?, &step, |_| {})?;
                step.done();
                Content {
                    path: dir.path().join(path),
                    _unpacked: Some(dir),
                }
            }
        };
        if !content.path.is_file() {
            bail!("{} has no /{path}; give --linux-src DIR", self.name());
        }
        Ok(content)
    }
}

impl Download {
    /// As apt calls it.
    pub fn file(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version, self.architecture)
    }

    /// Where it is kept.
    fn place(&self, project: &Project) -> PathBuf {
        project.cache.join("debs").join(self.file())
    }

    /// Whether it has been downloaded.
    pub fn is_there(&self, project: &Project) -> bool {
        self.place(project).is_file()
    }

    /// Downloads it if it is not there yet. Needs the cache's lock.
    pub fn get(&self, project: &Project) -> Result<PathBuf> {
        let place = self.place(project);
        if place.is_file() {
            if self.check(&place).is_ok() {
                return Ok(place);
            }
            cache::remove(&place)?;
        }
        let step = Step::begin(format!("downloading {}", self.file()));
        // In the cache, so that it can be moved; what an interruption leaves there is nobody's package.
        let scratch = project.scratch()?;
        let downloaded = self
            .download(project, scratch.path(), &step)
            .and_then(|file| self.check(&file).map(|()| file))
            .map_err(|error| self.cannot(&error))?;
        let dir = place.parent().context("the package has no place")?;
        fs::create_dir_all(dir)?;
        fs::rename(&downloaded, &place)
            .with_context(|| format!("cannot put {} in place", place.display()))?;
        // Another version of it.
        for entry in fs::read_dir(dir)? {
            let other = entry?.path();
            let name = other.file_name().unwrap_or_default().to_string_lossy();
            if other != place && name.starts_with(&format!("{}_", self.name)) {
                cache::remove(&other)?;
            }
        }
        step.done();
        Ok(place)
    }

    /// Says what to do without it.
    fn cannot(&self, error: &Error) -> Error {
        anyhow!(
            "cannot have Debian's {} {}: {error:#}\n\
             If there is no network, or Debian has moved on, give --linux-src DIR with an unpacked tree:\n\
             https://snapshot.debian.org/package/linux/{}/ keeps this one, https://www.kernel.org/ has newer ones",
            self.name,
            self.version,
            self.version
        )
    }

    /// From the first archive that has it.
    fn download(&self, project: &Project, dir: &Path, step: &Step) -> Result<PathBuf> {
        let mut failed = None;
        for archive in archives(&mirrors()) {
            let place = dir.join(format!("apt-{}", cache::fingerprint(&archive)));
            match self.download_from(&archive, project, &place, step) {
                Ok(file) => return Ok(file),
                Err(error) => {
                    interrupt::check()?;
                    failed = Some(error.context(format!("{archive} does not give it")));
                }
            }
        }
        Err(failed.context("there is no archive")?)
    }

    fn download_from(
        &self,
        archive: &str,
        project: &Project,
        dir: &Path,
        step: &Step,
    ) -> Result<PathBuf> {
        let sources = [format!("{archive} {}", self.suite)];
        let apt = Apt::new(project, dir, None, &sources, step)?;
        let wanted = format!("{}={}", self.name, self.version);
        Ok(apt.download(&[wanted])?.join(self.file()))
    }

    fn check(&self, file: &Path) -> Result<()> {
        let said = step::output(Command::new("sha256sum").arg("--").arg(file))?;
        let sum = said.split_whitespace().next().unwrap_or_default();
        if sum != self.sha256 {
            bail!(
                "{} is not what it was: its sha256 is {sum}, and not {}",
                self.file(),
                self.sha256
            );
        }
        Ok(())
    }
}

/// What this machine's apt has Debian's releases from, a line each; nothing if it has no lists yet.
fn mirrors() -> String {
    apt::targets("$(SITE)", &["Label: Debian"])
}

/// Where to ask, one after the other: what is near, and what has all.
fn archives(mirrors: &str) -> Vec<String> {
    let near = mirrors.lines().map(|site| site.trim_end_matches('/'));
    let near = near.filter(|site| site.starts_with("http") && !site.contains(char::is_whitespace));
    let mut archives: Vec<String> = near.take(1).map(str::to_owned).collect();
    if archives.iter().all(|near| near != ARCHIVE) {
        archives.push(ARCHIVE.into());
    }
    archives
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Download = Download {
        name: "hello",
        version: "1.0-1~bpo13+1",
        architecture: "all",
        suite: "trixie-backports",
        // Of "hello\n".
        sha256: "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    };

    #[test]
    fn the_nearest_archive_is_asked_first() {
        let mirror = "http://ftp.de.debian.org/debian";
        assert_eq!(archives(""), [ARCHIVE]);
        assert_eq!(archives(&format!("{ARCHIVE}/\n{mirror}\n")), [ARCHIVE]);
        assert_eq!(
            archives(&format!("{mirror}\n{ARCHIVE}\n")),
            [mirror, ARCHIVE]
        );
        // Neither a disc nor a copy in some directory has the backports.
        assert_eq!(archives("cdrom:[Debian 13]\nfile:/mirror\n"), [ARCHIVE]);
    }

    #[test]
    fn a_package_is_known_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project {
            root: dir.path().into(),
            target: dir.path().into(),
            cache: dir.path().into(),
        };
        assert!(!HELLO.is_there(&project));
        let place = HELLO.place(&project);
        assert!(place.ends_with("debs/hello_1.0-1~bpo13+1_all.deb"));
        cache::write(&place, "hello\n").unwrap();
        assert_eq!(HELLO.get(&project).unwrap(), place);
        cache::write(&place, "half").unwrap();
        let error = HELLO.check(&place).unwrap_err().to_string();
        assert!(error.contains("is not what it was"), "{error}");
    }

    #[test]
    fn without_a_package_one_is_told_what_to_give() {
        let error = HELLO.cannot(&anyhow!("it is gone")).to_string();
        assert!(error.starts_with("cannot have Debian's hello 1.0-1~bpo13+1: it is gone\n"));
        assert!(error.contains("--linux-src DIR"), "{error}");
        assert!(error.contains("/linux/1.0-1~bpo13+1/"), "{error}");
    }
}
