//! SKSM's entry in the kernel's list of maintainers.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

/// The list.
pub const MAINTAINERS: &str = "MAINTAINERS";
const TITLE: &str = "SKSM (SYNCHRONOUS KERNEL SAMEPAGE MERGING)";

/// The list of maintainers with SKSM's entry in its place. It grows with the files, as checkpatch asks each patch that
/// adds any.
pub fn with_entry(list: &str, sender: &str, files: &BTreeSet<String>) -> Result<String> {
    let mut entry = format!("{TITLE}\nM:\t{sender}\nL:\tlinux-mm@kvack.org\nS:\tMaintained\n");
    for file in files {
        entry += &format!("F:\t{file}\n");
    }
    // Entries are separated by empty lines; text comes before the first.
    let mut at = None;
    let mut offset = 0;
    let mut after_empty = false;
    let mut lines = list.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let is_title =
            after_empty && lines.peek().is_some_and(|next| is_field(next)) && !is_field(line);
        if is_title && line.trim_end() > TITLE && line.starts_with(|c: char| c.is_ascii_uppercase())
        {
            at = Some(offset);
            break;
        }
        after_empty = line.trim().is_empty();
        offset += line.len();
    }
    let at = at.context("this kernel's MAINTAINERS is not understood")?;
    Ok(format!("{}{entry}\n{}", &list[..at], &list[at..]))
}

/// Whether a line of MAINTAINERS is like `M:<tab>Name`.
fn is_field(line: &str) -> bool {
    let mut chars = line.chars();
    chars.next().is_some_and(|c| c.is_ascii_uppercase())
        && chars.next() == Some(':')
        && chars.next() == Some('\t')
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const LIST: &str = "\
List of maintainers

Maintainers List
----------------

AN OTHER
M:\tSomebody <s@example.org>

ZZZ LAST
M:\tSomebody <s@example.org>
";
    const SENDER: &str = "Jane Doe <jane@example.org>";

    #[test]
    fn the_entry_stands_in_order() {
        let files = ["mm/sksm/", "include/linux/sksm.h"].map(str::to_owned);
        let list = with_entry(LIST, SENDER, &files.into()).unwrap();
        let expected = format!(
            "\nAN OTHER\nM:\tSomebody <s@example.org>\n\n{TITLE}\nM:\t{SENDER}\nL:\tlinux-mm@kvack.org\n\
             S:\tMaintained\nF:\tinclude/linux/sksm.h\nF:\tmm/sksm/\n\nZZZ LAST\n"
        );
        assert!(list.contains(&expected), "{list}");
    }
}
