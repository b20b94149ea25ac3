//! What the tool and its agent in the guest say to each other, over one raw byte channel each way.
//!
//! A frame is a kind (one byte), a length (four bytes, little endian) and that many bytes.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The agent's first words; whatever comes before them on the channel is noise of the boot.
pub const GREETING: &[u8] = b"\0sksm-agent\0\x01";

/// Bytes that may be on their way to the agent. UML's serial line stops listening for good once
/// its tty has been throttled, which happens when a little less than 4096 bytes wait in it.
pub const IN_FLIGHT: usize = 2048;

/// Bytes of standard input that the agent may have to hold for a command that does not read.
pub const WINDOW: usize = 64 * 1024;

/// Nothing larger is ever sent.
const LONGEST: usize = 1 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    /// Rows and columns, when the command gets a terminal.
    pub tty: Option<(u16, u16)>,
}

#[derive(Debug, PartialEq)]
pub enum Frame {
    // To the agent.
    Exec(Exec),
    Stdin(Vec<u8>),
    StdinEnd,
    Resize(u16, u16),
    /// Kill every process; the agent answers with `Exit`.
    Kill,
    PowerOff,
    // From the agent.
    /// So many bytes have been read from the channel.
    Arrived(u32),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// So many bytes of standard input have been passed to the command.
    Taken(u32),
    /// The command has ended with this status, and all its output has been sent.
    Exit(i32),
}

impl Frame {
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, body) = match self {
            Frame::Exec(exec) => (b'x', serde_json::to_vec(exec)?),
            Frame::Stdin(data) => (b'i', data.clone()),
            Frame::StdinEnd => (b'e', Vec::new()),
            Frame::Resize(rows, columns) => {
                (b'r', [rows.to_le_bytes(), columns.to_le_bytes()].concat())
            }
            Frame::Kill => (b'k', Vec::new()),
            Frame::PowerOff => (b'p', Vec::new()),
            Frame::Stdout(data) => (b'1', data.clone()),
            Frame::Stderr(data) => (b'2', data.clone()),
            Frame::Arrived(count) => (b'a', count.to_le_bytes().to_vec()),
            Frame::Taken(count) => (b't', count.to_le_bytes().to_vec()),
            Frame::Exit(status) => (b'0', status.to_le_bytes().to_vec()),
        };
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = Vec::with_capacity(5 + body.len());
        message.push(kind);
        message.extend(length.to_le_bytes());
        message.extend(body);
        to.write_all(&message)?;
        to.flush()
    }
}

/// Collects bytes until they make a frame.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    greeted: bool,
}

impl Decoder {
    /// For the tool's end, which first has to find the agent's greeting.
    pub fn after_greeting() -> Self {
        Self::default()
    }

    /// For the agent's end.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            greeted: true,
        }
    }

    /// One read from the channel; 0 is its end.
    pub fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        let mut chunk = [0; 32 * 1024];
        let count = from.read(&mut chunk)?;
        self.buffer.extend(&chunk[..count]);
        Ok(count)
    }

    /// Whether the agent has spoken.
    pub fn greeted(&mut self) -> bool {
        if !self.greeted {
            let found = self
                .buffer
                .windows(GREETING.len())
                .position(|window| window == GREETING);
            if let Some(at) = found {
                self.buffer.drain(..at + GREETING.len());
                self.greeted = true;
            }
        }
        self.greeted
    }

    /// The next complete frame.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        if !self.greeted() || self.buffer.len() < 5 {
            return Ok(None);
        }
        let length = u32::from_le_bytes(self.buffer[1..5].try_into().expect("four bytes")) as usize;
        if length > LONGEST {
            return Err(garbled("a frame of impossible length"));
        }
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        let kind = self.buffer[0];
        let body: Vec<u8> = self.buffer.drain(..5 + length).skip(5).collect();
        let frame = match kind {
            b'x' => Frame::Exec(serde_json::from_slice(&body)?),
            b'i' => Frame::Stdin(body),
            b'e' => Frame::StdinEnd,
            b'r' => {
                let [a, b, c, d] = array(&body)?;
                Frame::Resize(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
            }
            b'k' => Frame::Kill,
            b'p' => Frame::PowerOff,
            b'1' => Frame::Stdout(body),
            b'2' => Frame::Stderr(body),
            b'a' => Frame::Arrived(u32::from_le_bytes(array(&body)?)),
            b't' => Frame::Taken(u32::from_le_bytes(array(&body)?)),
            b'0' => Frame::Exit(i32::from_le_bytes(array(&body)?)),
            _ => return Err(garbled("a frame of unknown kind")),
        };
        Ok(Some(frame))
    }
}

fn array(body: &[u8]) -> io::Result<[u8; 4]> {
    body.try_into()
        .map_err(|_| garbled("a frame of wrong length"))
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} on the channel between the tool and the guest"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Exec(Exec {
                argv: vec!["a b".into(), "\"".into()],
                env: vec![("K".into(), "V".into())],
                cwd: "/".into(),
                tty: Some((24, 80)),
            }),
            Frame::Stdin(vec![0, 255, 10, 13]),
            Frame::StdinEnd,
            Frame::Resize(50, 300),
            Frame::Kill,
            Frame::PowerOff,
            Frame::Stdout(GREETING.to_vec()),
            Frame::Stderr(Vec::new()),
            Frame::Arrived(1),
            Frame::Taken(70_000),
            Frame::Exit(-1),
        ]
    }

    #[test]
    fn every_frame_survives_byte_by_byte() {
        let mut wire = b"booting...\n\0sksm".to_vec();
        wire.extend(GREETING);
        for frame in frames() {
            frame.write(&mut wire).unwrap();
        }
        let mut decoder = Decoder::after_greeting();
        let mut seen = Vec::new();
        for byte in wire {
            decoder.fill(&mut [byte].as_slice()).unwrap();
            while let Some(frame) = decoder.next().unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames());
    }

    #[test]
    fn garbage_is_an_error() {
        for wire in [
            b"?\0\0\0\0".as_slice(),
            b"1\xff\xff\xff\xff",
            b"t\x01\0\0\0\0",
        ] {
            let mut decoder = Decoder::new();
            decoder.fill(&mut &wire[..]).unwrap();
            assert_eq!(
                decoder.next().unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }
}
