//! Who else's code is in the packages, and the texts that have to go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::ground::{
    project::{self, Project},
    step,
};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    authors: Vec<String>,
    manifest_path: String,
    /// None for those of this repository.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// Debian has it there, and wants it nowhere else.
const APACHE: &str = "/usr/share/common-licenses/Apache-2.0";

/// A list of the packages that `roots` contain, and the texts of their licences, each once.
pub fn of(project: &Project, roots: &[&str]) -> Result<String> {
    let output = step::output(
        project::cargo()
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", &host()?])
            .current_dir(&project.root),
    )?;
    let metadata: Metadata = serde_json::from_str(&output)?;
    let mut list = String::new();
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    let apache = fs::read_to_string(APACHE).with_context(|| format!("cannot read {APACHE}"))?;
    for package in contained(&metadata, roots) {
        let name = format!("{} {}", package.name, package.version);
        let license = package
            .license
            .as_deref()
            .with_context(|| format!("the package {name} does not name its licence"))?;
        writeln!(
            list,
            "  {name}: {license}; {}",
            match package.authors.as_slice() {
                [] => "its contributors".to_owned(),
                authors => authors.join(", "),
            }
        )?;
        let dir = Path::new(&package.manifest_path)
            .parent()
            .context("a package without a directory")?;
        for text in texts_in(dir)? {
            let text = without_apache(&text, &apache);
            texts.entry(text).or_default().push(name.clone());
        }
    }
    for (text, names) in texts {
        write!(
            list,
            "\n----------\n{}:\n\n{}\n",
            names.join(", "),
            text.trim_end()
        )?;
    }
    Ok(list)
}

fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    step::output(std::process::Command::new(rustc).arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("rustc does not name its host")
}

/// What ends up in the programs, of others: not what only builds or tests them.
fn contained<'a>(metadata: &'a Metadata, roots: &[&str]) -> Vec<&'a Package> {
    let package = |id: &str| metadata.packages.iter().find(|package| package.id == id);
    let mut pending: Vec<&str> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_none() && roots.contains(&package.name.as_str()))
        .map(|package| package.id.as_str())
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if !seen.insert(id) {
            continue;
        }
        for node in metadata.resolve.nodes.iter().filter(|node| node.id == id) {
            pending.extend(
                node.deps
                    .iter()
                    .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()))
                    .map(|dep| dep.pkg.as_str()),
            );
        }
    }
    let mut packages: Vec<_> = seen
        .into_iter()
        .filter_map(package)
        .filter(|package| package.source.is_some())
        .collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages
}

/// The licences that a package comes with; of several to choose from, the MIT License alone.
fn texts_in(dir: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "UNLICENSE"]
            .iter()
            .any(|start| name.starts_with(start));
        if is_licence && path.is_file() {
            files.push((name, path));
        }
    }
    files.sort();
    if let Some(mit) = files.iter().find(|(name, _)| name.contains("MIT")) {
        files = vec![mit.clone()];
    }
    files
        .iter()
        .map(|(_, path)| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        })
        .collect()
}

/// Where this text begins as the Apache License does and has nothing else, says where that is.
fn without_apache(text: &str, apache: &str) -> String {
    const LEAST: usize = 1000;
    let (words, all) = (|| text.split_whitespace(), apache.split_whitespace());
    if words().count() >= LEAST && words().eq(all.take(words().count())) {
        return format!("The Apache License, version 2.0: {APACHE}");
    }
    text.replace("\r\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apache_license_is_debians() {
        let apache: String = (0..1200).map(|word| format!("{word}\n")).collect();
        let told = format!("The Apache License, version 2.0: {APACHE}");
        let as_written = |text: &str| without_apache(text, &apache);
        assert_eq!(as_written(&apache), told);
        // Without its appendix, and laid out otherwise.
        let end = apache.find("1100").unwrap();
        assert_eq!(as_written(&apache[..end].replace('\n', "\r\n  ")), told);
        // With exceptions, with changes, and one that is short.
        for other in [
            format!("{apache}but\n"),
            apache.replace("\n7\n", "\n8\n"),
            "0\n1\n".to_owned(),
        ] {
            assert_eq!(as_written(&other), other);
        }
        assert_eq!(as_written("a\r\nb"), "a\nb");
    }

    #[test]
    fn what_only_builds_and_tests_is_left_out() {
        let package = |name: &str, source: &str| {
            format!(
                "{{\"id\":\"{name}\",\"name\":\"{name}\",\"version\":\"1.0.0\",\"license\":\"MIT\",\"authors\":[],\
                 \"manifest_path\":\"/{name}/Cargo.toml\",\"source\":{source}}}"
            )
        };
        let dep = |name: &str, kind: &str| {
            format!("{{\"pkg\":\"{name}\",\"dep_kinds\":[{{\"kind\":{kind}}}]}}")
        };
        let text = format!(
            "{{\"packages\":[{},{},{},{},{}],\"resolve\":{{\"nodes\":[{{\"id\":\"own\",\"deps\":[{},{},{}]}},\
             {{\"id\":\"used\",\"deps\":[{}]}}]}}}}",
            package("own", "null"),
            package("used", "\"registry\""),
            package("deep", "\"registry\""),
            package("build", "\"registry\""),
            package("dev", "\"registry\""),
            dep("used", "null"),
            dep("build", "\"build\""),
            dep("dev", "\"dev\""),
            dep("deep", "null"),
        );
        let metadata: Metadata = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = contained(&metadata, &["own"])
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        assert_eq!(names, ["deep", "used"]);
    }

    #[test]
    fn the_mit_license_is_chosen_where_there_is_a_choice() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("LICENSE-APACHE"), "apache").unwrap();
        fs::write(dir.path().join("COPYING"), "copying").unwrap();
        fs::write(dir.path().join("README"), "no").unwrap();
        assert_eq!(texts_in(dir.path()).unwrap(), ["copying", "apache"]);
        fs::write(dir.path().join("LICENSE-MIT"), "mit").unwrap();
        assert_eq!(texts_in(dir.path()).unwrap(), ["mit"]);
    }
}
