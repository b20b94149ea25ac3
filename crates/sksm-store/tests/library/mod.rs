//! A library of 64 functions, each on a page of its own, that are patched to return other numbers.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::CString;
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const PAGES: usize = 64;
pub const PAGE: usize = 4096;

pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("library-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut source = String::from(".text\n");
        for at in 0..PAGES {
            let body = if at == 63 {
                // Takes its time, for profilers.
                "mov $400000000, %ecx\n1: dec %ecx\njnz 1b\n"
            } else {
                ""
            };
            write!(
                source,
                ".balign 4096\n.globl f{at}\n.type f{at}, @function\nf{at}: mov ${at}, %eax\n{body}ret\n.size f{at}, .-f{at}\n"
            )
            .unwrap();
        }
        // The last page is whole.
        source += ".balign 4096, 0x90\n.section .note.GNU-stack,\"\",@progbits\n";
        let (assembly, object) = (dir.join("library.s"), dir.join("libpatched.so"));
        fs::write(&assembly, source).unwrap();
        let status = Command::new("cc")
            .args(["-shared", "-nostdlib", "-Wl,--build-id", "-o"])
            .args([&object, &assembly])
            .status();
        assert!(status.unwrap().success());
        object
    })
}

/// The same code in another build, by its build ID.
pub fn another_build(dir: &Path) -> PathBuf {
    let mut object = fs::read(path()).unwrap();
    let name = b"GNU\0";
    let note = object.windows(name.len()).position(|bytes| bytes == name);
    object[note.unwrap() + name.len()] ^= 1;
    let path = dir.join("libpatched.so");
    fs::write(&path, object).unwrap();
    path
}

pub struct Library(*mut libc::c_void);

impl Library {
    pub fn load(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that ends in a nul byte, of a library that does nothing by itself.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null());
        Library(handle)
    }

    pub fn address(&self, at: usize) -> usize {
        let name = CString::new(format!("f{at}")).unwrap();
        // SAFETY: a library that is loaded, and a name that ends in a nul byte.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) } as usize;
        assert_ne!(address, 0);
        address
    }

    pub fn call(&self, at: usize) -> i32 {
        // SAFETY: a function that takes nothing and returns a number.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(self.address(at)) };
        function()
    }

    /// Has the function return this number.
    pub fn patch(&self, at: usize, number: i32) {
        self.write(at, 1, &number.to_le_bytes());
    }

    pub fn write(&self, at: usize, offset: usize, bytes: &[u8]) {
        let start = self.address(at);
        let code = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a page of the library's, which nobody runs meanwhile.
        unsafe {
            assert_eq!(
                libc::mprotect(start as *mut _, PAGE, code | libc::PROT_WRITE),
                0
            );
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (start + offset) as *mut u8, bytes.len());
            assert_eq!(libc::mprotect(start as *mut _, PAGE, code), 0);
        }
    }

    /// Leaves the function's page to be written.
    pub fn make_writable(&self, at: usize) {
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a page of the library's.
        let result = unsafe { libc::mprotect(self.address(at) as *mut _, PAGE, rights) };
        assert_eq!(result, 0);
    }

    /// How many of the library's pages are copies of this process's own.
    pub fn private(&self) -> usize {
        let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
        let is_private = |at: &usize| {
            let mut entry = [0; 8];
            let place = self.address(*at) / PAGE * 8;
            std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, place as u64).unwrap();
            let entry = u64::from_le_bytes(entry);
            entry >> 62 != 0 && entry >> 61 & 1 == 0
        };
        (0..PAGES).filter(is_private).count()
    }

    /// The lines of `/proc/self/maps` with the library's code.
    pub fn mappings(&self) -> Vec<String> {
        let (start, end) = (self.address(0), self.address(PAGES - 1) + PAGE);
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let within = |line: &&str| {
            let first = line.split_once('-').unwrap().0;
            (start..end).contains(&usize::from_str_radix(first, 16).unwrap())
        };
        maps.lines().filter(within).map(str::to_owned).collect()
    }

    pub fn close(self) {
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}
