//! The estimate as a picture: private memory of each kind and of each group, and how much of it merging would save.

use sksm_chart::{Bar, GREEN, GREY, Picture};

use super::report::{By, KINDS, Report, Saving};
use crate::output;

/// So many groups have bars of their own.
const GROUPS: usize = 10;

/// Where and when it was drawn.
pub struct Where(String);

impl Where {
    pub fn here() -> Self {
        let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
        let [host, kernel] = ["hostname", "osrelease"].map(|name| read(name).unwrap_or_default());
        Where(format!(
            "{}, Linux {}, {}",
            host.trim(),
            kernel.trim(),
            today()
        ))
    }
}

/// As in 2025-01-31, where this machine is.
fn today() -> String {
    // SAFETY: both calls write valid places of their types, which all zeros are values of.
    let time = unsafe {
        let (now, mut time) = (libc::time(std::ptr::null_mut()), std::mem::zeroed());
        libc::localtime_r(&now, &mut time);
        time
    };
    format!(
        "{}-{:02}-{:02}",
        1900 + time.tm_year,
        time.tm_mon + 1,
        time.tm_mday
    )
}

/// An SVG.
pub fn draw(report: &Report, place: &Where) -> String {
    let kinds = (KINDS.iter())
        .filter_map(|kind| Some((kind, report.kinds.get(kind)?)))
        .filter(|(_, saving)| saving.pages > 0.0)
        .map(|(kind, saving)| bar(report, kind, saving));
    let groups = report.groups.iter().take(GROUPS).map(|group| {
        let name: String = group.name.chars().take(32).collect();
        let name = match (report.by, group.processes) {
            (By::Process, _) | (_, 1) => name,
            (_, count) => format!("{count} × {name}"),
        };
        bar(report, &name, &group.saving)
    });
    let all = bar(report, "all", &report.within_domains);
    let rows = [kinds.collect(), groups.collect(), vec![all]];
    let mut picture = Picture::dense();
    picture.title(
        "What merging would save",
        &format!(
            "{} processes on {}; merge domain: {}",
            report.processes.len(),
            output::clean(&place.0),
            report.domain
        ),
    );
    picture.legend(&[(LEFT, "stays"), (SAVED, "saved")]);
    picture.groups(
        "Private memory by kind, by who has most to save, and all",
        &rows,
    );
    picture.finish()
}

const LEFT: &str = GREY;
const SAVED: &str = GREEN;

fn bar(report: &Report, name: &str, saving: &Saving) -> Bar {
    let size = |pages: f64| output::bytes((pages * report.page_size as f64) as i64);
    let share = saving.share().unwrap_or(0.0);
    Bar {
        label: output::clean(name).into_owned(),
        value: saving.pages,
        shown: size(saving.saved_pages),
        remark: format!("of {}, {share:.0} %", size(saving.pages)),
        colour: LEFT,
        end: (saving.saved_pages > 0.0).then_some((saving.saved_pages, SAVED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_one() {
        let today = today();
        assert!(today.starts_with("20") && today.len() == 10, "{today}");
    }
}
