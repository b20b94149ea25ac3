//! Mappings in pieces, for whichever thread is free.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use sksm::Mapping;

use super::subject::{Files, Subject};

/// So much of a mapping is one piece of work.
const PIECE: usize = 64 << 20;
/// And so much of one in which few pages are present.
const SPARSE_PIECE: usize = 4 << 30;

/// So many processes are read by turns.
pub const IN_TURN: usize = 64;

/// Part of a mapping.
pub struct Piece {
    pub process: usize,
    pub subject: Arc<Subject>,
    pub files: Arc<Files>,
    mapping: usize,
    start: u64,
    end: u64,
}

impl Piece {
    pub fn key(&self) -> (u32, u64) {
        (self.process as u32, self.start)
    }

    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    pub fn mapping(&self) -> &Mapping {
        &self.subject.mappings[self.mapping]
    }

    pub fn sparse(&self) -> bool {
        sparse(self.mapping())
    }
}

/// Where few pages are missing, finding out which costs more than it saves.
fn sparse(mapping: &Mapping) -> bool {
    mapping.statistics.anonymous < mapping.region.len as u64 / 4
}

/// What is left to do: of each process in turn, as threads that read the same one wait for each other in the kernel.
pub struct Pieces(Mutex<VecDeque<Rest>>);

/// What is left of a process: from a mapping on, and of that from an address on.
struct Rest {
    process: usize,
    subject: Arc<Subject>,
    /// Opened for its first piece.
    files: Option<Arc<Files>>,
    mapping: usize,
    start: usize,
}

impl Pieces {
    pub fn of(subjects: &[Option<Arc<Subject>>]) -> Self {
        let subjects = subjects.iter().enumerate();
        let rest = subjects.filter_map(|(process, subject)| {
            Some(Rest {
                process,
                subject: subject.clone()?,
                files: None,
                mapping: 0,
                start: 0,
            })
        });
        Pieces(Mutex::new(rest.collect()))
    }

    pub fn next(&self) -> Option<Piece> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut rest) = all.pop_front() {
            if let Some(piece) = rest.next() {
                // So few in turn that their files can all be open.
                let place = all.len().min(IN_TURN);
                all.insert(place, rest);
                return Some(piece);
            }
        }
        None
    }
}

impl Rest {
    fn next(&mut self) -> Option<Piece> {
        let mapping = self.subject.mappings.get(self.mapping)?;
        let files = match &self.files {
            Some(files) => files.clone(),
            None => match self.subject.files() {
                Ok(files) => self.files.insert(files).clone(),
                Err(error) => {
                    self.subject.fail(&error);
                    return None;
                }
            },
        };
        let most = if sparse(mapping) { SPARSE_PIECE } else { PIECE };
        let (start, last) = (self.start.max(mapping.region.start), mapping.region.end());
        let end = start.saturating_add(most).min(last);
        let piece = Piece {
            process: self.process,
            subject: self.subject.clone(),
            files,
            mapping: self.mapping,
            start: start as u64,
            end: end as u64,
        };
        self.start = end;
        self.mapping += usize::from(end == last);
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sksm::{Kind, Kinds};

    /// Every byte of every mapping once, whichever thread takes it.
    #[test]
    fn mappings_are_cut_into_pieces() {
        let mut subject = Subject::open(std::process::id(), Kinds::of(&Kind::MERGEABLE)).unwrap();
        let mut mapping = subject.mappings[0].clone();
        mapping.region.len = 3 * PIECE + 4096;
        mapping.statistics.anonymous = mapping.region.len as u64;
        let mut sparse = mapping.clone();
        sparse.statistics.anonymous = 4096;
        sparse.region.start = mapping.region.end();
        subject.mappings = vec![mapping, sparse];
        let subject = Some(Arc::new(subject));
        let queue = Pieces::of(&[None, subject.clone(), subject]);
        let mut pieces = Vec::new();
        for number in 0.. {
            let Some(piece) = queue.next() else {
                break;
            };
            assert_eq!(piece.process, 1 + number % 2);
            if piece.process == 2 {
                continue;
            }
            pieces.push((piece.mapping, piece.start, piece.end));
        }
        let of = |mapping| pieces.iter().filter(move |piece| piece.0 == mapping);
        assert_eq!((of(0).count(), of(1).count()), (4, 1));
        assert!(
            pieces
                .windows(2)
                .all(|two| two[0].0 != two[1].0 || two[0].2 == two[1].1)
        );
    }
}
