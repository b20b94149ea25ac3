//! The page about the variables, beside the source that reads them.

use std::collections::BTreeSet;

/// Each once, as `before` and `after` stand around it.
fn variables<'a>(text: &'a str, before: &str, after: char) -> BTreeSet<&'a str> {
    let parts = text.split(before).skip(1);
    let names = parts.filter_map(|part| part.split(after).next());
    names.filter(|name| name.starts_with("SKSM")).collect()
}

#[test]
fn the_page_has_every_variable() {
    let source = include_str!("../src/settings.rs");
    let (source, _) = source.split_once("#[cfg(test)]").unwrap();
    let read = variables(source, "c\"", '"');
    assert!(read.len() >= 6, "{read:?}");
    let page = include_str!("../sksm-preload.7");
    assert_eq!(variables(page, ".TP\n.B ", '\n'), read);
    let crates = include_str!("../src/lib.rs");
    assert_eq!(variables(crates, "//! | `", '`'), read);
}
