//! What debuggers do to a process with merged pages: look, poke, and stop it at breakpoints.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use libc::{PTRACE_ATTACH, PTRACE_CONT, PTRACE_DETACH, PTRACE_PEEKDATA, PTRACE_POKEDATA};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::code::{self, BREAKPOINT};
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::{EXECUTE, Map, WRITE};
use sksm_guest::memory::process::{Child, Link};
use sksm_guest::page::PAGE;
use sksm_guest::skip::skip;
use sksm_guest::syscall::check;

use self::own::STOPS_BEHIND;
use crate::expect::{merged, one_page};
use crate::file::{call, private, write_function};

pub const TESTS: &[Test] = &[
    test("debugger/looking-copies-nothing", looking),
    test("debugger/process_vm_readv", process_vm_readv),
    test("debugger/poke", poke),
    test("debugger/proc-mem-writes-text", proc_mem_writes_text),
    test("debugger/software-breakpoint", software_breakpoint),
    test("debugger/hardware-breakpoint", hardware_breakpoint),
    test("debugger/watchpoint", watchpoint),
];

/// A child that this process traces; let go when dropped.
struct Tracee<'a>(&'a Child);

impl<'a> Tracee<'a> {
    fn attach(child: &'a Child) -> Result<Self> {
        let tracee = Self(child);
        tracee.request(PTRACE_ATTACH, 0, 0).context("attach")?;
        tracee.stops_by(libc::SIGSTOP)?;
        Ok(tracee)
    }

    /// Those requests that take numbers and read or write nothing here.
    fn request(&self, request: libc::c_uint, addr: usize, data: usize) -> std::io::Result<()> {
        // SAFETY: nothing of this process is accessed, only of the child, which expects it.
        check(unsafe { libc::ptrace(request, self.0.pid(), addr, data) }).map(drop)
    }

    fn stops_by(&self, signal: i32) -> Result<()> {
        let mut status = 0;
        // SAFETY: a valid place for the status.
        check(unsafe { libc::waitpid(self.0.pid(), &mut status, libc::__WALL) }).context("wait")?;
        let stopped = libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == signal;
        ensure!(stopped, "no stop by signal {signal}: status {status:#x}");
        Ok(())
    }

    fn peek(&self, addr: usize) -> Result<u64> {
        let none = std::ptr::null_mut::<libc::c_void>();
        // -1 may be data.
        // SAFETY: the place of errno is always there.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: as in `request`.
        let word = unsafe { libc::ptrace(PTRACE_PEEKDATA, self.0.pid(), addr, none) };
        let error = std::io::Error::last_os_error();
        ensure!(
            word != -1 || error.raw_os_error() == Some(0),
            "peek: {error}"
        );
        Ok(word as u64)
    }

    fn poke(&self, addr: usize, word: u64) -> Result<()> {
        self.request(PTRACE_POKEDATA, addr, word as usize)
            .context("poke")
    }

    /// Where it goes on.
    fn counter(&self) -> Result<usize> {
        Ok(*own::counter(&mut self.registers()?) as usize)
    }

    /// Goes on at another address.
    fn jump(&self, addr: usize) -> Result<()> {
        let mut registers = self.registers()?;
        *own::counter(&mut registers) = addr as u64;
        self.set_registers(&registers)
    }

    fn goes_on(&self) -> Result<()> {
        self.request(PTRACE_CONT, 0, 0).context("continue")
    }
}

impl Drop for Tracee<'_> {
    fn drop(&mut self) {
        // It may have died.
        self.request(PTRACE_DETACH, 0, 0).ok();
    }
}

#[cfg(target_arch = "x86_64")]
mod own {
    use std::mem::offset_of;

    use anyhow::{Context, Result};
    use sksm_guest::syscall::check;

    use super::Tracee;

    pub type Registers = libc::user_regs_struct;

    /// Where it goes on.
    pub fn counter(registers: &mut Registers) -> &mut u64 {
        &mut registers.rip
    }

