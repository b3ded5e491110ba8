//! Keys, statuses and reasons over a store with artifacts.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, thread::sleep, time::Duration};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use serde_json::Value;

use super::*;
use crate::{
    artifact::{Components, Kind, Store},
    spec::Experiment,
    stage::{Interrupt, Silent},
};

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

/// The leaves of a key.
pub(crate) fn components(leaves: &[(&str, Value)]) -> Components {
    let mut components = Components::default();
    leaves.iter().for_each(|(name, value)| components.insert(*name, value));
    components
}

/// The tables that stages read, and one that no stage reads.
const TABLES: [&str; 5] = ["train-00000", "test-00000", "weights", "features", "x"];

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

    /// Makes the missing artifacts; the content is the first `distinct` digits of the key, so that different keys may have equal
    /// content.
    fn make(&self, experiment: &Experiment, distinct: usize) {
        let planner = self.planner(experiment);
        let mut artifacts = BTreeMap::new();
        for &stage in planner.stages() {
            let planned = planner.resolve(stage, &artifacts, Against::Nearest);
            let (key, components) = (planned.key.unwrap(), planned.components);
            let artifact = match planned.verdict {
                Verdict::Cached(artifact) => artifact,
                Verdict::Runs { .. } | Verdict::Depends => {
                    let digits = key.as_str()[..distinct].bytes().map(i64::from).collect::<Vec<_>>();
                    let column = Arc::new(Int64Array::from(digits)) as ArrayRef;
                    let batch = RecordBatch::try_from_iter([("content_hash", column)]).unwrap();
                    let fill = |writer: &mut crate::artifact::ArtifactWriter| {
                        for name in TABLES {
                            let mut table = writer.table(name, batch.schema(), Kind::Content)?;
                            table.write(&batch)?;
                            table.finish()?;
                        }
                        Ok(())
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
    // Training does not depend on evaluation transforms. The features do, including those of the control.
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
        let batch = RecordBatch::try_from_iter([("content_hash", column)]).unwrap();
        writer.table("weights", batch.schema(), Kind::Content)?.finish()
    };
    scene.store.build("pretrain", components, fill).unwrap();
    assert_eq!(pending(&scene.plan(&changed)), [], "embed and below stay cached");
}

#[test]
fn every_field_that_matters_is_in_some_key() {
    let experiment = experiment(&[("augmentations.eval", serde_json::json!({"resize": 40}))]);
    let mut all = BTreeMap::new();
    let semantic = crate::spec::semantic(serde_json::to_value(&experiment).unwrap());
    key::flatten(&mut String::new(), &semantic, &mut |leaf, value| drop(all.insert(leaf.to_owned(), value.clone())));
    let leaves = key::KeyFields::of(&experiment).unwrap();
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    for stage in Stage::ALL {
        read.extend(leaves.components(stage, |_| None).0);
    }
    for (leaf, value) in all {
        assert!(read.contains_key(&leaf), "no stage depends on {leaf} = {value}");
    }
}

/// Each reader can read the tables that its key holds, and no others.
#[test]
fn a_stage_cannot_read_what_its_key_does_not_hold() {
    let scene = Scene::new();
    let experiment = experiment(&[]);
    scene.make(&experiment, 64);
    let plan = scene.planner(&experiment).plan(Against::Nearest);
    let readable = |reader: Stage, input: Stage| {
        let artifact = plan.iter().find(|planned| planned.stage == input).unwrap().artifact().unwrap();
        let readable = reader.readable(input, artifact);
        assert!(readable.read("x").err().unwrap().to_string().contains("has no table \"x\""));
        readable.tables()
    };
    assert_eq!(readable(Stage::Pretrain, Stage::Data), ["test-00000", "train-00000"]);
    assert_eq!(readable(Stage::Embed, Stage::Data), ["test-00000", "train-00000"]);
    assert_eq!(readable(Stage::Embed, Stage::Pretrain), ["weights"]);
    assert_eq!(readable(Stage::EmbedRandomInit, Stage::Data), ["test-00000", "train-00000"]);
    for probe in [Stage::LinearProbe, Stage::Knn] {
        assert_eq!(readable(probe, Stage::Embed), ["features"]);
        assert_eq!(readable(probe, Stage::EmbedRandomInit), ["features"]);
    }
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

/// The file with the table of changes, which stands between [`BEGIN`] and [`END`].
const TABLE_OF_CHANGES: &str = "docs/how-to/resume-and-trust.md";
const BEGIN: &str = "<!-- changes: written by SNCLR_RECORD_CHANGES=1 cargo test --release --lib changes -->\n";
const END: &str = "<!-- changes end -->\n";

/// The stages that a change of one field of the spec reruns: `runs` where the stage itself depends on the field, `follows` where
/// an input changes.
fn table_of_changes() -> String {
    use serde_json::json;
    let vit = json!({"arch": "vit_tiny", "patch_size": 8});
    let crops = json!({"count": 2, "size": 16, "view": {"random_resized_crop": {}}});
    let changes: [(&str, Value); 42] = [
        ("name", json!("other")),
        ("description", json!("other words")),
        ("seed", json!(1)),
        ("data.seed", json!(1)),
        ("data.train_images", json!(120)),
        ("data.test_images", json!(30)),
        ("augmentations.size", json!(40)),
        ("augmentations.mean", json!([0.5, 0.5, 0.5])),
        ("augmentations.std", json!([0.2, 0.2, 0.2])),
        ("augmentations.view1.horizontal_flip.p", json!(0.1)),
        ("augmentations.view2.solarize.p", json!(0.2)),
        ("augmentations.local_crops", crops),
        ("augmentations.eval.resize", json!(48)),
        ("encoder.arch", json!("resnet34")),
        ("encoder.width_multiplier", json!(0.5)),
        ("encoder.stem", json!("imagenet")),
        ("encoder.stop_grad_patch_embed", json!(true)),
        ("projector.hidden", json!(128)),
        ("predictor.layers", json!(3)),
        ("method.k", json!(3)),
        ("method.tau", json!(0.1)),
        ("method.queue_length", json!(128)),
        ("optimizer.base_lr", json!(0.2)),
        ("optimizer.momentum", json!(0.8)),
        ("optimizer.weight_decay", json!(0.001)),
        ("schedule.warmup_epochs", json!(1.0)),
        ("epochs", json!(3)),
        ("batch_size", json!(16)),
        ("gradient_accumulation", json!(2)),
        ("batch_norm.group", json!(16)),
        ("precision", json!("tf32")),
        ("health.every", json!(1)),
        ("health.knn_every_epochs", json!(1)),
        ("health.stop_on_collapse", json!(false)),
        ("linear_probe.epochs", json!(5)),
        ("linear_probe.batch_size", json!(64)),
        ("linear_probe.base_lr", json!(0.3)),
        ("linear_probe.momentum", json!(0.5)),
        ("linear_probe.weight_decay", json!(0.1)),
        ("linear_probe.standardize", json!(false)),
        ("knn.k", json!([5])),
        ("knn.temperature", json!(0.1)),
    ];
    let scene = Scene::new();
    let row = |(name, value): &(&str, Value)| {
        let base: &[(&str, Value)] = if name.ends_with("patch_embed") { &[("encoder", vit.clone())] } else { &[] };
        scene.make(&experiment(base), 64);
        let changed = experiment(&[base, &[(name, value.clone())]].concat());
        assert_ne!(changed, experiment(base), "{name} is not another value");
        let cell = |planned: &Planned| match &planned.verdict {
            Verdict::Cached(_) => "",
            Verdict::Depends => "follows",
            Verdict::Runs { .. } => "runs",
        };
        let plan = scene.planner(&changed).plan(Against::Nearest);
        let cells = plan.iter().map(cell).collect::<Vec<_>>().join(" | ");
        format!("| `{name}` | {cells} |\n").replace("  ", " ")
    };
    let stages = Stage::of_experiment(false);
    let names = stages.iter().map(|stage| format!("`{stage}`")).collect::<Vec<_>>().join(" | ");
    let rows: String = changes.iter().map(row).collect();
    format!("| a change of | {names} |\n|{}\n{rows}", "---|".repeat(1 + stages.len()))
}

#[test]
fn the_documented_table_of_changes_is_what_happens() {
    let text = fs::read_to_string(TABLE_OF_CHANGES).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the beginning of the table");
    let (documented, after) = rest.split_once(END).expect("the end of the table");
    let found = table_of_changes();
    if std::env::var_os("SNCLR_RECORD_CHANGES").is_some() {
        return fs::write(TABLE_OF_CHANGES, format!("{before}{BEGIN}{found}{END}{after}")).unwrap();
    }
    assert_eq!(documented, found, "{TABLE_OF_CHANGES}");
}
