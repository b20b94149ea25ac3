/// What a mapping holds, told from `/proc/PID/maps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Executable: of a file, patched or not, or made by a JIT compiler.
    Text = 1,
    /// Private memory of a file that is not executable: variables of programs and libraries.
    Data = 2,
    /// Private anonymous memory: the break, malloc's arenas, interpreters' own heaps.
    Heap = 4,
    /// The main thread's stack. Other threads' stacks cannot be told from the heap.
    Stack = 8,
    /// Everything that never merges: shared memory, and the kernel's own pages.
    Other = 16,
}

impl Kind {
    /// Every kind that can merge.
    pub const MERGEABLE: [Kind; 4] = [Kind::Text, Kind::Data, Kind::Heap, Kind::Stack];

    /// Its name, as in `SKSM=text,data,heap`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Data => "data",
            Kind::Heap => "heap",
            Kind::Stack => "stack",
            Kind::Other => "other",
        }
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Kinds(u8);

impl Kinds {
    /// These kinds.
    #[must_use]
    pub const fn of(kinds: &[Kind]) -> Self {
        let (mut set, mut rest) = (0, kinds);
        while let [kind, others @ ..] = rest {
            set |= *kind as u8;
            rest = others;
        }
        Kinds(set)
    }

    /// Whether the kind is in the set.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & kind as u8 != 0
    }

    /// Reads a list as in `text,data,heap`; none if a word of it is no kind that can merge, or it is empty.
    ///
    /// ```
    /// use sksm::{Kind, Kinds};
    /// assert_eq!(Kinds::parse(b"text,heap"), Some(Kinds::of(&[Kind::Text, Kind::Heap])));
    /// assert_eq!(Kinds::parse(b"texts"), None);
    /// ```
    #[must_use]
    pub fn parse(list: &[u8]) -> Option<Self> {
        let mut set = 0;
        for word in list.split(|byte| *byte == b',') {
            let kind = Kind::MERGEABLE
                .into_iter()
                .find(|kind| kind.name().as_bytes() == word)?;
            set |= kind as u8;
        }
        Some(Kinds(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        for kind in Kind::MERGEABLE {
            let set = Kinds::parse(kind.name().as_bytes()).unwrap();
            for other in Kind::MERGEABLE {
                assert_eq!(set.has(other), kind == other);
            }
        }
        for bad in [
            b"".as_slice(),
            b",",
            b"text,",
            b"Text",
            b"other",
            b"text data",
        ] {
            assert_eq!(Kinds::parse(bad), None);
        }
    }
}
