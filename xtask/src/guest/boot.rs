//! Boots a kernel on the host's root file system, or on another.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use procfs::{Current, Meminfo};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::Signal,
    thread::sched_setaffinity,
};
use tempfile::TempDir;

use super::{
    command::{Cmd, Limit},
    console,
    cpu::Cpu,
    initramfs::{self, Contents},
    kvm::{self, NoKvm},
    memory,
    outcome::Outcome,
    programs,
    running::Guest,
    trace::Trace,
};
use crate::{
    ground::{
        cross::Cross,
        interrupt::Group,
        project::{Project, plain},
        qemu, step,
    },
    kernel::{Arch, Kernel},
    terminal::progress::Step,
};

/// How long a kernel may take to start its first program, with a loaded host in mind.
const BOOT: Duration = Duration::from_secs(600);

/// What guests notice of the machine that they run on.
pub fn host() -> Result<String> {
    let kernel = rustix::system::uname();
    let cpus = std::thread::available_parallelism().context("cannot count the processors")?;
    Ok(format!(
        "{} {}, {cpus} processors, {}",
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy(),
        match kvm::offered() {
            true => "KVM",
            false => "no KVM",
        }
    ))
}

/// What the kernels are built for: CONFIG_NR_CPUS.
pub const MOST_CPUS: i64 = 8;

/// A kernel about to be booted.
pub struct Boot<'a> {
    project: &'a Project,
    kernel: &'a Kernel,
    mem: String,
    smp: u32,
    parameters: String,
    timeout: Option<Duration>,
    counting: bool,
    trace: Option<Trace>,
    system: Option<System>,
}

/// A system of its own for the guest.
struct System {
    /// Its files, as the kernel takes them.
    root: PathBuf,
    /// What else there is.
    files: Vec<(String, Vec<u8>)>,
}

impl<'a> Boot<'a> {
    pub fn new(project: &'a Project, kernel: &'a Kernel) -> Self {
        // Two NUMA nodes, and a part of each that can be taken offline.
        let nodes = "numa=fake=2 movablecore=40%";
        let (mem, smp, parameters) = match kernel.arch {
            Arch::Um => ("2G", 1, ""),
            Arch::X86_64 | Arch::Arm64 | Arch::Without | Arch::Unpatched => ("2G", 2, nodes),
            Arch::Debug | Arch::Kcsan | Arch::Fuzz => ("3G", 2, nodes),
        };
        Self {
            project,
            kernel,
            mem: mem.into(),
            smp,
            parameters: parameters.into(),
            timeout: None,
            counting: false,
            trace: None,
            system: None,
        }
    }

    /// On this archive of a system with systemd instead of the host's root file system, with these files beside.
    pub fn system(mut self, root: &Path, files: Vec<(String, Vec<u8>)>) -> Self {
        let root = root.to_owned();
        self.system = Some(System { root, files });
        self
    }

    /// As in `512M` or `4G`.
    pub fn mem(mut self, mem: &str) -> Self {
        self.mem = mem.into();
        self
    }

    /// How many processors of the host it keeps busy at most.
    pub fn cpus(&self) -> usize {
        match self.kernel.arch {
            Arch::Um => 1,
            _ => self.smp as usize,
        }
    }

    /// Bytes that it may take.
    pub fn memory(&self) -> u64 {
        memory::bytes(&self.mem).unwrap_or(0)
    }

    /// UML has one CPU whatever is asked for.
    pub fn smp(mut self, cpus: u32) -> Self {
        self.smp = cpus;
        self
    }

    /// Those of the kernel's parameters that say what its memory is like. Without this, machines under QEMU have two NUMA
    /// nodes with movable memory.
    pub fn parameters(mut self, parameters: &str) -> Self {
        self.parameters = parameters.into();
        self
    }

