//! The configuration file: the options of the command line, each on a line of its own, as in `stable = 5m` or `once`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Args, Parse};
use crate::{exit, failure};

/// The command line of this process, and what is in the file. Where there can be one value, the command line's holds; lists add up.
pub fn with(file: &Path, parse: Parse) -> Result<Args> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let words = words(&text, parse).map_err(|error| {
        // As of the command line, for which nobody starts it again.
        exit::with(exit::USAGE, &format!("{}: {error}", file.display()))
    })?;
    let own: Vec<OsString> = std::env::args_os().collect();
    let verb = own
        .iter()
        .position(|word| word == "scan")
        .map_or(own.len(), |at| at + 1);
    let (before, after) = own.split_at(verb);
    let all = before
        .iter()
        .cloned()
        .chain(words)
        .chain(after.iter().cloned());
    parse(all.collect()).map_err(|error| {
        let what = failure::in_a_line(&error);
        exit::with(exit::USAGE, &format!("with {}: {what}", file.display()))
    })
}

/// As words of a command line; the first line that is not understood is told.
fn words(text: &str, parse: Parse) -> Result<Vec<OsString>> {
    let mut words = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (line, None),
        };
        // What another file has would have to be looked for in turn.
        if name == "config" {
            bail!("line {}: a configuration file names no other", number + 1);
        }
        if name == "json" {
            bail!("line {}: json is for the command line", number + 1);
        }
        let word: OsString = match value {
            Some(value) => format!("--{name}={value}").into(),
            None => format!("--{name}").into(),
        };
        let alone = ["sksm", "scan"]
            .map(OsString::from)
            .into_iter()
            .chain([word.clone()]);
        if let Err(error) = parse(alone.collect()) {
            // An option may need another one.
            if error.kind() != clap::error::ErrorKind::MissingRequiredArgument {
                bail!("line {}: {}", number + 1, failure::in_a_line(&error));
            }
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_options() {
        let text = "# a comment\n\nstable = 5m\n  cpu=10%\nall\nwhen = available-below=20%\nexclude = a,b\n";
        let found = words(text, crate::parse_scan).unwrap();
        let right = [
            "--stable=5m",
            "--cpu=10%",
            "--all",
            "--when=available-below=20%",
            "--exclude=a,b",
        ];
        assert_eq!(found, right.map(OsString::from));
    }

    #[test]
    fn the_line_that_is_wrong_is_told() {
        for (text, right) in [
            (
                "stable = 5m\ncolour = red\n",
                "line 2: unexpected argument '--colour'",
            ),
            ("cpu = much", "line 1: invalid value 'much'"),
            ("config = x", "line 1: a configuration"),
            ("\njson\n", "line 2: json is for"),
        ] {
            let error = words(text, crate::parse_scan).unwrap_err().to_string();
            assert!(error.starts_with(right), "{error}");
        }
    }

    /// Every option is in the file that is installed, with its default, and all of them are understood.
    #[test]
    fn the_installed_file_has_all_options() {
        use clap::CommandFactory;
        let text = include_str!("../../../../packaging/etc/sksm/scan.conf");
        assert!(words(text, crate::parse_scan).unwrap().is_empty());
        let lines: Vec<&str> = (text.lines())
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.starts_with(|letter: char| letter.is_ascii_lowercase()))
            .collect();
        let find = |name: &str| {
            let line = lines
                .iter()
                .find(|line| line.split(" = ").next() == Some(name));
            *line.unwrap_or_else(|| panic!("no {name}"))
        };
        // What is said once, by whoever runs it by hand.
        let by_hand = ["config", "once", "verbose", "json", "help"];
        let command = crate::Cli::command();
        let command = command.find_subcommand("scan").unwrap();
        let mut count = 0;
        for option in command.get_arguments() {
            let Some(name) = option.get_long().filter(|name| !by_hand.contains(name)) else {
                continue;
            };
            count += 1;
            let line = find(name);
            let default: Vec<_> = option.get_default_values().iter().collect();
            if let [default] = default[..] {
                let default = default.to_str().unwrap();
                if option.get_action().takes_values() {
                    assert_eq!(line, format!("{name} = {default}"));
                }
            }
            // PID stands for a number.
            let line = line.replace("= PID", "= 1");
            words(&line, crate::parse_scan).unwrap();
        }
        assert_eq!(lines.len(), count, "{lines:?}");
        assert_eq!(
            find("state"),
            format!("state = {}", super::super::state::DEFAULT)
        );
    }
}
