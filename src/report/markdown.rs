//! Writes a comparison as a Markdown table; the best value of a row is bold.

use super::{Comparison, grid::grid};

/// The table of `comparison`.
pub fn render(comparison: &Comparison) -> String {
    let rows = grid(comparison, |best| format!("**{best}**"));
    let columns = rows.first().map_or(0, Vec::len);
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        text += &line(row);
        if i == 0 {
            text += &format!("|---|{}\n", "---:|".repeat(columns.saturating_sub(1)));
        }
    }
    for note in comparison.footnotes().lines() {
        text += &format!("\n{note}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::pair;

    #[test]
    fn the_table_is_markdown_with_bold_bests() {
        let expected = "\
|  | paper-0a0a0a0a | release-1b1b1b1b |
|---|---:|---:|
| method.tau | 0.1 | 0.2 |
| knn.k | [20,10] | [200] |
| method.attention | - | cosine |
| knn/top1 | **87.64 %** | 85.00 % |
| knn/top1_random_init | 40.00 % | 45.00 % |
| linear/top1 | **90.00 %** | **90.00 %** |
| train/images_per_second | **1234.5** | 987.2 |
";
        assert_eq!(render(&Comparison::new(&pair())), expected);
    }
}
