//! How much each user, and all together, can have of the service.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// So many answers to one user within this time, and to all.
const WINDOW: Duration = Duration::from_secs(10);
const ANSWERS_TO_USER: usize = 256;
const ANSWERS: usize = 4096;
/// So many that one user has not read, and all. Descriptors on their way count as the service's, which the kernel lets have no more than
/// it may have open.
const UNREAD_OF_USER: usize = 64;
const UNREAD: usize = 4096;

#[derive(Default)]
pub struct Room {
    /// Since when answers are counted, and to whom.
    since: Option<Instant>,
    answers: HashMap<u32, usize>,
    /// Those that may not have been read yet. Only ours is held: the peer's end may be closed.
    unread: HashMap<u32, Vec<UnixStream>>,
}

impl Room {
    /// Whether this user may have one more. Who is refused takes nothing from others.
    pub fn takes(&mut self, user: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.since = Some(now);
            self.answers.clear();
            self.unread.retain(|_, of_user| has_unread(of_user));
        }
        let all: usize = self.answers.values().sum();
        let of_user = self.answers.get(&user).copied().unwrap_or(0);
        if all >= ANSWERS || of_user >= ANSWERS_TO_USER {
            return false;
        }
        // Counted now: what comes next costs the same whether it ends with an answer or not.
        self.answers.insert(user, of_user + 1);
        if let Some(of_user) = self.unread.get_mut(&user) {
            if of_user.len() >= UNREAD_OF_USER {
                has_unread(of_user);
            }
            if of_user.len() >= UNREAD_OF_USER {
                return false;
            }
        }
        self.unread.values().map(Vec::len).sum::<usize>() < UNREAD
    }

    pub fn answered(&mut self, user: u32, peer: UnixStream) {
        self.unread.entry(user).or_default().push(peer);
    }
}

/// Forgets those that were read, or whose peer has gone; whether there are others.
fn has_unread(of_user: &mut Vec<UnixStream>) -> bool {
    of_user.retain(|peer| {
        let mut bytes: libc::c_int = 0;
        // SAFETY: writes one number, into ours.
        let asked = unsafe { libc::ioctl(peer.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
        asked != 0 || bytes > 0
    });
    !of_user.is_empty()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// An answer, and the end of who has not read it.
    fn answer(room: &mut Room, user: u32) -> UnixStream {
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(b"1").unwrap();
        room.answered(user, here);
        there
    }

    #[test]
    fn one_user_takes_nothing_from_another() {
        let mut room = Room::default();
        let now = Instant::now();
        let mut count =
            |user, now, tries: usize| (0..tries).filter(|_| room.takes(user, now)).count();
        assert_eq!(count(1, now, 100_000), ANSWERS_TO_USER);
        assert_eq!(count(2, now, 10), 10);
        assert_eq!(count(1, now + WINDOW, 10), 10);
        // All together have their bound, too.
        let later = now + 2 * WINDOW;
        let all: usize = (0..1000).map(|user| count(user, later, 100)).sum();
        assert_eq!(all, ANSWERS);
    }

    #[test]
    fn who_reads_nothing_is_answered_a_few_times() {
        let mut room = Room::default();
        let now = Instant::now();
        let mut held = Vec::new();
        while room.takes(1, now) {
            held.push(answer(&mut room, 1));
        }
        assert_eq!(held.len(), UNREAD_OF_USER);
        assert!(room.takes(2, now) && !room.takes(1, now + WINDOW));
        // One is read, another one's reader ends.
        held[0].read_exact(&mut [0]).unwrap();
        held.pop();
        for _ in 0..2 {
            assert!(room.takes(1, now + WINDOW));
            held.push(answer(&mut room, 1));
        }
        assert!(!room.takes(1, now + WINDOW));
        drop(held);
        assert!(room.takes(1, now + 2 * WINDOW));
        assert!(room.unread.is_empty());
    }
}