    /// Whether the write that is watched has happened when the writer stops.
    pub const STOPS_BEHIND: bool = true;

    impl Tracee<'_> {
        pub fn registers(&self) -> Result<Registers> {
            // SAFETY: registers are numbers.
            let mut registers: Registers = unsafe { std::mem::zeroed() };
            let none = std::ptr::null_mut::<libc::c_void>();
            let into = &raw mut registers;
            // SAFETY: room for the registers.
            check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.0.pid(), none, into) })
                .context("registers")?;
            Ok(registers)
        }

        pub fn set_registers(&self, registers: &Registers) -> Result<()> {
            let none = std::ptr::null_mut::<libc::c_void>();
            let from = &raw const *registers;
            // SAFETY: valid registers, which the child had a moment ago.
            check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.0.pid(), none, from) })
                .context("registers")
                .map(drop)
        }

        /// Sets debug register 0 to the address and register 7 to the control word.
        fn debug_registers(&self, addr: usize, control: usize) -> Result<()> {
            let start = offset_of!(libc::user, u_debugreg);
            self.request(libc::PTRACE_POKEUSER, start, addr)
                .context("debug register 0")?;
            self.request(libc::PTRACE_POKEUSER, start + 7 * 8, control)
                .context("debug register 7")
        }

        /// Stops where this is executed; or no longer.
        pub fn breakpoint(&self, addr: usize, on: bool) -> Result<()> {
            self.debug_registers(addr, usize::from(on))
        }

        /// Stops at a write of eight bytes; or no longer.
        pub fn watchpoint(&self, addr: usize, on: bool) -> Result<()> {
            const ON_WRITE: usize = 1 << 16 | 2 << 18 | 1;
            self.debug_registers(addr, if on { ON_WRITE } else { 0 })
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod own {
    use anyhow::{Context, Result};
    use sksm_guest::syscall::check;

    use super::Tracee;

    pub type Registers = libc::user_regs_struct;

    /// Where it goes on.
    pub fn counter(registers: &mut Registers) -> &mut u64 {
        &mut registers.pc
    }

    /// Whether the write that is watched has happened when the writer stops.
    pub const STOPS_BEHIND: bool = false;

    /// Sets of registers, from the kernel's linux/elf.h.
    const PRSTATUS: usize = 1;
    const HW_BREAK: usize = 0x402;
    const HW_WATCH: usize = 0x403;

    /// The first breakpoint, or watchpoint; from the kernel's asm/ptrace.h.
    #[repr(C)]
    struct Debug {
        info: u32,
        pad: u32,
        addr: u64,
        control: u32,
        pad2: u32,
    }

    impl Tracee<'_> {
        fn set<T>(&self, request: libc::c_uint, set: usize, of: *mut T) -> Result<()> {
            let mut part = libc::iovec {
                iov_base: of.cast(),
                iov_len: size_of::<T>(),
            };
            let part = &raw mut part;
            // SAFETY: so much can be read there, and written where the registers are asked for.
            check(unsafe { libc::ptrace(request, self.0.pid(), set, part) })
                .with_context(|| format!("registers of set {set:#x}"))
                .map(drop)
        }

        pub fn registers(&self) -> Result<Registers> {
            // SAFETY: registers are numbers.
            let mut registers: Registers = unsafe { std::mem::zeroed() };
            self.set(libc::PTRACE_GETREGSET, PRSTATUS, &raw mut registers)?;
            Ok(registers)
        }

        pub fn set_registers(&self, registers: &Registers) -> Result<()> {
            self.set(
                libc::PTRACE_SETREGSET,
                PRSTATUS,
                (&raw const *registers).cast_mut(),
            )
        }

        fn debug_registers(&self, set: usize, addr: usize, control: u32) -> Result<()> {
            let mut debug = Debug {
                info: 0,
                pad: 0,
                addr: addr as u64,
                control,
                pad2: 0,
            };
            self.set(libc::PTRACE_SETREGSET, set, &raw mut debug)
        }

        /// Stops where this is executed; or no longer.
        pub fn breakpoint(&self, addr: usize, on: bool) -> Result<()> {
            // All bytes of an instruction, in user mode.
            const ENABLED: u32 = 0xf << 5 | 2 << 1 | 1;
            self.debug_registers(HW_BREAK, addr, if on { ENABLED } else { 0 })
        }

        /// Stops at a write of eight bytes; or no longer.
        pub fn watchpoint(&self, addr: usize, on: bool) -> Result<()> {
            const ON_WRITE: u32 = 0xff << 5 | 2 << 3 | 2 << 1 | 1;
            self.debug_registers(HW_WATCH, addr, if on { ON_WRITE } else { 0 })
        }
    }
}

