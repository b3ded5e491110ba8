//! Keys, statuses and reasons over a store with artifacts.

use std::{fs, path::PathBuf, sync::Arc, thread::sleep, time::Duration};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use serde_json::Value;

use super::*;
use crate::{artifact::Kind, stage::Silent};

const SPEC: &str = "
name: small
data: {format: synthetic, classes: 4, train_images: 100, test_images: 20, image_size: 32}
augmentations:
  size: 32
  view1: {random_resized_crop: {}, horizontal_flip: {p: 0.5}}
  view2: {random_resized_crop: {scale: [0.2, 1.0]}, solarize: {p: 0.1}}
encoder: {arch: resnet18, width_multiplier: 0.25, stem: cifar}
projector: {layers: 2, hidden: 64, output: 32}
predictor: {layers: 2, hidden: 64, output: 32}
method: {name: snclr, k: 5, queue_length: 64, tau: 0.2}
optimizer: {name: sgd, base_lr: 0.1}
epochs: 2
batch_size: 32
";

/// A small experiment with some fields replaced.
pub(crate) fn experiment(overrides: &[(&str, Value)]) -> Experiment {
    let mut value: Value = serde_yaml::from_str(SPEC).unwrap();
    for (name, new) in overrides {
        let mut at = &mut value;
        for part in name.split('.') {
            at = &mut at[part];
        }
        *at = new.clone();
    }
    serde_json::from_value(value).unwrap()
}

struct Scene {
    root: tempfile::TempDir,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("runs"));
        Scene { root, store }
    }

    fn planner(&self, experiment: &Experiment) -> Planner<'_> {
        Planner::new(&self.store, experiment, self.root.path(), &Silent, &Interrupt::default()).unwrap()
    }

    fn plan(&self, experiment: &Experiment) -> Vec<(Stage, bool, String)> {
        let plan = self.planner(experiment).plan(Against::Nearest);
        plan.iter().map(|planned| (planned.stage, planned.is_cached(), planned.reason())).collect()
    }

    /// Makes what is missing; the content is the first `distinct` digits of the key, so that different keys may have equal
    /// content.
    fn make(&self, experiment: &Experiment, distinct: usize) {
        let planner = self.planner(experiment);
        let mut artifacts = BTreeMap::new();
        for stage in Stage::ALL {
            let planned = planner.resolve(stage, &artifacts, Against::Nearest);
            let (key, components) = (planned.key.unwrap(), planned.components);
            let artifact = match planned.verdict {
                Verdict::Cached(artifact) => artifact,
                Verdict::Runs { .. } | Verdict::Depends => {
                    let digits = key.as_str()[..distinct].bytes().map(i64::from).collect::<Vec<_>>();
                    let column = Arc::new(Int64Array::from(digits)) as ArrayRef;
                    let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
                    let fill = |writer: &mut crate::artifact::ArtifactWriter| {
                        let mut table = writer.table("x", batch.schema(), Kind::Content)?;
                        table.write(&batch)?;
                        table.finish()
                    };
                    self.store.build(stage.name(), components, fill).unwrap()
                }
            };
            artifacts.insert(stage, artifact);
        }
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}

/// Stages that have to run, with their reasons.
fn pending(plan: &[(Stage, bool, String)]) -> Vec<(&str, &str)> {
    plan.iter().filter(|(_, cached, _)| !cached).map(|(stage, _, reason)| (stage.name(), reason.as_str())).collect()
}

const BELOW_PRETRAIN: [(&str, &str); 3] =
    [("embed", "waits for pretrain"), ("linear_probe", "waits for embed"), ("knn", "waits for embed")];

#[test]
fn at_first_everything_is_pending_and_afterwards_nothing() {
    let scene = Scene::new();
    let experiment = experiment(&[]);
    let plan = scene.plan(&experiment);
    let expected = [
        ("data", "no artifact yet"),
        ("pretrain", "waits for data"),
        ("embed", "waits for data"),
        ("embed_random_init", "waits for data"),
        ("linear_probe", "waits for embed"),
        ("knn", "waits for embed"),
    ];
    assert_eq!(pending(&plan), expected);
    assert!(!scene.store.root().exists(), "planning generated data writes nothing");
    scene.make(&experiment, 64);
    let plan = scene.plan(&experiment);
    assert_eq!(pending(&plan), []);
    assert!(plan.iter().all(|(_, _, reason)| reason == "unchanged"));
}

#[test]
fn a_change_reruns_what_depends_on_it_and_says_why() {
    let scene = Scene::new();
    scene.make(&experiment(&[]), 64);
    let check = |name: &str, value: Value, expected: &[(&str, &str)]| {
        let plan = scene.plan(&experiment(&[(name, value)]));
        assert_eq!(pending(&plan), expected, "{name}");
    };
    check("knn", serde_json::json!({"k": [5]}), &[("knn", "knn.k [20, 10, 100, 200] -> [5]")]);
    check("linear_probe", serde_json::json!({"epochs": 5}), &[("linear_probe", "linear_probe.epochs 90 -> 5")]);
    let with_below = |reason| [&[("pretrain", reason)][..], &BELOW_PRETRAIN].concat();
    check("method.tau", 0.1.into(), &with_below("method.tau 0.2 -> 0.1"));
    check("augmentations.view2.solarize.p", 0.2.into(), &with_below("augmentations.view2.solarize.p 0.1 -> 0.2"));
    check(
        "optimizer",
        serde_json::json!({"name": "adamw", "base_lr": 0.1}),
        &with_below(
            "optimizer.betas (none) -> [0.9, 0.999], optimizer.eps (none) -> 1e-8, optimizer.momentum 0.9 -> (none), \
         optimizer.name sgd -> adamw",
        ),
    );
    check("name", "other".into(), &[]);
    check("description", "other words".into(), &[]);
    // Evaluation transforms are no business of training; the controls' features depend on them as well.
    check(
        "augmentations.eval",
        serde_json::json!({"resize": 48}),
        &[
            ("embed", "augmentations.eval.resize (none) -> 48"),
            ("embed_random_init", "augmentations.eval.resize (none) -> 48"),
            ("linear_probe", "waits for embed"),
            ("knn", "waits for embed"),
        ],
    );
    check(
        "seed",
        1.into(),
        &[
            ("pretrain", "seed 0 -> 1"),
            ("embed", "waits for pretrain"),
            ("embed_random_init", "seed 0 -> 1"),
            ("linear_probe", "waits for embed"),
            ("knn", "waits for embed"),
        ],
    );
}

