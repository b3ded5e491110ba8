//! Per-sample correctness of a run's evaluations, as it is kept in its artifacts.

use std::collections::BTreeMap;

use anyhow::Context;
use arrow::{array::AsArray, datatypes::Int64Type};

use super::Run;
use crate::artifact::{Artifact, Found, Store};

/// Which samples of a test split were classified correctly.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Content hashes of the test split: equal for equal samples in equal order.
    pub split: Vec<String>,
    /// Whether each sample was right, by its number in the split.
    pub right: BTreeMap<i64, bool>,
}

/// The predictions behind the top-1 score of `stage` (`knn` or `linear_probe`) in `run`; None when the run has none, or an
/// artifact is gone.
///
/// # Errors
/// When an artifact is there and cannot be read.
pub fn read(store: &Store, run: &Run, stage: &str) -> anyhow::Result<Option<Predictions>> {
    let (Some(data), Some(evaluation)) = (find(store, run, "data"), find(store, run, stage)) else { return Ok(None) };
    if !evaluation.has_table("predictions") {
        return Ok(None);
    }
    let test = data.manifest().files.iter().filter(|file| file.name.starts_with("test-"));
    let split = test.map(|file| file.content.clone()).collect();
    let named = || format!("predictions of stage {stage} of run {}", run.record.run);
    let mut right = BTreeMap::new();
    let mut first_k = None;
    for batch in evaluation.read("predictions").with_context(named)? {
        let batch = batch.with_context(named)?;
        let column = |name: &str| {
            let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
            column.map(|column| column.values().clone())
        };
        let columns = [column("sample_id"), column("label"), column("predicted")];
        let [Some(ids), Some(labels), Some(predicted)] = columns else {
            anyhow::bail!("{}: expected sample_id, label, predicted: int64", named());
        };
        // Predictions for several k: the score is that of the first.
        let ks = column("k");
        for row in 0..batch.num_rows() {
            let k = ks.as_ref().map(|ks| ks[row]);
            if *first_k.get_or_insert(k) == k {
                right.insert(ids[row], labels[row] == predicted[row]);
            }
        }
    }
    Ok(Some(Predictions { split, right }))
}

fn find(store: &Store, run: &Run, stage: &str) -> Option<Artifact> {
    let record = run.record.stages.iter().find(|record| record.stage == stage)?;
    match store.find(stage, &record.key) {
        Found::Hit(artifact) => Some(artifact),
        Found::Missing | Found::Damaged { .. } => None,
    }
}
