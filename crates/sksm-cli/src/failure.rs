//! An error as JSON: the document of a verb that has none of its own to print.

use serde::Serialize;

use crate::{exit, output};

#[derive(Serialize)]
struct Document {
    error: Failure,
}

#[derive(Serialize)]
struct Failure {
    /// In words.
    message: String,
    /// What kind it is, as `exit` has them.
    kind: &'static str,
    /// The exit status.
    status: u8,
}

/// Prints the error, unless a document was printed before.
pub fn print(error: &anyhow::Error) {
    print_as(format!("{error:#}"), exit::status(error));
}

/// The same of a command line that is wrong.
pub fn print_usage(error: &clap::Error) {
    print_as(in_a_line(error), exit::USAGE);
}

/// What is wrong with a command line: clap's first paragraph, without those that say how it is right.
pub fn in_a_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what);
    let words: Vec<&str> = what.split_whitespace().collect();
    words.join(" ")
}

fn print_as(message: String, status: u8) {
    if output::has_document() {
        return;
    }
    let kind = match status {
        exit::USAGE => "usage",
        exit::UNSUPPORTED => "unsupported",
        exit::DENIED => "denied",
        _ => "failed",
    };
    let error = Failure {
        message,
        kind,
        status,
    };
    // The words on standard error say the same.
    output::json(&Document { error }).ok();
}
