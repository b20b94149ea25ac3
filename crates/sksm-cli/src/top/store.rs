//! The pane of the store: what it saves of the text and data that programs share by it.

use ratatui::text::Line;

use super::pane::{GOOD, Part, WAITS, fitting, line};
use crate::output;
use crate::store::{Account, Seen};

const NAME: &str = "store";

/// Where there is none, no line.
pub fn pane(seen: &Seen, width: u16) -> Vec<Line<'static>> {
    match (&seen.account, &seen.hidden) {
        (Some(account), _) => vec![line(NAME, &fitting(parts(account), width.into()), GOOD)],
        (None, Some(why)) => vec![line(NAME, std::slice::from_ref(why), WAITS)],
        (None, None) => Vec::new(),
    }
}

fn parts(account: &Account) -> Vec<Part> {
    let size = |bytes: u64| output::bytes(bytes as i64);
    vec![
        Part(0, format!("saved {}", output::bytes(account.saved_bytes))),
        Part(2, format!("mapped {}", size(account.mapped_bytes))),
        Part(1, format!("held {}", size(account.held_bytes))),
        Part(4, format!("of {}", size(account.limit_bytes))),
        Part(3, format!("{} files", account.files)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seen: &Seen, width: u16) -> Vec<String> {
        let lines = pane(seen, width).into_iter();
        lines.map(|line| line.to_string()).collect()
    }

    #[test]
    fn what_it_saves_is_told_first() {
        let seen = crate::store::tests::seen();
        let whole =
            "store    saved 60.0 MiB  mapped 64.0 MiB  held 4096 KiB  of 1024.0 MiB  2 files";
        assert_eq!(told(&seen, 120), [whole]);
        assert_eq!(told(&seen, 40), ["store    saved 60.0 MiB  held 4096 KiB"]);
        assert_eq!(told(&seen, 30), ["store    saved 60.0 MiB"]);
    }

    #[test]
    fn one_that_cannot_be_used_says_why() {
        assert!(pane(&Seen::default(), 80).is_empty());
        let seen = Seen {
            account: None,
            hidden: Some("because".into()),
        };
        assert_eq!(told(&seen, 80), ["store    because"]);
    }
}
