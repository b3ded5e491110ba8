//! Tests of the driver, with stages that only note that they ran.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::{
    artifact::{Artifact, ArtifactWriter, Attempt, Kind, RunRecord, Stamp, StatCache, Store},
    plan::{Against, Planner, Stage, tests::experiment},
    spec::Experiment,
    stage::{Interrupt, Silent, StageContext, Stopped},
};

struct Scene {
    root: tempfile::TempDir,
    experiment: Experiment,
    interrupt: Interrupt,
    ran: Mutex<Vec<Stage>>,
}

fn table(writer: &mut ArtifactWriter, name: &str, kind: Kind, batch: &RecordBatch) -> anyhow::Result<()> {
    let mut table = writer.table(name, batch.schema(), kind)?;
    table.write(batch)?;
    table.finish()
}

fn pairs(rows: &[(&str, f64)]) -> RecordBatch {
    let (names, values): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
    RecordBatch::try_from_iter([
        ("metric", Arc::new(StringArray::from(names)) as ArrayRef),
        ("value", Arc::new(Float64Array::from(values)) as ArrayRef),
    ])
    .unwrap()
}

/// Tables like those of the real stages; the content depends on the key only.
fn fill(stage: Stage, out: &mut ArtifactWriter) -> anyhow::Result<()> {
    let rows = RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(vec![stage as i64])) as ArrayRef)])?;
    table(out, "rows", Kind::Content, &rows)?;
    match stage {
        Stage::Pretrain => table(out, "summary", Kind::Measurement, &pairs(&[("images_per_second", 123.0)])),
        Stage::Knn => {
            table(out, "scores", Kind::Content, &pairs(&[("knn/top1", 0.75), ("knn/top1_random_init", f64::NAN)]))
        }
        Stage::LinearProbe => {
            let notes = RecordBatch::try_from_iter([
                ("key", Arc::new(StringArray::from(vec!["skipped"])) as ArrayRef),
                ("text", Arc::new(StringArray::from(vec!["the test split has no labels"])) as ArrayRef),
            ])?;
            table(out, "scores", Kind::Content, &pairs(&[]))?;
            table(out, "notes", Kind::Content, &notes)
        }
        _ => Ok(()),
    }
}

impl Scene {
    fn new() -> Self {
        Scene {
            root: tempfile::tempdir().unwrap(),
            experiment: experiment(&[]),
            interrupt: Interrupt::default(),
            ran: Mutex::default(),
        }
    }

    fn ran(&self) -> Vec<Stage> {
        std::mem::take(&mut self.ran.lock().unwrap())
    }

    /// Runs the plan as a new process would, with its own store and planner.
    fn run_with(&self, reporter: &Arc<Reporter>, work: &Work) -> anyhow::Result<Vec<StageOutcome>> {
        let store = Store::open(self.root.path());
        let planner = Planner::new(&store, &self.experiment, Path::new(""), &Silent, &self.interrupt)?;
        let driver = Driver {
            store: &store,
            planner: &planner,
            work,
            reporter: reporter.clone(),
            interrupt: &self.interrupt,
            checkpoint_interval: Duration::from_secs(60),
            attempt: None,
            cache: None,
        };
        driver.run()
    }

    fn work(&self) -> Box<Work<'_>> {
        Box::new(|stage, inputs: &BTreeMap<Stage, Artifact>, out, _| {
            assert!(inputs.iter().all(|(input, artifact)| artifact.stage() == input.name()));
            self.ran.lock().unwrap().push(stage);
            fill(stage, out)
        })
    }

    fn run(&self) -> Vec<StageOutcome> {
        self.run_with(&quiet(), &*self.work()).unwrap()
    }

    fn artifact(&self, stage: Stage) -> Artifact {
        self.run().into_iter().find(|outcome| outcome.stage == stage).unwrap().artifact
    }
}

