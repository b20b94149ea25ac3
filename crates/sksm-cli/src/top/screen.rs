//! The terminal, which is given back as it was on every way out: the end, an error, a panic, a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, enable_raw_mode};
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

/// So many milliseconds after it comes, a key or a signal is answered at the latest.
const PATIENCE: i32 = 100;

/// The terminal while it is ours: other screen, keys one by one. Dropping it gives it back.
pub struct Screen(Option<DefaultTerminal>);

impl Screen {
    /// Also has panics give the terminal back before they say what happened.
    pub fn enter() -> io::Result<Self> {
        // Built first: it puts things right where only half is done.
        let mut screen = Screen(None);
        screen.0 = Some(ratatui::try_init()?);
        Ok(screen)
    }

    pub fn draw(&mut self, show: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        if let Some(terminal) = &mut self.0 {
            terminal.draw(show)?;
        }
        Ok(())
    }

    /// The next key or change of size, if one comes soon.
    pub fn event(&self) -> io::Result<Option<Event>> {
        let mut keyboard = libc::pollfd {
            fd: libc::STDIN_FILENO,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid structure. A signal ends the wait early, which is no error: it may be a change of size.
        unsafe { libc::poll(&mut keyboard, 1, PATIENCE) };
        // Of a terminal that is hung up crossterm would read the end for ever.
        if keyboard.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            signal_hook::low_level::raise(SIGHUP)?;
            return Ok(None);
        }
        if event::poll(Duration::ZERO)? {
            return event::read().map(Some);
        }
        Ok(None)
    }

    /// Stops this program, as Ctrl-Z does others, until it is continued.
    pub fn suspend(&mut self) -> io::Result<()> {
        ratatui::try_restore()?;
        if let Some(terminal) = &mut self.0 {
            terminal.show_cursor()?;
            signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen)?;
            terminal.clear()?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        ratatui::try_restore().ok();
        if let Some(mut terminal) = self.0.take() {
            if terminal.show_cursor().is_err() {
                // It would try again, and panic as it cannot say that it failed.
                std::mem::forget(terminal);
            }
        }
    }
}

/// The signals that end programs: noted, so that the terminal can be given back first.
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    pub fn catch() -> io::Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            signal_hook::flag::register_usize(signal, caught.clone(), signal as usize)?;
        }
        Ok(Signals(caught))
    }

    pub fn caught(&self) -> Option<i32> {
        let signal = self.0.load(Ordering::Relaxed);
        i32::try_from(signal).ok().filter(|signal| *signal != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::pty::Pty;

    /// Run by the test below, on a terminal of its own.
    #[test]
    #[ignore = "ends the test by a panic; the_terminal_is_given_back_after_a_panic runs it"]
    fn a_panic() {
        let mut screen = Screen::enter().unwrap();
        screen
            .draw(|frame| frame.render_widget("shown", frame.area()))
            .unwrap();
        panic!("on purpose");
    }

    #[test]
    fn the_terminal_is_given_back_after_a_panic() {
        let pty = Pty::new(24, 80);
        let modes = pty.modes();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture"]);
        command.arg("top::screen::tests::a_panic");
        let status = pty.start(&mut command).wait().unwrap();
        assert!(!status.success());
        pty.wait_for("shown", 0);
        pty.expect_restored(modes);
        // Said on the screen that stays.
        let output = pty.output();
        let back = output.find("\u{1b}[?1049l").unwrap();
        assert!(output[back..].contains("on purpose"), "{output:?}");
    }
}
