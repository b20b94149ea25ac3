//! The user's terminal while an interactive guest has it.

use std::{io::IsTerminal, sync::Mutex};

use anyhow::{Context, Result};
use rustix::{
    stdio::stdin,
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether a person sits at both ends.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Rows and columns.
pub fn size() -> (u16, u16) {
    match tcgetwinsize(stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Raw mode until dropped.
pub struct Raw(());

impl Raw {
    pub fn enter() -> Result<Self> {
        let saved = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap() = Some(saved);
        tcsetattr(stdin(), OptionalActions::Drain, &raw)
            .context("cannot put the terminal into raw mode")?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was; nothing to do when it was never touched.
pub fn restore() {
    if let Some(saved) = SAVED.lock().unwrap().take() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &saved);
    }
}