fn quiet() -> Arc<Reporter> {
    Arc::new(Reporter::new(Verbosity::Quiet))
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_first_run_runs_everything_and_the_second_nothing() {
    let scene = Scene::new();
    assert!(scene.run().iter().all(|outcome| outcome.how == How::Ran));
    assert_eq!(scene.ran(), Stage::of_experiment(false));
    assert!(scene.run().iter().all(|outcome| outcome.how == How::Cached));
    assert_eq!(scene.ran(), []);
    let left = fs::read_dir(scene.root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert!(left.iter().all(|name| name == "store" || name == "locks"), "{left:?}");
}

#[test]
fn a_failure_keeps_what_was_done_before() {
    let scene = Scene::new();
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, _: &StageContext| {
        fill(stage, out)?;
        anyhow::ensure!(stage != Stage::Embed, "no space left on device");
        Ok(())
    };
    let error = scene.run_with(&quiet(), &work).unwrap_err();
    assert_eq!(format!("{error:#}"), "stage embed: no space left on device");
    scene.run();
    assert_eq!(scene.ran(), [Stage::Embed, Stage::EmbedRandomInit, Stage::LinearProbe, Stage::Knn]);
}

#[test]
fn what_fails_because_another_machine_came_to_the_end_first_is_a_hit() {
    let scene = Scene::new();
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, _: &StageContext| {
        fill(stage, out)?;
        if stage == Stage::Embed {
            // The locks of the other machine do not reach this one.
            fs::remove_dir_all(scene.root.path().join("locks"))?;
            scene.run();
            anyhow::bail!("a segment is gone");
        }
        Ok(())
    };
    let outcomes = scene.run_with(&quiet(), &work).unwrap();
    let contents = |outcomes: Vec<StageOutcome>| -> Vec<String> {
        outcomes.into_iter().map(|outcome| outcome.artifact.content().to_owned()).collect()
    };
    assert_eq!(contents(outcomes), contents(scene.run()));
    assert!(!scene.root.path().join("damaged").exists());
}

#[test]
fn a_damaged_artifact_is_named_and_rebuilt_and_nothing_else_runs() {
    let scene = Scene::new();
    let artifact = scene.artifact(Stage::Data);
    scene.ran();
    flip_last_byte(&artifact.table_path("rows").unwrap());
    let reporter = quiet();
    let outcomes = scene.run_with(&reporter, &*scene.work()).unwrap();
    assert_eq!(scene.ran(), [Stage::Data]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.how == How::Ran).count(), 1);
    let [warning] = &reporter.warnings()[..] else { panic!("{:?}", reporter.warnings()) };
    let moved = scene.root.path().join(format!("damaged/data-{}-1", artifact.stage_key().short()));
    let expected = format!(
        "damaged data artifact {}: rows.parquet: does not match its hash; moved to {}, making it again",
        artifact.stage_key().short(),
        moved.display()
    );
    assert_eq!(*warning, expected);
    assert!(moved.join("rows.parquet").exists());
    scene.run();
    assert_eq!(scene.ran(), []);
}

#[test]
fn an_input_that_only_looks_whole_is_noticed_before_it_is_read() {
    // A bit that flipped on the disk leaves no trace in the file's times. Small artifacts are hashed whenever they are
    // found; this one is too large for that.
    let scene = Scene::new();
    let large: Vec<i64> = (0..5 << 20).map(|i: i64| i.wrapping_mul(0x5851_F42D_4C95_7F2D)).collect();
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, _: &StageContext| {
        scene.ran.lock().unwrap().push(stage);
        if stage == Stage::Embed {
            let rows = Arc::new(Int64Array::from(large.clone())) as ArrayRef;
            return table(out, "rows", Kind::Content, &RecordBatch::try_from_iter([("x", rows)])?);
        }
        fill(stage, out)
    };
    let outcomes = scene.run_with(&quiet(), &work).unwrap();
    let artifact = |stage| outcomes.iter().find(|outcome| outcome.stage == stage).unwrap().artifact.clone();
    let (embed, knn) = (artifact(Stage::Embed), artifact(Stage::Knn));
    assert!(embed.size() > 32 << 20);
    scene.ran();
    let rows = embed.table_path("rows").unwrap();
    flip_last_byte(&rows);
    std::thread::sleep(Duration::from_millis(80));
    let stamps = scene.root.path().join(format!("cache/embed-{}.txt", embed.key()));
    let mut stamps = StatCache::open(stamps);
    stamps.record("rows.parquet", Stamp::of(&fs::metadata(&rows).unwrap()), &embed.manifest().files[0].sha256);
    stamps.save();

    assert!(scene.run_with(&quiet(), &work).unwrap().iter().all(|outcome| outcome.how == How::Cached));
    fs::remove_dir_all(knn.dir()).unwrap();
    let reporter = quiet();
    let outcomes = scene.run_with(&reporter, &work).unwrap();
    assert_eq!(scene.ran(), [Stage::Embed, Stage::Knn]);
    assert_eq!(outcomes[2].how, How::Ran);
    let [warning] = &reporter.warnings()[..] else { panic!("{:?}", reporter.warnings()) };
    assert!(
        warning.contains("embed artifact") && warning.contains("rows.parquet: does not match its hash"),
        "{warning}"
    );
}

#[test]
fn two_runs_at_once_do_each_stage_once() {
    let scene = Scene::new();
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, _: &StageContext| {
        scene.ran.lock().unwrap().push(stage);
        std::thread::sleep(Duration::from_millis(30));
        fill(stage, out)
    };
    std::thread::scope(|scope| {
        let runs = [0, 1, 2].map(|_| {
            scope.spawn(|| {
                let work = |stage,
                            inputs: &BTreeMap<Stage, Artifact>,
                            out: &mut ArtifactWriter,
                            context: &StageContext| { work(stage, inputs, out, context) };
                scene
                    .run_with(&quiet(), &work)
                    .unwrap()
                    .iter()
                    .map(|o| o.artifact.content().to_owned())
                    .collect::<Vec<_>>()
            })
        });
        let contents = runs.map(|run| run.join().unwrap());
        assert!(contents.iter().all(|content| *content == contents[0]));
    });
    let mut ran = scene.ran();
    ran.sort();
    assert_eq!(ran, Stage::of_experiment(false));
}

#[test]
fn an_interruption_stops_before_the_next_stage_and_the_next_run_goes_on() {
    let scene = Scene::new();
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, context: &StageContext| {
        if stage == Stage::Pretrain {
            scene.interrupt.request();
            context.checkpoints.save(5, &[("state", pairs(&[("a", 1.0)]))])?;
            return Err(Stopped::Interrupted { stage: "pretrain", step: 5 }.into());
        }
        fill(stage, out)
    };
    let error = scene.run_with(&quiet(), &work).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Stopped::Interrupted { stage: "pretrain", step: 5 }));

    let error = scene.run_with(&quiet(), &work).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Stopped::InterruptedAt { stage: "pretrain" }), "still asked to stop");

    let again = Scene { interrupt: Interrupt::default(), ..scene };
    let work = |stage, _: &BTreeMap<Stage, Artifact>, out: &mut ArtifactWriter, context: &StageContext| {
        again.ran.lock().unwrap().push(stage);
        let state = context.checkpoints.load()?;
        assert_eq!(state.map(|(step, _)| step), (stage == Stage::Pretrain).then_some(5));
        fill(stage, out)
    };
    again.run_with(&quiet(), &work).unwrap();
    assert_eq!(again.ran(), Stage::of_experiment(false)[1..]);
    assert_eq!(fs::read_dir(again.root.path().join("work")).unwrap().count(), 0);
}

