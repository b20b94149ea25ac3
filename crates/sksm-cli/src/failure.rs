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
    // clap's first paragraph says what is wrong, those after it how it is right.
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what).trim();
    let words: Vec<&str> = what.split_whitespace().collect();
    print_as(words.join(" "), exit::USAGE);
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