/// The words of a page are read one by one, and as a file; nobody loses a page by it.
fn looking() -> Result<()> {
    let map = merged(3, 5)?;
    let child = Child::spawn(|parent| parent.meet())?;
    child.pause()?;
    let shared = vec![map.pfn(0)?; 3];
    let still = |what: &str| -> Result<()> {
        let theirs = child.pagemap()?.pfns(map.addr(), 3)?;
        ensure!(theirs == shared, "{what} has copied a page");
        Ok(())
    };
    let mut bytes = vec![0; map.len()];
    let memory = File::open(format!("/proc/{}/mem", child.pid()))?;
    memory.read_exact_at(&mut bytes, map.addr() as u64)?;
    ensure!(bytes == map.bytes(), "/proc/PID/mem shows something else");
    still("/proc/PID/mem")?;
    let tracee = Tracee::attach(&child)?;
    for word in [0, 100, 511] {
        let found = tracee.peek(map.page(1) + 8 * word)?;
        ensure!(found == content(5, word), "word {word}: {found:#x}");
    }
    still("PTRACE_PEEKDATA")?;
    drop(tracee);
    child.go()?;
    child.join()
}

/// It pins what it reads, and mm pins no page that is shared: the process that is read gets its own, as of any shared page.
fn process_vm_readv() -> Result<()> {
    let map = merged(3, 5)?;
    let page = map.pfn(0)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.expect_all(|_| 5)?;
        map.merge()?;
        parent.meet()
    })?;
    child.pause()?;
    let mut bytes = vec![0u8; map.len()];
    let part = |addr: usize| libc::iovec {
        iov_base: addr as *mut _,
        iov_len: map.len(),
    };
    let (local, remote) = (part(bytes.as_mut_ptr() as usize), part(map.addr()));
    // SAFETY: `bytes` has room for all of the mapping.
    check(unsafe { libc::process_vm_readv(child.pid(), &local, 1, &remote, 1, 0) })?;
    ensure!(bytes == map.bytes(), "read something else");
    ensure!(map.pfns()? == [page; 3], "the reader's own pages changed");
    child.go()?;
    child.pause()?;
    let theirs = child.pagemap()?.pfns(map.addr(), 3)?;
    ensure!(theirs == [page; 3], "no longer pinned, and not merged");
    child.go()?;
    child.join()
}

/// One word of a page that four mappings in two processes share.
fn poke() -> Result<()> {
    let map = merged(2, 5)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        ensure!(map.get(1, 7) == 77, "the tracer's write is lost");
        map.expect_after(1, 8, 5)?;
        map.expect(0, 5)?;
        map.fill(1, 5);
        map.merge()?;
        parent.meet()
    })?;
    child.pause()?;
    let tracee = Tracee::attach(&child)?;
    tracee.poke(map.page(1) + 7 * 8, 77)?;
    ensure!(tracee.peek(map.page(1) + 7 * 8)? == 77, "not written");
    let theirs = child.pagemap()?.pfns(map.addr(), 2)?;
    ensure!(theirs[0] == map.pfn(0)?, "the page beside it was copied");
    ensure!(theirs[1] != map.pfn(1)?, "written without a copy");
    map.expect_all(|_| 5)?;
    drop(tracee);
    child.go()?;
    child.pause()?;
    let theirs = child.pagemap()?.pfns(map.addr(), 2)?;
    one_page(&[map.pfns()?, theirs].concat())?;
    child.go()?;
    child.join()
}

