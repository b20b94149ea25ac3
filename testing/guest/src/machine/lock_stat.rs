//! How often locks were waited for, by the kernel's own count: `Documentation/locking/lockstat.rst` in its source.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const COUNTS: &str = "/proc/lock_stat";
const SWITCH: &str = "/proc/sys/kernel/lock_stat";

/// Numbers behind a class's name.
const COLUMNS: usize = 12;

/// What is known of the locks of one class.
#[derive(Debug, PartialEq)]
pub struct Class {
    /// With `-R` or `-W` behind it where readers and writers are counted apart.
    pub name: String,
    pub acquisitions: u64,
    /// Of these, so many had to wait.
    pub contentions: u64,
    /// All together, in microseconds.
    pub waited: f64,
}

/// Begins to count; false where the kernel cannot.
pub fn begin() -> Result<bool> {
    if !Path::new(COUNTS).exists() {
        return Ok(false);
    }
    fs::write(COUNTS, "0").context(COUNTS)?;
    fs::write(SWITCH, "1").context(SWITCH)?;
    Ok(true)
}

/// Ends counting.
pub fn end() -> Result<Vec<Class>> {
    fs::write(SWITCH, "0").context(SWITCH)?;
    let counts = fs::read_to_string(COUNTS).context(COUNTS)?;
    let classes = classes(&counts);
    ensure!(!classes.is_empty(), "{COUNTS} has no line that is known");
    Ok(classes)
}

fn classes(counts: &str) -> Vec<Class> {
    let class = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers = numbers
            .split_whitespace()
            .map(|number| number.parse().ok())
            .collect::<Option<Vec<f64>>>()?;
        (numbers.len() == COLUMNS).then(|| Class {
            name: name.trim().to_owned(),
            contentions: numbers[1] as u64,
            waited: numbers[4],
            acquisitions: numbers[7] as u64,
        })
    };
    counts.lines().filter_map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_from_where_they_were_waited_for() {
        let counts = "\
lock_stat version 0.4
-----------------------------------------------------------------------------
                              class name    con-bounces    contentions   waittime-min   waittime-max waittime-total   \
waittime-avg    acq-bounces   acquisitions   holdtime-min   holdtime-max holdtime-total   holdtime-avg
-----------------------------------------------------------------------------

                    &mm->mmap_lock-W:            46             84           0.26         939.10       16371.53         \
194.90          47291        2922365           0.16     2220301.69 17464026916.32        5975.99
                    --------------
                    &mm->mmap_lock              1          [<ffffffff811502a7>] sys_mprotect+0x17/0x1c0
                 &sksm_shards[shard]:              0              2           0.10           0.20           0.30           \
0.15              3             40           0.10           0.50          10.00           0.25
                   a::b/1:              0              0           0.00           0.00           0.00           0.00   \
           1              7           0.10           0.50          10.00           0.25
";
        let class = |name: &str, acquisitions, contentions, waited| Class {
            name: name.into(),
            acquisitions,
            contentions,
            waited,
        };
        assert_eq!(
            classes(counts),
            [
                class("&mm->mmap_lock-W", 2_922_365, 84, 16371.53),
                class("&sksm_shards[shard]", 40, 2, 0.3),
                class("a::b/1", 7, 0, 0.0),
            ]
        );
    }
}
