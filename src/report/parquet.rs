//! Writes a comparison as Parquet in long form, for notebooks.

use serde_json::Value;

use super::Comparison;
use crate::{
    artifact::table,
    spec,
    tables::{COMPARISON, column::*},
};

struct Row<'a> {
    run: &'a str,
    kind: &'static str,
    key: &'a str,
    value: Option<String>,
    number: Option<f64>,
}

/// One row per run and leaf or score: `run`, `kind`, `key`, `value` (text; null if the run has no value), `number` (null if the
/// value is no number). The kinds are `spec` and `score` for each run. A group adds `mean`, `deviation` and `n`, with its label
/// in place of the run. A column that is compared with a baseline adds `difference`, `low`, `high` and `p`. A column whose
/// training started from a file of weights adds `gain`, `gain_low` and `gain_high`.
///
/// # Errors
/// Never: the writer returns a `Result`, but writing to memory does not fail.
pub fn render(comparison: &Comparison) -> anyhow::Result<Vec<u8>> {
    let mut rows: Vec<Row> = Vec::new();
    for row in &comparison.spec {
        for (run, value) in comparison.runs.iter().zip(&row.values) {
            let (value, number) = (value.as_ref().map(spec::plain), value.as_ref().and_then(Value::as_f64));
            rows.push(Row { run, kind: "spec", key: &row.key, value, number });
        }
    }
    let mut figure = |run, kind, key, number: Option<f64>| {
        rows.push(Row { run, kind, key, value: number.map(|number| number.to_string()), number });
    };
    for row in &comparison.scores {
        for (i, (label, (runs, _))) in comparison.runs.iter().zip(&comparison.members).enumerate() {
            for (run, &number) in runs.iter().zip(&row.members[i]) {
                figure(run, "score", &row.metric, number);
            }
            if runs.len() > 1 {
                figure(label, "mean", &row.metric, row.values[i]);
                figure(label, "deviation", &row.metric, row.deviations[i]);
                figure(label, "n", &row.metric, Some(row.members[i].iter().flatten().count() as f64));
            }
        }
    }
    for (metric, gains) in &comparison.gains {
        for (label, gain) in comparison.runs.iter().zip(gains) {
            let Some(gain) = gain else { continue };
            figure(label, "gain", metric, Some(gain.difference));
            figure(label, "gain_low", metric, Some(gain.low));
            figure(label, "gain_high", metric, Some(gain.high));
        }
    }
    for row in &comparison.differences {
        for (label, paired) in comparison.runs.iter().zip(&row.values) {
            let Some(paired) = paired else { continue };
            figure(label, "difference", &row.metric, Some(paired.difference));
            figure(label, "low", &row.metric, Some(paired.low));
            figure(label, "high", &row.metric, Some(paired.high));
            figure(label, "p", &row.metric, paired.p);
        }
    }
    table::in_memory(&COMPARISON.rows([
        RUN.of(rows.iter().map(|row| row.run)),
        KIND.of(rows.iter().map(|row| row.kind)),
        KEY.of(rows.iter().map(|row| row.key)),
        VALUE.of(rows.iter().map(|row| row.value.as_deref())),
        NUMBER.of(rows.iter().map(|row| row.number)),
    ]))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, AsArray},
        datatypes::Float64Type,
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::report::samples::pair;

    #[test]
    fn every_cell_is_a_row() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), render(&Comparison::new(&pair())).unwrap()).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.reopen().unwrap()).unwrap().build().unwrap();
        let batch = reader.map(Result::unwrap).next().unwrap();
        assert_eq!(batch.num_rows(), 2 * (3 + 4));
        let cell = |column: usize, row| batch.column(column).as_string::<i32>().value(row).to_owned();
        let number = batch.column(4).as_primitive::<Float64Type>();
        assert_eq!(
            (cell(0, 1), cell(1, 1), cell(2, 1), cell(3, 1)),
            ("release-1b1b1b1b".into(), "spec".into(), "method.tau".into(), "0.2".into())
        );
        assert_eq!(number.value(1), 0.2);
        assert!(number.is_null(2) && cell(3, 2) == "[20,10]");
        assert!(batch.column(3).is_null(4));
        assert_eq!((cell(1, 6), cell(2, 6), number.value(6)), ("score".into(), "knn/top1".into(), 0.8764));
    }
}
