//! A command for the guest, and where its input comes from and its outputs go.

use std::{
    ffi::OsStr,
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Where standard input comes from.
#[derive(Clone, Copy, PartialEq)]
pub enum Stdin {
    Null,
    /// The tool's own; with a terminal at both ends the command gets a terminal too.
    Inherit,
}

/// Where an output goes; only standard output can be captured.
pub enum Output<'a> {
    Inherit,
    Capture,
    Lines(Box<dyn FnMut(&str) + 'a>),
}

/// A command for the guest.
pub struct Cmd<'a> {
    pub(super) argv: Vec<String>,
    pub(super) stdin: Stdin,
    pub(super) stdout: Output<'a>,
    pub(super) stderr: Output<'a>,
    pub(super) dir: Option<String>,
}

impl<'a> Cmd<'a> {
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv
                .into_iter()
                .map(|word| word.as_ref().to_string_lossy().into_owned())
                .collect(),
            stdin: Stdin::Null,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
            dir: None,
        }
    }

    /// Where it runs, if not where the tool does.
    pub fn dir(mut self, dir: &str) -> Self {
        self.dir = Some(dir.into());
        self
    }

    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    pub fn stdout(mut self, output: Output<'a>) -> Self {
        self.stdout = output;
        self
    }

    pub fn stderr(mut self, output: Output<'a>) -> Self {
        self.stderr = output;
        self
    }
}

/// Receives an output.
pub struct Sink<'a> {
    output: Output<'a>,
    stderr: bool,
    kept: Vec<u8>,
}

impl<'a> Sink<'a> {
    pub fn new(output: Output<'a>, stderr: bool) -> Self {
        Self {
            output,
            stderr,
            kept: Vec::new(),
        }
    }

    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.output {
            Output::Capture => self.kept.extend(data),
            Output::Inherit => {
                let written = if self.stderr {
                    io::stderr().write_all(data)
                } else {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(data).and_then(|()| stdout.flush())
                };
                written.context("cannot pass the guest's output on")?;
            }
            Output::Lines(on_line) => {
                self.kept.extend(data);
                while let Some(end) = self.kept.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = self.kept.drain(..=end).collect();
                    on_line(String::from_utf8_lossy(&line).trim_end());
                }
            }
        }
        Ok(())
    }

    /// What was captured; a last line without an end is passed on.
    pub fn finish(mut self) -> Vec<u8> {
        if let Output::Lines(on_line) = &mut self.output {
            if !self.kept.is_empty() {
                on_line(String::from_utf8_lossy(&self.kept).trim_end());
            }
            return Vec::new();
        }
        self.kept
    }
}

/// How long a command may take.
#[derive(Clone, Copy)]
pub enum Limit {
    /// Altogether.
    Whole(Duration),
    /// Without a word on standard output: what goes on is not stopped, however slow the machine is.
    Silence(Duration),
}

impl Limit {
    pub fn end(self) -> Instant {
        let (Self::Whole(time) | Self::Silence(time)) = self;
        Instant::now() + time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let mut lines = Vec::new();
        let mut sink = Sink::new(
            Output::Lines(Box::new(|line| lines.push(line.to_owned()))),
            false,
        );
        for piece in ["o", "k a\nok", " b\nlast"] {
            sink.write(piece.as_bytes()).unwrap();
        }
        sink.finish();
        assert_eq!(lines, ["ok a", "ok b", "last"]);
    }
}
