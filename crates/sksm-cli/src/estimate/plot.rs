//! The estimate as a picture: private memory of each kind, and how much of it merging would save.

use std::fmt::Write;

use super::{KINDS, Report, Saving};
use crate::output;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 420.0;
const ROW: f64 = 34.0;

/// An SVG, which needs no colours of its surroundings.
pub fn draw(report: &Report) -> String {
    let kinds: Vec<(&str, &Saving)> = (KINDS.iter())
        .filter_map(|kind| Some((*kind, report.kinds.get(kind)?)))
        .filter(|(_, saving)| saving.pages > 0.0)
        .collect();
    let rows = kinds.into_iter().chain([("all", &report.within_users)]);
    let rows: Vec<_> = rows.collect();
    let most = rows
        .iter()
        .map(|(_, saving)| saving.pages)
        .fold(1.0, f64::max);
    let height = 70.0 + ROW * rows.len() as f64;
    let size = |pages: f64| output::bytes((pages * report.page_size as f64) as i64);
    let mut svg = String::new();
    // Writing to a String cannot fail.
    _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="10" y="24" font-size="16" fill="#222222">Private memory of {} processes, and what merging would save</text>
<rect x="10" y="36" width="12" height="12" fill="#3b6ea5"/><text x="28" y="47" fill="#222222">left</text>
<rect x="70" y="36" width="12" height="12" fill="#e0a030"/><text x="88" y="47" fill="#222222">saved</text>"##,
        report.processes.len()
    );
    for (number, (name, saving)) in rows.iter().enumerate() {
        let y = 62.0 + ROW * number as f64;
        let whole = BAR * saving.pages / most;
        let left = BAR * (saving.pages - saving.saved_pages) / most;
        let (end, text) = (LEFT + whole, y + 16.0);
        _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{text:.1}" text-anchor="end" fill="#222222">{name}</text>
<rect x="{LEFT}" y="{y:.1}" width="{left:.1}" height="22" fill="#3b6ea5"/>
<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="22" fill="#e0a030"/>
<text x="{:.1}" y="{text:.1}" fill="#222222">{} of {}</text>"##,
            LEFT - 8.0,
            LEFT + left,
            whole - left,
            end + 6.0,
            size(saving.saved_pages),
            size(saving.pages),
        );
    }
    svg + "</svg>\n"
}
