//! A comparison as CSV: one row per leaf or score, one column per run, figures unrounded.

use super::{Comparison, grid::text};

/// The rows `kind, key, <run>...`; what a run does not have is empty.
///
/// # Errors
/// Never in memory; the writer's signature has them.
pub fn render(comparison: &Comparison) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["kind", "key"].into_iter().chain(comparison.runs.iter().map(String::as_str)))?;
    for row in &comparison.spec {
        let values = row.values.iter().map(|value| value.as_ref().map(text).unwrap_or_default());
        writer.write_record(["spec".into(), row.key.clone()].into_iter().chain(values))?;
    }
    for row in &comparison.scores {
        let values = row.values.iter().map(|value| value.map(|value| value.to_string()).unwrap_or_default());
        writer.write_record(["score".into(), row.metric.clone()].into_iter().chain(values))?;
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
