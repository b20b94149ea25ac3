/// A size in bytes, or with one of the letters K, M, G and T after it.
#[must_use]
pub fn parse(text: &[u8]) -> Option<u64> {
    let (digits, unit) = match text.split_last()? {
        (b'K', rest) => (rest, 10),
        (b'M', rest) => (rest, 20),
        (b'G', rest) => (rest, 30),
        (b'T', rest) => (rest, 40),
        _ => (text, 0),
    };
    let mut number = 0u64;
    for byte in digits {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    if digits.is_empty() {
        return None;
    }
    number.checked_mul(1 << unit)
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("3K", Some(3 << 10)),
            ("800M", Some(800 << 20)),
            ("2G", Some(2 << 30)),
            ("1T", Some(1 << 40)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("-1", None),
            ("99999999999T", None),
        ] {
            assert_eq!(super::parse(text.as_bytes()), bytes, "{text}");
        }
    }
}