    /// One more of the kernel's parameters.
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.parameters = format!("{} {parameter}", self.parameters);
        self
    }

    /// For the command, not counting the boot. Without one it may take for ever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// One emulated CPU, whose clock goes on by a nanosecond with each instruction and jumps over idle times: what is measured
    /// with it is a number of instructions, which does not depend on how busy the host is. Not for UML.
    pub fn counting_instructions(mut self) -> Self {
        self.smp = 1;
        self.counting = true;
        self
    }

    /// The same, and where each of the kernel's instructions is written down while that is asked for.
    pub fn tracing(mut self, trace: Trace) -> Self {
        self = self.counting_instructions();
        self.trace = Some(trace);
        self
    }

    /// Boots, runs one command, powers off.
    pub fn run(self, cmd: Cmd) -> Result<Outcome> {
        let timeout = self.timeout;
        let mut guest = self.start()?;
        let (end, stdout) = guest.exec(cmd, timeout.map(Limit::Whole))?;
        let (splats, console) = guest.finish()?;
        Ok(Outcome {
            end,
            stdout,
            splats,
            console,
        })
    }

    /// Boots, and waits until the guest takes commands.
    pub fn start(self) -> Result<Guest> {
        static KVM_FAILED: AtomicBool = AtomicBool::new(false);
        if self.kernel.arch == Arch::Um
            || self.kernel.arch.foreign()
            || self.counting
            || KVM_FAILED.load(Ordering::Relaxed)
            || !kvm::offered()
        {
            return self.boot(false);
        }
        match self.boot(true) {
            Err(error) if error.is::<NoKvm>() => {
                eprintln!("{error}; emulating");
                KVM_FAILED.store(true, Ordering::Relaxed);
                self.boot(false)
            }
            booted => booted,
        }
    }

    fn boot(&self, kvm: bool) -> Result<Guest> {
        static WARNED: AtomicBool = AtomicBool::new(false);
        let arch = self.kernel.arch;
        let warning = Meminfo::current()
            .ok()
            .and_then(|info| memory::scarce(&self.mem, info.mem_available?));
        if let Some(warning) = warning.filter(|_| !WARNED.swap(true, Ordering::Relaxed)) {
            eprintln!("warning: {warning}");
        }
        let scratch = scratch(self.project)?;
        let initrd = scratch.path().join("initrd");
        let (agent, busybox) = match arch.foreign() {
            // Not by its name: a newer one may have been built in the meantime.
            false => (PathBuf::from("/proc/self/exe"), initramfs::busybox()?),
            true => {
                let cross = Cross::prepare(self.project)?;
                (programs::agent(self.project, &cross)?, cross.busybox())
            }
        };
        let archive = match &self.system {
            Some(System { root, files }) => initramfs::system(arch, root, &agent, files)?,
            None => initramfs::build(&Contents {
                arch,
                agent: &agent,
                busybox: &busybox,
                visible: visible(self.project)?,
            })?,
        };
        fs::write(&initrd, archive)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let (console, log) = console::create(&self.project.logs()?, arch)?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("cannot create a socket pair")?;
        let step = Step::begin(match (arch, kvm) {
            (Arch::Um, _) => format!("booting the {arch} kernel"),
            (_, true) => format!("booting the {arch} kernel with KVM"),
            (_, false) => format!("booting the {arch} kernel, emulated"),
        });
        let cpu = match arch {
            Arch::Um => Cpu::take(),
            _ => None,
        };
        let mut command = match arch {
            Arch::Um => self.uml(&initrd, scratch.path(), cpu.as_ref()),
            _ => self.qemu(&initrd, &console, kvm),
        };
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs)
            .stderr(log.try_clone()?);
        let group = Group::spawn(&mut command, Signal::KILL)?;
        // The guest alone holds its end, so that its death is seen.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut guest = Guest::new(group, ours, console, scratch, cpu);
        let started = Instant::now();
        let deadline = started + BOOT;
        while !guest.channel.greeted() {
            if guest.channel.readable(Some(deadline))? && guest.channel.fill()? {
                continue;
            }
            let log = guest.log()?;
            let kvm_failed = kvm
                .then(|| kvm::failure(&log, !guest.alive(), started.elapsed()))
                .flatten();
            if let Some(reason) = kvm_failed {
                return Err(NoKvm(reason).into());
            }
            if !guest.alive() || Instant::now() >= deadline {
                bail!(
                    "the {arch} kernel {}\n{}\nconsole log: {}",
                    match console::begun(&log) {
                        true => "did not boot",
                        false => "did not even start",
                    },
                    step::tail(&guest.console)?,
                    guest.console.display()
                );
            }
            step.tick();
        }
        Ok(guest)
    }

    fn uml(&self, initrd: &Path, scratch: &Path, cpu: Option<&Cpu>) -> Command {
        let mut command = Command::new(&self.kernel.image);
        command
            .arg(format!("mem={}", self.mem))
            .arg(format!("initrd={}", initrd.display()))
            .arg(format!("uml_dir={}", scratch.display()))
            // The console goes to stderr, the first serial line is the channel.
            .args(["con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1"])
            .args(["oops=panic", "panic=-1", "rdinit=/init"])
            .args(self.parameters.split_whitespace())
            .env("TMPDIR", memory::dir(&self.mem, &self.project.cache));
        // The kernel and each of its processes take turns at every system call and fault. On two CPUs each turn wakes up the
        // other one, which takes longer than most of what is done in it.
        if let Some(cpu) = cpu.map(Cpu::set) {
            // SAFETY: the closure makes one async-signal-safe system call.
            unsafe {
                command.pre_exec(move || Ok(sched_setaffinity(None, &cpu)?));
            }
        }
        command
    }

    fn qemu(&self, initrd: &Path, console: &Path, kvm: bool) -> Command {
        let (emulator, machine, cpu, console_at, timer) = match self.kernel.arch.foreign() {
            false => (&qemu::X86_64, "q35", "max", "ttyS0", "no_timer_check"),
            true => (
                &qemu::ARM64,
                // Memory tags, and virtualisation for tests that make machines.
                "virt,mte=on,virtualization=on,gic-version=3",
                // The architecture's own algorithm takes most of the time of an emulator.
                "max,pauth-impdef=on",
                "ttyAMA0",
                "",
            ),
        };
        let mut command = emulator.command(self.project);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", machine, "-cpu", cpu, "-no-reboot"]);
        let (accel, extra) = match (kvm, self.counting) {
            (true, _) => ("kvm", ""),
            (false, false) => ("tcg,thread=multi", ""),
            // Where things lie has an effect on how many instructions it takes to find them.
            (false, true) => ("tcg,thread=single", "nokaslr norandmaps"),
        };
        if self.counting {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        if let Some(trace) = &self.trace {
            trace.prepare(&mut command);
        }
        // Counting waits for locks takes time, so the stress alone switches it on.
        let locks = match self.kernel.arch {
            Arch::Debug => "sysctl.kernel.lock_stat=0",
            _ => "",
        };
        command
            .args(["-accel", accel])
            .args(["-m", &self.mem])
            .args(["-smp", &self.smp.to_string()])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(initrd)
            .arg("-chardev")
            .arg(format!(
                "file,id=console,append=on,path={}",
                console.display().to_string().replace(',', ",,")
            ))
            .args(["-serial", "chardev:console"])
            .args(["-chardev", "stdio,id=channel,signal=off"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=channel,name=sksm"])
            .args([
                "-fsdev",
                "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot"])
            // After an oops locks may be held for good. Emulation on a busy host is slow, which is no lockup and no broken timer.
            .arg("-append")
            .arg(format!(
                "console={console_at} oops=panic panic=-1 rdinit=/init {timer} \
                 rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60 \
                 sysctl.kernel.hung_task_timeout_secs=600 {locks} {} {extra}",
                self.parameters
            ));
        command
    }
}

/// Host directories that must be seen in the guest even where they lie under /tmp.
fn visible(project: &Project) -> Result<Vec<PathBuf>> {
    let cwd = env::current_dir().context("the current directory is gone")?;
    let home = env::var_os("HOME").map(PathBuf::from);
    Ok([cwd, project.root.clone(), project.target.clone()]
        .into_iter()
        .chain(home)
        .filter(|dir| dir.is_dir())
        .filter_map(|dir| dir.canonicalize().ok())
        .collect())
}

/// For the files of a boot, which UML's command line names.
fn scratch(project: &Project) -> Result<TempDir> {
    if !plain(&env::temp_dir()) {
        return project.scratch();
    }
    tempfile::Builder::new()
        .prefix("sksm-")
        .tempdir()
        .context("cannot create a temporary directory")
}