#[test]
fn whoever_waits_for_a_lock_can_be_interrupted() {
    let scene = Scene::new();
    let store = Store::open(scene.root.path());
    let planner = Planner::new(&store, &scene.experiment, Path::new(""), &Silent, &scene.interrupt).unwrap();
    let key = planner.resolve(Stage::Data, &BTreeMap::new(), Against::Nearest).key.unwrap();
    let Attempt::Held(_lock) = store.lock("data", &key).unwrap() else { panic!() };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.run_with(&quiet(), &|_, _, _, _| panic!("the lock is held")).unwrap_err());
        std::thread::sleep(Duration::from_millis(150));
        scene.interrupt.request();
        let error = waiting.join().unwrap();
        assert_eq!(error.downcast_ref(), Some(&Stopped::InterruptedAt { stage: "data" }));
    });
}

#[test]
fn results_hold_the_spec_the_stages_and_the_scores_and_are_written_once() {
    let scene = Scene::new();
    let store = Store::open(scene.root.path());
    let outcome = record(&store, &scene.experiment, &scene.run()).unwrap();
    assert!(outcome.record.run.starts_with("small-") && outcome.record.run.len() == 14, "{}", outcome.record.run);
    let expected = [("knn/top1", Some(0.75)), ("knn/top1_random_init", None), ("train/images_per_second", Some(123.0))];
    assert_eq!(outcome.metrics().iter().map(|(n, v)| (n.as_str(), *v)).collect::<Vec<_>>(), expected);
    assert_eq!(outcome.record.notes, ["linear_probe: the test split has no labels"]);

    let spec: Experiment = serde_yaml::from_slice(&fs::read(outcome.dir.join("spec.yaml")).unwrap()).unwrap();
    assert_eq!(spec, scene.experiment);
    assert_eq!(RunRecord::read(&outcome.dir).unwrap(), outcome.record);
    let file = fs::File::open(outcome.dir.join("report.parquet")).unwrap();
    let rows: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().collect();
    let rows = rows[0].as_ref().unwrap();
    assert_eq!(rows.num_rows(), 3);
    let names: Vec<_> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["metric", "value", "stage", "run", "seed"]);

    let written = |name: &str| fs::metadata(outcome.dir.join(name)).unwrap().modified().unwrap();
    let before = ["spec.yaml", "run.json", "report.parquet"].map(written);
    std::thread::sleep(Duration::from_millis(20));
    let again = record(&store, &scene.experiment, &scene.run()).unwrap();
    assert_eq!(again.record.run, outcome.record.run);
    assert_eq!(["spec.yaml", "run.json", "report.parquet"].map(written), before);
    fs::write(outcome.dir.join("report.parquet"), "damaged").unwrap();
    record(&store, &scene.experiment, &scene.run()).unwrap();
    assert_ne!(fs::read(outcome.dir.join("report.parquet")).unwrap(), b"damaged");
    assert_eq!(RunRecord::list(scene.root.path()).unwrap().len(), 1);
}

#[test]
fn a_run_that_changes_knn_alone_is_another_run() {
    let scene = Scene::new();
    let store = Store::open(scene.root.path());
    let first = record(&store, &scene.experiment, &scene.run()).unwrap();
    scene.ran();
    let changed = Scene { experiment: experiment(&[("knn", serde_json::json!({"k": [5]}))]), ..scene };
    let second = record(&store, &changed.experiment, &changed.run()).unwrap();
    assert_eq!(changed.ran(), [Stage::Knn]);
    assert_ne!(first.dir, second.dir);
    assert_eq!(RunRecord::list(changed.root.path()).unwrap().len(), 2);
}
