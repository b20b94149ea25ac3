//! The verb `store`, and what `stat` and `doctor` tell of the store.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use sksm_store::{Error, Fault, Held, Store, Usage};

use crate::{exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// Tell what is there, who uses it, and what that saves
    List,
    /// Remove what nobody uses
    Collect,
    /// Remove everything; who uses it keeps it, and who comes later shares with others
    Clear,
}

/// In figures, for `stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    pub files: usize,
    pub held_bytes: u64,
    pub limit_bytes: u64,
    pub mapped_bytes: u64,
    pub saved_bytes: i64,
}

/// The user's store as others see it. In JSON, its account alone.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Seen {
    pub account: Option<Account>,
    /// Why it cannot be told, where there is something to tell.
    #[serde(skip)]
    pub hidden: Option<String>,
}

#[derive(Serialize)]
struct List {
    directory: PathBuf,
    #[serde(flatten)]
    account: Account,
    stored: Vec<File>,
}

#[derive(Serialize)]
struct File {
    file: String,
    object: Option<String>,
    held_bytes: u64,
    mapped_bytes: u64,
    saved_bytes: i64,
    published_seconds: i64,
    users: Vec<u32>,
}

#[derive(Serialize)]
struct Removed {
    directory: PathBuf,
    removed_files: u64,
    removed_bytes: u64,
    left_files: u64,
    left_bytes: u64,
}

impl Account {
    fn of(usage: &Usage) -> Self {
        let entries = &usage.entries;
        Account {
            files: entries.len(),
            held_bytes: usage.bytes,
            limit_bytes: usage.limit,
            mapped_bytes: entries.iter().map(|entry| entry.mapped).sum(),
            // What nobody uses costs what it takes.
            saved_bytes: entries.iter().map(|entry| entry.saved()).sum(),
        }
    }
}

impl Seen {
    pub fn now() -> Self {
        let usage =
            Store::existing().and_then(|store| store.map(|store| store.usage()).transpose());
        match usage {
            Ok(usage) => Seen {
                account: usage.as_ref().map(Account::of),
                hidden: None,
            },
            Err(error) => Seen {
                account: None,
                hidden: Some(reason(error)),
            },
        }
    }
}

pub fn run(args: Args, json: bool) -> Result<ExitCode> {
    let directory = Store::directory();
    let store = Store::existing().map_err(told)?;
    match args.action {
        Action::List => {
            let usage = match store {
                Some(store) => store.usage().map_err(told)?,
                None => Usage::default(),
            };
            list(directory, &usage, json)?;
        }
        Action::Collect | Action::Clear => {
            let (mut removed, mut left) = (Held::default(), Held::default());
            if let Some(store) = store {
                removed = match args.action {
                    Action::Clear => store.clear(),
                    _ => store.collect(),
                }
                .map_err(told)?;
                left = store.held().map_err(told)?;
            }
            tell_removed(directory, removed, left, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(directory: PathBuf, usage: &Usage, json: bool) -> Result<()> {
    let account = Account::of(usage);
    let stored: Vec<File> = (usage.entries.iter())
        .map(|entry| File {
            file: entry.file.clone(),
            object: entry.object.clone(),
            held_bytes: entry.bytes,
            mapped_bytes: entry.mapped,
            saved_bytes: entry.saved(),
            published_seconds: entry.published,
            users: entry.users.iter().map(|user| user.pid).collect(),
        })
        .collect();
    if json {
        return output::json(&List {
            directory,
            account,
            stored,
        });
    }
    let size = |bytes: u64| output::bytes(bytes as i64);
    output::line(&format!(
        "{}: {} of {}, saves {}",
        directory.display(),
        size(account.held_bytes),
        size(account.limit_bytes),
        output::bytes(account.saved_bytes)
    ))?;
    if stored.is_empty() {
        return output::line("nothing is stored");
    }
    let rows: Vec<Vec<String>> = (stored.iter())
        .map(|file| {
            let name = file.object.clone().unwrap_or_else(|| "frozen data".into());
            vec![
                name,
                size(file.held_bytes),
                file.users.len().to_string(),
                size(file.mapped_bytes),
                output::bytes(file.saved_bytes),
            ]
        })
        .collect();
    output::table(&["what", "held", "users", "mapped", "saved"], &rows)
}

fn tell_removed(directory: PathBuf, removed: Held, left: Held, json: bool) -> Result<()> {
    if json {
        return output::json(&Removed {
            directory,
            removed_files: removed.files,
            removed_bytes: removed.bytes,
            left_files: left.files,
            left_bytes: left.bytes,
        });
    }
    output::line(&format!(
        "removed {} files, {}; {} are left, {}",
        removed.files,
        output::bytes(removed.bytes as i64),
        left.files,
        output::bytes(left.bytes as i64)
    ))
}

/// With the directory, and the status for it.
fn told(error: Error) -> anyhow::Error {
    let status = match error.fault() {
        Fault::Owner | Fault::Privileged => exit::DENIED,
        _ => exit::FAILED,
    };
    exit::with(status, &reason(error))
}

fn reason(error: Error) -> String {
    format!("{}: {error}", Store::directory().display())
}

/// Why no text can be shared here, if so.
pub fn in_the_way() -> Option<String> {
    match Store::prospect() {
        Ok(true) => None,
        Ok(false) => Some(Fault::NoExec.advice().into()),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// One that saves something.
    pub fn seen() -> Seen {
        Seen {
            account: Some(Account {
                files: 2,
                held_bytes: 4 << 20,
                limit_bytes: 1 << 30,
                mapped_bytes: 64 << 20,
                saved_bytes: 60 << 20,
            }),
            hidden: None,
        }
    }
}
