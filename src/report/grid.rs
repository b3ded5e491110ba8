//! A comparison as rows of text for people; the terminal table and the Markdown table draw it.

use serde_json::Value;

use super::Comparison;

/// Most runs that stand side by side; more are listed one below the other.
const SIDE_BY_SIDE: usize = 4;

/// Rows of cells, the first one being the header; all are of one length.
pub type Grid = Vec<Vec<String>>;

/// The grid of `comparison`; `mark` marks a best value.
pub fn grid(comparison: &Comparison, mark: impl Fn(&str) -> String) -> Grid {
    let mut rows: Grid = vec![[String::new()].into_iter().chain(comparison.runs.iter().cloned()).collect()];
    for row in &comparison.spec {
        let values = row.values.iter().map(|value| value.as_ref().map_or("-".into(), text));
        rows.push([row.key.clone()].into_iter().chain(values).collect());
    }
    for row in &comparison.scores {
        let values = row.values.iter().zip(&row.best).map(|(value, &best)| match value {
            None => "-".into(),
            Some(value) if best => mark(&figure(&row.metric, *value)),
            Some(value) => figure(&row.metric, *value),
        });
        rows.push([row.metric.clone()].into_iter().chain(values).collect());
    }
    if comparison.runs.len() > SIDE_BY_SIDE { transpose(&rows) } else { rows }
}

fn transpose(rows: &Grid) -> Grid {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|column| rows.iter().map(|row| row[column].clone()).collect()).collect()
}

/// A leaf of a spec; text without quotes.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A figure to the digits that matter; accuracies in per cent.
pub fn figure(metric: &str, value: f64) -> String {
    let name = metric.rsplit('/').next().unwrap_or(metric);
    if name.starts_with("top") {
        format!("{:.2} %", 100.0 * value)
    } else if value.abs() >= 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::run;

    #[test]
    fn many_runs_stand_one_below_the_other() {
        let runs: Vec<_> =
            (0..5).map(|i| run(&format!("r{i}"), &format!("seed: {i}"), &[("knn/top1", 0.1 * i as f64)])).collect();
        let wide = grid(&Comparison::new(&runs[..2]), |best| format!("<{best}>"));
        assert_eq!(wide, [["", "r0", "r1"], ["seed", "0", "1"], ["knn/top1", "0.00 %", "<10.00 %>"]]);
        let long = grid(&Comparison::new(&runs), |best| format!("<{best}>"));
        assert_eq!(long[0], ["", "seed", "knn/top1"]);
        assert_eq!(long[5], ["r4", "4", "<40.00 %>"]);
    }
}
