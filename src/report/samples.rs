//! Made-up runs for the tests of the reports.

use std::{fs, path::Path};

use serde_json::json;

use super::Run;

/// Writes the folder of a run without stages.
pub fn write_run(root: &Path, run: &str, name: &str, created: u64, spec: &str, metrics: &[(&str, f64)]) {
    let dir = root.join("results").join(run);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("spec.yaml"), spec).unwrap();
    fs::write(dir.join("run.json"), record(run, name, created, metrics).to_string()).unwrap();
}

fn record(run: &str, name: &str, created: u64, metrics: &[(&str, f64)]) -> serde_json::Value {
    let metrics: serde_json::Map<_, _> = metrics.iter().map(|&(metric, value)| (metric.into(), value.into())).collect();
    json!({ "run": run, "name": name, "created": created, "stages": [], "metrics": metrics, "notes": [] })
}

/// A run with this spec and these scores.
pub fn run(run: &str, spec: &str, metrics: &[(&str, f64)]) -> Run {
    Run {
        record: serde_json::from_value(record(run, run, 0, metrics)).unwrap(),
        spec: serde_yaml::from_str(spec).unwrap(),
    }
}

/// Two runs that differ in a number, a list and a key that only one has.
pub fn pair() -> [Run; 2] {
    [
        run(
            "paper-0a0a0a0a",
            "name: paper\nepochs: 200\nmethod: {name: snclr, k: 30, tau: 0.1}\nknn: {k: [20, 10]}\n",
            &[
                ("knn/top1", 0.8764),
                ("knn/top1_random_init", 0.4),
                ("linear/top1", 0.9),
                ("train/images_per_second", 1234.5),
            ],
        ),
        run(
            "release-1b1b1b1b",
            "name: release\nepochs: 200\nmethod: {name: snclr, k: 30, tau: 0.2, attention: cosine}\nknn: {k: [200]}\n",
            &[
                ("knn/top1", 0.85),
                ("knn/top1_random_init", 0.45),
                ("linear/top1", 0.9),
                ("train/images_per_second", 987.25),
            ],
        ),
    ]
}
