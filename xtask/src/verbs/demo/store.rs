//! The experiment on the machine's own kernel, by the store: real processes of `sleep` that patch libc, as the experiment in the guest
//! has them. Others run on this machine as well, so that memory is counted process by process.

use std::{
    fs::{self, DirBuilder, File},
    io::{BufRead, BufReader},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::DirBuilderExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{Args, Out};
use crate::{
    ground::{interrupt, project::Project},
    guest::programs,
    terminal::{
        format::{mib, seconds, thousands},
        progress::Step,
        table::Table,
    },
};

const PAGE: usize = 4096;
/// What a sleeping process takes beside its libc. Generous.
const KIB_PER_PROCESS: u64 = 512;

/// What goes into demo-store.json.
#[derive(Serialize)]
struct Report {
    kernel: String,
    processes: u32,
    library: String,
    text_pages: usize,
    phases: Vec<Phase>,
    /// Text of all processes is the file's, byte for byte.
    compared: bool,
}

#[derive(Serialize)]
struct Phase {
    name: &'static str,
    /// The share of all processes together, in pages.
    anonymous_pages: u64,
    /// Copies of each process's own in libc's text: in the process that has most of them.
    private_text_pages: u64,
    /// Physical pages behind libc's text that are not the file's.
    copies: u64,
    /// All of them: the store's files.
    stored_pages: u64,
    /// The largest number of mappings of libc's text in a process.
    text_mappings: usize,
    start_seconds: f64,
    /// From opening the store to the last page; the first has nothing to share with.
    first_ns: Option<u64>,
    median_ns: Option<u64>,
    p95_ns: Option<u64>,
}

pub fn run(project: &Project, args: &Args, out: &Out) -> Result<ExitCode> {
    let preload = programs::preload_for_demo(project)?;
    let text = Text::of_libc()?;
    let needed = u64::from(args.processes) * ((text.len / 1024) as u64 + KIB_PER_PROCESS) / 1024;
    let available = available_mib()?;
    ensure!(
        available >= needed,
        "{} processes need {needed} MiB, but only {available} MiB are available: take fewer by --processes",
        args.processes
    );
    let store = Store::create()?;
    let mut report = Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .into(),
        processes: args.processes,
        library: text.library.display().to_string(),
        text_pages: text.len / PAGE,
        phases: Vec::new(),
        compared: false,
    };
    let steps = [
        ("plain", None),
        ("preload object, idle", Some("idle")),
        ("libc's text written", Some("patch")),
        ("the same, the store", Some("store")),
    ];
    for (name, step) in steps {
        let shows = Step::begin(format!("{}: {name}", thousands(args.processes)));
        let start = Instant::now();
        let mut crew = Crew(Vec::new());
        let mut times = Vec::new();
        for number in 0..args.processes {
            interrupt::check()?;
            times.extend(crew.start(step, &preload, &store.0)?);
            shows.percent(u64::from(number) * 100 / u64::from(args.processes));
        }
        crew.wait_until_asleep()?;
        let mut phase = text.look_at(&crew, &store.0)?;
        phase.name = name;
        phase.start_seconds = start.elapsed().as_secs_f64();
        if step == Some("store") {
            text.compare(&crew)?;
            report.compared = true;
            phase.first_ns = times.first().copied();
            times.sort_unstable();
            phase.median_ns = times.get(times.len() / 2).copied();
            phase.p95_ns = times.get(times.len() * 95 / 100).copied();
        }
        report.phases.push(phase);
        shows.done();
    }
    print!("{}", report.table());
    out.json("demo-store.json", &report)?;
    report.judge()
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new([
            "",
            "anonymous",
            "private text pages",
            "physical copies",
            "the store",
            "shared after",
        ]);
        table.row([
            "",
            "MiB, by Pss",
            "in each process",
            "of text pages",
            "MiB",
            "",
        ]);
        table.rule();
        for phase in &self.phases {
            let time = phase.median_ns.map(|ns| seconds(ns as f64 / 1e9));
            table.row([
                phase.name.to_owned(),
                mib(phase.anonymous_pages as i64, PAGE),
                thousands(phase.private_text_pages as i64),
                thousands(phase.copies as i64),
                mib(phase.stored_pages as i64, PAGE),
                time.map_or(String::new(), |time| format!("the call: {time}")),
            ]);
        }
        let mut text = format!(
            "{} processes of `sleep` in Linux {}, this machine's own; libc's text has {} pages\n{}",
            thousands(self.processes),
            self.kernel,
            self.text_pages,
            table.render()
        );
        if let Some(phase) = self.phases.last() {
            let time = |ns: Option<u64>| ns.map_or(String::new(), |ns| seconds(ns as f64 / 1e9));
            text += &format!(
                "the first process, which publishes: {}; 95 % below {}; {} mappings of libc's text\n",
                time(phase.first_ns),
                time(phase.p95_ns),
                phase.text_mappings
            );
        }
        text
    }

    /// Whether it did what it is for.
    fn judge(&self) -> Result<ExitCode> {
        let phase = |name| self.phases.iter().find(|phase: &&Phase| phase.name == name);
        let [Some(idle), Some(written), Some(stored)] = [
            phase("preload object, idle"),
            phase("libc's text written"),
            phase("the same, the store"),
        ] else {
            bail!("a phase is missing");
        };
        let pages = self.text_pages as u64;
        let all = pages * u64::from(self.processes);
        ensure!(
            written.copies == all && written.private_text_pages == pages,
            "not every page was written: {} of {all}",
            written.copies
        );
        ensure!(
            stored.private_text_pages == 0 && stored.copies == pages,
            "{} physical copies instead of {pages}, and up to {} pages of a process's own",
            stored.copies,
            stored.private_text_pages
        );
        // A few pages each for what sharing takes.
        let most = idle.anonymous_pages + 8 * u64::from(self.processes);
        ensure!(
            stored.anonymous_pages <= most,
            "{} anonymous pages, expected at most {most}",
            stored.anonymous_pages
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A store of the experiment's own, removed with it.
struct Store(PathBuf);

impl Store {
    fn create() -> Result<Self> {
        let path = PathBuf::from(format!("/dev/shm/sksm-demo-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Sleeping processes; killed when dropped.
struct Crew(Vec<Child>);

impl Crew {
    /// Starts one more, and waits for its report: how long sharing took.
    fn start(&mut self, step: Option<&str>, preload: &Path, store: &Path) -> Result<Option<u64>> {
        let mut command = Command::new("/bin/sleep");
        command.arg("100000").env_clear();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Some(step) = step else {
            self.0
                .push(command.spawn().context("cannot start a process")?);
            return Ok(None);
        };
        // Both ends are inherited; the reading one is of no use to a child, and harmless.
        let (reports, end): (OwnedFd, OwnedFd) = rustix::pipe::pipe()?;
        command
            .env("LD_PRELOAD", preload)
            .env("SKSM_EXPERIMENT", step)
            .env("SKSM_STORE_DIR", store)
            .env("SKSM_EXPERIMENT_FD", end.as_raw_fd().to_string());
        self.0
            .push(command.spawn().context("cannot start a process")?);
        drop(end);
        let mut line = String::new();
        BufReader::new(File::from(reports)).read_line(&mut line)?;
        let field = |name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        ensure!(
            field("failed") == Some("nothing"),
            "a process failed: {line:?}"
        );
        let ns = field("ns").context("a report without a time")?.parse()?;
        Ok(Some(ns))
    }

    fn wait_until_asleep(&mut self) -> Result<()> {
        for child in &mut self.0 {
            loop {
                interrupt::check()?;
                let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
                // Before its exec it bears this program's name.
                if stat.contains("(sleep) S ") {
                    break;
                }
                ensure!(
                    child.try_wait()?.is_none(),
                    "a process died instead of sleeping"
                );
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It fails only for a process that has ended already.
            child.kill().ok();
        }
        for child in &mut self.0 {
            child.wait().ok();
        }
    }
}

/// libc's executable pages.
struct Text {
    library: PathBuf,
    offset: u64,
    len: usize,
}

impl Text {
    /// As this program has it mapped: the processes load the same file.
    fn of_libc() -> Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let of_libc = |line: &&str| line.contains(" r-xp ") && line.contains("/libc.so.");
        let line = maps
            .lines()
            .find(of_libc)
            .context("this program has no libc")?;
        let mut words = line.split_whitespace();
        let range = words.next().and_then(addresses);
        let range = range.context("/proc/self/maps is not understood")?;
        let offset = u64::from_str_radix(words.nth(1).unwrap_or_default(), 16)?;
        Ok(Self {
            library: words.nth(2).context("libc has no path")?.into(),
            offset,
            len: range.1 - range.0,
        })
    }

    /// The mappings of it in a process, each with what smaps tells of it.
    fn mappings(&self, pid: u32) -> Result<Vec<Mapping>> {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let own = self.library.to_string_lossy();
        let name = self
            .library
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let stored = format!("/{name}.");
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut within = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((start, end)) = addresses(first) {
                let path = line.split_whitespace().nth(5).unwrap_or_default();
                within = line.contains(" r-xp ") && (path == own || path.contains(&stored));
                let offset = line.split_whitespace().nth(2).unwrap_or_default();
                if within {
                    mappings.push(Mapping {
                        start,
                        len: end - start,
                        offset: u64::from_str_radix(offset, 16)?,
                        stored: path != own,
                        anonymous: 0,
                    });
                }
            } else if let Some(mapping) = mappings.last_mut().filter(|_| within) {
                if first == "Anonymous:" {
                    let kib = words.next().and_then(|number| number.parse().ok());
                    mapping.anonymous = kib.unwrap_or(0);
                }
            }
        }
        Ok(mappings)
    }

    fn look_at(&self, crew: &Crew, store: &Path) -> Result<Phase> {
        let mut phase = Phase {
            name: "",
            anonymous_pages: 0,
            private_text_pages: 0,
            copies: 0,
            stored_pages: 0,
            text_mappings: 0,
            start_seconds: 0.0,
            first_ns: None,
            median_ns: None,
            p95_ns: None,
        };
        let (mut anonymous, mut used) = (0, None::<Vec<bool>>);
        for child in &crew.0 {
            interrupt::check()?;
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id()))?;
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss_Anon:"));
            let line = line.context("this kernel tells no Pss_Anon: it needs Linux 5.4")?;
            anonymous += line.trim().trim_end_matches(" kB").parse::<u64>()?;
            let mappings = self.mappings(child.id())?;
            let covered: usize = mappings.iter().map(|mapping| mapping.len).sum();
            ensure!(covered == self.len, "libc's text is not mapped throughout");
            let private: u64 = mappings.iter().map(|mapping| mapping.anonymous / 4).sum();
            phase.private_text_pages = phase.private_text_pages.max(private);
            phase.copies += private;
            phase.text_mappings = phase.text_mappings.max(mappings.len());
            let used = used.get_or_insert_with(|| vec![false; self.len / PAGE]);
            for mapping in mappings.iter().filter(|mapping| mapping.stored) {
                let first = ((mapping.offset - self.offset) / PAGE as u64) as usize;
                used[first..first + mapping.len / PAGE].fill(true);
            }
        }
        // One physical page in one file, however many map it: there is one file, or the count is too small.
        let mut files = 0;
        for entry in fs::read_dir(store)? {
            let entry = entry?;
            if entry.file_name() != ".lock" {
                files += 1;
                let blocks = std::os::unix::fs::MetadataExt::blocks(&entry.metadata()?);
                phase.stored_pages += blocks * 512 / PAGE as u64;
            }
        }
        let used = used
            .unwrap_or_default()
            .iter()
            .filter(|used| **used)
            .count();
        ensure!(files <= 1 || used == 0, "{files} files hold what one could");
        phase.copies += used as u64;
        phase.anonymous_pages = anonymous / 4;
        Ok(phase)
    }

    /// Fails unless each process has the text that the file has.
    fn compare(&self, crew: &Crew) -> Result<()> {
        let mut right = vec![0; self.len];
        let file = File::open(&self.library)?;
        let mut read = 0;
        // The file may end within the last page, the rest of which is zeros then.
        while let count @ 1.. = file.read_at(&mut right[read..], self.offset + read as u64)? {
            read += count;
        }
        let mut found = vec![0; self.len];
        for child in &crew.0 {
            interrupt::check()?;
            let mappings = self.mappings(child.id())?;
            let start = mappings.first().context("no text")?.start;
            let memory = File::open(format!("/proc/{}/mem", child.id()))?;
            memory.read_exact_at(&mut found, start as u64)?;
            ensure!(found == right, "process {} has other text", child.id());
        }
        Ok(())
    }
}

struct Mapping {
    start: usize,
    len: usize,
    offset: u64,
    stored: bool,
    anonymous: u64,
}

fn addresses(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = (line
        .context("no MemAvailable")?
        .trim()
        .trim_end_matches(" kB"))
    .parse()?;
    Ok(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &'static str, anonymous_pages: u64, private: u64, copies: u64) -> Phase {
        Phase {
            name,
            anonymous_pages,
            private_text_pages: private,
            copies,
            stored_pages: copies.min(420),
            text_mappings: 1,
            start_seconds: 2.0,
            first_ns: None,
            median_ns: (private == 0 && copies > 0).then_some(800_000),
            p95_ns: None,
        }
    }

    fn report(copies: u64) -> Report {
        Report {
            kernel: "6.18".into(),
            processes: 1000,
            library: "/lib/libc.so.6".into(),
            text_pages: 342,
            phases: vec![
                phase("plain", 23_000, 0, 0),
                phase("preload object, idle", 25_000, 0, 0),
                phase("libc's text written", 367_000, 342, 342_000),
                phase("the same, the store", 27_000, 0, copies),
            ],
            compared: true,
        }
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let text = report(342).table();
        let line = text
            .lines()
            .find(|line| line.starts_with("the same, the store"));
        let cells: Vec<_> = line.unwrap().split_whitespace().collect();
        assert_eq!(
            cells.join(" "),
            "the same, the store 105 0 342 1.3 the call: 800 µs"
        );
    }

    #[test]
    fn more_copies_than_pages_are_a_failure() {
        report(342).judge().unwrap();
        let error = report(700).judge().unwrap_err().to_string();
        assert!(
            error.contains("700 physical copies instead of 342"),
            "{error}"
        );
        let mut more = report(342);
        more.phases[3].anonymous_pages = 40_000;
        assert!(more.judge().is_err());
    }

    #[test]
    fn libc_is_found() {
        let text = Text::of_libc().unwrap();
        let mappings = text.mappings(std::process::id()).unwrap();
        assert_eq!((mappings.len(), mappings[0].len), (1, text.len));
        assert!(text.len > 100 * PAGE && text.offset > 0);
    }
}
