//! Where in the kernel a thread spends its time: samples by the clock, and the functions that they fall into.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::page::PAGE;
use crate::syscall::check;

/// The oldest form of `struct perf_event_attr`, as far as it is used here.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    unused: [u64; 2],
}

const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const SAMPLE_IP: u64 = 1;
const DISABLED: u64 = 1 << 0;
const EXCLUDE_USER: u64 = 1 << 4;

const CLOSE_ON_EXEC: libc::c_ulong = 8;

const ENABLE: libc::c_ulong = 0x2400;
const DISABLE: libc::c_ulong = 0x2401;

/// The kind of record that is a sample.
const SAMPLE: u32 = 9;

/// Room for 65,536 samples.
const RING: usize = 256 * PAGE;
/// Where in the page before the ring its ends are told.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

/// Takes samples of one thread while it is in the kernel.
pub struct Sampler {
    file: File,
    addr: *mut u8,
}

impl Sampler {
    /// For this thread, or the one of this number. None in a kernel that cannot.
    pub fn new(thread: i32, every: Duration) -> Result<Option<Self>> {
        let attributes = Attributes {
            kind: SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: CPU_CLOCK,
            sample_period: every.as_nanos() as u64,
            sample_type: SAMPLE_IP,
            flags: DISABLED | EXCLUDE_USER,
            ..Default::default()
        };
        // SAFETY: valid attributes of the size that they tell; on any CPU, in no group.
        let opened = check(unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &attributes,
                thread,
                -1,
                -1,
                CLOSE_ON_EXEC,
            )
        });
        let fd = match opened {
            Ok(fd) => fd as i32,
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(None),
            Err(error) => return Err(error).context("perf_event_open"),
        };
        // SAFETY: a new descriptor that nothing else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        // SAFETY: the kernel chooses a free place.
        let addr = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE + RING,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap of perf events");
        }
        Ok(Some(Self {
            file,
            addr: addr.cast(),
        }))
    }

    /// Takes samples during the work; returns where the thread was.
    pub fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<u64>)> {
        self.order(ENABLE)?;
        let result = work();
        self.order(DISABLE)?;
        let taken = self.take();
        Ok((result?, taken))
    }

    fn order(&self, order: libc::c_ulong) -> Result<()> {
        // SAFETY: such an order takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), order, 0) })
            .context("perf event")
            .map(drop)
    }

    /// What has come since it was asked last.
    fn take(&self) -> Vec<u64> {
        let end = |offset| {
            // SAFETY: an aligned number inside the first page, which the kernel writes as one.
            unsafe { &*self.addr.add(offset).cast::<AtomicU64>() }
        };
        let head = end(HEAD).load(Ordering::Acquire);
        let tail = end(TAIL).load(Ordering::Relaxed);
        let byte = |at: u64| {
            let offset = PAGE + at as usize % RING;
            // SAFETY: inside the ring; the kernel leaves alone what is between the ends.
            unsafe { self.addr.add(offset).read_volatile() }
        };
        let bytes: Vec<u8> = (tail..head).map(byte).collect();
        end(TAIL).store(head, Ordering::Release);
        samples(&bytes)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.addr.cast(), PAGE + RING) };
    }
}

/// Records begin with a kind of 32 bits, flags and a size of 16 bits each. In a sample an address follows.
fn samples(mut bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
        let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let size = u16::from_ne_bytes([header[6], header[7]]) as usize;
        if let (SAMPLE, Some(address)) = (kind, rest.first_chunk::<8>()) {
            found.push(u64::from_ne_bytes(*address));
        }
        bytes = bytes.get(size.max(8)..).unwrap_or_default();
    }
    found
}

/// The kernel's functions by their addresses.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("cannot read /proc/kallsyms")?;
        Ok(Self::parse(&text))
    }

    /// Lines are like `ffffffff81000000 T _stext`, perhaps with a module behind.
    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_text = words.next()?.eq_ignore_ascii_case("t");
            is_text.then_some((address, words.next()?.to_owned()))
        };
        let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
        symbols.sort();
        Self(symbols)
    }

    /// The function that an address lies in.
    pub fn function(&self, address: u64) -> &str {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).map_or("", |index| &self.0[index].1)
    }

    /// The share of these samples in functions that have this in their names.
    pub fn share(&self, samples: &[u64], name: &str) -> f64 {
        let inside = samples
            .iter()
            .filter(|sample| self.function(**sample).contains(name));
        inside.count() as f64 / samples.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_picked_from_other_records() {
        let record = |kind: u32, size: u16, rest: &[u64]| {
            let mut bytes = kind.to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(size.to_ne_bytes());
            bytes.extend(rest.iter().flat_map(|word| word.to_ne_bytes()));
            bytes
        };
        let bytes = [
            record(SAMPLE, 16, &[0x11]),
            record(2, 24, &[7, 7]),
            record(SAMPLE, 16, &[0x22]),
        ];
        assert_eq!(samples(&bytes.concat()), [0x11, 0x22]);
        assert!(samples(&[]).is_empty());
    }

    #[test]
    fn addresses_belong_to_the_function_before() {
        let symbols = Symbols::parse(
            "0000000000001100 T xxh64\n0000000000001000 t first\n0000000000001180 d data\n0000000000001200 T last [module]\n",
        );
        assert_eq!(symbols.function(0xfff), "");
        assert_eq!(symbols.function(0x1000), "first");
        assert_eq!(symbols.function(0x11ff), "xxh64");
        assert_eq!(symbols.function(0x9999), "last");
        let samples = [0x1100, 0x1000, 0x1101, 0x1200];
        assert_eq!(symbols.share(&samples, "xxh"), 0.5);
    }
}
