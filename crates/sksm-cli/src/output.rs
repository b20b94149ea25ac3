//! Words, tables and JSON on standard output; colours only on a terminal.

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub const BOLD: Style = Style::new().bold();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const BAD: Style = AnsiColor::Red.on_default().bold();
pub const WARN: Style = AnsiColor::Yellow.on_default();

pub fn error(error: &anyhow::Error) {
    eprintln!("{BAD}error:{BAD:#} {error:#}");
}

pub fn note(text: &str) {
    eprintln!("{WARN}note:{WARN:#} {text}");
}

pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table whose first column is text and the others are numbers.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(head.get(column).map_or(0, |cell| cell.chars().count()))
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            if column == 0 {
                line += &format!("{cell:width$}");
            } else {
                line += &format!("  {cell:>width$}");
            }
        }
        line
    };
    println!("{BOLD}{}{BOLD:#}", line(&mut head.iter().copied()));
    for row in rows {
        println!("{}", line(&mut row.iter().map(String::as_str)));
    }
}

/// As in `1.5 MiB`.
pub fn bytes(bytes: i64) -> String {
    let amount = bytes.unsigned_abs();
    let sign = if bytes < 0 { "-" } else { "" };
    if amount < 10 << 20 {
        format!("{sign}{:.0} KiB", amount as f64 / 1024.0)
    } else if amount < 10 << 30 {
        format!("{sign}{:.1} MiB", amount as f64 / (1 << 20) as f64)
    } else {
        format!("{sign}{:.1} GiB", amount as f64 / (1u64 << 30) as f64)
    }
}

/// A bar on standard error, if that is a terminal.
pub fn progress(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {percent:>3} % {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 KiB");
        assert_eq!(bytes(-4096), "-4 KiB");
        assert_eq!(bytes(1_535 << 20), "1535.0 MiB");
        assert_eq!(bytes(40 << 30), "40.0 GiB");
    }
}
