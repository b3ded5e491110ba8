//! The figures that README, the tutorial and the heads of specs show, and their one source: [`SOURCE`].
//!
//! [`COMMAND`] runs the whole specs, as the pages say, and writes what they print into the source, the pages and the heads. The
//! tests compare all digits with the source, and `tests/quickstart.rs` compares the source with a run. Digits are those of every
//! x86-64 CPU; times are those of the machine that took them.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the figures are taken anew.
pub const COMMAND: &str = "cargo test --release --test docs -- --ignored retake_figures";

/// Where they are kept, relative to the repository.
pub const SOURCE: &str = "tests/golden/figures.json";

/// Pages whose digits count, relative to the repository.
pub const PAGES: [&str; 3] = ["README.md", "docs/tutorial.md", "docs/how-to/compare.md"];

/// Specs whose heads name measured scores, with what is set to run them: `CIFAR10` stands for the folder that the variable
/// [`CIFAR10`] names. Without it their figures stay as they are.
pub const SPECS: [(&str, &str); 2] = [
    ("specs/quickstart.yaml", ""),
    ("specs/cifar10-small.yaml", "--set data.train=CIFAR10/train.parquet --set data.test=CIFAR10/test.parquet"),
];

/// A folder with CIFAR-10 as Parquet: `train.parquet` and `test.parquet`.
pub const CIFAR10: &str = "SNCLR_CIFAR10";

/// Scores that a spec's head names.
const SCORES: [&str; 4] = ["knn/top1", "knn/top1_random_init", "linear/top1", "linear/top1_random_init"];

#[derive(Default, Serialize, Deserialize)]
pub struct Figures {
    /// For each page the lines of its `text` blocks.
    pub pages: BTreeMap<String, Vec<Vec<String>>>,
    /// For each spec its scores, in shares of 1.
    pub specs: BTreeMap<String, BTreeMap<String, f64>>,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Figures {
    pub fn read() -> Figures {
        let text = fs::read_to_string(repository().join(SOURCE)).expect(SOURCE);
        serde_json::from_str(&text).expect(SOURCE)
    }

    pub fn write(&self) {
        let text = serde_json::to_string_pretty(self).expect("JSON") + "\n";
        fs::write(repository().join(SOURCE), text).expect(SOURCE);
    }

    /// The line of a spec's head that says what to expect.
    pub fn expected(&self, spec: &str) -> String {
        let scores = self.specs.get(spec).unwrap_or_else(|| panic!("{SOURCE} has no {spec}: {COMMAND}"));
        let [knn, knn_untrained, linear, linear_untrained] =
            SCORES.map(|name| format!("{:.1} %", 100.0 * scores[name]));
        format!(
            "# expected   kNN top-1 {knn} (untrained encoder {knn_untrained}), linear probe {linear} ({linear_untrained}): measured"
        )
    }
}

/// The scores of a run that a head names, from the JSON of `run`.
pub fn scores(run: &Value) -> BTreeMap<String, f64> {
    let score = |name: &str| run["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {run}"));
    SCORES.iter().map(|&name| (name.to_owned(), score(name))).collect()
}
