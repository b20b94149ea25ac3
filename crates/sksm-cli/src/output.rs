//! Words, tables and JSON on standard output; colours only on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub const BOLD: Style = Style::new().bold();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const BAD: Style = AnsiColor::Red.on_default().bold();
pub const WARN: Style = AnsiColor::Yellow.on_default();

/// Says why a verb ended; nothing where only the reader has gone, as `head` does.
pub fn error(error: &anyhow::Error) {
    let gone = |cause: &(dyn std::error::Error + 'static)| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    };
    if !error.chain().any(gone) {
        complain(&format!(
            "{BAD}error:{BAD:#} {}",
            clean(&format!("{error:#}"))
        ));
    }
}

pub fn note(text: &str) {
    complain(&format!("{WARN}note:{WARN:#} {}", clean(text)));
}

fn complain(text: &str) {
    // Where this fails too, nobody is left to be told.
    writeln!(anstream::stderr(), "{text}").ok();
}

/// On standard output; colours go where it is no terminal.
pub fn print(text: &str) -> Result<()> {
    write(anstream::stdout().lock(), text)
}

pub fn line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// For other programs, so as it is.
pub fn plain(text: &str) -> Result<()> {
    write(io::stdout().lock(), text)
}

/// Whether a document was printed: a verb prints one at most.
static DOCUMENT: AtomicBool = AtomicBool::new(false);

/// What fails after it is told in words alone.
pub fn has_document() -> bool {
    DOCUMENT.load(Relaxed)
}

pub fn json(value: &impl Serialize) -> Result<()> {
    DOCUMENT.store(true, Relaxed);
    plain(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn write(mut output: impl Write, text: &str) -> Result<()> {
    (output.write_all(text.as_bytes()))
        .and_then(|()| output.flush())
        .context("cannot write the output")
}

/// What others have named, fit for a terminal: a process's name may hold anything, also what steers a terminal.
pub fn clean(text: &str) -> Cow<'_, str> {
    // Besides control characters, those that are not seen but change the order of what is.
    let steers = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if !text.contains(steers) {
        return text.into();
    }
    let mut clean = String::new();
    for letter in text.chars() {
        if steers(letter) {
            clean.extend(letter.escape_default());
        } else {
            clean.push(letter);
        }
    }
    clean.into()
}

/// A table whose first column is text and the others are numbers.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
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
        // The last heads may be empty.
        line.truncate(line.trim_end().len());
        line
    };
    let mut text = format!("{BOLD}{}{BOLD:#}\n", line(&mut head.iter().copied()));
    for row in &rows {
        // Writing to a String cannot fail.
        _ = writeln!(text, "{}", line(&mut row.iter().map(|cell| cell.as_ref())));
    }
    print(&text)
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

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(clean("gr\u{f6}\u{df}e \"a\" \\ 'b'"), "größe \"a\" \\ 'b'");
        assert_eq!(
            clean("\u{1b}[2Jx\ny\r\u{9b}1m"),
            "\\u{1b}[2Jx\\ny\\r\\u{9b}1m"
        );
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
    }
}
