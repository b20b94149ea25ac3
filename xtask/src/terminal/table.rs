//! Tables on a terminal.

/// Rows of as many cells each.
pub struct Table<const COLUMNS: usize> {
    rows: Vec<Option<[String; COLUMNS]>>,
    /// Columns after the first whose cells line up on the right, as numbers do.
    numbers: bool,
    /// Of each column; it may be more.
    widths: [usize; COLUMNS],
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// Of numbers, but for the first column.
    pub fn new(header: [&str; COLUMNS]) -> Self {
        Self::with(header, true)
    }

    /// Of words.
    pub fn of_words(header: [&str; COLUMNS]) -> Self {
        Self::with(header, false)
    }

    fn with(header: [&str; COLUMNS], numbers: bool) -> Self {
        let mut table = Self {
            rows: Vec::new(),
            numbers,
            widths: [0; COLUMNS],
        };
        table.row(header);
        table
    }

    pub fn row<T: Into<String>>(&mut self, cells: [T; COLUMNS]) {
        self.rows.push(Some(cells.map(Into::into)));
    }

    /// Makes room for cells that are not there yet, so that rows printed before them line up.
    pub fn room_for(&mut self, cells: [&str; COLUMNS]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }

    pub fn rule(&mut self) {
        self.rows.push(None);
    }

    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .flatten()
                .map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(self.widths[column])
        };
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &self.rows {
            let line = match row {
                None => "─".repeat(widths.iter().sum::<usize>() + 3 * (COLUMNS - 1)),
                Some(row) => (0..COLUMNS)
                    .map(|column| match column {
                        0 => format!("{:<1$}", row[column], widths[column]),
                        _ if self.numbers => format!("   {:>1$}", row[column], widths[column]),
                        _ => format!("   {:<1$}", row[column], widths[column]),
                    })
                    .collect(),
            };
            text += line.trim_end();
            text += "\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_they_hold() {
        let mut table = Table::new(["µ", "number"]);
        table.rule();
        table.row(["a longer one", "1"]);
        table.row(["x", "1,234,567"]);
        let text = table.render();
        assert_eq!(
            text,
            "µ                 number\n\
             ────────────────────────\n\
             a longer one           1\n\
             x              1,234,567\n"
        );
    }

    #[test]
    fn there_is_room_for_what_comes_later() {
        let mut table = Table::new(["", "number"]);
        table.room_for(["a longer one", ""]);
        table.row(["x", "1"]);
        let first = table.render();
        table.row(["a longer one", "2"]);
        let both = table.render();
        assert!(both.starts_with(&first), "{both}");
    }

    #[test]
    fn words_line_up_on_the_left() {
        let mut table = Table::of_words(["name", "there", "here"]);
        table.row(["cow", "pass, 3 of 3", "x"]);
        assert_eq!(
            table.render(),
            "name   there          here\n\
             cow    pass, 3 of 3   x\n"
        );
    }
}
