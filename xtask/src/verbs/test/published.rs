//! What people get from cargo: the command as `cargo install` makes it, and the packages as they would be published.

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    ground::{
        cache,
        project::{self, Project},
        step,
    },
    guest::programs,
    terminal::progress::Step,
};

/// Since then cargo packages what depends on packages that are in no registry yet.
const PACKAGES_TOGETHER: u32 = 90;

/// Why it cannot package them.
pub fn cannot_package() -> Result<Option<String>> {
    let version = step::output(project::cargo().arg("--version"))?;
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok());
    let minor: u32 =
        minor.with_context(|| format!("cargo's version is not understood: {version}"))?;
    Ok((minor < PACKAGES_TOGETHER)
        .then(|| format!("packages that need each other want cargo 1.{PACKAGES_TOGETHER}")))
}

/// The command carries the preload object, and a program that it runs has loaded it.
pub fn install(project: &Project, log: &Path, step: &Step) -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut install = project::cargo();
    install
        .args(["install", "--locked", "--path", "crates/sksm-cli", "--root"])
        .arg(root.path())
        .arg("--target-dir")
        .arg(&project.target)
        .current_dir(&project.root);
    step::run(&mut install, log, step, |line| step.detail(line))?;
    let output = Command::new(root.path().join("bin/sksm"))
        .args(["run", "--verbose", "--", "true"])
        .env("XDG_CACHE_HOME", root.path())
        .env_remove("SKSM_PRELOAD")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.contains(" at start: "),
        "`sksm run` as it is installed: {output:?}"
    );
    Ok(())
}

/// Each has its papers, and compiles from what is in it and in the others.
pub fn packages(project: &Project, log: &Path, step: &Step) -> Result<()> {
    let published = published(project)?;
    let mut package = project::cargo();
    package
        .args(["package", "--allow-dirty", "--offline", "--no-verify"])
        .arg("--target-dir")
        .arg(&project.target)
        .args(published.iter().flat_map(|one| ["--package", &one.name]))
        .current_dir(&project.root);
    step::run(&mut package, log, step, |line| step.detail(line))?;
    // Cargo's own check takes packages of an earlier one for those of the same version that it has just made.
    let made = project.target.join("package");
    let unpacked = made.join("unpacked");
    cache::remove(&unpacked)?;
    fs::create_dir_all(&unpacked)?;
    let mut workspace =
        String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*\"]\n\n[patch.crates-io]\n");
    for package in &published {
        let name = package.versioned()?;
        // New files, or cargo would not see that they are others.
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--touch", "--directory"]);
        unpack.arg(&unpacked).arg("--file");
        step::output(unpack.arg(made.join(format!("{name}.crate"))))?;
        package.check(&unpacked.join(&name))?;
        writeln!(workspace, "{} = {{ path = \"{name}\" }}", package.name)?;
    }
    cache::write(&unpacked.join("Cargo.toml"), workspace)?;
    fs::copy(project.root.join("Cargo.lock"), unpacked.join("Cargo.lock"))?;
    let mut check = project::cargo();
    check
        .args(["check", "--workspace", "--offline", "--target-dir"])
        .arg(&project.target)
        // From the registry there is none before it is published.
        .env("SKSM_PRELOAD_OBJECT", programs::preload(project)?)
        .current_dir(&unpacked);
    step::run(&mut check, log, step, |line| step.detail(line))?;
    says_what_it_needs(project, &unpacked)
}

/// Without a registry that has the object the command does not build, and tells whoever publishes it what to do.
fn says_what_it_needs(project: &Project, unpacked: &Path) -> Result<()> {
    let output = project::cargo()
        .args(["check", "--package", "sksm-cli", "--offline"])
        .arg("--target-dir")
        .arg(&project.target)
        .env("CARGO_NET_OFFLINE", "true")
        .env_remove("SKSM_PRELOAD_OBJECT")
        .current_dir(unpacked)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Where it was published and downloaded there is an object.
    ensure!(
        output.status.success() || said.contains("SKSM_PRELOAD_OBJECT can name one"),
        "the command as it is packed: {said}"
    );
    Ok(())
}

