//! Writes two copies of the engine for the model to compile: the engine as it is, and one with the
//! mistakes of `src/mistakes.rs`, each behind a question.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "src/mistakes.rs"]
mod mistakes;

use mistakes::{Mistake, MISTAKES, PLANTED};

/// The engine's files that are compiled.
const FILES: &[&str] = &[
    "sksm.rs",
    "asleep.rs",
    "batch.rs",
    "folio.rs",
    "index.rs",
    "merge.rs",
    "mm.rs",
    "node.rs",
    "pte.rs",
    "release.rs",
    "rescue.rs",
    "rmap.rs",
    "stats.rs",
];

/// The model's own, in place of the engine's.
const STAND_INS: &[&str] = &[
    "base.rs",
    "content.rs",
    "domain.rs",
    "sysfs.rs",
    "unmerge.rs",
    "probe.rs",
];

/// What is different wherever it stands: paths of the checker's types, and panics that pass.
const EVERYWHERE: &[(&str, &str)] = &[
    ("use core::cell::", "use kernel::cell::"),
    ("extern \"C\"", "extern \"C-unwind\""),
];

/// What is different in one place: file, text, and what stands there for the model.
const SEAMS: &[(&str, &str, &str)] = &[
    // The reverse map is looked at with the folio lock only.
    (
        "node.rs",
        "    rmap: UnsafeCell<Rmap>,",
        "    rmap: kernel::cell::Guarded<Rmap>,",
    ),
    (
        "node.rs",
        "rmap: UnsafeCell::new(Rmap::new(first)),",
        "rmap: kernel::cell::Guarded::new(Rmap::new(first)),",
    ),
    // Reverse maps end as soon as a scenario wants.
    (
        "node.rs",
        "2 * most + 64)",
        "kernel::world::world().places.unwrap_or(2 * most + 64))",
    ),
    // The checker wants to know of atomics before threads meet there.
    (
        "node.rs",
        "        node.newer.set(node.as_ptr());\n",
        "        node.newer.set(node.as_ptr());\n        node.older.begin();\n        \
         node.folio.begin();\n        node.saved.0.begin();\n        node.swapped.0.begin();\n        node.pending.0.begin();\n",
    ),
    (
        "node.rs",
        "    /// A mapping was redirected here. It saves",
        "    pub(super) fn pending(&self) -> u16 {\n        self.pending.get()\n    \
         }\n\n    pub(super) fn saved(&self) -> u16 {\n        self.saved.get()\n    \
         }\n\n    pub(super) fn rmap(&self) -> &Rmap {\n        \
         unsafe { &*self.rmap.get() }\n    }\n\n    /// A mapping was redirected here. It saves",
    ),
    (
        "index.rs",
        "fn published(sample: u64) -> usize {",
        "pub(super) fn published(sample: u64) -> usize {",
    ),
    (
        "index.rs",
        "fn shard_of(sample",
        "pub(super) fn shard_of(sample",
    ),
    (
        "sksm.rs",
        "mod unmerge;",
        "mod unmerge;\npub(crate) mod probe;",
    ),
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where"));
    let kernel = root.join("../../kernel/mm/sksm");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
    for watched in [
        &kernel,
        &root.join("src/standin"),
        &root.join("src/mistakes.rs"),
    ] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let mut files: BTreeMap<&str, String> = FILES
        .iter()
        .map(|&file| (file, prepare(file, &read(&kernel.join(file)))))
        .collect();
    for (file, find, replace) in SEAMS {
        put(&mut files, file, find, replace);
    }
    let stand_ins: Vec<_> = STAND_INS
        .iter()
        .map(|&file| (file, read(&root.join("src/standin").join(file))))
        .collect();
    let mut modules = String::new();
    for name in ["engine", "mistaken"] {
        if name == "mistaken" {
            plant(&mut files);
        }
        let dir = out.join(name);
        fs::create_dir_all(&dir).expect("a directory for the engine");
        for (file, text) in files
            .iter()
            .map(|(file, text)| (*file, text))
            .chain(stand_ins.iter().map(|(file, text)| (*file, text)))
        {
            fs::write(dir.join(file), text).expect("a file of the engine");
        }
        let path = dir.join("sksm.rs");
        modules += &format!(
            "#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]\n\
             #[path = {path:?}]\npub(crate) mod {name};\n"
        );
    }
    fs::write(out.join("engines.rs"), modules).expect("the list of the engines");
    fs::write(
        out.join("contents.rs"),
        contents(&read(&kernel.join("content.rs")), &out),
    )
    .expect("the list of what compares pages");
}

/// Writes what compares pages, for each size that pages have, for `tests/sample.rs`; returns the modules.
fn contents(text: &str, out: &Path) -> String {
    const SIZE: &str = "kernel::page::PAGE_SIZE";
    assert_eq!(text.matches(SIZE).count(), 1, "content.rs has changed");
    let module = |size: usize| {
        let path = out.join(format!("content_{size}.rs"));
        let own = text.replace(SIZE, &size.to_string());
        fs::write(&path, own.replace("use kernel::", "use super::kernel::"))
            .expect("a file of the engine");
        format!("#[allow(dead_code)]\n#[path = {path:?}]\nmod content_{size};\n")
    };
    [4 << 10, 16 << 10, 64 << 10].map(module).concat()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn prepare(file: &str, text: &str) -> String {
    let mut text = text.to_owned();
    for (find, replace) in EVERYWHERE {
        text = text.replace(find, replace);
    }
    if file == "sksm.rs" {
        // mm's entries, and the modules, for `src/engine.rs`.
        text = text
            .replace("#[export]\n", "pub(crate) ")
            .replace("\nmod ", "\npub(crate) mod ");
    }
    text
}

/// Replaces what must stand there once.
fn put(files: &mut BTreeMap<&str, String>, file: &str, find: &str, replace: &str) {
    let text = files.get_mut(file).expect("a file that is compiled");
    let found = text.matches(find).count();
    assert_eq!(
        found, 1,
        "{file} has changed: what the model replaces there is to be looked at again:\n{find}"
    );
    *text = text.replacen(find, replace, 1);
}

/// Plants all mistakes. Each is looked for in the engine as it is.
fn plant(files: &mut BTreeMap<&str, String>) {
    let mut edits: BTreeMap<&str, Vec<(usize, &str, String)>> = BTreeMap::new();
    for (
        number,
        Mistake {
            name,
            file,
            edits: all,
        },
    ) in MISTAKES.iter().enumerate()
    {
        let question = format!("kernel::world::planted({number})");
        let asks = all.iter().any(|(_, replace)| replace.contains(PLANTED));
        assert!(asks, "{name:?} does not ask");
        for (find, replace) in *all {
            let found: Vec<_> = files[file].match_indices(find).collect();
            assert_eq!(
                found.len(),
                1,
                "{file} has changed: the mistake {name:?} is to be planted elsewhere:\n{find}"
            );
            let edit = (found[0].0, *find, replace.replace(PLANTED, &question));
            edits.entry(file).or_default().push(edit);
        }
    }
    for (file, mut edits) in edits {
        let text = files.get_mut(file).expect("a file that is compiled");
        edits.sort();
        // From behind, so that the places in front stay.
        let mut end = text.len();
        for (at, find, replace) in edits.into_iter().rev() {
            let behind = at + find.len();
            assert!(behind <= end, "{file}: two mistakes in one place:\n{find}");
            text.replace_range(at..behind, &replace);
            end = at;
        }
    }
}
