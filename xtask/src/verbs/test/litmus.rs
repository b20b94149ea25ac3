//! What the engine does without a lock, asked of the kernel's own memory model: `testing/model/litmus`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    ground::{project::Project, step::output},
    terminal::progress::Step,
};

/// Why it cannot be asked.
pub fn cannot_ask() -> Option<String> {
    let there = Command::new("herd7").arg("-version").output().is_ok();
    (!there).then(|| "herd7 is not installed: it is part of herdtools7".into())
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
