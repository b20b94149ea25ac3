//! The names of what is stored: `OBJECT.KEY.HASH` for code, `frozen.HASH` for data.

use core::ffi::CStr;

/// A file's name, and the nul byte after it.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; Self::ROOM],
    len: usize,
}

impl Name {
    const ROOM: usize = 256;
    /// So much of an object's own name is in that of its code; the rest is numbers.
    const OWN: usize = 120;

    pub const fn new() -> Self {
        Name {
            bytes: [0; Self::ROOM],
            len: 0,
        }
    }

    /// What is stored of data with this hash.
    #[cfg(feature = "std")]
    pub fn frozen(hash: &blake3::Hash) -> Self {
        let mut name = Self::new();
        name.text(b"frozen").hash(hash);
        name
    }

    /// How the names of all code of an object begin.
    pub fn of_object(own: &[u8], key: u64) -> Self {
        let mut name = Self::new();
        for byte in own.iter().take(Self::OWN) {
            // As plain as that the loader, a shell and a table can do with it.
            let plain = byte.is_ascii_alphanumeric() || b"._+-".contains(byte);
            name.text(if plain {
                core::slice::from_ref(byte)
            } else {
                b"_"
            });
        }
        name.text(b".").hexadecimal(&key.to_be_bytes());
        name
    }

    /// The code of an object, by its hash.
    pub fn hash(&mut self, hash: &blake3::Hash) -> &mut Self {
        let half = hash.as_bytes().get(..16).unwrap_or_default();
        self.text(b".").hexadecimal(half)
    }

    fn text(&mut self, text: &[u8]) -> &mut Self {
        for byte in text {
            // Room for the nul byte is left.
            if self.len + 1 < Self::ROOM {
                if let Some(place) = self.bytes.get_mut(self.len) {
                    *place = *byte;
                    self.len += 1;
                }
            }
        }
        self
    }

    fn hexadecimal(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            for half in [byte >> 4, byte & 15] {
                self.text(&[half + if half < 10 { b'0' } else { b'a' - 10 }]);
            }
        }
        self
    }

    pub fn of(name: &CStr) -> Self {
        let mut copy = Self::new();
        copy.text(name.to_bytes());
        copy
    }

    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<'a> {
    /// Code of the object with this name.
    Code(&'a [u8]),
    /// Frozen data.
    Frozen,
}

/// None for a name that the store gives to nothing.
pub fn meaning(name: &[u8]) -> Option<Stored<'_>> {
    let (rest, hash) = last_part(name)?;
    if hash.len() != 32 || !is_hexadecimal(hash) {
        return None;
    }
    if rest == b"frozen" {
        return Some(Stored::Frozen);
    }
    let (own, key) = last_part(rest)?;
    (key.len() == 16 && is_hexadecimal(key)).then_some(Stored::Code(own))
}

fn last_part(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = name.iter().rposition(|byte| *byte == b'.')?;
    Some((name.get(..dot)?, name.get(dot + 1..)?))
}

fn is_hexadecimal(digits: &[u8]) -> bool {
    (digits.iter()).all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_read_again() {
        let hash = blake3::hash(b"x");
        let name = Name::frozen(&hash);
        assert_eq!(meaning(name.as_bytes()), Some(Stored::Frozen));
        let mut name = Name::of_object("libß c.so.6".as_bytes(), 0x1f);
        assert_eq!(name.as_bytes(), b"lib___c.so.6.000000000000001f");
        name.hash(&hash);
        let read = meaning(name.as_bytes());
        assert_eq!(read, Some(Stored::Code(b"lib___c.so.6")));
        for other in ["", ".", "frozen", "frozen.12", "a.b.c", ".lock"] {
            assert_eq!(meaning(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_longest_name_is_one_that_a_file_can_have() {
        let mut name = Name::of_object(&[b'a'; 4096], u64::MAX);
        name.hash(&blake3::hash(b""));
        assert!(name.as_bytes().len() < 255);
        assert_eq!(
            meaning(name.as_bytes()),
            Some(Stored::Code(&[b'a'; Name::OWN]))
        );
    }
}
