//! What inputs reach of the engine, function by function.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{blocks, functions::Functions};
use crate::ground::{files, step};

/// What each block of the kernel's code calls.
const TELLS: &str = "__sanitizer_cov_trace_pc";
const ENGINE: &str = "mm/sksm/";

/// Blocks of one function, also where it is a part of another one's code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Blocks {
    all: usize,
    reached: usize,
}

/// By file and function.
#[derive(Debug, Default, PartialEq)]
pub struct Table(BTreeMap<String, BTreeMap<String, Blocks>>);

/// What the symbolizer says of an address, the innermost function first.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Place {
    address: String,
    #[serde(default)]
    symbol: Vec<Frame>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Frame {
    file_name: String,
    function_name: String,
    line: usize,
}

/// `engine` has the sources that `image` is made of; `reached` are the addresses that the kernel tells: behind the calls.
pub fn of(engine: &Path, image: &Path, reached: &[u64]) -> Result<Table> {
    let names = step::output(Command::new("llvm-nm-19").arg(image))?;
    let target = names
        .lines()
        .find_map(|line| line.strip_suffix(TELLS)?.split_whitespace().next())
        .and_then(|address| u64::from_str_radix(address, 16).ok())
        .with_context(|| format!("no {TELLS} in {}", image.display()))?;
    let calls = blocks::calls(&fs::read(image)?, target)?;
    let reached: BTreeSet<u64> = reached.iter().map(|one| one - blocks::CALL_BYTES).collect();
    let mut sources = BTreeMap::new();
    for (path, content) in files::below(engine)? {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.to_string_lossy().into_owned();
            let source = String::from_utf8_lossy(&content).into_owned();
            sources.insert(name, Functions::of(&source));
        }
    }
    Ok(Table::of(&symbolize(image, &calls)?, &sources, &reached))
}

fn symbolize(image: &Path, addresses: &[u64]) -> Result<Vec<Place>> {
    let mut symbolizer = Command::new("llvm-symbolizer-19")
        .args(["--inlines", "--output-style=JSON", "--obj"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run llvm-symbolizer-19")?;
    let mut input = symbolizer.stdin.take().context("it has an input")?;
    let text: String = addresses.iter().map(|one| format!("{one:#x}\n")).collect();
    // It answers while it is asked.
    let asking = std::thread::spawn(move || std::io::Write::write_all(&mut input, text.as_bytes()));
    let output = symbolizer.wait_with_output()?;
    asking.join().expect("it does not panic")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("llvm-symbolizer: {line}")))
        .collect()
}

impl Table {
    fn of(
        places: &[Place],
        sources: &BTreeMap<String, Functions>,
        reached: &BTreeSet<u64>,
    ) -> Self {
        let mut table = Self::default();
        for place in places {
            // What a library's function does there, it does for the engine's function that called it.
            let frames = place.symbol.iter();
            let own = |frame: &&Frame| frame.file_name.contains(ENGINE);
            let (Some(frame), Some(address)) = (
                frames.clone().find(own),
                u64::from_str_radix(place.address.trim_start_matches("0x"), 16).ok(),
            ) else {
                continue;
            };
            let (_, file) = frame.file_name.rsplit_once(ENGINE).unwrap_or_default();
            // What lies elsewhere may be named from there.
            if file.starts_with("..") {
                continue;
            }
            let name = match sources.get(file) {
                Some(functions) => functions.at(frame.line, &frame.function_name),
                None => Some(frame.function_name.clone()),
            };
            let Some(name) = name else { continue };
            let functions = table.0.entry(file.to_owned()).or_default();
            let blocks = functions.entry(name).or_default();
            blocks.all += 1;
            blocks.reached += usize::from(reached.contains(&address));
        }
        table
    }

    fn all(&self) -> impl Iterator<Item = &Blocks> {
        self.0.values().flat_map(BTreeMap::values)
    }

    pub fn functions(&self) -> usize {
        self.all().count()
    }

    pub fn functions_reached(&self) -> usize {
        self.all().filter(|blocks| blocks.reached > 0).count()
    }

    pub fn blocks(&self) -> usize {
        self.all().map(|blocks| blocks.all).sum()
    }

