//! The packages tried as an administrator would: installed by apt in a Debian that systemd has booted on the kernel with the engine,
//! used, upgraded and removed.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::root;
use crate::{
    ground::{project::Project, step::output},
    guest::{Boot, Cmd, End, Guest, Limit, Output},
    kernel::{self, Arch, Origin},
    terminal::progress::Step,
};

/// What a step may take, on an emulated and busy machine.
const PATIENCE: Duration = Duration::from_secs(1200);
/// How often something is looked for that is to come, with a second between.
const LOOKS: u32 = 600;
/// A worker's table.
const TABLE_MIB: u64 = 16;
/// What is not the packages': apt's and dpkg's own books, logs, what this trial has put there.
const BOOKS: &str =
    "/var/lib/dpkg /var/lib/apt /var/cache /var/log /var/lib/systemd /packages /etc/systemd/system";

/// Two versions of each package: as built, and the next.
pub struct Versions {
    old: Vec<(String, Vec<u8>)>,
    new: Vec<(String, Vec<u8>)>,
}

impl Versions {
    /// The next is made of the built one, with another number.
    pub fn of(project: &Project, packages: &[PathBuf]) -> Result<Self> {
        let scratch = project.scratch()?;
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for package in packages {
            let name = package.file_name().context("no name")?.to_string_lossy();
            old.push((format!("packages/old/{name}"), fs::read(package)?));
            let tree = scratch.path().join("tree");
            output(
                Command::new("dpkg-deb")
                    .arg("--raw-extract")
                    .arg(package)
                    .arg(&tree),
            )?;
            let control = tree.join("DEBIAN/control");
            let text = fs::read_to_string(&control)?;
            let version = text
                .lines()
                .find_map(|line| line.strip_prefix("Version: "))
                .context("no version")?
                .to_owned();
            // Of what it needs as well.
            fs::write(&control, text.replace(&version, &next(&version)))?;
            let rebuilt = scratch.path().join("next.deb");
            let mut build = Command::new("dpkg-deb");
            build.args(["--root-owner-group", "--build"]);
            output(build.arg(&tree).arg(&rebuilt))?;
            new.push((format!("packages/new/{name}"), fs::read(&rebuilt)?));
            fs::remove_dir_all(tree)?;
        }
        Ok(Self { old, new })
    }

    fn files(self) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = self.old.into_iter().chain(self.new).collect();
        for worker in WORKERS {
            let path = format!("etc/systemd/system/{worker}.service");
            files.push((path, WORKER.as_bytes().to_vec()));
        }
        files
    }
}

fn next(version: &str) -> String {
    format!("{version}+next")
}

const WORKERS: [&str; 2] = ["worker-one", "worker-two"];
/// Each builds the same table. A dollar is two for systemd.
const WORKER: &str = r#"[Unit]
Description=Has a table

[Service]
ExecStart=/usr/bin/sksm run --ksm --quiet -- /usr/bin/perl -e '$$table = pack "N*", map { $$_ * 40503 } 1 .. 4194304; sleep'
"#;

/// Boots, and goes through all of it.
pub fn run(project: &Project, arch: Arch, packages: &[PathBuf], origin: &Origin) -> Result<()> {
    let arch = arch.of_this_machine()?;
    let root = root::archive(project)?;
    let kernel = kernel::build(project, arch, origin)?;
    let boot = Boot::new(project, &kernel)
        .mem("3G")
        .system(&root, Versions::of(project, packages)?.files());
    let mut machine = Machine {
        guest: boot.start()?,
    };
    let tried = machine.trial();
    let finished = machine.guest.finish();
    let at_end = || match &finished {
        Ok((_, console)) => format!("console log: {}", console.display()),
        Err(error) => format!("{error:#}"),
    };
    tried.with_context(at_end)?;
    let (splats, console) = finished?;
    let at_end = || format!("console log: {}", console.display());
    ensure!(
        splats.is_empty(),
        "the kernel complained:\n{}\n{}",
        splats.join("\n"),
        at_end()
    );
    Ok(())
}

struct Machine {
    guest: Guest,
}

impl Machine {
    fn trial(&mut self) -> Result<()> {
        self.step("systemd has started", Self::started)?;
        let before = self.files()?;
        self.step("apt installs them", |on| {
            on.apt("install --yes /packages/old/*.deb")
        })?;
        self.step("doctor and run", Self::command)?;
        self.step(
            "the scanner merges what workers have in common",
            Self::scanner,
        )?;
        self.step("the scanner is reloaded", Self::reload)?;
        self.step("a service is merged, and by a timer", Self::timer)?;
        self.step("apt upgrades them", Self::upgrade)?;
        self.step("what the scanner has merged stays when it ends", Self::end)?;
        self.step("who connects to the socket starts it", Self::socket)?;
        self.step("removal leaves nothing", |on| on.removal(&before))?;
        self.step("nothing has failed", Self::failed)
    }

    fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let step = Step::begin(name);
        work(self).with_context(|| format!("not so: {name}"))?;
        step.done();
        Ok(())
    }

    /// What it prints; fails if the script does.
    fn sh(&mut self, script: &str) -> Result<String> {
        let mut complaints = String::new();
        let command = format!(
            "export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive; {script}"
        );
        let cmd = Cmd::new(["/bin/sh", "-e", "-c", &command])
            .dir("/")
            .stdout(Output::Capture)
            .stderr(Output::Lines(Box::new(|line| {
                complaints += line;
                complaints += "\n";
            })));
        let (end, printed) = self.guest.exec(cmd, Some(Limit::Whole(PATIENCE)))?;
        let printed = String::from_utf8_lossy(&printed).into_owned();
        match end {
            End::Exited(0) => Ok(printed),
            end => bail!("`{script}` ended with {end:?}\n{printed}{complaints}"),
        }
    }

    /// Looks until it is so; what fails tells what was seen last.
    fn until(&mut self, script: &str, so: impl Fn(&str) -> bool) -> Result<String> {
        let mut seen = String::new();
        for _ in 0..LOOKS {
            seen = self.sh(script)?;
            if so(&seen) {
                return Ok(seen);
            }
            self.sh("sleep 1")?;
        }
        let journal = self.sh("journalctl --no-pager | tail -n 30")?;
        bail!("`{script}` still says\n{seen}{journal}")
    }

    fn apt(&mut self, what: &str) -> Result<()> {
        self.sh(&format!("apt-get --no-install-recommends {what}"))
            .map(drop)
    }

    fn started(&mut self) -> Result<()> {
        let state = self.until("systemctl is-system-running || true", |state| {
            !["initializing", "starting"].contains(&state.trim())
        })?;
        let failed = self.sh("systemctl list-units --failed --plain --no-legend")?;
        ensure!(state.trim() == "running", "it is {state}{failed}");
        Ok(())
    }

    /// All that is on its file system, and no other.
    fn files(&mut self) -> Result<Vec<String>> {
        let left_out = BOOKS.split(' ').map(|dir| format!("-path {dir}"));
        let left_out = left_out.collect::<Vec<_>>().join(" -o ");
        let files = self.sh(&format!(
            r"find / -xdev \( {left_out} \) -prune -o -print | sort"
        ))?;
        ensure!(
            files.contains("/usr/bin/dpkg\n"),
            "this is no whole list: {files}"
        );
        Ok(files.lines().map(str::to_owned).collect())
    }

    fn command(&mut self) -> Result<()> {
        self.sh("sksm doctor --require merge --require others")?;
        let domain = self.sh("cat /sys/kernel/mm/sksm/domain")?;
        ensure!(domain.contains("[user]"), "the merge domain: {domain}");
        let said = self.sh("sksm run --verbose -- true 2>&1")?;
        ensure!(said.contains(" at start: merged "), "sksm run: {said}");
        Ok(())
    }

    fn scanner(&mut self) -> Result<()> {
        self.sh("echo 'stable = 2s' >> /etc/sksm/scan.conf; systemctl enable --now sksm-scan")?;
        self.sh(&format!("systemctl start {}", WORKERS.join(" ")))?;
        // One of the two tables, but for what the machine writes meanwhile.
        let saved = |report: &str| {
            let report: Option<Value> = serde_json::from_str(report).ok();
            let saved =
                report.and_then(|report| report["scanner"]["total"]["saved_bytes"].as_u64());
            saved.is_some_and(|bytes| bytes >= (TABLE_MIB - 2) << 20)
        };
        self.until("sksm --json stat", saved)?;
        self.active("sksm-scan.service")?;
        let limits = self.sh("systemctl show --property=User,DynamicUser,AmbientCapabilities sksm-scan; cat /proc/$(systemctl show --value --property=MainPID sksm-scan)/status")?;
        for line in [
            "DynamicUser=yes",
            "NoNewPrivs:\t1",
            "CapEff:\t0000000000880004",
        ] {
            ensure!(limits.contains(line), "no {line} in\n{limits}");
        }
        ensure!(
            !limits.contains("\nUid:\t0"),
            "the scanner is root\n{limits}"
        );
        Ok(())
    }

    fn active(&mut self, unit: &str) -> Result<()> {
        let state = self.sh(&format!("systemctl is-active {unit} || true"))?;
        if state.trim() == "active" {
            return Ok(());
        }
        let journal = self.sh(&format!("journalctl --no-pager --unit {unit} | tail -n 20"))?;
        bail!("{unit} is {state}{journal}")
    }

    fn main_pid(&mut self) -> Result<String> {
        self.sh("systemctl show --value --property=MainPID sksm-scan")
    }

    fn reload(&mut self) -> Result<()> {
        let before = self.main_pid()?;
        self.sh("echo 'colour = red' >> /etc/sksm/scan.conf; systemctl reload sksm-scan")?;
        let journal = "journalctl --no-pager --unit sksm-scan";
        self.until(journal, |text| text.contains("colour"))?;
        self.sh("sed -i '/^colour/d' /etc/sksm/scan.conf; systemctl reload sksm-scan")?;
        self.active("sksm-scan.service")?;
        ensure!(self.main_pid()? == before, "it is another process now");
        Ok(())
    }

    fn timer(&mut self) -> Result<()> {
        let unit = format!("sksm-merge@{}.service", WORKERS[0]);
        self.sh(&format!("systemctl start {unit}.service"))?;
        let journal = format!("journalctl --no-pager --output cat --unit {unit}.service");
        self.until(&journal, |text| text.contains("perl"))?;
        self.sh(&format!("systemctl enable --now {unit}.timer"))?;
        self.active(&format!("{unit}.timer"))?;
        // Within an hour, for which nobody waits.
        let starts = self.sh(&format!(
            "systemctl show --value --property=Unit {unit}.timer"
        ))?;
        ensure!(
            starts.trim() == format!("{unit}.service"),
            "the timer starts {starts}"
        );
        Ok(())
    }

    fn upgrade(&mut self) -> Result<()> {
        let (version, scanner) = (self.version()?, self.main_pid()?);
        self.apt("install --yes /packages/new/*.deb")?;
        let now = self.version()?;
        ensure!(
            now == next(&version),
            "{now} is installed in place of {version}"
        );
        self.active("sksm-scan.service")?;
        ensure!(self.main_pid()? != scanner, "the old scanner goes on");
        self.sh("grep --quiet '^stable = 2s' /etc/sksm/scan.conf")
            .context("the administrator's change has gone")?;
        self.active(&format!("sksm-merge@{}.service.timer", WORKERS[0]))
    }

    fn version(&mut self) -> Result<String> {
        self.sh("dpkg-query --show --showformat='${Version}' sksm")
    }

    fn shared(&mut self) -> Result<u64> {
        let pages = self.sh("cat /sys/kernel/mm/sksm/pages_sharing")?;
        pages.trim().parse().context("pages_sharing")
    }

    fn end(&mut self) -> Result<()> {
        let crashes = self.sh("systemctl show --value --property=NRestarts sksm-scan")?;
        ensure!(
            crashes.trim() == "0",
            "systemd had to start it again: {crashes}"
        );
        let before = self.shared()?;
        self.sh("systemctl stop sksm-scan")?;
        let result = self.sh("systemctl show --value --property=Result sksm-scan")?;
        ensure!(result.trim() == "success", "it ended with {result}");
        let after = self.shared()?;
        let table = TABLE_MIB * 256;
        ensure!(
            before.min(after) > table * 7 / 8,
            "{before} pages were shared, and {after} afterwards"
        );
        Ok(())
    }

    fn socket(&mut self) -> Result<()> {
        self.sh("systemctl disable sksm-scan; systemctl enable --now sksm-scan.socket")?;
        let state = self.sh("systemctl is-active sksm-scan.service || true")?;
        ensure!(
            state.trim() == "inactive",
            "it is {state} before somebody connects"
        );
        self.sh(
            "setpriv --reuid=nobody --regid=nogroup --clear-groups perl -MIO::Socket::UNIX -e \
             'IO::Socket::UNIX->new(Peer => \"/run/sksm-scan.sock\") or die \"$!\\n\"'",
        )?;
        self.until("systemctl is-active sksm-scan.service || true", |state| {
            state.trim() == "active"
        })
        .map(drop)
    }

    fn removal(&mut self, before: &[String]) -> Result<()> {
        self.apt("remove --yes sksm")?;
        for unit in ["sksm-scan.service", "sksm-scan.socket"] {
            let state = self.sh(&format!("systemctl is-active {unit} || true"))?;
            ensure!(
                state.trim() == "inactive",
                "{unit} is {state} without its package"
            );
        }
        self.apt("purge --yes sksm libsksm0 libsksm-dev")?;
        let left: Vec<String> = (self.files()?.into_iter())
            .filter(|file| !before.contains(file))
            .collect();
        let run = self.sh("find /run /etc/systemd -name '*sksm*' -not -name '*sksm-agent*'")?;
        ensure!(
            left.is_empty() && run.is_empty(),
            "left are\n{}\n{run}",
            left.join("\n")
        );
        Ok(())
    }

    fn failed(&mut self) -> Result<()> {
        let failed = self.sh("systemctl list-units --failed --plain --no-legend")?;
        let said = self.sh("journalctl --no-pager --output cat --identifier sksm")?;
        // But for the mistake in its configuration.
        let complaints = |line: &&str| line.starts_with("error:") && !line.contains("colour");
        let complaints: Vec<_> = said.lines().filter(complaints).collect();
        ensure!(
            failed.is_empty() && complaints.is_empty() && said.contains("perl"),
            "{failed}{}",
            complaints.join("\n")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_version_is_higher() {
        for version in ["0.1.0~git12.20261129.200000.abcdef0", "0.1.0"] {
            let mut dpkg = Command::new("dpkg");
            dpkg.args(["--compare-versions", version, "lt", &next(version)]);
            assert!(dpkg.status().unwrap().success(), "{version}");
        }
    }
}
