//! The measured figures that pages and the head comments of specs show. Their one source is the file [`SOURCE`].
//!
//! [`COMMAND`] runs the full specs as the pages show, and writes their output to the source, the pages and the head comments.
//! `tests/docs.rs` compares all digits with the source, and `tests/quickstart.rs` compares the source with a run. The scores are
//! the same on every x86-64 CPU; the times belong to the machine on which the command ran.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The command that measures the figures again.
pub const COMMAND: &str = "cargo test --release --test docs -- --ignored retake_figures";

/// The file that holds the figures, relative to the repository.
pub const SOURCE: &str = "tests/golden/figures.json";

/// The pages on which a test compares every digit, relative to the repository.
pub const PAGES: [&str; 3] = ["README.md", "docs/tutorial.md", "docs/how-to/compare.md"];

/// The specs whose head comments show measured scores, each with the options that it runs with. `CIFAR10` stands for the folder
/// that the variable [`CIFAR10`] names. Without the variable, the figures that need the folder stay as they are.
pub const SPECS: [(&str, &str); 2] = [
    ("specs/quickstart.yaml", ""),
    ("specs/cifar10-small.yaml", "--set data.train=CIFAR10/train.parquet --set data.test=CIFAR10/test.parquet"),
];

/// The environment variable that names a folder with CIFAR-10 as Parquet: `train.parquet` and `test.parquet`.
pub const CIFAR10: &str = "SNCLR_CIFAR10";

/// The scores that the head comment of a spec shows.
const SCORES: [&str; 4] = ["knn/top1", "knn/top1_random_init", "linear/top1", "linear/top1_random_init"];

#[derive(Default, Serialize, Deserialize)]
pub struct Figures {
    /// For each page, the lines of its `text` blocks.
    pub pages: BTreeMap<String, Vec<Vec<String>>>,
    /// For each spec, its scores as fractions.
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

    /// The line in the head comment of a spec that shows the expected scores.
    pub fn expected(&self, spec: &str) -> String {
        let scores = self.specs.get(spec).unwrap_or_else(|| panic!("{SOURCE} has no {spec}: {COMMAND}"));
        let [knn, knn_untrained, linear, linear_untrained] =
            SCORES.map(|name| format!("{:.1} %", 100.0 * scores[name]));
        format!(
            "# expected   kNN top-1 {knn} (untrained encoder {knn_untrained}), linear probe {linear} ({linear_untrained}): measured"
        )
    }
}

/// The scores for the head comment, from the JSON of `snclr run`.
pub fn scores(run: &Value) -> BTreeMap<String, f64> {
    let score = |name: &str| run["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {run}"));
    SCORES.iter().map(|&name| (name.to_owned(), score(name))).collect()
}
