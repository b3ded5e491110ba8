//! Tests of the evaluation stages on artifacts, and of `snclr export`, which writes encoder and classifier as safetensors.

#![allow(clippy::disallowed_methods, reason = "what tests compare with may be of any kind")]

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::Float64Type,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use snclr::{
    artifact::{Artifact, ArtifactWriter, Attempt, Components, Kind, Store},
    dataset::{DataConfig, SplitName, augment::AugmentationsConfig},
    encoder::{Encoder, EncoderConfig, ResnetConfig, Stem},
    ops::arena::{Entry, Layout},
    stage::{
        Interrupt, KnnConfig, LinearProbeConfig, Silent, StageContext, Stopped, data,
        embed::{self, EmbedConfig, EncoderFrom},
        evaluation::Scored,
        features, knn, linear_probe,
        weights::{Tensor, weights_batch},
    },
    tables::FEATURES,
};

const DIM: usize = 32;

fn components(what: &str) -> Components {
    let mut components = Components::default();
    components.insert("test", &what.into());
    components
}

fn write(out: &mut ArtifactWriter, name: &str, batch: &RecordBatch) -> anyhow::Result<()> {
    let mut table = out.table(name, batch.schema(), Kind::Content)?;
    table.write(batch)?;
    table.finish()
}

/// An artifact with features of 3 classes. `signal` is how far apart the classes are; `labelled` says whether rows have labels.
fn embedded(store: &Store, what: &str, signal: f32, labelled: bool) -> Artifact {
    store
        .build("embed", components(what), |out| {
            let mut table = out.table(FEATURES.name, FEATURES.schema_of_width(DIM), Kind::Content)?;
            for (split, n) in [(SplitName::Train, 240), (SplitName::Test, 60)] {
                let labels: Vec<Option<i64>> = (0..n).map(|i| labelled.then_some(i % 3)).collect();
                let value = |i: i64, d: usize| {
                    let noise = ((i * 7919 + d as i64 * 104729 + n) as f32 * 0.618).sin();
                    if d as i64 % 3 == i % 3 { signal + noise } else { noise }
                };
                let rows = (0..n).flat_map(|i| (0..DIM).map(move |d| value(i, d))).collect();
                table.write(&features::batch(split, 0, &labels, rows, DIM))?;
            }
            table.finish()
        })
        .unwrap()
}

/// Runs a stage as `snclr run` does. Panics if the stage fails.
fn stage(
    store: &Store,
    name: &str,
    work: impl Fn(&mut ArtifactWriter, &StageContext) -> anyhow::Result<()>,
) -> Artifact {
    try_stage(store, name, work).unwrap()
}

fn try_stage(
    store: &Store,
    name: &str,
    work: impl Fn(&mut ArtifactWriter, &StageContext) -> anyhow::Result<()>,
) -> anyhow::Result<Artifact> {
    let components = components(name);
    let key = components.key();
    let Attempt::Held(lock) = store.lock(name, &key).unwrap() else { panic!("the lock is taken") };
    let checkpoints = store.checkpoints(name, &key, |_| ()).unwrap();
    let context = StageContext {
        progress: &Silent,
        interrupt: &Interrupt::default(),
        checkpoints: &checkpoints,
        checkpoint_interval: Duration::MAX,
    };
    let mut writer = store.begin(&lock, name, components).unwrap();
    work(&mut writer, &context)?;
    store.commit(&lock, writer)
}

/// Runs the linear probe and kNN on features in a store at `root`, with `threads` threads.
fn evaluate(root: &Path, threads: usize, labelled: bool) -> [Artifact; 2] {
    let store = Store::open(root);
    let (trained, untrained) =
        (embedded(&store, "trained", 1.5, labelled), embedded(&store, "untrained", 0.0, labelled));
    let scored = || Scored { trained: &trained, random_init: &untrained, initial: None };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let probe = LinearProbeConfig { epochs: 12, batch_size: 100, ..LinearProbeConfig::default() };
        let knn = KnnConfig { k: vec![5, 20], ..KnnConfig::default() };
        [
            stage(&store, "linear_probe", |out, context| linear_probe::run(&probe, 7, scored(), out, context)),
            stage(&store, "knn", |out, context| knn::run(&knn, 7, scored(), out, context)),
        ]
    })
}

fn table(artifact: &Artifact, name: &str) -> RecordBatch {
    let batches: Vec<RecordBatch> = artifact.read(name).unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn scores(artifact: &Artifact) -> BTreeMap<String, f64> {
    let scores = table(artifact, "scores");
    let values = scores.column(1).as_primitive::<Float64Type>();
    scores.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).zip(values.values().to_vec()).collect()
}

