//! Which kernels there are.

use std::fmt;

use anyhow::{Result, bail};

use super::base::Base;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// User-Mode Linux
    Um,
    /// x86_64 under QEMU
    #[value(name = "x86_64")]
    X86_64,
    /// arm64 under QEMU, with memory tags; its programs are its own, and not this machine's
    Arm64,
    /// x86_64 with every checker switched on
    Debug,
    /// x86_64 with the data race detector, which excludes the other checkers
    Kcsan,
    /// x86_64 that tells which of its code ran, with the checkers that cost least
    Fuzz,
    /// x86_64 with the patches and without the engine (CONFIG_SKSM=n), to compare with
    Without,
    /// x86_64 as its authors left it, to compare with
    Unpatched,
}

impl Arch {
    pub const ALL: [Arch; 5] = [
        Arch::Um,
        Arch::X86_64,
        Arch::Arm64,
        Arch::Debug,
        Arch::Kcsan,
    ];

    /// What a kernel of this base is called, as in `um`, or `um-7.3` where that is not the first one.
    pub fn of(self, base: Base) -> String {
        base.named(&self.to_string())
    }

    /// As the kernel's Makefile calls it.
    pub fn make(self) -> &'static str {
        match self {
            Arch::Um => "um",
            Arch::Arm64 => "arm64",
            _ => "x86_64",
        }
    }

    /// Whether it runs none of this machine's programs.
    pub fn foreign(self) -> bool {
        self == Arch::Arm64
    }

    /// For what measures or shows this machine's programs.
    pub fn of_this_machine(self) -> Result<Self> {
        if self.foreign() {
            bail!(
                "the {self} kernel runs none of this machine's programs; `run`, `test` and `stress` bring their own"
            );
        }
        Ok(self)
    }

    /// Whether the patches are in its tree.
    pub fn patched(self) -> bool {
        self != Arch::Unpatched
    }

    /// What `make` is asked for, and where it leaves the image.
    pub fn target(self) -> (&'static str, &'static str) {
        match self {
            Arch::Um => ("linux", "linux"),
            Arch::Arm64 => ("Image", "arch/arm64/boot/Image"),
            _ => ("bzImage", "arch/x86/boot/bzImage"),
        }
    }

    /// Build steps of a first build, nearly: only for the percentage shown.
    pub fn typical_steps(self) -> u64 {
        match self {
            Arch::Um => 1440,
            Arch::X86_64 => 2140,
            Arch::Arm64 => 2140,
            Arch::Debug => 2160,
            Arch::Kcsan => 2160,
            Arch::Fuzz => 2160,
            Arch::Without => 2120,
            Arch::Unpatched => 2170,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Arch::Um => "um",
            Arch::X86_64 => "x86_64",
            Arch::Arm64 => "arm64",
            Arch::Debug => "debug",
            Arch::Kcsan => "kcsan",
            Arch::Fuzz => "fuzz",
            Arch::Without => "without",
            Arch::Unpatched => "unpatched",
        })
    }
}
