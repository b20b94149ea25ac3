use core::ffi::c_int;

/// One line, built on the stack and sent by one write: short enough that a pipe takes it whole, whoever else writes.
pub struct Line {
    bytes: [u8; 128],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            bytes: [0; 128],
            len: 0,
        }
    }
}

impl Line {
    /// Appends; what no longer fits is left out.
    pub fn text(&mut self, text: &[u8]) -> &mut Self {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
        self
    }

    /// Appends in decimal. Not by core::fmt, whose tables would cost every process relocated pages.
    pub fn number(&mut self, number: u64) -> &mut Self {
        if number >= 10 {
            self.number(number / 10);
        }
        self.text(&[b'0' + (number % 10) as u8])
    }

    /// Sends the line and closes the descriptor: the program shall not inherit it.
    pub fn send(&mut self, fd: c_int) {
        self.write(fd);
        // SAFETY: a descriptor that is none is an error without effect.
        unsafe { libc::close(fd) };
    }

    /// Sends the line.
    pub fn write(&mut self, fd: c_int) {
        self.text(b"\n");
        // SAFETY: `len` bytes of the line are written; a descriptor that is none is an error without effect.
        unsafe { libc::write(fd, self.bytes.as_ptr().cast(), self.len) };
    }
}

/// A descriptor in decimal; the standard ones are the program's, not ours to write to.
pub fn report_fd(value: &[u8]) -> Option<c_int> {
    let mut fd: c_int = 0;
    for byte in value {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        fd = fd.checked_mul(10)?.checked_add(c_int::from(digit))?;
    }
    (fd > 2).then_some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(build: impl Fn(&mut Line)) -> String {
        let mut line = Line::default();
        build(&mut line);
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 99, 100, 1_234_567, u64::MAX] {
            assert_eq!(written(|line| _ = line.number(number)), number.to_string());
        }
    }

    #[test]
    fn too_long_a_line_is_cut() {
        assert_eq!(written(|line| _ = line.text(&[b'x'; 500])).len(), 128);
    }

    #[test]
    fn only_other_descriptors_are_reported_to() {
        assert_eq!(report_fd(b"17"), Some(17));
        for bad in [b"".as_slice(), b"1", b"2", b"-3", b"3x", b"99999999999"] {
            assert_eq!(report_fd(bad), None);
        }
    }
}
