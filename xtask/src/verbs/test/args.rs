//! Which tests are asked for, and how long some of them run.

use std::slice;

use crate::kernel::Arch;

const AGAIN: &str = "\
Tests in a kernel are not run again where the kernel, the programs, this tool and the machine's packages are byte for byte those
of a pass in this cache; a line says so, with the day of that pass. --again runs them, as do --only and --seed, and all run after
`cargo xtask clean`.";

#[derive(Clone, Default, clap::Args)]
#[command(after_help = AGAIN)]
pub struct Args {
    /// No debug kernel, and less of what takes long
    #[arg(long)]
    pub quick: bool,
    /// Only what needs no kernel and none of its source: for changes in crates/
    #[arg(long)]
    pub host: bool,
    /// Every kernel of every base, or of --base, and what takes longest there too: hours
    #[arg(long, conflicts_with_all = ["quick", "host"])]
    pub all: bool,
    /// Only in this kernel, and nothing on the host
    #[arg(long, conflicts_with_all = ["quick", "host", "all"])]
    pub arch: Option<Arch>,
    /// Also what has passed in this cache and cannot have changed since
    #[arg(long)]
    pub again: bool,
    /// Only tests whose name, as in um/sksm-abi/NAME or host/fmt, contains this
    #[arg(long, value_name = "PATTERN")]
    pub only: Option<String>,
    /// How long sksm-random runs in each kernel, and the stress (default: 20, in the debug kernel 60 and 120)
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Repeat the sequences of an earlier run of sksm-random
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Args {
    /// For sksm-random in this kernel.
    pub fn random_seconds(&self, arch: Arch) -> u64 {
        self.seconds.unwrap_or(match (self.quick, arch) {
            (true, _) => 5,
            (false, Arch::Um | Arch::X86_64 | Arch::Arm64 | Arch::Without | Arch::Unpatched) => 20,
            (false, Arch::Debug | Arch::Kcsan | Arch::Fuzz) => 60,
        })
    }

    /// For the stress in this kernel, if it runs there.
    pub fn stress_seconds(&self, arch: Arch) -> Option<u64> {
        let usual = match (self.quick, arch) {
            (true, Arch::Um) | (_, Arch::Without | Arch::Unpatched) => None,
            (_, Arch::Um | Arch::X86_64 | Arch::Arm64) => Some(20),
            (_, Arch::Debug | Arch::Kcsan | Arch::Fuzz) => Some(120),
        };
        self.seconds.filter(|_| usual.is_some()).or(usual)
    }

    /// Whether tests run that cannot have changed: somebody wants to see them.
    pub fn repeats(&self) -> bool {
        self.again || self.only.is_some() || self.seed.is_some()
    }

    pub fn pattern(&self) -> &str {
        self.only.as_deref().unwrap_or_default()
    }

    pub fn wants(&self, name: &str) -> bool {
        name.contains(self.pattern())
    }

    pub fn arches(&self) -> &[Arch] {
        if self.host {
            &[]
        } else if let Some(arch) = &self.arch {
            slice::from_ref(arch)
        } else if self.quick {
            &[Arch::Um, Arch::X86_64]
        } else if self.all {
            &Arch::ALL
        } else {
            &[Arch::Um, Arch::X86_64, Arch::Debug]
        }
    }
}