const NUMBERS: [u16; 2] = [41, 42];

/// Two functions, each on its own page, patched into private copies of a file and merged.
fn patch(text: &Map) -> Result<()> {
    text.protect(WRITE)?;
    for (page, number) in NUMBERS.into_iter().enumerate() {
        write_function(text, page, number);
    }
    text.protect(EXECUTE)?;
    text.merge()
}

fn runs(text: &Map) -> Result<()> {
    for (page, number) in NUMBERS.into_iter().enumerate() {
        let found = call(text, page);
        ensure!(
            found == u32::from(number),
            "the function returned {found}, not {number}"
        );
    }
    Ok(())
}

/// A process with merged text. Whenever it is told to, it calls both functions; then merges once more.
fn runner(text: &Map) -> Result<Child> {
    let body = |parent: &Link| {
        patch(text)?;
        for _ in 0..2 {
            parent.meet()?;
            runs(text)?;
        }
        text.merge()?;
        parent.meet()
    };
    let child = Child::spawn(body)?;
    child.pause()?;
    Ok(child)
}

/// The text of this process and of two others, on the same pages.
struct Shared {
    text: Map,
    target: Child,
    other: Child,
}

impl Shared {
    fn new() -> Result<Self> {
        let text = private(&[1, 2])?;
        patch(&text)?;
        let (target, other) = (runner(&text)?, runner(&text)?);
        let shared = Self {
            text,
            target,
            other,
        };
        shared.same_pages([0, 1], "at first")?;
        Ok(shared)
    }

    fn pfn(&self, child: &Child, page: usize) -> Result<u64> {
        child.pagemap()?.pfn(self.text.page(page))
    }

    /// On these pages all three are the same; on the rest of them the target is alone.
    fn same_pages(&self, pages: impl IntoIterator<Item = usize>, when: &str) -> Result<()> {
        let same: Vec<usize> = pages.into_iter().collect();
        for page in 0..2 {
            let ours = self.text.pfn(page)?;
            let others = self.pfn(&self.other, page)?;
            ensure!(ours == others, "{when}: page {page} of the others changed");
            let found = self.pfn(&self.target, page)? == ours;
            let wanted = same.contains(&page);
            ensure!(found == wanted, "{when}: page {page} shared: {found}");
        }
        Ok(())
    }

    /// The others neither see nor run what was done to the target.
    fn others_run(&self) -> Result<()> {
        runs(&self.text)?;
        self.other.go()?;
        self.other.pause()
    }

    /// The target runs its text without anybody's help, and all merge again.
    fn end(self) -> Result<()> {
        for child in [&self.target, &self.other] {
            child.go()?;
            child.pause()?;
        }
        self.same_pages([0, 1], "merged again")?;
        runs(&self.text)?;
        for child in [self.target, self.other] {
            child.go()?;
            child.join()?;
        }
        Ok(())
    }
}

/// A debugger's write goes through although the mapping is not writable.
fn proc_mem_writes_text() -> Result<()> {
    let shared = Shared::new()?;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", shared.target.pid()))?;
    let at = shared.text.page(1) as u64;
    let mut before = [0; PAGE];
    memory.read_exact_at(&mut before, at)?;
    let other = code::function(99);
    memory.write_all_at(&other, at)?;
    shared.same_pages([0], "written")?;
    let mut now = [0; PAGE];
    memory.read_exact_at(&mut now, at)?;
    ensure!(
        now[..8] == other && now[8..] == before[8..],
        "written elsewhere"
    );
    shared.others_run()?;
    memory.write_all_at(&before[..8], at)?;
    shared.target.go()?;
    shared.target.pause()?;
    shared.end()
}

