//! Boots a kernel on the host's root file system and runs commands in it.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use procfs::{Current, Meminfo};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::Signal,
    stdio::stdin,
};
use tempfile::TempDir;

use crate::{
    console,
    initramfs::{self, Contents},
    interrupt::{self, Group},
    kernel::{Arch, Kernel},
    progress::Step,
    project::{Project, plain},
    protocol::{Decoder, Exec, Frame, IN_FLIGHT, WINDOW},
    qemu,
    terminal::{self, Raw},
};

/// How long a kernel may take to start its first program, with a loaded host in mind.
const BOOT: Duration = Duration::from_secs(600);
/// How long it may take to kill everything, and to power off.
const WIND_DOWN: Duration = Duration::from_secs(60);
/// Where it runs on KVM, it speaks within a second.
const SILENCE: Duration = Duration::from_secs(60);
/// Complaints of the kernel that a report shows.
const SPLATS_SHOWN: usize = 10;
/// Console logs that are kept.
const LOGS_KEPT: usize = 40;

/// What the host's environment lends to the guest.
const LENT: &[&str] = &[
    "COLORTERM",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "PATH",
    "SHELL",
    "TERM",
];

/// A kernel about to be booted.
pub struct Boot<'a> {
    project: &'a Project,
    kernel: &'a Kernel,
    mem: String,
    smp: u32,
    parameters: String,
    timeout: Option<Duration>,
    counting: bool,
}

/// /dev/kvm can be opened, but no machine runs on it, for this reason.
#[derive(Debug)]
struct NoKvm(String);

impl std::fmt::Display for NoKvm {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "KVM does not work on this machine ({})", self.0)
    }
}

impl std::error::Error for NoKvm {}

/// Where standard input comes from.
#[derive(Clone, Copy, PartialEq)]
pub enum Stdin {
    Null,
    /// The tool's own; with a terminal at both ends the command gets a terminal too.
    Inherit,
}

/// Where an output goes; only standard output can be captured.
pub enum Output<'a> {
    Inherit,
    Capture,
    Lines(Box<dyn FnMut(&str) + 'a>),
}

/// A command for the guest.
pub struct Cmd<'a> {
    argv: Vec<String>,
    stdin: Stdin,
    stdout: Output<'a>,
    stderr: Output<'a>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// With this status, as a shell shows it.
    Exited(i32),
    TimedOut,
    /// The kernel panicked.
    Panicked,
    /// The kernel went away without a word.
    Died,
}

pub struct Outcome {
    pub end: End,
    /// What was captured.
    pub stdout: Vec<u8>,
    /// The kernel's complaints.
    pub splats: Vec<String>,
    /// The console log.
    pub console: PathBuf,
}

impl<'a> Cmd<'a> {
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv
                .into_iter()
                .map(|word| word.as_ref().to_string_lossy().into_owned())
                .collect(),
            stdin: Stdin::Null,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
        }
    }

    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    pub fn stdout(mut self, output: Output<'a>) -> Self {
        self.stdout = output;
        self
    }

    pub fn stderr(mut self, output: Output<'a>) -> Self {
        self.stderr = output;
        self
    }
}

impl Outcome {
    /// Fails if the kernel complained.
    pub fn check_splats(&self) -> Result<()> {
        if !self.splats.is_empty() {
            bail!("{}", self.describe());
        }
        Ok(())
    }

    /// What happened, in words.
    pub fn describe(&self) -> String {
        let mut text = match self.end {
            End::Exited(status) => format!("the command in the guest ended with status {status}"),
            End::TimedOut => "the command in the guest took too long".into(),
            End::Panicked => "the guest's kernel panicked".into(),
            End::Died => "the guest's kernel went away before the command had ended".into(),
        };
        if !self.splats.is_empty() {
            text += "\nthe kernel complained:";
            for splat in &self.splats {
                text += &format!("\n  {splat}");
            }
        }
        text + &format!("\nconsole log: {}", self.console.display())
    }
}

impl<'a> Boot<'a> {
    pub fn new(project: &'a Project, kernel: &'a Kernel) -> Self {
        // Two NUMA nodes, and a part of each that can be taken offline.
        let nodes = "numa=fake=2 movablecore=40%";
        let (mem, smp, parameters) = match kernel.arch {
            Arch::Um => ("2G", 1, ""),
            Arch::X86_64 | Arch::Without | Arch::Unpatched => ("2G", 2, nodes),
            Arch::Debug | Arch::Kcsan => ("3G", 2, nodes),
        };
        Self {
            project,
            kernel,
            mem: mem.into(),
            smp,
            parameters: parameters.into(),
            timeout: None,
            counting: false,
        }
    }

