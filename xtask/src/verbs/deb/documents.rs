//! The pages that are installed: a link that leads nowhere there becomes plain text.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// What is installed side by side, and where it is in the repository.
pub const DOCUMENTS: [&str; 6] = [
    "README.md",
    "docs/bench.svg",
    "docs/demo.svg",
    "docs/guide.md",
    "docs/json.md",
    "docs/store.md",
];

/// Puts all of them into `dir`.
pub fn install(root: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for path in DOCUMENTS {
        let from = root.join(path);
        let text =
            fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let text = match path.ends_with(".md") {
            true => relinked(&text),
            false => text,
        };
        fs::write(dir.join(file_name(path)), text)?;
    }
    Ok(())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The page with its links as they are there.
fn relinked(text: &str) -> String {
    let mut page = String::new();
    let mut rest = text;
    while let Some((start, end)) = next_link(rest) {
        let link = &rest[start..end];
        let (words, target) = link[1..link.len() - 1]
            .split_once("](")
            .unwrap_or((link, ""));
        let image = rest[..start].ends_with('!');
        page += &rest[..start];
        match installed(target) {
            Some(target) => page += &format!("[{words}]({target})"),
            None => {
                if image {
                    page.pop();
                }
                page += words;
            }
        }
        rest = &rest[end..];
    }
    page + rest
}

/// Where the first `[words](target)` is.
fn next_link(text: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let middle = from + text[from..].find("](")?;
        let start = text[from..middle].rfind('[').map(|start| from + start);
        let end = middle + text[middle..].find(')')? + 1;
        match start {
            Some(start) => return Some((start, end)),
            None => from = middle + 2,
        }
    }
}

/// What a link's target is there; none if it is not there.
fn installed(target: &str) -> Option<String> {
    if target.starts_with('#') || target.contains("://") {
        return Some(target.to_owned());
    }
    let (path, place) = match target.split_once('#') {
        Some((path, place)) => (path, format!("#{place}")),
        None => (target, String::new()),
    };
    // Names are enough, as no two of them have the same one.
    let known =
        |document: &&&str| path == **document || document.strip_prefix("docs/") == Some(path);
    let document = DOCUMENTS.iter().find(known)?;
    Some(file_name(document).to_owned() + &place)
}

/// The targets of the links of a page that are files.
pub fn links(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    let mut rest = text;
    while let Some((start, end)) = next_link(rest) {
        let link = &rest[start + 1..end - 1];
        let target = link.split_once("](").map_or("", |(_, target)| target);
        let path = target.split('#').next().unwrap_or_default();
        if !path.is_empty() && !path.contains("://") {
            targets.push(path.to_owned());
        }
        rest = &rest[end..];
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_somewhere_or_are_none() {
        for (text, wanted) in [
            (
                "see [the guide](docs/guide.md).",
                "see [the guide](guide.md).",
            ),
            ("[a](json.md#merge) b", "[a](json.md#merge) b"),
            (
                "[up](#there) [web](https://x.org)",
                "[up](#there) [web](https://x.org)",
            ),
            (
                "- `a`: b ([example](../examples/a.rs): c)",
                "- `a`: b (example: c)",
            ),
            ("![picture](docs/demo.svg)", "![picture](demo.svg)"),
            ("![picture](docs/none.svg)!", "picture!"),
            ("[`sksm.h`](crates/a.h) [ ] a](b", "`sksm.h` [ ] a](b"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(relinked(text), wanted);
        }
        assert_eq!(links("[a](b.md#c) [d](#e) ![f](g.svg)"), ["b.md", "g.svg"]);
    }
}
