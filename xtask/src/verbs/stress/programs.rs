//! Programs that others wrote to try memory management, while all that they map is merged again and again.

use std::time::Duration;

use anyhow::Result;

use crate::{
    ground::{packages, project::Project},
    guest::{Boot, Cmd, End, Limit, Output, programs},
    kernel::{self, Arch, Origin},
    terminal::progress::Step,
    verbs::shared::report::{Tally, parse},
};

/// Debian's.
const PACKAGES: [&str; 2] = ["stress-ng", "trinity"];
/// Tests of stress-ng that share the time, and trinity.
const SHARES: u64 = 9;
/// System calls that trinity makes in a second, about.
const CALLS: u64 = 100;
/// For one that has had its time to come to an end.
const SILENCE: Duration = Duration::from_secs(900);

/// Tells whether all of them were content, and the kernel too.
pub fn run(project: &Project, arch: Arch, minutes: u64, origin: &Origin) -> Result<bool> {
    packages::ensure_packages(project, &PACKAGES)?;
    let kernel = kernel::build(project, arch.of_this_machine()?, origin)?;
    let program = programs::guest_programs(project)?.join("sksm-programs");
    let seconds = 60 * minutes / SHARES;
    let command = [
        program.to_string_lossy().into_owned(),
        "--seconds".into(),
        seconds.to_string(),
        "--calls".into(),
        (seconds * CALLS).to_string(),
        "--timeout".into(),
        (seconds + SILENCE.as_secs()).to_string(),
    ];
    let step = Step::begin(format!("other programs in the {arch} kernel"));
    let log = project.log("programs")?;
    let mut said = String::new();
    let mut tally = Tally::default();
    let mut guest = Boot::new(project, &kernel).start()?;
    let (end, _) = guest.exec(
        Cmd::new(&command)
            .stdout(Output::Lines(Box::new(|line| {
                if let Some((name, verdict)) = parse(line) {
                    step.print(&tally.add(&name, verdict, Some(&log)));
                }
            })))
            .stderr(Output::Lines(Box::new(|line| {
                said += line;
                said.push('\n');
                step.detail(line);
            }))),
        Some(Limit::Silence(Duration::from_secs(seconds) + SILENCE)),
    )?;
    let (splats, console) = guest.finish()?;
    std::fs::write(&log, said)?;
    if !splats.is_empty() {
        println!("the kernel complained:\n{}", splats.join("\n"));
        println!("console log: {}", console.display());
    }
    println!("{}", tally.closing());
    // What one of them skips is not there to be content.
    Ok(end == End::Exited(0) && splats.is_empty() && tally.success())
}
