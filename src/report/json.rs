//! Writes a comparison as one JSON object.

use serde_json::{Map, Value, json};

use super::{Comparison, comparison::DifferenceRow, paired::Paired};

/// `{"runs": [...], "groups": [...], "spec": [{"key", "values": {run: value}}], "scores": [{"metric", "values": {run: value},
/// "best": [run], "groups": {...}}], "differences": [...], "gains": [...], "notes": [...]}`; null where a run has no value.
/// `run` is the label of a column. `groups` has its runs, their seeds and their mean. A difference compares two columns by a
/// metric; a gain compares a column with the weights that its training started from. `over_seeds` says whether the interval from
/// `low` to `high` covers the choice of seeds besides that of test samples.
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
            let mut groups = Map::new();
            for ((label, (names, _)), (members, deviation)) in
                runs.iter().zip(&comparison.members).zip(row.members.iter().zip(&row.deviations))
            {
                if names.len() > 1 {
                    let n = members.iter().flatten().count();
                    let values = by_run(names, members);
                    groups.insert(label.clone(), json!({ "n": n, "deviation": deviation, "values": values }));
                }
            }
            json!({ "metric": row.metric, "values": by_run(runs, &row.values), "best": best, "groups": groups })
        })
        .collect();
    let columns = runs.iter().zip(&comparison.members);
    let groups: Vec<Value> =
        columns.map(|(label, (runs, seeds))| json!({ "label": label, "runs": runs, "seeds": seeds })).collect();
    let differences: Vec<Value> = comparison.differences.iter().flat_map(|row| differences(runs, row)).collect();
    let whole = json!({
        "runs": runs, "groups": groups, "spec": spec, "scores": scores, "differences": differences,
        "gains": comparison.gains.iter().flat_map(|(metric, values)| gains(runs, metric, values)).collect::<Vec<_>>(),
        "notes": comparison.notes,
    });
    Ok(serde_json::to_string(&whole)? + "\n")
}

fn differences(runs: &[String], row: &DifferenceRow) -> Vec<Value> {
    let one = |(compared, paired): (&String, &Option<Paired>)| {
        let Paired { samples, difference, low, high, over_seeds, p } = paired.as_ref()?;
        Some(json!({
            "metric": row.metric, "baseline": runs[row.baseline], "compared": compared, "samples": samples,
            "difference": difference, "low": low, "high": high, "over_seeds": over_seeds, "p": p,
        }))
    };
    runs.iter().zip(&row.values).filter_map(one).collect()
}

fn gains(runs: &[String], metric: &str, values: &[Option<Paired>]) -> Vec<Value> {
    let one = |(run, paired): (&String, &Option<Paired>)| {
        let Paired { samples, difference, low, high, over_seeds, p } = paired.as_ref()?;
        Some(json!({
            "metric": metric, "run": run, "samples": samples, "difference": difference, "low": low, "high": high,
            "over_seeds": over_seeds, "p": p,
        }))
    };
    runs.iter().zip(values).filter_map(one).collect()
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
            json!({ "metric": "knn/top1", "values": { "paper-0a0a0a0a": 0.8764, "release-1b1b1b1b": 0.85 }, "best": ["paper-0a0a0a0a"], "groups": {} })
        );
    }
}
