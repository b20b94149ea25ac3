//! The terminal, which is given back as it was on every way out: the end, an error, a panic, a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, enable_raw_mode};
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
};

/// So many milliseconds after it comes, a key or a signal is answered at the latest.
const PATIENCE: i32 = 100;

/// The terminal while it is ours: other screen, keys one by one. Dropping it gives it back.
pub struct Screen(Option<DefaultTerminal>);

impl Screen {
    /// Also has panics give the terminal back before they say what happened.
    pub fn enter() -> io::Result<Self> {
        // Built first: it puts things right where only half is done.
        let mut screen = Screen(None);
        // Not every terminal has another screen, and only what is not blank is drawn.
        screen.0.insert(ratatui::try_init()?).clear()?;
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
        self.give_back()?;
        signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
        self.take()
    }

    /// Takes the terminal anew: while this program was stopped, by a signal that cannot be caught, another had it.
    pub fn resume(&mut self) -> io::Result<()> {
        self.give_back()?;
        self.take()
    }

    fn give_back(&mut self) -> io::Result<()> {
        ratatui::try_restore()?;
        self.0.as_mut().map_or(Ok(()), DefaultTerminal::show_cursor)
    }

    fn take(&mut self) -> io::Result<()> {
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        self.0.as_mut().map_or(Ok(()), DefaultTerminal::clear)
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

/// Those that end a program that does not expect them, or stop it. Not those that tell of a mistake in it: its own handlers
/// would run in the midst of that.
const ENDING: &[i32] = &[
    SIGTERM,
    SIGINT,
    SIGHUP,
    SIGQUIT,
    SIGUSR1,
    SIGUSR2,
    SIGALRM,
    SIGVTALRM,
    SIGPROF,
    SIGIO,
    SIGXCPU,
    SIGXFSZ,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// Signals are noted, so that the terminal can be given back first.
pub struct Signals {
    ended: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    resumed: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
pub enum Caught {
    End(i32),
    Stop,
    Resume,
}

impl Signals {
    pub fn catch() -> io::Result<Self> {
        let signals = Signals {
            ended: Arc::default(),
            stopped: Arc::default(),
            resumed: Arc::default(),
        };
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        for signal in ENDING.iter().copied().chain(real_time) {
            signal_hook::flag::register_usize(signal, signals.ended.clone(), signal as usize)?;
        }
        signal_hook::flag::register(SIGTSTP, signals.stopped.clone())?;
        signal_hook::flag::register(SIGCONT, signals.resumed.clone())?;
        Ok(signals)
    }

    /// The one that ends this program comes first, and again whenever it is asked for.
    pub fn caught(&self) -> Option<Caught> {
        let ended = self.ended.load(Ordering::Relaxed);
        match i32::try_from(ended) {
            Ok(signal @ 1..) => Some(Caught::End(signal)),
            _ if self.stopped.swap(false, Ordering::Relaxed) => Some(Caught::Stop),
            _ if self.resumed.swap(false, Ordering::Relaxed) => Some(Caught::Resume),
            _ => None,
        }
    }
}

/// Ends this program by the signal, as if it had not been caught.
pub fn end_by(signal: i32) {
    // SAFETY: takes numbers only; the kernel's own doing needs no handler of ours.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
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