#[test]
fn probes_score_far_above_their_controls_and_any_number_of_threads_gives_the_same_artifact() {
    let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [probe, knn] = evaluate(one.path(), 1, true);
    let metrics: BTreeMap<String, f64> = scores(&probe).into_iter().chain(scores(&knn)).collect();
    let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "knn/top1",
            "knn/top1_k20",
            "knn/top1_k5",
            "knn/top1_random_init",
            "knn/top1_shuffled_labels",
            "linear/top1",
            "linear/top1_random_init",
            "linear/top1_shuffled_labels"
        ]
    );
    for score in ["knn/top1", "linear/top1"] {
        assert!(metrics[score] > 0.9 && metrics[&format!("{score}_random_init")] < 0.6, "{metrics:?}");
    }
    assert_eq!(probe.tables(), ["classes", "classifier", "curve", "notes", "predictions", "scores"]);
    assert_eq!(table(&knn, "predictions").num_rows(), 2 * 60);

    let [probe_again, knn_again] = evaluate(three.path(), 3, true);
    assert_eq!((probe.content(), knn.content()), (probe_again.content(), knn_again.content()));
}

#[test]
fn without_labels_the_artifact_says_why_it_has_no_scores() {
    let root = tempfile::tempdir().unwrap();
    for artifact in evaluate(root.path(), 2, false) {
        assert_eq!(artifact.read("scores").unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 0);
        let notes = table(&artifact, "notes");
        assert_eq!(notes.column(1).as_string::<i32>().value(0), "skipped, the train split has no labels");
    }
}

fn encoder(stem: Stem) -> EncoderConfig {
    EncoderConfig::Resnet18(ResnetConfig { width_multiplier: 0.0625, stem, init: None })
}

/// The weights that training with `seed` starts from.
fn initial_weights(config: &EncoderConfig, seed: u64) -> Vec<Tensor> {
    let encoder = Encoder::new(config, 16).unwrap();
    assert_eq!(encoder.feature_dim(), DIM);
    let (params, buffers) = encoder.init::<f32>(seed);
    let tensors = |layout: &Layout, values: &[f32]| -> Vec<Tensor> {
        let tensor = |entry: &Entry| (entry.name.clone(), entry.shape.clone(), entry.to_torch(&values[entry.range()]));
        layout.entries.iter().map(tensor).collect()
    };
    [tensors(encoder.params(), &params), tensors(encoder.buffers(), &buffers)].concat()
}

fn pretrained(store: &Store, what: &str, weights: &[Tensor]) -> Artifact {
    store.build("pretrain", components(what), |out| write(out, "weights", &weights_batch(weights))).unwrap()
}

#[test]
fn every_image_is_embedded_by_a_complete_encoder_or_none_is() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let data: DataConfig = serde_json::from_value(
        json!({ "format": "synthetic", "classes": 3, "train_images": 40, "test_images": 12, "image_size": 16 }),
    )
    .unwrap();
    let data = stage(&store, "data", |out, context| data::run(&data, out, context));
    let view = json!({ "random_resized_crop": {} });
    let augmentations: AugmentationsConfig =
        serde_json::from_value(json!({ "size": 16, "view1": view, "view2": view })).unwrap();
    let config = EmbedConfig::new(&augmentations, &encoder(Stem::Cifar));
    let embed = |name: &str, from: EncoderFrom| {
        stage(&store, name, |out, context| embed::run(&config, &data, from, out, context))
    };

    let mut weights = initial_weights(&config.encoder, 5);
    let initial = pretrained(&store, "initial", &weights);
    let (a, b) = (embed("a", EncoderFrom::RandomInit { seed: 5 }), embed("b", EncoderFrom::Pretrained(&initial)));
    assert_eq!(table(&a, FEATURES.name), table(&b, FEATURES.name));
    let read = features::read(b.read(FEATURES.name).unwrap()).unwrap();
    assert_eq!((read.train.len(), read.test.len(), read.test.dim), (40, 12, DIM));
    assert!(read.train.labels.iter().all(|label| (0..3).contains(&label.unwrap())));
    let audit = table(&b, "audit");
    let audit: BTreeMap<_, _> = audit
        .column(0)
        .as_string::<i32>()
        .iter()
        .flatten()
        .zip(audit.column(1).as_string::<i32>().iter().flatten())
        .collect();
    assert_eq!(audit["encoder_sha256_before"], audit["encoder_sha256_after"]);
    assert_eq!(audit["key_coverage"], "100 tensors of 100, none unexpected");
    assert!(audit["mode"].starts_with("eval"));

    for (from, name) in
        [(EncoderFrom::Pretrained(&initial), "embed"), (EncoderFrom::RandomInit { seed: 5 }, "embed_random_init")]
    {
        let asked = Interrupt::default();
        asked.request();
        let stopped = try_stage(&store, "stopped", |out, context| {
            embed::run(&config, &data, from, out, &StageContext { interrupt: &asked, ..*context })
        });
        assert_eq!(stopped.unwrap_err().downcast_ref(), Some(&Stopped::InterruptedAt { stage: name }));
    }

    weights.iter_mut().filter(|tensor| tensor.0 == "conv1.weight").for_each(|tensor| tensor.2[0] += 1.0);
    let other = embed("c", EncoderFrom::Pretrained(&pretrained(&store, "other", &weights)));
    assert_ne!(table(&other, FEATURES.name), table(&b, FEATURES.name));

    weights.retain(|tensor| tensor.0 != "layer3.0.bn1.running_var");
    let incomplete = pretrained(&store, "incomplete", &weights);
    let refused = try_stage(&store, "d", |out, context| {
        embed::run(&config, &data, EncoderFrom::Pretrained(&incomplete), out, context)
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("missing (1): layer3.0.bn1.running_var"), "{text}");
}