    /// As in `512M` or `4G`.
    pub fn mem(mut self, mem: &str) -> Self {
        self.mem = mem.into();
        self
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

    /// Boots, runs one command, powers off.
    pub fn run(self, cmd: Cmd) -> Result<Outcome> {
        let timeout = self.timeout;
        let mut guest = self.start()?;
        let (end, stdout) = guest.exec(cmd, timeout)?;
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
            || self.counting
            || KVM_FAILED.load(Ordering::Relaxed)
            || !kvm()
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
            .and_then(|memory| scarce(&self.mem, memory.mem_available?));
        if let Some(warning) = warning.filter(|_| !WARNED.swap(true, Ordering::Relaxed)) {
            eprintln!("warning: {warning}");
        }
        let scratch = scratch(self.project)?;
        let initrd = scratch.path().join("initrd");
        let archive = initramfs::build(&Contents {
            arch,
            // Not by its name: a newer one may have been built in the meantime.
            agent: Path::new("/proc/self/exe"),
            visible: visible(self.project)?,
        })?;
        fs::write(&initrd, archive)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let (console, log) = console_log(&self.project.logs()?, arch)?;
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
        let mut command = match arch {
            Arch::Um => self.uml(&initrd, scratch.path()),
            Arch::X86_64 | Arch::Debug | Arch::Kcsan | Arch::Without | Arch::Unpatched => {
                self.qemu(&initrd, &console, kvm)
            }
        };
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs)
            .stderr(log.try_clone()?);
        let group = Group::spawn(&mut command, Signal::KILL)?;
        // The guest alone holds its end, so that its death is seen.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut guest = Guest {
            group,
            channel: File::from(ours),
            decoder: Decoder::after_greeting(),
            outgoing: Vec::new(),
            in_flight: 0,
            console,
            gone: false,
            _scratch: scratch,
        };
        let started = Instant::now();
        let deadline = started + BOOT;
        while !guest.decoder.greeted() {
            if guest.readable(Some(deadline))? && guest.fill()? {
                continue;
            }
            let log = guest.log()?;
            let kvm_failed = kvm
                .then(|| kvm_failure(&log, guest.gone, started.elapsed()))
                .flatten();
            if let Some(reason) = kvm_failed {
                return Err(NoKvm(reason).into());
            }
            if guest.gone || Instant::now() >= deadline {
                bail!(
                    "the {arch} kernel {}\n{}\nconsole log: {}",
                    match begun(&log) {
                        true => "did not boot",
                        false => "did not even start",
                    },
                    crate::step::tail(&guest.console)?,
                    guest.console.display()
                );
            }
            step.tick();
        }
        Ok(guest)
    }

    fn uml(&self, initrd: &Path, scratch: &Path) -> Command {
        let mut command = Command::new(&self.kernel.image);
        command
            .arg(format!("mem={}", self.mem))
            .arg(format!("initrd={}", initrd.display()))
            .arg(format!("uml_dir={}", scratch.display()))
            // The console goes to stderr, the first serial line is the channel.
            .args(["con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1"])
            .args(["panic=-1", "rdinit=/init"])
            .args(self.parameters.split_whitespace())
            .env("TMPDIR", memory_dir(&self.mem, &self.project.cache));
        command
    }

    fn qemu(&self, initrd: &Path, console: &Path, kvm: bool) -> Command {
        let mut command = qemu::command(self.project);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "q35", "-cpu", "max", "-no-reboot"]);
        let (accel, extra) = match (kvm, self.counting) {
            (true, _) => ("kvm", ""),
            (false, false) => ("tcg,thread=multi", ""),
            // Where things lie has an effect on how many instructions it takes to find them.
            (false, true) => ("tcg,thread=single", "nokaslr norandmaps"),
        };
        if self.counting {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
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
            // Emulation on a busy host is slow, which is no lockup and no broken timer.
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 rdinit=/init no_timer_check \
                 rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60 {} {extra}",
                self.parameters
            ));
        command
    }
}

/// A kernel that runs and takes commands. Killed when dropped.
pub struct Guest {
    group: Group,
    channel: File,
    decoder: Decoder,
    /// What waits until the agent has read what is under way.
    outgoing: Vec<u8>,
    in_flight: usize,
    console: PathBuf,
    gone: bool,
    _scratch: TempDir,
}

