//! A terminal that a test looks into.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub struct Pty {
    ours: File,
    theirs: OwnedFd,
    output: RefCell<Vec<u8>>,
}

impl Pty {
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: the descriptors and the size are valid; name and settings may be null.
        let (ours, theirs) = unsafe {
            let null = std::ptr::null_mut();
            assert_eq!(
                libc::openpty(&mut ours, &mut theirs, null, null.cast(), &size),
                0
            );
            // Only what `start` hands over is for the program.
            libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(ours, libc::F_SETFL, libc::O_NONBLOCK);
            (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
        };
        Pty {
            ours,
            theirs,
            output: RefCell::default(),
        }
    }

    /// Runs the program on this terminal, which is then its controlling one.
    pub fn start(&self, command: &mut Command) -> Child {
        let end = || self.theirs.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: makes two system calls, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // It keeps the descriptors that it was given.
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        child
    }

    pub fn press(&self, keys: &str) {
        (&self.ours).write_all(keys.as_bytes()).unwrap();
    }

    /// All that the program has written so far.
    pub fn output(&self) -> String {
        let mut output = self.output.borrow_mut();
        let mut room = [0; 4096];
        // Until there is no more.
        while let Ok(count @ 1..) = (&self.ours).read(&mut room) {
            output.extend_from_slice(&room[..count]);
        }
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Waits until the program has written this after so many bytes; tells how much it has written then.
    pub fn wait_for(&self, text: &str, after: usize) -> usize {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.output();
            if output
                .get(after..)
                .is_some_and(|output| output.contains(text))
            {
                return output.len();
            }
            assert!(
                Instant::now() < deadline,
                "no {text:?} after byte {after} of {output:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How the terminal treats what is typed and written.
    pub fn modes(&self) -> [libc::tcflag_t; 4] {
        let settings = self.settings();
        [
            settings.c_iflag,
            settings.c_oflag,
            settings.c_cflag,
            settings.c_lflag,
        ]
    }

    /// As another program that uses the terminal does.
    pub fn set_modes(&self, modes: [libc::tcflag_t; 4]) {
        let mut settings = self.settings();
        [
            settings.c_iflag,
            settings.c_oflag,
            settings.c_cflag,
            settings.c_lflag,
        ] = modes;
        // SAFETY: valid settings, of a descriptor of this value's.
        let done = unsafe { libc::tcsetattr(self.ours.as_raw_fd(), libc::TCSANOW, &settings) };
        assert_eq!(done, 0);
    }

    fn settings(&self) -> libc::termios {
        // SAFETY: a plain structure, for which zeros are valid, and which the call fills.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.theirs.as_raw_fd(), &mut settings), 0);
            settings
        }
    }

    /// Waits until the terminal's modes are such.
    pub fn wait_for_modes(&self, wanted: impl Fn([libc::tcflag_t; 4]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !wanted(self.modes()) {
            assert!(Instant::now() < deadline, "the modes stay as they are");
            // What it writes must not fill the terminal up.
            self.output();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails unless the terminal is as it was, and shows the first screen and the cursor.
    pub fn expect_restored(&self, modes: [libc::tcflag_t; 4]) {
        assert_eq!(self.modes(), modes, "the terminal's modes are others");
        self.wait_for("\u{1b}[?1049l", 0);
        self.wait_for("\u{1b}[?25h", 0);
        let output = self.output();
        let last = |what: &str| output.rfind(what);
        assert!(last("\u{1b}[?1049l") > last("\u{1b}[?1049h"), "{output:?}");
        assert!(last("\u{1b}[?25h") > last("\u{1b}[?25l"), "{output:?}");
    }
}
