//! Writes a comparison as CSV: one row per leaf or score, one column per run or group, numbers unrounded.

use super::{Comparison, paired::Paired};
use crate::spec;

/// The rows `kind, key, <run>...`. A cell is empty where a run has no value. The score of a group is the mean; rows `deviation`
/// and `n` follow it. Differences between columns are rows of the kinds `difference`, `low`, `high` and `p`. Gains over the
/// weights that a training started from are rows of the kinds `gain`, `gain_low` and `gain_high`.
///
/// # Errors
/// Never: the writer returns a `Result`, but writing to memory does not fail.
pub fn render(comparison: &Comparison) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["kind", "key"].into_iter().chain(comparison.runs.iter().map(String::as_str)))?;
    for row in &comparison.spec {
        let values = row.values.iter().map(|value| value.as_ref().map(spec::plain).unwrap_or_default());
        writer.write_record(["spec".into(), row.key.clone()].into_iter().chain(values))?;
    }
    let mut figures = |kind: &str, key: &str, values: Vec<Option<f64>>| {
        let values = values.iter().map(|value| value.map(|value| value.to_string()).unwrap_or_default());
        writer.write_record([kind.to_owned(), key.to_owned()].into_iter().chain(values))
    };
    for row in &comparison.scores {
        figures("score", &row.metric, row.values.clone())?;
        if comparison.is_grouped() {
            figures("deviation", &row.metric, row.deviations.clone())?;
            let counts = row.members.iter().map(|members| Some(members.iter().flatten().count() as f64));
            figures("n", &row.metric, counts.collect())?;
        }
    }
    for (metric, gains) in &comparison.gains {
        let column = |get: fn(&Paired) -> f64| gains.iter().map(|paired| paired.as_ref().map(get)).collect();
        figures("gain", metric, column(|paired| paired.difference))?;
        figures("gain_low", metric, column(|paired| paired.low))?;
        figures("gain_high", metric, column(|paired| paired.high))?;
    }
    for row in &comparison.differences {
        let column = |get: fn(&Paired) -> Option<f64>| row.values.iter().map(|paired| get(paired.as_ref()?)).collect();
        figures("difference", &row.metric, column(|paired| Some(paired.difference)))?;
        figures("low", &row.metric, column(|paired| Some(paired.low)))?;
        figures("high", &row.metric, column(|paired| Some(paired.high)))?;
        figures("p", &row.metric, column(|paired| paired.p))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::pair;

    #[test]
    fn lists_are_quoted_and_what_is_missing_is_empty() {
        let expected = "\
kind,key,paper-0a0a0a0a,release-1b1b1b1b
spec,method.tau,0.1,0.2
spec,knn.k,\"[20,10]\",[200]
spec,method.attention,,cosine
score,knn/top1,0.8764,0.85
score,knn/top1_random_init,0.4,0.45
score,linear/top1,0.9,0.9
score,train/images_per_second,1234.5,987.25
";
        assert_eq!(render(&Comparison::new(&pair())).unwrap(), expected);
    }
}