#[test]
fn equal_content_stops_a_change_from_spreading() {
    let scene = Scene::new();
    // Whatever the keys, every stage has the same content.
    scene.make(&experiment(&[]), 0);
    let changed = experiment(&[("method.tau", 0.1.into())]);
    assert_eq!(scene.plan(&changed).iter().filter(|(_, cached, _)| *cached).count(), 2);
    let planner = scene.planner(&changed);
    let data = planner.plan(Against::Nearest)[0].artifact().unwrap().clone();
    let inputs = BTreeMap::from([(Stage::Data, data)]);
    let components = planner.resolve(Stage::Pretrain, &inputs, Against::Nearest).components;
    let fill = |writer: &mut crate::artifact::ArtifactWriter| {
        let column = Arc::new(Int64Array::from(Vec::<i64>::new())) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
        writer.table("x", batch.schema(), Kind::Content)?.finish()
    };
    scene.store.build("pretrain", components, fill).unwrap();
    assert_eq!(pending(&scene.plan(&changed)), [], "embed and below stay cached");
}

#[test]
fn every_field_that_matters_is_in_some_key() {
    let value = serde_json::to_value(experiment(&[])).unwrap();
    let mut all = BTreeMap::new();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for section in names(&spec_semantic(&value)) {
        all.insert(section, false);
    }
    for stage in Stage::ALL {
        for field in stage.fields().0 {
            let section = field.split('.').next().unwrap();
            *all.get_mut(section).unwrap_or_else(|| panic!("{stage} depends on `{field}`, which is no field")) = true;
        }
    }
    assert!(all.values().all(|used| *used), "no stage depends on {all:?}");
}

fn spec_semantic(value: &Value) -> Value {
    crate::spec::semantic(value)
}

#[test]
fn a_damaged_artifact_is_pending_and_named() {
    let scene = Scene::new();
    let experiment = experiment(&[]);
    scene.make(&experiment, 64);
    let artifact = scene.planner(&experiment).plan(Against::Nearest)[4].artifact().unwrap().clone();
    fs::write(artifact.table_path("x").unwrap(), "rubbish").unwrap();
    let plan = scene.plan(&experiment);
    let [("linear_probe", reason)] = pending(&plan)[..] else { panic!("{plan:?}") };
    assert!(reason.starts_with("damaged: x.parquet: 7 bytes instead of "), "{reason}");
    assert!(artifact.dir().exists(), "planning moves nothing");
}

#[test]
fn files_count_by_content_wherever_and_whenever_they_are() {
    let scene = Scene::new();
    let folder = scene.folder("images");
    for (class, name) in [("cat", "1.png"), ("cat", "2.png"), ("dog", "1.png")] {
        fs::create_dir_all(folder.join(class)).unwrap();
        fs::write(folder.join(class).join(name), format!("{class} {name}")).unwrap();
    }
    let config = |folder: &str| serde_json::json!({"format": "image_folder", "train": folder});
    let with = |folder: &str| experiment(&[("data", config(folder))]);
    scene.make(&with("images"), 64);
    assert_eq!(pending(&scene.plan(&with("images"))), []);

    let now = fs::FileTimes::new().set_modified(std::time::SystemTime::now());
    fs::File::options().write(true).open(folder.join("cat/1.png")).unwrap().set_times(now).unwrap();
    assert_eq!(pending(&scene.plan(&with("images"))), [], "touched");
    fs::rename(&folder, scene.root.path().join("moved")).unwrap();
    let folder = scene.root.path().join("moved");
    assert_eq!(pending(&scene.plan(&with("moved"))), [], "moved");
    assert_eq!(pending(&scene.plan(&with(folder.to_str().unwrap()))), [], "given as an absolute path");

    // Let the hashes become trusted, then change a file without changing its length.
    sleep(Duration::from_millis(80));
    assert_eq!(pending(&scene.plan(&with("moved"))), []);
    fs::write(folder.join("cat/2.png"), "CAT 2.png").unwrap();
    let plan = scene.plan(&with("moved"));
    let (stage, reason) = pending(&plan)[0];
    assert_eq!(stage, "data");
    assert!(reason.starts_with("data.source.train/cat/2.png ") && reason.contains(" -> "), "{reason}");
    fs::write(folder.join("cat/2.png"), "cat 2.png").unwrap();
    fs::rename(folder.join("dog"), folder.join("wolf")).unwrap();
    assert_ne!(pending(&scene.plan(&with("moved"))), [], "another name within the folder is another class");
}

#[test]
fn a_missing_source_is_named() {
    let scene = Scene::new();
    let experiment = experiment(&[("data", serde_json::json!({"format": "cifar10", "train": "nowhere.bin"}))]);
    let planner = Planner::new(&scene.store, &experiment, scene.root.path(), &Silent, &Interrupt::default());
    let Err(error) = planner else { panic!() };
    assert!(format!("{error:#}").contains("nowhere.bin"), "{error:#}");
}