impl Guest {
    /// Whether the kernel still answers.
    pub fn alive(&self) -> bool {
        !self.gone
    }

    /// The kernel's complaints so far.
    pub fn splats(&self) -> Result<Vec<String>> {
        Ok(console::splats(&self.log()?, SPLATS_SHOWN))
    }

    /// Runs a command to its end; returns what was captured too.
    pub fn exec(&mut self, cmd: Cmd, timeout: Option<Duration>) -> Result<(End, Vec<u8>)> {
        if cmd.argv.is_empty() {
            bail!("no command given");
        }
        let interactive = cmd.stdin == Stdin::Inherit && terminal::interactive();
        let cwd = env::current_dir().context("the current directory is gone")?;
        self.send(&Frame::Exec(Exec {
            argv: cmd.argv,
            env: environment(),
            cwd: cwd.to_string_lossy().into_owned(),
            tty: interactive.then(terminal::size),
        }));
        let raw = if interactive {
            Some(Raw::enter()?)
        } else {
            None
        };
        let mut size = terminal::size();
        let mut input = match cmd.stdin {
            Stdin::Inherit => Input::Open,
            Stdin::Null => {
                self.send(&Frame::StdinEnd);
                Input::Ended
            }
        };
        let mut window = WINDOW;
        let mut stdout = Sink::new(cmd.stdout, false);
        let mut stderr = Sink::new(cmd.stderr, true);
        let mut deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut timed_out = false;
        let mut end = None;
        while end.is_none() && !self.gone {
            let (from_guest, from_user) =
                self.wait(input == Input::Open && window > 0, deadline)?;
            if interactive && size != terminal::size() {
                size = terminal::size();
                self.send(&Frame::Resize(size.0, size.1));
            }
            if from_user {
                let mut chunk = vec![0; window.min(4096)];
                let count = rustix::io::read(stdin(), &mut chunk).unwrap_or(0);
                chunk.truncate(count);
                if count == 0 {
                    input = Input::Ended;
                    self.send(&Frame::StdinEnd);
                } else {
                    window -= count;
                    self.send(&Frame::Stdin(chunk));
                }
            }
            if from_guest {
                self.fill()?;
                while let Some(frame) = self.next()? {
                    match frame {
                        Frame::Stdout(data) => stdout.write(&data)?,
                        Frame::Stderr(data) => stderr.write(&data)?,
                        Frame::Taken(count) => window += count as usize,
                        Frame::Exit(status) => end = Some(End::Exited(status)),
                        _ => {}
                    }
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if timed_out {
                    // Not even killing works any more.
                    self.give_up();
                } else {
                    timed_out = true;
                    self.send(&Frame::Kill);
                    deadline = Some(Instant::now() + WIND_DOWN);
                }
            }
        }
        drop(raw);
        let end = if timed_out {
            End::TimedOut
        } else if let Some(end) = end {
            end
        } else if console::panicked(&self.log()?) {
            End::Panicked
        } else {
            End::Died
        };
        stderr.finish();
        Ok((end, stdout.finish()))
    }

    /// Powers off; returns the kernel's complaints and the console log.
    pub fn finish(mut self) -> Result<(Vec<String>, PathBuf)> {
        self.send(&Frame::PowerOff);
        let deadline = Instant::now() + WIND_DOWN;
        while !self.gone && Instant::now() < deadline {
            if self.readable(Some(deadline))? {
                self.fill()?;
                while self.next()?.is_some() {}
            }
        }
        let mut splats = self.splats()?;
        if !self.gone {
            splats.push("the kernel did not power off".into());
        }
        Ok((splats, self.console.clone()))
    }

    fn log(&self) -> Result<String> {
        let log = fs::read(&self.console)
            .with_context(|| format!("cannot read {}", self.console.display()))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn send(&mut self, frame: &Frame) {
        frame
            .write(&mut self.outgoing)
            .expect("a vector takes everything");
        self.pump();
    }

    /// Sends as much as the agent's end of the channel can hold.
    fn pump(&mut self) {
        let count = self.outgoing.len().min(IN_FLIGHT - self.in_flight);
        if count > 0 {
            // The guest's death shows when reading.
            let _ = self.channel.write_all(&self.outgoing[..count]);
            self.outgoing.drain(..count);
            self.in_flight += count;
        }
    }

    /// The next frame for the caller.
    fn next(&mut self) -> Result<Option<Frame>> {
        while let Some(frame) = self.decoder.next()? {
            match frame {
                Frame::Arrived(count) => {
                    self.in_flight = self.in_flight.saturating_sub(count as usize);
                    self.pump();
                }
                frame => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    fn give_up(&mut self) {
        self.group.kill();
        self.gone = true;
    }

    /// Reads what there is; false when the guest is gone.
    fn fill(&mut self) -> Result<bool> {
        match self.decoder.fill(&mut self.channel) {
            Ok(count) => {
                self.gone = count == 0;
                Ok(!self.gone)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.gone = true;
                Ok(false)
            }
            Err(error) => Err(error).context("cannot read from the guest"),
        }
    }

    fn readable(&mut self, deadline: Option<Instant>) -> Result<bool> {
        Ok(self.wait(false, deadline)?.0)
    }

    /// Whether the guest and the user have something to say, after a second at most.
    fn wait(&mut self, user: bool, deadline: Option<Instant>) -> Result<(bool, bool)> {
        interrupt::check()?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = left
            .unwrap_or(Duration::MAX)
            .min(Duration::from_millis(500));
        let mut fds = vec![PollFd::new(&self.channel, PollFlags::IN)];
        let stdin = stdin();
        if user {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, Some(&patience.try_into()?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| {
            fds.get(index)
                .is_some_and(|fd: &PollFd| !fd.revents().is_empty())
        };
        let ready = (ready(0), ready(1));
        interrupt::check()?;
        Ok(ready)
    }
}

#[derive(PartialEq)]
enum Input {
    Open,
    Ended,
}

/// Receives an output.
struct Sink<'a> {
    output: Output<'a>,
    stderr: bool,
    kept: Vec<u8>,
}

impl<'a> Sink<'a> {
    fn new(output: Output<'a>, stderr: bool) -> Self {
        Self {
            output,
            stderr,
            kept: Vec::new(),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.output {
            Output::Capture => self.kept.extend(data),
            Output::Inherit => {
                let written = if self.stderr {
                    io::stderr().write_all(data)
                } else {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(data).and_then(|()| stdout.flush())
                };
                written.context("cannot pass the guest's output on")?;
            }
            Output::Lines(on_line) => {
                self.kept.extend(data);
                while let Some(end) = self.kept.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = self.kept.drain(..=end).collect();
                    on_line(String::from_utf8_lossy(&line).trim_end());
                }
            }
        }
        Ok(())
    }

    /// What was captured; a last line without an end is passed on.
    fn finish(mut self) -> Vec<u8> {
        if let Output::Lines(on_line) = &mut self.output {
            if !self.kept.is_empty() {
                on_line(String::from_utf8_lossy(&self.kept).trim_end());
            }
            return Vec::new();
        }
        self.kept
    }
}

fn environment() -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = LENT
        .iter()
        .filter_map(|&name| Some((name.to_owned(), env::var(name).ok()?)))
        .collect();
    variables.push(("USER".into(), "root".into()));
    variables.push(("LOGNAME".into(), "root".into()));
    variables
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

/// A new console log; old ones are removed.
fn console_log(dir: &Path, arch: Arch) -> Result<(PathBuf, File)> {
    let mut logs: Vec<(std::time::SystemTime, PathBuf)> = fs::read_dir(dir)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            name.to_str()?.starts_with("console-").then_some(())?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    logs.sort();
    for (_, old) in logs.iter().rev().skip(LOGS_KEPT) {
        let _ = fs::remove_file(old);
    }
    for boot in 0.. {
        let path = dir.join(format!("console-{arch}-{}-{boot}.log", std::process::id()));
        // What is there is of another boot, perhaps of another process that had this number.
        match File::options().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create {}", path.display()));
            }
        }
    }
    unreachable!("there are enough numbers")
}

/// Whether the kernel has said anything; before it the emulator may have.
fn begun(log: &str) -> bool {
    log.contains("Linux version")
}

/// Why a machine that began like this cannot run on KVM. What QEMU complains of otherwise, it does when it emulates, too.
fn kvm_failure(log: &str, gone: bool, after: Duration) -> Option<String> {
    let line = |text: &str| log.lines().find(|line| line.to_lowercase().contains(text));
    // Then QEMU waits for a debugger.
    let stopped = line("kvm internal error").or_else(|| line("kvm run failed"));
    if stopped.is_some() || begun(log) {
        return stopped.map(str::to_owned);
    }
    match (gone, log.trim().is_empty()) {
        (true, true) => Some("QEMU ended without a word".into()),
        (true, false) => line("kvm").map(str::to_owned),
        (false, _) => (after > SILENCE)
            .then(|| format!("the kernel said nothing for {} s", SILENCE.as_secs())),
    }
}

/// What to say where a guest may need more memory than there is.
fn scarce(mem: &str, available: u64) -> Option<String> {
    let needed = bytes(mem)?;
    (needed > available).then(|| {
        format!(
            "the guest may take {} of memory, and {} are available: if it does, it gets slow or is killed",
            gib(needed),
            gib(available)
        )
    })
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Where UML's memory file goes: in memory if it fits and may be executed from, else on disk.
fn memory_dir(mem: &str, cache: &Path) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let fits = rustix::fs::statvfs(shm).is_ok_and(|fs| {
        let free = fs.f_bavail * fs.f_frsize;
        !fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC)
            && bytes(mem).is_some_and(|mem| free > mem)
    });
    if fits { shm.into() } else { cache.into() }
}

/// `512M` as a number.
pub fn bytes(size: &str) -> Option<u64> {
    let (digits, shift) = match size.as_bytes().last()? {
        b'K' | b'k' => (&size[..size.len() - 1], 10),
        b'M' | b'm' => (&size[..size.len() - 1], 20),
        b'G' | b'g' => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Whether hardware virtualisation is offered to this user.
pub fn kvm() -> bool {
    // There is a KVM that works without these, but not for an ordinary guest: it would crawl.
    let hardware = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| virtualizes(&text));
    env::var_os("SKSM_NO_KVM").is_none()
        && hardware()
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// Whether a processor of this `/proc/cpuinfo` runs virtual machines by itself.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_a_processor_that_virtualizes() {
        assert!(virtualizes("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualizes("flags : svm\n"));
        assert!(!virtualizes(
            "model name : svm\nflags : fpu xsave\nvmx flags : ept\n"
        ));
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("512M"), Some(512 << 20));
        assert_eq!(bytes("4G"), Some(4 << 30));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("G"), None);
        assert_eq!(bytes(""), None);
        assert_eq!(bytes("2T"), None);
        assert_eq!(bytes("99999999999G"), None);
    }

    #[test]
    fn scarce_memory_is_told() {
        assert_eq!(scarce("2G", 2 << 30), None);
        let text = scarce("3G", 1536 << 20).unwrap();
        assert!(
            text.contains("3.0 GiB") && text.contains("1.5 GiB"),
            "{text}"
        );
    }

    #[test]
    fn only_what_is_kvms_fault_is_put_down_to_it() {
        let soon = Duration::from_secs(1);
        let fails = |log, gone, after| kvm_failure(log, gone, after).is_some();
        for log in [
            "",
            "qemu-system-x86_64: failed to initialize kvm: Permission denied\n",
            "qemu-system-x86_64: -accel kvm: Could not access KVM kernel module\n",
        ] {
            assert!(fails(log, true, soon), "{log}");
        }
        for log in [
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
            "[    0.000000] Linux version 6.12\nkvm-guest: PV spinlocks\nKernel panic\n",
        ] {
            assert!(!fails(log, true, soon), "{log}");
        }
        for log in [
            "KVM internal error. Suberror: 1\nemulation failure\n",
            "[    0.000000] Linux version 6.12\nKVM internal error. Suberror: 1\n",
        ] {
            assert!(fails(log, false, soon), "{log}");
        }
        assert!(!fails("", false, soon));
        assert!(fails("", false, SILENCE * 2));
        assert!(!fails("Linux version 6.12\n", false, SILENCE * 2));
    }

    #[test]
    fn each_boot_has_a_console_log_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (first, mut file) = console_log(dir.path(), Arch::Um).unwrap();
        writeln!(file, "BUG: of another boot").unwrap();
        let (second, _) = console_log(dir.path(), Arch::Um).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(second).unwrap(), b"");
        for _ in 0..2 * LOGS_KEPT {
            console_log(dir.path(), Arch::Um).unwrap();
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() <= LOGS_KEPT + 1);
    }

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let mut lines = Vec::new();
        let mut sink = Sink::new(
            Output::Lines(Box::new(|line| lines.push(line.to_owned()))),
            false,
        );
        for piece in ["o", "k a\nok", " b\nlast"] {
            sink.write(piece.as_bytes()).unwrap();
        }
        sink.finish();
        assert_eq!(lines, ["ok a", "ok b", "last"]);
    }
}
