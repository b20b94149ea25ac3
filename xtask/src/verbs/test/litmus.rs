//! What the engine does without a lock, asked of the kernel's own memory model: `testing/model/litmus`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    ground::{project::Project, step::output},
    kernel::Base,
    terminal::progress::Step,
};

/// Why it cannot be asked of this base's model.
pub fn cannot_ask(base: Base) -> Option<String> {
    let said = Command::new("herd7").arg("-version").output().ok();
    let Some(said) = said else {
        return Some("herd7 is not installed: it is part of herdtools7".into());
    };
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let [major, minor] = oldest(base);
    let old = version(&said).is_none_or(|version| version < (major, minor));
    old.then(|| {
        format!(
            "the memory model of Linux {base} needs herd7 {major}.{minor} or newer, and this is {}",
            said.trim()
        )
    })
}

/// The herd7 that can read the model, as `tools/memory-model/README` has it.
fn oldest(base: Base) -> [u32; 2] {
    match base {
        Base::Linux6_12 => [7, 52],
        Base::Linux7_3 => [7, 58],
    }
}

/// Of `7.56+03, Rev: exported`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// Each file says at its top what the model must answer; `tree` is the kernel's source.
pub fn ask(project: &Project, tree: &Path, step: &Step) -> Result<()> {
    let model = tree.join("tools/memory-model");
    let dir = project.root.join("testing/model/litmus");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut asked = 0;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "litmus") {
            continue;
        }
        step.detail(&path.display().to_string());
        let expected = expected(&fs::read_to_string(&path)?)
            .with_context(|| format!("{} does not say its result", path.display()))?;
        let said = output(
            Command::new("herd7")
                .args(["-conf", "linux-kernel.cfg"])
                .arg(&path)
                .current_dir(&model),
        )?;
        ensure!(
            answer(&said) == Some(&expected),
            "{}: {expected} is expected\n{said}",
            path.display()
        );
        asked += 1;
    }
    if asked == 0 {
        bail!("there is nothing in {}", dir.display());
    }
    Ok(())
}

/// As in `* Result: Never`.
fn expected(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("* Result: "))?;
    Some(line.trim().to_owned())
}

/// As in `Observation NAME Never 0 3`.
fn answer(said: &str) -> Option<&str> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Observation "))?;
    line.split(' ').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_herd7_that_is_too_old_for_the_model_is_told() {
        assert_eq!(version("7.56+03, Rev: exported"), Some((7, 56)));
        assert_eq!(version("7.58.1"), Some((7, 58)));
        assert_eq!(version("no"), None);
    }

    #[test]
    fn the_answer_is_read() {
        let said = "Test a Allowed\nStates 3\nObservation a Sometimes 1 3\nTime a 0.01\n";
        assert_eq!(answer(said), Some("Sometimes"));
        // As of a file that is not understood.
        assert_eq!(answer("Warning: Unknown macro\n"), None);
        assert_eq!(
            expected("C a\n\n(*\n * Result: Never\n *)").as_deref(),
            Some("Never")
        );
        assert_eq!(expected("C a\n"), None);
    }
}