    pub fn blocks_reached(&self) -> usize {
        self.all().map(|blocks| blocks.reached).sum()
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| file | functions | reached | blocks | reached |\n| --- | ---: | ---: | ---: | ---: |\n",
        );
        for (file, functions) in &self.0 {
            let sum = |of: fn(&Blocks) -> usize| functions.values().map(of).sum::<usize>();
            let _ = writeln!(
                text,
                "| `{file}` | {} | {} | {} | {} |",
                functions.len(),
                sum(|blocks| usize::from(blocks.reached > 0)),
                sum(|blocks| blocks.all),
                sum(|blocks| blocks.reached),
            );
        }
        text += "\nNo input reaches:\n\n";
        self.list(
            &mut text,
            |blocks| blocks.reached == 0,
            |name, _| format!("`{name}`"),
        );
        text += "\nBlocks reached, of all that each of the others has:\n\n";
        self.list(
            &mut text,
            |blocks| blocks.reached > 0,
            |name, blocks| format!("`{name}` {}/{}", blocks.reached, blocks.all),
        );
        text
    }

    /// A line of each file that has such functions.
    fn list(
        &self,
        text: &mut String,
        wanted: impl Fn(&Blocks) -> bool,
        entry: impl Fn(&str, &Blocks) -> String,
    ) {
        for (file, functions) in &self.0 {
            let entries = functions.iter().filter(|(_, blocks)| wanted(blocks));
            let entries: Vec<_> = entries.map(|(name, blocks)| entry(name, blocks)).collect();
            if !entries.is_empty() {
                let _ = writeln!(text, "- `{file}`: {}", entries.join(", "));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: u64, frames: &[(&str, &str)]) -> Place {
        Place {
            address: format!("{address:#x}"),
            symbol: (frames.iter())
                .map(|(function, file)| Frame {
                    function_name: (*function).into(),
                    file_name: (*file).into(),
                    line: 2,
                })
                .collect(),
        }
    }

    #[test]
    fn blocks_are_the_engines_functions_innermost_first() {
        let node = "/linux/mm/sksm/node.rs";
        let places = [
            place(0x10, &[("publish", node)]),
            place(
                0x20,
                &[("core::ptr::read", "/rust/core.rs"), ("publish", node)],
            ),
            place(0x30, &[("find", node), ("publish", node)]),
            place(0x40, &[("do_madvise", "/linux/mm/madvise.c")]),
            place(0x50, &[("sksm_glue", "/linux/mm/sksm/glue.c")]),
            place(0x60, &[]),
        ];
        let table = Table::of(&places, &BTreeMap::new(), &[0x20, 0x40, 0x50].into());
        assert_eq!((table.functions(), table.functions_reached()), (3, 2));
        assert_eq!((table.blocks(), table.blocks_reached()), (4, 2));
        let text = table.markdown();
        assert!(text.contains("| `node.rs` | 2 | 1 | 3 | 1 |"), "{text}");
        assert!(
            text.contains("No input reaches:\n\n- `node.rs`: `find`\n"),
            "{text}"
        );
        assert!(text.contains("- `glue.c`: `sksm_glue` 1/1\n"), "{text}");
        assert!(text.contains("- `node.rs`: `publish` 1/2\n"), "{text}");
    }

    #[test]
    fn the_source_says_what_a_line_is_of() {
        let sources = [("node.rs".to_owned(), Functions::of("\nfn publish() {\n"))].into();
        let places = [place(0x10, &[("{closure#0}", "/linux/mm/sksm/node.rs")])];
        let table = Table::of(&places, &sources, &BTreeSet::new());
        assert!(table.markdown().contains("- `node.rs`: `publish`\n"));
    }

    #[test]
    fn the_symbolizers_lines_are_understood() {
        let line = r#"{"Address":"0xffffffff81000010","ModuleName":"vmlinux","Symbol":[{"Column":0,"Discriminator":0,"FileName":"/l/mm/sksm/rmap.rs","FunctionName":"f","Line":7,"StartAddress":"","StartFileName":"","StartLine":0}]}"#;
        let place: Place = serde_json::from_str(line).unwrap();
        assert_eq!(place.symbol[0].function_name, "f");
        let table = Table::of(&[place], &BTreeMap::new(), &[0xffff_ffff_8100_0010].into());
        assert_eq!(table.blocks_reached(), 1);
    }
}
