//! The file that code is published in: it has the object's size, its code at the same places, and what says which function is where,
//! so that perf and gdb take it for the object. The rest is holes.

use core::ops::Range;

use crate::sys::{Errno, Fd};

/// So much at most besides the code, if that is not more. What would be more is left out: symbols of programs that carry all of them.
const MOST: u64 = 256 << 10;

const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const DYNAMIC: u32 = 6;
const NOTE: u32 = 7;
const DYNSYM: u32 = 11;
const HEADER: usize = size_of::<libc::Elf64_Ehdr>();
const SECTION: usize = size_of::<libc::Elf64_Shdr>();

/// Shows each part of the object's file that is to be in the image beside so much code, until one fails.
pub fn each_part(
    file: &Fd,
    size: u64,
    code: u64,
    mut see: impl FnMut(Range<u64>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut left = MOST.max(code);
    let mut part = |start: u64, len: u64| {
        let Some(end) = start.checked_add(len).filter(|end| *end <= size) else {
            return Ok(());
        };
        if len == 0 || len > left {
            return Ok(());
        }
        left -= len;
        see(start..end)
    };
    let mut head = [0; HEADER];
    if file.read_at(&mut head, 0)? < HEADER || !head.starts_with(b"\x7fELF\x02") {
        return Ok(());
    }
    let half = |at: usize| u64::from(number(&head, at, 2) as u16);
    let (programs, sections) = (number(&head, 32, 8), number(&head, 40, 8));
    let (programs_len, sections_len) = (half(54) * half(56), half(58) * half(60));
    part(0, HEADER as u64)?;
    part(programs, programs_len)?;
    if half(58) != SECTION as u64 {
        return Ok(());
    }
    part(sections, sections_len)?;
    let section = |number: u64| -> Result<[u8; SECTION], Errno> {
        let mut section = [0; SECTION];
        file.read_at(
            &mut section,
            sections.saturating_add(number * SECTION as u64),
        )?;
        Ok(section)
    };
    // The table of the sections' own names.
    let names = number(&section(half(62))?, 24, 8);
    for at in 0..half(60) {
        let section = section(at)?;
        let mut name = [0; 16];
        file.read_at(&mut name, names.saturating_add(number(&section, 0, 4)))?;
        // Stacks are unwound by them.
        let unwinding = [
            b".eh_frame\0".as_slice(),
            b".eh_frame_hdr\0",
            b".debug_frame\0",
        ];
        let unwinding = unwinding.iter().any(|wanted| name.starts_with(wanted));
        let kind = number(&section, 4, 4) as u32;
        if unwinding
            || name.starts_with(b".gnu_debug")
            || matches!(kind, SYMTAB | STRTAB | DYNAMIC | NOTE | DYNSYM)
        {
            part(number(&section, 24, 8), number(&section, 32, 8))?;
        }
    }
    Ok(())
}

/// A number of so many bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    for (place, byte) in word.iter_mut().zip(bytes) {
        *place = *byte;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    #[test]
    fn symbols_are_part_of_it() {
        let file = sys::open(c"/proc/self/exe", libc::O_RDONLY).unwrap();
        let size = file.stat().unwrap().st_size as u64;
        let mut parts = Vec::new();
        each_part(&file, size, 0, |part| {
            parts.push(part);
            Ok(())
        })
        .unwrap();
        assert_eq!(parts[0], 0..HEADER as u64);
        assert!(parts.len() > 6, "{parts:?}");
        assert!(parts.iter().all(|part| part.end <= size));
        let sum: u64 = parts.iter().map(|part| part.end - part.start).sum();
        assert!(sum <= MOST);
    }

    #[test]
    fn what_is_no_object_has_no_parts() {
        let file = sys::open(c"/proc/self/status", libc::O_RDONLY).unwrap();
        each_part(&file, 100, 0, |_| panic!("a part")).unwrap();
    }
}
