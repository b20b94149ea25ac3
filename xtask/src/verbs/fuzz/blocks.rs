//! Where in a kernel's image its blocks tell that they ran: at each call of one function, by an instruction with a fixed form.

use anyhow::{Context, Result, bail, ensure};

/// `call` with a distance of four bytes.
const CALL: u8 = 0xe8;
pub const CALL_BYTES: u64 = 5;
/// Of a section that is executable.
const EXECUTABLE: u64 = 4;
/// Of a section whose bytes are in the file.
const IN_FILE: u32 = 1;

/// The addresses of all calls of the function that is at `target`, in a 64-bit ELF file.
pub fn calls(image: &[u8], target: u64) -> Result<Vec<u64>> {
    ensure!(image.starts_with(b"\x7fELF\x02\x01"), "no 64-bit ELF file");
    let mut found = Vec::new();
    let (table, size, count) = (
        number(image, 0x28, 8)?,
        number(image, 0x3a, 2)?,
        number(image, 0x3c, 2)?,
    );
    for section in (0..count).map(|index| table + index * size) {
        let kind = number(image, section + 4, 4)?;
        let flags = number(image, section + 8, 8)?;
        if kind != u64::from(IN_FILE) || flags & EXECUTABLE == 0 {
            continue;
        }
        let address = number(image, section + 0x10, 8)?;
        let bytes = part(
            image,
            number(image, section + 0x18, 8)?,
            number(image, section + 0x20, 8)?,
        )?;
        for (at, window) in bytes.windows(CALL_BYTES as usize).enumerate() {
            if window[0] != CALL {
                continue;
            }
            let distance = i32::from_le_bytes(window[1..].try_into().expect("four bytes"));
            let call = address + at as u64;
            if (call + CALL_BYTES).wrapping_add_signed(distance.into()) == target {
                found.push(call);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn part(image: &[u8], from: u64, len: u64) -> Result<&[u8]> {
    let end = from.checked_add(len).context("no place in a file")?;
    image
        .get(usize::try_from(from)?..usize::try_from(end)?)
        .context("the file ends early")
}

fn number(image: &[u8], at: u64, bytes: u64) -> Result<u64> {
    if bytes > 8 {
        bail!("no number has {bytes} bytes");
    }
    let part = part(image, at, bytes)?;
    Ok((part.iter().rev()).fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one section of code at 0x1000, and one of data with the same bytes.
    fn image(code: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x40];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[0x28] = 0x40;
        image[0x3a] = 0x40;
        image[0x3c] = 2;
        for flags in [EXECUTABLE | 2, 3] {
            let mut section = [0; 0x40];
            section[4] = IN_FILE as u8;
            section[8] = flags as u8;
            section[0x11] = 0x10;
            section[0x18] = 0xc0;
            section[0x20] = code.len() as u8;
            image.extend(section);
        }
        image.extend(code);
        image
    }

    #[test]
    fn calls_of_one_function_are_found() {
        let mut code = vec![0x90, CALL, 0xfa, 0x0f, 0, 0, 0x90];
        // To somewhere else, and to the same from further on.
        code.extend([CALL, 0, 0, 0, 0]);
        code.extend([CALL, 0xef, 0x0f, 0, 0]);
        let found = calls(&image(&code), 0x2000).unwrap();
        assert_eq!(found, [0x1001, 0x100c]);
        assert_eq!(calls(&image(&code), 0x3000).unwrap(), [0; 0]);
        assert!(calls(b"no file", 0).is_err());
        assert!(calls(&image(&code)[..0x60], 0).is_err());
    }
}
