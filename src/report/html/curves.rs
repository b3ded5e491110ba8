//! Curves over training: which columns are drawn, and how a long run is reduced to a few hundred points.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::{
    artifact::Store,
    report::{
        Run,
        artifacts::{Table, Training},
    },
    tables::{
        self, METRICS, POSITIVENESS, TIMING,
        column::{self, Column},
    },
};

/// The most points in a curve.
const POINTS: usize = 240;

/// A chart: group, table, column, title, explanation.
type Chart = (&'static str, tables::Table, Column, &'static str, &'static str);

const CHARTS: [Chart; 17] = [
    ("Training", METRICS, column::LOSS, "Loss", "Training lowers it. Losses of different methods cannot be compared."),
    ("Training", METRICS, column::LEARNING_RATE, "Learning rate", "Warm-up, then a cosine to 0."),
    ("Training", METRICS, column::MOMENTUM, "Momentum", "Share of the momentum branch that each step keeps."),
    ("Training", TIMING, column::IMAGES_PER_SECOND, "Images per second", "Speed of training on this machine."),
    (
        "Health",
        METRICS,
        column::STD,
        "Standard deviation",
        "Spread of the projections: 1 on a covered sphere, 0 on collapse.",
    ),
    (
        "Health",
        METRICS,
        column::KNN_TOP1,
        "kNN top-1 during training",
        "Measured on a part of both splits; see health.knn_every_epochs.",
    ),
    ("Health", METRICS, column::EFFECTIVE_RANK, "Effective rank", "Number of directions that the projections use."),
    ("Health", METRICS, column::ALIGNMENT, "Alignment", "Squared distance of an image's two views; lower is closer."),
    (
        "Health",
        METRICS,
        column::UNIFORMITY,
        "Uniformity",
        "Log of the mean closeness of image pairs; lower is more spread out.",
    ),
    (
        "Positives",
        POSITIVENESS,
        column::EFFECTIVE_POSITIVES,
        "Effective positives",
        "Number of positives of equal weight that would be as spread out; 1 means the other view of the image only.",
    ),
    (
        "Positives",
        POSITIVENESS,
        column::OWN_SHARE,
        "Share of the own view",
        "Weight on the other view of the same image.",
    ),
    (
        "Positives",
        POSITIVENESS,
        column::SAME_CLASS_MASS,
        "Weight on the own class",
        "Share of the weight on all positives, including the other view; training does not use labels.",
    ),
    (
        "Positives",
        POSITIVENESS,
        column::NEIGHBOUR_SAME_CLASS_MASS,
        "Weight on the own class, neighbours only",
        "The same without the other view.",
    ),
    (
        "Positives",
        POSITIVENESS,
        column::LABEL_AGREEMENT,
        "Neighbours of the own class",
        "Share of the neighbours, all counted equally.",
    ),
    (
        "Positives",
        METRICS,
        column::MAX_POSITIVENESS,
        "Largest positiveness",
        "The largest weight of a neighbour in the batch.",
    ),
    ("Positives", POSITIVENESS, column::QUEUE_AGE, "Age of positives", "Steps since they entered the queue, weighted."),
    (
        "Positives",
        POSITIVENESS,
        column::CHURN,
        "Churn",
        "Share of an image's neighbours that are new since it was last seen.",
    ),
];

/// All charts for which a run has points, with one series per such run.
///
/// # Errors
/// When the pretraining of a run is missing or damaged, or lacks the column of a chart.
pub fn charts(store: &Store, runs: &[Run]) -> anyhow::Result<Vec<Value>> {
    let mut tables = Vec::with_capacity(runs.len());
    for run in runs {
        let training = Training::of(store, run)?;
        let read = |table| anyhow::Ok((table, training.table(table)?));
        tables.push([read(METRICS)?, read(POSITIVENESS)?, read(TIMING)?]);
    }
    let mut charts = Vec::new();
    for (group, table, column, title, what) in CHARTS {
        let mut series = Vec::new();
        for (run, tables) in tables.iter().enumerate() {
            let of = |wanted| &tables.iter().find(|(table, _)| *table == wanted).expect("one of three").1;
            let points = thin(&points(of(table), column, of(METRICS))?);
            if !points.is_empty() {
                let [x, y] =
                    [0, 1].map(|axis| points.iter().map(|point| json!(short(point[axis]))).collect::<Vec<_>>());
                series.push(json!({ "run": run, "x": x, "y": y }));
            }
        }
        if !series.is_empty() {
            charts.push(json!({ "id": column.name, "group": group, "title": title, "what": what, "series": series }));
        }
    }
    Ok(charts)
}

/// Epoch and value of each row that has a value. The timing table has no epochs; `metrics` maps its steps to epochs.
fn points(table: &Table, column: Column, metrics: &Table) -> anyhow::Result<Vec<[f64; 2]>> {
    let epochs: HashMap<Option<i64>, Option<f64>> =
        metrics.integers(column::STEP)?.into_iter().zip(metrics.reals(column::EPOCH)?).collect();
    let point = |(step, value): (Option<i64>, Option<f64>)| {
        Some([epochs.get(&step).copied().flatten()?, value.filter(|value| value.is_finite())?])
    };
    Ok(table.integers(column::STEP)?.into_iter().zip(table.reals(column)?).filter_map(point).collect())
}

/// Averages neighbouring points, so that at most [`POINTS`] remain.
fn thin(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let width = points.len().div_ceil(POINTS).max(1);
    let mean = |points: &[[f64; 2]]| [0, 1].map(|i| points.iter().map(|p| p[i]).sum::<f64>() / points.len() as f64);
    points.chunks(width).map(mean).collect()
}

/// A number rounded to the digits that a chart can show.
pub fn short(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_of_columns_that_their_tables_have() {
        for (_, table, column, title, _) in CHARTS {
            assert!(table.columns.contains(&column), "{title}: {} has no {column}", table.name);
        }
    }

    #[test]
    fn long_curves_become_means_and_short_ones_stay() {
        let line: Vec<[f64; 2]> = (0..1000).map(|i| [i as f64, 2.0 * i as f64]).collect();
        let thinned = thin(&line);
        assert_eq!(thinned.len(), 200);
        assert_eq!((thinned[0], thinned[199]), ([2.0, 4.0], [997.0, 1994.0]));
        assert_eq!(thin(&line[..7]), line[..7]);
        assert!(thin(&[]).is_empty());
    }

    #[test]
    fn numbers_keep_five_digits() {
        assert_eq!([short(123456.7), short(0.000123456), short(-1.0)], [123460.0, 0.00012346, -1.0]);
    }
}
