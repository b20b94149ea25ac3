//! Tables on a terminal.

/// Columns: the first to the left, the others to the right.
pub struct Table<const COLUMNS: usize>(Vec<Option<[String; COLUMNS]>>);

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub fn new(header: [&str; COLUMNS]) -> Self {
        let mut table = Self(Vec::new());
        table.row(header);
        table
    }

    pub fn row<T: Into<String>>(&mut self, cells: [T; COLUMNS]) {
        self.0.push(Some(cells.map(Into::into)));
    }

    pub fn rule(&mut self) {
        self.0.push(None);
    }

    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self
                .0
                .iter()
                .flatten()
                .map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &self.0 {
            let line = match row {
                None => "─".repeat(widths.iter().sum::<usize>() + 3 * (COLUMNS - 1)),
                Some(row) => (0..COLUMNS)
                    .map(|column| match column {
                        0 => format!("{:<1$}", row[column], widths[column]),
                        _ => format!("   {:>1$}", row[column], widths[column]),
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
}
