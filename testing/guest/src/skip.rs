//! Tests that cannot run where they are.

use std::fmt::Display;

use anyhow::Result;

/// The error of such a test: why it cannot.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(String);

/// Ends a test that cannot run in this kernel.
pub fn skip<T>(reason: impl Display) -> Result<T> {
    Err(Skip(reason.to_string()).into())
}
