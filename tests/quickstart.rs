//! Runs the quickstart spec of the README: the trained encoder must beat the untrained one by far.

mod common;

use common::{
    Scratch,
    figures::{COMMAND, Figures, scores},
};

#[test]
fn the_quickstart_learns() {
    let scratch = Scratch::new();
    let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/quickstart.yaml");
    let run = scratch.json(&format!("run {spec} --json"));
    let metrics = &run["metrics"];
    let top1 = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
    assert!(top1("knn/top1") >= top1("knn/top1_random_init") + 0.15, "{metrics}");
    assert!(top1("linear/top1") >= top1("linear/top1_random_init") + 0.15, "{metrics}");
    // There are ten classes, so shuffled labels must score about 0.1, which is chance.
    assert!(top1("knn/top1_shuffled_labels") < 0.2 && top1("linear/top1_shuffled_labels") < 0.2, "{metrics}");
    // In f32 every x86-64 CPU gives the same scores.
    if cfg!(target_arch = "x86_64") {
        let shown = &Figures::read().specs["specs/quickstart.yaml"];
        assert_eq!(&scores(&run), shown, "taken anew by: {COMMAND}");
    }
}
