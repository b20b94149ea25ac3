//! arm64: what the machine runs, without an MMU, and how it is started.

use std::arch::global_asm;

use anyhow::{Context, Result, bail};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::Start;

/// Where the machine has no memory. A write there is what this process is told of, so it is the result.
const RESULT: u64 = 0x10_0000;

// W0 is the sum, W1 the value, X2 counts, X3 is where, X4 where the result goes. Each begins with an instruction that may be left
// out: KVM goes on behind the write that it told of, wherever that is by now.
global_asm!(
    ".pushsection .rodata.sksm_machine, \"a\"",
    ".balign 8",
    ".global sksm_machine_code",
    ".global sksm_machine_end",
    "sksm_machine_code:",
    "nop",
    "1: ror w0, w0, #31",
    "ldr w5, [x3], #4",
    "add w0, w0, w5",
    "subs x2, x2, #1",
    "b.ne 1b",
    "str w0, [x4]",
    ".org sksm_machine_code + 0x100",
    "nop",
    "str w0, [x3]",
    "str w0, [x4]",
    ".org sksm_machine_code + 0x200",
    "nop",
    "1: mov x3, #0x8000",
    "2: ldr w5, [x3]",
    "cmp w5, w1",
    "b.ne 3f",
    "add w5, w5, #1",
    "str w5, [x3]",
    "add x3, x3, #0x1000",
    "cmp x3, #0x10000",
    "b.ne 2b",
    "add w1, w1, #1",
    "subs x2, x2, #1",
    "b.ne 1b",
    "mov w5, w1",
    "3: str w5, [x4]",
    ".org sksm_machine_code + 0x300",
    "nop",
    "1: mov x3, #0x8000",
    "2: ldr w5, [x3]",
    "cmp w5, w1",
    "b.ne 3f",
    "add x3, x3, #0x1000",
    "cmp x3, #0x10000",
    "b.ne 2b",
    "subs x2, x2, #1",
    "b.ne 1b",
    "3: str w5, [x4]",
    ".org sksm_machine_code + 0x380",
    "sksm_machine_end:",
    ".popsection",
);

unsafe extern "C" {
    static sksm_machine_code: u8;
    static sksm_machine_end: u8;
}

pub fn code() -> Vec<(u64, &'static [u8])> {
    let (start, end) = (&raw const sksm_machine_code, &raw const sksm_machine_end);
    // SAFETY: the bytes between the two.
    let all = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
    vec![(super::SUM, all)]
}

/// The emulated one can; another one without a /dev/kvm is worth a failure.
pub fn can_virtualize() -> Result<bool> {
    Ok(true)
}

pub fn set_up(vm: &VmFd, cpu: &VcpuFd) -> Result<()> {
    let mut kind = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut kind)?;
    Ok(cpu.vcpu_init(&kind)?)
}

/// Runs until there is a result.
pub fn run(cpu: &mut VcpuFd, start: &Start) -> Result<u32> {
    // Numbers of the kernel's asm/ptrace.h, in units of 32 bits: the general registers come first.
    const CORE: u64 = 0x6030_0000_0010_0000;
    const PC: u64 = 64;
    const PSTATE: u64 = 66;
    /// In the kernel's mode, without interrupts.
    const EL1: u64 = 0x3c5;
    for (register, value) in [
        (0, start.sum),
        (2, start.value),
        (4, start.count),
        (6, start.from),
        (8, RESULT),
        (PC, start.at),
        (PSTATE, EL1),
    ] {
        cpu.set_one_reg(CORE | register, &value.to_ne_bytes())
            .with_context(|| format!("register {register}"))?;
    }
    loop {
        match cpu.run().context("KVM_RUN")? {
            VcpuExit::MmioWrite(RESULT, bytes) => {
                let word = bytes.try_into().context("a word is expected")?;
                return Ok(u32::from_ne_bytes(word));
            }
            VcpuExit::Intr => {}
            exit => bail!("the machine stopped: {exit:?}"),
        }
    }
}
