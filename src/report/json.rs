//! A comparison as one JSON object.

use serde_json::{Map, Value, json};

use super::Comparison;

/// `{"runs": [...], "spec": [{"key", "values": {run: value}}], "scores": [{"metric", "values": {run: value}, "best": [run]}]}`;
/// null is what a run does not have.
///
/// # Errors
/// Never for finite figures.
pub fn render(comparison: &Comparison) -> anyhow::Result<String> {
    fn by_run<T: Clone + Into<Value>>(runs: &[String], values: &[Option<T>]) -> Map<String, Value> {
        let value = |value: &Option<T>| value.clone().map_or(Value::Null, Into::into);
        runs.iter().cloned().zip(values.iter().map(value)).collect()
    }
    let runs = &comparison.runs;
    let spec: Vec<Value> =
        comparison.spec.iter().map(|row| json!({ "key": row.key, "values": by_run(runs, &row.values) })).collect();
    let scores: Vec<Value> = comparison
        .scores
        .iter()
        .map(|row| {
            let best: Vec<&String> =
                runs.iter().zip(&row.best).filter(|(_, best)| **best).map(|(run, _)| run).collect();
            json!({ "metric": row.metric, "values": by_run(runs, &row.values), "best": best })
        })
        .collect();
    Ok(serde_json::to_string(&json!({ "runs": runs, "spec": spec, "scores": scores }))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::pair;

    #[test]
    fn values_keep_their_types() {
        let value: Value = serde_json::from_str(&render(&Comparison::new(&pair())).unwrap()).unwrap();
        assert_eq!(value["runs"], json!(["paper-0a0a0a0a", "release-1b1b1b1b"]));
        assert_eq!(
            value["spec"][1],
            json!({ "key": "knn.k", "values": { "paper-0a0a0a0a": [20, 10], "release-1b1b1b1b": [200] } })
        );
        assert_eq!(value["spec"][2]["values"], json!({ "paper-0a0a0a0a": null, "release-1b1b1b1b": "cosine" }));
        assert_eq!(
            value["scores"][0],
            json!({ "metric": "knn/top1", "values": { "paper-0a0a0a0a": 0.8764, "release-1b1b1b1b": 0.85 }, "best": ["paper-0a0a0a0a"] })
        );
    }
}
