//! x86_64: what the machine runs, in real mode, and how it is started.

use anyhow::{Context, Result, bail};
use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::Start;

const PORT: u16 = 0x10;

/// The results go to a port, then it halts.
pub fn code() -> Vec<(u64, &'static [u8])> {
    vec![
        (super::SUM, SUM_CODE),
        (super::WRITE, WRITE_CODE),
        (super::COUNT, COUNT_CODE),
        (super::READ, READ_CODE),
    ]
}

/// EAX: a sum of the CX double words at SI that depends on their order.
const SUM_CODE: &[u8] = &[
    0x66, 0xd1, 0xc0, // rol eax, 1
    0x66, 0x03, 0x04, // add eax, [si]
    0x83, 0xc6, 0x04, // add si, 4
    0x49, // dec cx
    0x75, 0xf4, // jnz to the start
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
];

/// Writes EAX to the double word at SI.
const WRITE_CODE: &[u8] = &[
    0x66, 0x89, 0x04, // mov [si], eax
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
];

/// CX times: each page from 0x8000 to 0x10000 must begin with EBX, and counts up; EBX too. EAX: EBX in the end, or what was
/// found in its place.
const COUNT_CODE: &[u8] = &[
    0xbe, 0x00, 0x80, // mov si, 0x8000
    0x66, 0x39, 0x1c, // cmp [si], ebx
    0x75, 0x15, // jne to the last load
    0x66, 0xff, 0x04, // inc dword [si]
    0x81, 0xc6, 0x00, 0x10, // add si, 0x1000
    0x75, 0xf2, // jnz to cmp
    0x66, 0x43, // inc ebx
    0x49, // dec cx
    0x75, 0xea, // jnz to the start
    0x66, 0x89, 0xd8, // mov eax, ebx
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
    0x90, // nop
    0x66, 0x8b, 0x04, // mov eax, [si]
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
];

/// CX times: each page from 0x8000 to 0x10000 must begin with EBX. EAX: EBX, or what was found in its place.
const READ_CODE: &[u8] = &[
    0xbe, 0x00, 0x80, // mov si, 0x8000
    0x66, 0x39, 0x1c, // cmp [si], ebx
    0x75, 0x0f, // jne to the last load
    0x81, 0xc6, 0x00, 0x10, // add si, 0x1000
    0x75, 0xf5, // jnz to cmp
    0x49, // dec cx
    0x75, 0xef, // jnz to the start
    0x66, 0x89, 0xd8, // mov eax, ebx
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
    0x66, 0x8b, 0x04, // mov eax, [si]
    0x66, 0xef, // out dx, eax
    0xf4, // hlt
];

/// Whether the processor has what KVM needs. User-Mode Linux shows the host's, and cannot use it.
pub fn can_virtualize() -> Result<bool> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let mut flags = cpu.lines().filter(|line| line.starts_with("flags"));
    let has = |line: &str| {
        line.split_whitespace()
            .any(|flag| ["svm", "vmx"].contains(&flag))
    };
    Ok(!cpu.contains("User Mode Linux") && flags.any(has))
}

pub fn set_up(_vm: &VmFd, cpu: &VcpuFd) -> Result<()> {
    let mut sregs = cpu.get_sregs()?;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.ss] {
        segment.base = 0;
        segment.selector = 0;
    }
    Ok(cpu.set_sregs(&sregs)?)
}

/// Runs until it halts; what it sent to the port.
pub fn run(cpu: &mut VcpuFd, start: &Start) -> Result<u32> {
    let registers = kvm_regs {
        rip: start.at,
        rflags: 2,
        rax: start.sum,
        rbx: start.value,
        rcx: start.count,
        rdx: PORT.into(),
        rsi: start.from,
        ..Default::default()
    };
    cpu.set_regs(&registers)?;
    let mut result = None;
    loop {
        match cpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(PORT, bytes) => {
                result = Some(u32::from_ne_bytes(
                    bytes.try_into().context("a double word is expected")?,
                ));
            }
            VcpuExit::Hlt => return result.context("the machine halted without a result"),
            VcpuExit::Intr => {}
            exit => bail!("the machine stopped: {exit:?}"),
        }
    }
}
