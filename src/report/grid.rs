//! A comparison as a grid of text cells, for the tables in the terminal, in Markdown and in HTML.

use super::{Comparison, paired::Paired};
use crate::spec;

/// The most runs to show side by side. More are listed one below the other.
const SIDE_BY_SIDE: usize = 4;

/// Rows of cells of equal length; the first row is the header.
pub type Grid = Vec<Vec<String>>;

/// The grid of `comparison`; `mark` marks a best value.
pub fn grid(comparison: &Comparison, mark: impl Fn(&str) -> String) -> Grid {
    let mut rows: Grid = vec![[String::new()].into_iter().chain(comparison.runs.iter().cloned()).collect()];
    for row in &comparison.spec {
        let values = row.values.iter().map(|value| value.as_ref().map_or("-".into(), spec::plain));
        rows.push([row.key.clone()].into_iter().chain(values).collect());
    }
    for row in &comparison.scores {
        let values =
            row.values.iter().zip(&row.deviations).zip(&row.best).map(|((value, deviation), &best)| match value {
                None => "-".into(),
                Some(value) if best => mark(&figure(&row.metric, *value, *deviation)),
                Some(value) => figure(&row.metric, *value, *deviation),
            });
        rows.push([row.metric.clone()].into_iter().chain(values).collect());
        for (metric, gains) in comparison.gains.iter().filter(|(metric, _)| *metric == row.metric) {
            let values = gains.iter().map(|gain| gain.as_ref().map_or("-".into(), difference));
            rows.push([format!("{metric} over initial")].into_iter().chain(values).collect());
        }
        for row in comparison.differences.iter().filter(|difference| difference.metric == row.metric) {
            let values = row.values.iter().enumerate().map(|(i, value)| match value {
                Some(paired) => difference(paired),
                None if i == row.baseline => "baseline".into(),
                None => "-".into(),
            });
            rows.push([format!("{} difference", row.metric)].into_iter().chain(values).collect());
        }
    }
    if comparison.runs.len() > SIDE_BY_SIDE { transpose(&rows) } else { rows }
}

fn transpose(rows: &Grid) -> Grid {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|column| rows.iter().map(|row| row[column].clone()).collect()).collect()
}

/// A metric with its significant digits, and its deviation if it is a mean; accuracies in per cent.
pub fn figure(metric: &str, value: f64, deviation: Option<f64>) -> String {
    let name = metric.rsplit('/').next().unwrap_or(metric);
    let (factor, digits, unit) = match () {
        () if name.starts_with("top") => (100.0, 2, " %"),
        () if value.abs() >= 100.0 => (1.0, 1, ""),
        () => (1.0, 4, ""),
    };
    let deviation = deviation.map_or(String::new(), |deviation| format!(" ± {:.digits$}", factor * deviation));
    format!("{:.digits$}{deviation}{unit}", factor * value)
}

/// A difference in points with its interval and p, e.g. `+1.25 [-2.50, 5.00], p 0.63`.
pub fn difference(paired: &Paired) -> String {
    let [difference, low, high] = [paired.difference, paired.low, paired.high].map(|share| 100.0 * share);
    let p = match paired.p {
        None => String::new(),
        Some(p) if p < 0.001 => ", p < 0.001".into(),
        Some(p) => format!(", p {p:.3}"),
    };
    format!("{difference:+.2} [{low:.2}, {high:.2}]{p}")
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

    #[test]
    fn means_have_their_spread_and_differences_their_interval() {
        assert_eq!(figure("knn/top1", 0.8764, Some(0.0031)), "87.64 ± 0.31 %");
        assert_eq!(figure("train/images_per_second", 1234.56, Some(3.21)), "1234.6 ± 3.2");
        let paired = Paired { samples: 40, difference: 0.0125, low: -0.025, high: 0.05, over_seeds: false, p: None };
        assert_eq!(difference(&paired), "+1.25 [-2.50, 5.00]");
        assert_eq!(difference(&Paired { p: Some(0.625), ..paired.clone() }), "+1.25 [-2.50, 5.00], p 0.625");
        assert_eq!(difference(&Paired { p: Some(1e-9), ..paired }), "+1.25 [-2.50, 5.00], p < 0.001");
    }
}
