//! `println!` and its kin for this program. The standard ones panic where nobody reads any more, as after `| head` or in a
//! terminal that was closed, and what is being built meanwhile is worth more than what is said about it.

use std::{
    fmt::Arguments,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

macro_rules! print {
    ($($text:tt)*) => { $crate::terminal::say::out(format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::terminal::say::err(format_args!("{}\n", format_args!($($text)*))) };
}

static LOST: AtomicBool = AtomicBool::new(false);

/// Whether something that was to go to standard output did not arrive.
pub fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

pub fn out(text: Arguments) {
    // The standard one, which cargo keeps apart from its own lines.
    #[cfg(test)]
    std::print!("{text}");
    #[cfg(not(test))]
    if !write(&mut io::stdout().lock(), text) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// What happens on the way; nothing is missing if nobody hears it.
pub fn err(text: Arguments) {
    write(&mut io::stderr().lock(), text);
}

fn write(to: &mut impl Write, text: Arguments) -> bool {
    to.write_fmt(text).and_then(|()| to.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_closed_pipe_is_noticed_and_no_panic() {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        assert!(write(&mut writer, format_args!("{}", 1)));
        drop(reader);
        assert!(!write(&mut writer, format_args!("{}", 2)));
    }
}
