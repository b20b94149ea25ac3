//! Lines beside the processes, each of a few parts. Where there is little room, the least important parts are left out, never digits.

use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};

pub const GOOD: Color = Color::Green;
pub const WAITS: Color = Color::Yellow;

/// As wide as the longest name of a pane.
const NAME_WIDTH: usize = "scanner".len();

/// A part of a line: those with the largest number are left out first.
pub struct Part(pub u8, pub String);

/// The most important of them, as many as there is room for.
pub fn fitting(mut parts: Vec<Part>, width: usize) -> Vec<String> {
    // Two spaces before each.
    let long = |parts: &[Part]| {
        let letters = parts.iter().map(|Part(_, text)| text.chars().count() + 2);
        NAME_WIDTH + letters.sum::<usize>()
    };
    while long(&parts) > width && !parts.is_empty() {
        let least = parts.iter().map(|Part(rank, _)| *rank).max();
        parts.retain(|Part(rank, _)| Some(*rank) != least);
    }
    parts.into_iter().map(|Part(_, text)| text).collect()
}

/// The first line of a pane has its name, and the first part the colour.
pub fn line(name: &'static str, parts: &[String], first: Color) -> Line<'static> {
    let mut spans = vec![Span::from(format!("{name:NAME_WIDTH$}")).add_modifier(Modifier::BOLD)];
    for (number, part) in parts.iter().enumerate() {
        let style = if number == 0 {
            Style::new().fg(first)
        } else {
            Style::new()
        };
        spans.push(Span::from(format!("  {part}")).style(style));
    }
    Line::from(spans)
}
