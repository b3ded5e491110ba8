//! Draws tables for a terminal, among them comparisons, in which `*` marks the best value of a row.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use super::{Comparison, grid::grid};

/// The table of `comparison`.
pub fn render(comparison: &Comparison) -> String {
    let mut text = lines(grid(comparison, |best| format!("* {best}")));
    if comparison.scores.iter().any(|row| row.best.contains(&true)) {
        text += "* best\n";
    }
    text += &comparison.footnotes();
    if comparison.runs.len() > 1 && comparison.spec.is_empty() {
        text += "the specs do not differ\n";
    }
    text
}

/// The lines of a table. The first row is the header. All columns but the first are right-aligned.
pub fn lines(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut rows = rows.into_iter();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    if let Some(header) = rows.next() {
        table.set_header(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::pair;

    #[test]
    fn differences_come_first_then_scores_with_the_best_marked() {
        let expected = "\
┌─────────────────────────┬────────────────┬──────────────────┐
│                         ┆ paper-0a0a0a0a ┆ release-1b1b1b1b │
╞═════════════════════════╪════════════════╪══════════════════╡
│ method.tau              ┆            0.1 ┆              0.2 │
│ knn.k                   ┆        [20,10] ┆            [200] │
│ method.attention        ┆              - ┆           cosine │
│ knn/top1                ┆      * 87.64 % ┆          85.00 % │
│ knn/top1_random_init    ┆        40.00 % ┆          45.00 % │
│ linear/top1             ┆      * 90.00 % ┆        * 90.00 % │
│ train/images_per_second ┆       * 1234.5 ┆            987.2 │
└─────────────────────────┴────────────────┴──────────────────┘
* best
";
        assert_eq!(render(&Comparison::new(&pair())), expected);
    }

    #[test]
    fn equal_specs_are_said_to_be_equal() {
        let [a, mut b] = pair();
        b.spec = a.spec.clone();
        assert!(render(&Comparison::new(&[a, b])).ends_with("* best\nthe specs do not differ\n"));
    }
}
