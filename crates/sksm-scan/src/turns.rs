use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use crate::moment::Moment;

/// Whose turn it is: of those that are due each is met before one is met twice, however much there is to do for it.
#[derive(Default)]
pub struct Turns {
    /// Some of these are outdated, as what was to be done has become due sooner, or nobody is there any more.
    waiting: BinaryHeap<Reverse<(Moment, u64)>>,
    due: VecDeque<u64>,
    /// The same.
    among_due: BTreeSet<u64>,
}

impl Turns {
    /// There is something to do for this one by then.
    pub fn add(&mut self, id: u64, by: Duration) {
        self.waiting.push(Reverse((by.into(), id)));
    }

    /// Who comes next. To be added again when it is known when there is more to do.
    pub fn next(&mut self, now: Duration) -> Option<u64> {
        while let Some(Reverse((by, id))) = self.waiting.peek().copied() {
            if by > now.into() {
                break;
            }
            self.waiting.pop();
            if self.among_due.insert(id) {
                self.due.push_back(id);
            }
        }
        let id = self.due.pop_front()?;
        self.among_due.remove(&id);
        Some(id)
    }

    /// Forgets those who are not there any more.
    pub fn keep(&mut self, is_there: impl Fn(u64) -> bool) {
        self.waiting.retain(|Reverse((_, id))| is_there(*id));
        self.waiting.shrink_to_fit();
        self.due.retain(|id| is_there(*id));
        self.due.shrink_to_fit();
        self.among_due.retain(|id| is_there(*id));
    }

    /// When there is something to do.
    pub fn by(&self) -> Duration {
        match (self.due.is_empty(), self.waiting.peek()) {
            (false, _) => Duration::ZERO,
            (true, Some(Reverse((by, _)))) => by.time(),
            (true, None) => Duration::MAX,
        }
    }

    pub fn size(&self) -> usize {
        let one = size_of::<(Moment, u64)>();
        self.waiting.capacity() * one + self.due.capacity() * 8 + self.among_due.len() * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn() {
        let second = Duration::from_secs;
        let mut turns = Turns::default();
        assert_eq!((turns.next(second(9)), turns.by()), (None, Duration::MAX));
        for (id, by) in [(1, 3), (2, 1), (3, 9), (1, 2)] {
            turns.add(id, second(by));
        }
        assert_eq!(turns.by(), second(1));
        assert_eq!(turns.next(second(0)), None);
        assert_eq!(turns.next(second(3)), Some(2));
        // It has more to do, and waits until the others were met.
        turns.add(2, second(1));
        assert_eq!(turns.by(), Duration::ZERO);
        assert_eq!(turns.next(second(3)), Some(1));
        assert_eq!(turns.next(second(3)), Some(2));
        assert_eq!((turns.next(second(3)), turns.by()), (None, second(9)));
        turns.keep(|id| id != 3);
        assert_eq!(turns.by(), Duration::MAX);
    }
}