/// The libraries that programs are compiled against.
pub fn libraries(project: &Project) -> Result<Vec<String>> {
    let published = published(project)?;
    let libraries = published.into_iter().filter(Package::is_library);
    Ok(libraries.map(|package| package.name).collect())
}

struct Package {
    name: String,
    /// What cargo tells of it.
    metadata: Value,
}

fn published(project: &Project) -> Result<Vec<Package>> {
    let metadata = step::output(
        project::cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(&project.root),
    )?;
    let mut metadata: Value = serde_json::from_str(&metadata)?;
    let Some(packages) = metadata["packages"].as_array_mut() else {
        bail!("cargo tells of no packages");
    };
    packages
        .iter_mut()
        // An empty list of registries is `publish = false`.
        .filter(|package| package["publish"].is_null())
        .map(|package| {
            let name = package["name"]
                .as_str()
                .context("a package without a name")?;
            Ok(Package {
                name: name.to_owned(),
                metadata: package.take(),
            })
        })
        .collect()
}

impl Package {
    /// As files of it are called.
    fn versioned(&self) -> Result<String> {
        let version = self.metadata["version"].as_str().context("no version")?;
        Ok(format!("{}-{version}", self.name))
    }

    /// No program, and no object to be loaded.
    fn is_library(&self) -> bool {
        let targets = self.metadata["targets"].as_array();
        let mut kinds = targets
            .into_iter()
            .flatten()
            .filter_map(|target| target["kind"].as_array());
        kinds.any(|kinds| kinds.iter().any(|kind| kind == "lib"))
    }

    /// Looks at what cargo tells of it, and at what is in it.
    fn check(&self, dir: &Path) -> Result<()> {
        let told = |field: &str| match &self.metadata[field] {
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => false,
        };
        for field in [
            "description",
            "documentation",
            "license",
            "rust_version",
            "keywords",
            "categories",
        ] {
            ensure!(told(field), "{} does not tell its {field}", self.name);
        }
        for file in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            ensure!(
                dir.join(file).is_file(),
                "{} is published without {file}",
                self.name
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_told_from_what_is_not() {
        let project = Project::find().unwrap();
        let published = published(&project).unwrap();
        let has = |name| published.iter().any(|package| package.name == name);
        assert!(has("sksm") && has("sksm-cli") && has("sksm-preload"));
        assert!(!has("sksm-capi") && !has("xtask"));
    }

    #[test]
    fn the_libraries_are_those_that_rust_programs_use() {
        let mut libraries = libraries(&Project::find().unwrap()).unwrap();
        libraries.sort();
        let expected = ["sksm", "sksm-chart", "sksm-scan", "sksm-store"];
        assert_eq!(libraries, expected);
    }

    #[test]
    fn a_package_without_its_papers_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut package = Package {
            name: "one".into(),
            metadata: serde_json::json!({
                "version": "1.0.0", "description": "a", "documentation": "b", "license": "c",
                "rust_version": "1.85", "keywords": ["d"], "categories": ["e"],
            }),
        };
        let complaint = |package: &Package| {
            let found = package.check(&dir.path().join("one-1.0.0"));
            found.err().map(|error| error.to_string())
        };
        let papers = dir.path().join("one-1.0.0");
        std::fs::create_dir(&papers).unwrap();
        for paper in ["README.md", "CHANGELOG.md", "LICENSE-APACHE"] {
            std::fs::write(papers.join(paper), "").unwrap();
        }
        let found = complaint(&package);
        assert!(found.is_some_and(|text| text.contains("LICENSE-MIT")));
        std::fs::write(papers.join("LICENSE-MIT"), "").unwrap();
        assert_eq!(complaint(&package), None);
        package.metadata["keywords"] = serde_json::json!([]);
        assert!(complaint(&package).is_some_and(|text| text.contains("keywords")));
    }
}