fn software_breakpoint() -> Result<()> {
    let shared = Shared::new()?;
    let addr = shared.text.page(0);
    let tracee = Tracee::attach(&shared.target)?;
    let word = tracee.peek(addr)?;
    shared.same_pages([0, 1], "looked at")?;
    let (breakpoint, behind) = BREAKPOINT;
    let mut bytes = word.to_ne_bytes();
    bytes[..breakpoint.len()].copy_from_slice(breakpoint);
    tracee.poke(addr, u64::from_ne_bytes(bytes))?;
    shared.same_pages([1], "breakpoint set")?;
    shared.others_run()?;
    shared.target.go()?;
    tracee.goes_on()?;
    tracee.stops_by(libc::SIGTRAP)?;
    let stopped = tracee.counter()?;
    ensure!(
        stopped == addr + behind,
        "stopped at {stopped:#x}, not at the breakpoint {addr:#x}"
    );
    tracee.poke(addr, word)?;
    tracee.jump(addr)?;
    drop(tracee);
    // It went on and got the right number.
    shared.target.pause()?;
    let tracee = Tracee::attach(&shared.target)?;
    ensure!(tracee.peek(addr)? == word, "the breakpoint is still there");
    drop(tracee);
    shared.end()
}

/// User-mode Linux keeps what is written to debug registers, and does nothing with it.
fn needs_debug_registers() -> Result<()> {
    if std::fs::read_to_string("/proc/cpuinfo")?.contains("User Mode Linux") {
        return skip("user-mode Linux has no hardware breakpoints");
    }
    Ok(())
}

fn hardware_breakpoint() -> Result<()> {
    needs_debug_registers()?;
    let shared = Shared::new()?;
    let addr = shared.text.page(0);
    let tracee = Tracee::attach(&shared.target)?;
    tracee.breakpoint(addr, true)?;
    shared.target.go()?;
    tracee.goes_on()?;
    tracee.stops_by(libc::SIGTRAP)?;
    let stopped = tracee.counter()?;
    ensure!(
        stopped == addr,
        "stopped at {stopped:#x}, not at the breakpoint {addr:#x}"
    );
    shared.same_pages([0, 1], "a breakpoint of the processor")?;
    shared.others_run()?;
    tracee.breakpoint(addr, false)?;
    drop(tracee);
    shared.target.pause()?;
    shared.end()
}

/// A write that is watched stops the writer once there is a copy: before it is written or after, as processors do.
fn watchpoint() -> Result<()> {
    needs_debug_registers()?;
    let map = merged(2, 5)?;
    let child = Child::spawn(|parent| {
        parent.meet()?;
        map.put(1, 20, 1);
        map.put(1, 21, 2);
        parent.meet()?;
        ensure!(
            (map.get(1, 20), map.get(1, 21)) == (1, 2),
            "written after the watchpoint, and lost"
        );
        map.expect_after(1, 22, 5)?;
        map.expect(0, 5)
    })?;
    child.pause()?;
    let addr = map.page(1) + 20 * 8;
    let tracee = Tracee::attach(&child)?;
    tracee.watchpoint(addr, true)?;
    let theirs = || child.pagemap()?.pfn(map.page(1));
    ensure!(theirs()? == map.pfn(1)?, "watching has copied the page");
    child.go()?;
    tracee.goes_on()?;
    tracee.stops_by(libc::SIGTRAP)?;
    let written = if STOPS_BEHIND { 1 } else { content(5, 20) };
    ensure!(
        tracee.peek(addr)? == written,
        "stopped too early or too late"
    );
    ensure!(tracee.peek(addr + 8)? == content(5, 21), "stopped too late");
    ensure!(theirs()? != map.pfn(1)?, "written without a copy");
    map.expect_all(|_| 5)?;
    tracee.watchpoint(addr, false)?;
    drop(tracee);
    child.pause()?;
    child.go()?;
    child.join()
}
