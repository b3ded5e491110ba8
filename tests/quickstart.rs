//! The main job of the README, as it stands there: the trained encoder beats the untrained one by far.

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
    // Ten classes: labels that mean nothing must score like chance.
    assert!(top1("knn/top1_shuffled_labels") < 0.2 && top1("linear/top1_shuffled_labels") < 0.2, "{metrics}");
    // The bits of f32 are those of every x86-64 CPU.
    if cfg!(target_arch = "x86_64") {
        let shown = &Figures::read().specs["specs/quickstart.yaml"];
        assert_eq!(&scores(&run), shown, "taken anew by: {COMMAND}");
    }
}
