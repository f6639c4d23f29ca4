//! Text tables: columns as wide as their content, and an unpadded last one.

use std::io::{self, Write};

/// Maximum width of a column, in characters: one long cell does not push the others off the screen.
const MAX_WIDTH: usize = 60;

pub fn write<const N: usize>(
    head: &[&str; N],
    rows: &[[String; N]],
    to: &mut impl Write,
) -> io::Result<()> {
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| &row[column]);
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).min(MAX_WIDTH)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in [&head].into_iter().chain(rows) {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        writeln!(to, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut written = Vec::new();
        let rows = [
            ["aaaa".to_owned(), "b".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        write(&["X", "Y"], &rows, &mut written).unwrap();
        let text = String::from_utf8(written).unwrap();
        assert_eq!(text, "  X     Y\n  aaaa  b\n  a\n");
    }
}
