//! The host's end of the channel to the agent in a guest.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio::stdin,
};

use super::protocol::{Decoder, Frame, IN_FLIGHT};
use crate::ground::interrupt;

pub struct Channel {
    stream: File,
    decoder: Decoder,
    /// What waits until the agent has read what is under way.
    outgoing: Vec<u8>,
    in_flight: usize,
    gone: bool,
}

impl Channel {
    pub fn new(stream: OwnedFd) -> Self {
        Self {
            stream: File::from(stream),
            decoder: Decoder::after_greeting(),
            outgoing: Vec::new(),
            in_flight: 0,
            gone: false,
        }
    }

    /// Whether the agent has spoken.
    pub fn greeted(&mut self) -> bool {
        self.decoder.greeted()
    }

    /// Whether nobody is at the other end any more.
    pub fn gone(&self) -> bool {
        self.gone
    }

    /// Expects nothing any more from a guest that was killed.
    pub fn hang_up(&mut self) {
        self.gone = true;
    }

    pub fn send(&mut self, frame: &Frame) {
        frame
            .write(&mut self.outgoing)
            .expect("a vector takes everything");
        self.pump();
    }

    /// Sends as much as the agent's end of the channel can hold.
    fn pump(&mut self) {
        let count = self.outgoing.len().min(IN_FLIGHT - self.in_flight);
        if count > 0 {
            // The guest's death shows when reading.
            let _ = self.stream.write_all(&self.outgoing[..count]);
            self.outgoing.drain(..count);
            self.in_flight += count;
        }
    }

    /// The next frame for the caller.
    pub fn next(&mut self) -> Result<Option<Frame>> {
        while let Some(frame) = self.decoder.next()? {
            match frame {
                Frame::Arrived(count) => {
                    self.in_flight = self.in_flight.saturating_sub(count as usize);
                    self.pump();
                }
                frame => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// Reads what there is; false when the guest is gone.
    pub fn fill(&mut self) -> Result<bool> {
        match self.decoder.fill(&mut self.stream) {
            Ok(count) => {
                self.gone = count == 0;
                Ok(!self.gone)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.gone = true;
                Ok(false)
            }
            Err(error) => Err(error).context("cannot read from the guest"),
        }
    }

    pub fn readable(&mut self, deadline: Option<Instant>) -> Result<bool> {
        Ok(self.wait(false, deadline)?.0)
    }

    /// Whether the guest and the user have something to say, after a second at most.
    pub fn wait(&mut self, user: bool, deadline: Option<Instant>) -> Result<(bool, bool)> {
        interrupt::check()?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = left
            .unwrap_or(Duration::MAX)
            .min(Duration::from_millis(500));
        let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
        let stdin = stdin();
        if user {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, Some(&patience.try_into()?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| {
            fds.get(index)
                .is_some_and(|fd: &PollFd| !fd.revents().is_empty())
        };
        let ready = (ready(0), ready(1));
        interrupt::check()?;
        Ok(ready)
    }
}
