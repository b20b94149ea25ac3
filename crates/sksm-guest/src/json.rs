//! How a program that measures tells the host what it found.

use anyhow::Result;
use serde::Serialize;

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