/// A pretrain artifact with an untrained encoder, a probe, and the run that has both.
fn finished_run(root: &Path, with_probe: bool) {
    let encoder = encoder(Stem::Imagenet);
    let pretrain = pretrained(&Store::open(root), "pretrain", &initial_weights(&encoder, 3));
    let [probe, _] = evaluate(root, 2, true);
    let record = |stage: &str, artifact: &Artifact| json!({ "stage": stage, "key": artifact.key(), "content": artifact.content(), "seconds": 1.0 });
    let mut stages = vec![record("pretrain", &pretrain)];
    if with_probe {
        stages.push(record("linear_probe", &probe));
    }
    let dir = root.join("results/tiny-01234567");
    std::fs::create_dir_all(&dir).unwrap();
    let run =
        json!({ "run": "tiny-01234567", "name": "tiny", "created": 1, "stages": stages, "metrics": {}, "notes": [] });
    std::fs::write(dir.join("run.json"), run.to_string()).unwrap();
    std::fs::write(dir.join("spec.yaml"), json!({ "name": "tiny", "encoder": encoder }).to_string()).unwrap();
}

fn export(root: &Path, arguments: &[&str]) -> (String, String, Vec<u8>) {
    let file = root.join("out/encoder.safetensors");
    let output = Command::new(env!("CARGO_BIN_EXE_snclr"))
        .args(["--runs", root.to_str().unwrap(), "export", "tiny", "-o", file.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(root.to_str().unwrap(), "ROOT");
    (text(output.stdout), text(output.stderr), std::fs::read(&file).unwrap_or_default())
}

#[test]
fn the_export_has_torchvisions_names_and_the_probe_as_classifier() {
    let root = tempfile::tempdir().unwrap();
    finished_run(root.path(), true);
    let (stdout, stderr, bytes) = export(root.path(), &[]);
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        (
            "wrote ROOT/out/encoder.safetensors: 122 tensors of tiny-01234567, the linear probe as classifier of 3 classes\n",
            ""
        )
    );
    // torchvision.models.resnet18().state_dict() has 122 keys.
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 122);
    assert_eq!(file.tensor("conv1.weight").unwrap().shape(), [4, 3, 7, 7]);
    assert_eq!(file.tensor("fc.weight").unwrap().shape(), [3, DIM]);
    assert_eq!(file.tensor("layer4.1.bn2.num_batches_tracked").unwrap().dtype(), Dtype::I64);
    assert_eq!(export(root.path(), &[]).2, bytes, "equal weights give equal files");

    let (stdout, _, bytes) = export(root.path(), &["--head", "none"]);
    assert!(stdout.ends_with("120 tensors of tiny-01234567, no classifier\n"), "{stdout}");
    assert!(SafeTensors::deserialize(&bytes).unwrap().tensor("fc.weight").is_err());
}

#[test]
fn without_a_probe_zeros_stand_in_for_the_classifier() {
    let root = tempfile::tempdir().unwrap();
    finished_run(root.path(), false);
    let (stdout, _, bytes) = export(root.path(), &[]);
    assert!(stdout.ends_with("zeros as classifier of 1000 classes\n"), "{stdout}");
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("fc.weight").unwrap().shape(), [1000, DIM]);
}

#[test]
fn an_artifact_that_is_gone_is_named() {
    let root = tempfile::tempdir().unwrap();
    finished_run(root.path(), true);
    std::fs::remove_dir_all(root.path().join("store/pretrain")).unwrap();
    let (_, stderr, bytes) = export(root.path(), &[]);
    assert_eq!(
        stderr,
        "error: the pretrain artifact of run tiny-01234567 is missing; run its spec again (results/tiny-01234567/spec.yaml)\n"
    );
    assert!(bytes.is_empty());
}
