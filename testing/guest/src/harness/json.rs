//! How a program that measures tells the host what it found.

use anyhow::Result;
use serde::Serialize;

/// Prints what was found so far as one line of JSON on stdout; whoever reads takes the last.
pub fn line(found: &impl Serialize) {
    println!("{}", serde_json::to_string(found).expect("plain data"));
}

/// Prints what was found as one JSON document on stdout, or what went wrong on stderr.
pub fn print<T: Serialize>(found: Result<T>) -> Option<T> {
    match found {
        Ok(found) => {
            let text = serde_json::to_string_pretty(&found).expect("plain data");
            println!("{text}");
            Some(found)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            None
        }
    }
}
