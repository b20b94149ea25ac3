//! SKSM's entry in the kernel's list of maintainers.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

/// The list.
pub const MAINTAINERS: &str = "MAINTAINERS";
/// As the other parts of mm are called.
const TITLE: &str = "MEMORY MANAGEMENT - SKSM (Synchronous Kernel Samepage Merging)";

/// The list of maintainers with SKSM's entry in its place. It grows with the files, as checkpatch asks each patch that
/// adds any.
pub fn with_entry(list: &str, sender: &str, files: &BTreeSet<String>) -> Result<String> {
    let mut entry = format!(
        "{TITLE}\nM:\t{sender}\nL:\tlinux-mm@kvack.org\nL:\trust-for-linux@vger.kernel.org\nS:\tMaintained\n\
         W:\thttp://www.linux-mm.org\n"
    );
    for file in files {
        entry += &format!("F:\t{file}\n");
    }
    let titles = titles(list);
    // Not before the first greater one, as a few upstream are out of order.
    let before = (0..titles.len())
        .filter(|&at| titles[at].1 < TITLE)
        .max_by_key(|&at| titles[at].1);
    let after = before.and_then(|at| titles.get(at + 1));
    let (at, _) = after.context("this kernel's MAINTAINERS is not understood")?;
    Ok(format!("{}{entry}\n{}", &list[..*at], &list[*at..]))
}

/// Where each entry begins, and its title.
fn titles(list: &str) -> Vec<(usize, &str)> {
    let mut titles = Vec::new();
    let mut offset = 0;
    // Entries are separated by empty lines; text comes before the first.
    let mut after_empty = false;
    let mut lines = list.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let named = line.starts_with(|c: char| c.is_ascii_uppercase()) && !is_field(line);
        if after_empty && named && lines.peek().is_some_and(|next| is_field(next)) {
            titles.push((offset, line.trim_end()));
        }
        after_empty = line.trim().is_empty();
        offset += line.len();
    }
    titles
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

OUT OF ORDER
M:\tSomebody <s@example.org>

MEMORY MANAGEMENT - SECRETMEM
M:\tSomebody <s@example.org>

MEMORY MANAGEMENT - SWAP
M:\tSomebody <s@example.org>
";
    const SENDER: &str = "Jane Doe <jane@example.org>";

    #[test]
    fn the_entry_stands_in_order() {
        let files = ["mm/sksm/", "include/linux/sksm.h"].map(str::to_owned);
        let list = with_entry(LIST, SENDER, &files.into()).unwrap();
        let expected = format!(
            "SECRETMEM\nM:\tSomebody <s@example.org>\n\n{TITLE}\nM:\t{SENDER}\nL:\tlinux-mm@kvack.org\n\
             L:\trust-for-linux@vger.kernel.org\nS:\tMaintained\nW:\thttp://www.linux-mm.org\n\
             F:\tinclude/linux/sksm.h\nF:\tmm/sksm/\n\nMEMORY MANAGEMENT - SWAP\n"
        );
        assert!(list.contains(&expected), "{list}");
    }
}
