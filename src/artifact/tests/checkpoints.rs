//! Saving, loading and losing checkpoints and metric segments.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use arrow::{array::Array, datatypes::DataType};

use super::*;

struct Scene {
    root: tempfile::TempDir,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn new() -> Self {
        Scene { root: tempfile::tempdir().unwrap(), warnings: Arc::default() }
    }

    /// The checkpoints as the next start of the stage finds them.
    fn open(&self) -> Checkpoints {
        let warnings = self.warnings.clone();
        let warn = move |text: &str| warnings.lock().unwrap().push(text.to_owned());
        Store::open(self.root.path()).checkpoints("pretrain", &components(1).key(), warn).unwrap()
    }

    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap())
    }
}

fn load(checkpoints: &Checkpoints) -> Option<u64> {
    checkpoints.load().unwrap().map(|(step, tables)| {
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["momentum", "online"]);
        assert_eq!((&tables["online"], &tables["momentum"]), (&weights(step), &weights(step + 1)));
        step
    })
}

fn save(checkpoints: &Checkpoints, step: u64) {
    checkpoints.save(step, &[("online", weights(step)), ("momentum", weights(step + 1))]).unwrap();
}

/// Folders of saved states, whole or not.
fn folders(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.contains("checkpoint")).collect();
    names.sort();
    names
}

/// Trains from `from` to `to` as the loop does: segment first, then the checkpoint that needs it.
fn train(checkpoints: &Checkpoints, from: u64, to: u64) {
    checkpoints.append_segment("metrics", from, &metrics(from as i64..to as i64, 0.0)).unwrap();
    save(checkpoints, to);
}

#[test]
fn the_newest_of_two_kept_states_is_loaded() {
    let scene = Scene::new();
    let checkpoints = scene.open();
    assert_eq!(load(&checkpoints), None);
    assert!(!checkpoints.dir().exists());
    for step in [10, 20, 30] {
        train(&checkpoints, step - 10, step);
        assert_eq!(load(&checkpoints), Some(step));
    }
    save(&checkpoints, 30);
    assert_eq!(folders(checkpoints.dir()), ["checkpoint-000000000020-0001", "checkpoint-000000000030-0001"]);
    assert_eq!(load(&scene.open()), Some(30));
    assert_eq!(scene.open().segments("metrics", 30).unwrap(), Some(metrics(0..30, 0.0)));
    assert_eq!(scene.open().segments("metrics", 25).unwrap(), Some(metrics(0..25, 0.0)));
    assert_eq!(scene.open().segments("other", 30).unwrap(), None);
    assert_eq!(scene.open().segments("metrics", 0).unwrap(), None);
    assert!(scene.warnings().is_empty());
}

#[test]
fn whoever_does_not_hold_the_lock_sees_what_there_is_and_moves_nothing() {
    let scene = Scene::new();
    let (store, key) = (Store::open(scene.root.path()), components(1).key());
    let seen = || (store.newest_step("pretrain", &key), store.rows_so_far("pretrain", &key, "metrics").unwrap());
    assert_eq!(seen(), (None, None));
    let checkpoints = scene.open();
    train(&checkpoints, 0, 10);
    train(&checkpoints, 10, 20);
    // Rows without a checkpoint, as a training that diverges leaves them.
    checkpoints.append_segment("metrics", 20, &metrics(20..25, 0.0)).unwrap();
    assert_eq!(seen(), (Some(20), Some(metrics(0..25, 0.0))));
    assert_eq!(store.rows_so_far("pretrain", &key, "timing").unwrap(), None);
    assert_eq!(store.newest_step("pretrain", &components(2).key()), None);

    // A file that another process is writing is left alone.
    let written = checkpoints.dir().join(left("metrics-0001-000000000025.parquet", "tmp"));
    fs::write(&written, "half").unwrap();
    let newest = checkpoints.dir().join("checkpoint-000000000020-0001/checkpoint.json");
    flip_a_byte(&newest);
    assert_eq!(seen(), (Some(10), Some(metrics(0..25, 0.0))));
    assert!(written.exists() && newest.exists());

    flip_a_byte(&checkpoints.dir().join("metrics-0001-000000000010.parquet"));
    assert!(store.rows_so_far("pretrain", &key, "metrics").is_err());
}

#[test]
fn a_damaged_state_is_moved_away_and_the_one_before_is_loaded() {
    for file in ["online.parquet", "momentum.parquet", "checkpoint.json"] {
        for harm in
            [flip_a_byte as fn(&Path), |path| fs::remove_file(path).unwrap(), |path| fs::write(path, "").unwrap()]
        {
            let scene = Scene::new();
            let checkpoints = scene.open();
            train(&checkpoints, 0, 10);
            train(&checkpoints, 10, 20);
            harm(&checkpoints.dir().join("checkpoint-000000000020-0001").join(file));
            let next = scene.open();
            assert_eq!(load(&next), Some(10));
            let warnings = scene.warnings();
            assert_eq!(warnings.len(), 1);
            let start =
                format!("damaged checkpoint of pretrain-{}: checkpoint-000000000020-0001: ", next_key().short());
            assert!(warnings[0].starts_with(&format!("{start}{file}: ")), "{}", warnings[0]);
            assert!(warnings[0].ends_with("going on from the one before"));
            // The same step can be saved again.
            train(&next, 10, 20);
            assert_eq!(load(&scene.open()), Some(20));
            assert!(scene.warnings().is_empty());
        }
    }
}

fn next_key() -> Key {
    components(1).key()
}

#[test]
fn when_all_is_damaged_training_starts_anew() {
    let scene = Scene::new();
    let checkpoints = scene.open();
    train(&checkpoints, 0, 10);
    train(&checkpoints, 10, 20);
    for step in [10, 20] {
        flip_a_byte(&checkpoints.dir().join(format!("checkpoint-{step:012}-0001/online.parquet")));
    }
    let next = scene.open();
    assert_eq!(load(&next), None);
    assert_eq!(scene.warnings().len(), 2);
    train(&next, 0, 15);
    assert_eq!(next.segments("metrics", 15).unwrap(), Some(metrics(0..15, 0.0)));
}

#[test]
fn a_checkpoint_whose_metrics_are_damaged_does_not_count() {
    for harm in [flip_a_byte as fn(&Path), |path| fs::remove_file(path).unwrap()] {
        let scene = Scene::new();
        let checkpoints = scene.open();
        train(&checkpoints, 0, 10);
        train(&checkpoints, 10, 20);
        harm(&checkpoints.dir().join("metrics-0001-000000000010.parquet"));
        let next = scene.open();
        assert_eq!(load(&next), Some(10));
        assert_eq!(load(&scene.open()), Some(10), "the loss is not forgotten when the process is killed here");
        let next = scene.open();
        train(&next, 10, 20);
        assert_eq!(next.segments("metrics", 20).unwrap(), Some(metrics(0..20, 0.0)));
    }
}

#[test]
fn another_key_is_refused() {
    let scene = Scene::new();
    let checkpoints = scene.open();
    train(&checkpoints, 0, 10);
    let other = Store::open(scene.root.path()).checkpoints("pretrain", &components(2).key(), |_| ()).unwrap();
    copy_dir(checkpoints.dir(), other.dir());
    let warnings = scene.warnings.clone();
    let warn = move |text: &str| warnings.lock().unwrap().push(text.to_owned());
    let other = Store::open(scene.root.path()).checkpoints("pretrain", &components(2).key(), warn).unwrap();
    assert_eq!(load(&other), None);
    let warnings = scene.warnings();
    let (old, new) = (components(1).key(), components(2).key());
    assert!(warnings[0].contains(&format!("belongs to key {}, not {}", old.short(), new.short())), "{}", warnings[0]);
    assert!(warnings[1].contains("belong to another stage key"), "{}", warnings[1]);
    assert_eq!(other.segments("metrics", 10).unwrap(), None);
}

#[test]
fn the_newest_attempt_wins_step_by_step() {
    let scene = Scene::new();
    let first = scene.open();
    train(&first, 0, 10);
    // Killed after the segment and before its checkpoint.
    first.append_segment("metrics", 10, &metrics(10..18, 0.25)).unwrap();
    let second = scene.open();
    assert_eq!(load(&second), Some(10));
    assert_eq!(second.segments("metrics", 10).unwrap(), Some(metrics(0..10, 0.0)));
    second.append_segment("metrics", 10, &metrics(10..15, 0.5)).unwrap();
    let rows = second.segments("metrics", 18).unwrap().unwrap();
    let column = rows.column_by_name("loss").unwrap();
    let expected: Float64Array = (0..18)
        .map(|step| {
            Some(
                f64::from(step)
                    + if step < 10 {
                        0.0
                    } else if step < 15 {
                        0.5
                    } else {
                        0.25
                    },
            )
        })
        .collect();
    assert_eq!(column.to_data(), expected.to_data());
    assert_eq!(rows.schema().fields().len(), 2, "the attempt is the store's business");
    let file = second.dir().join("metrics-0002-000000000010.parquet");
    let (raw, _) = super::super::table::read_whole(&file, "").unwrap();
    assert_eq!(raw.schema().field(2).name(), "attempt");
    assert_eq!(raw.schema().field(2).data_type(), &DataType::Int64);
}

#[test]
fn killed_between_any_two_operations_a_save_leaves_the_old_or_the_new_state() {
    // One save of step 20 after one of step 10, split into the states that the folder passes through.
    let before = Scene::new();
    let checkpoints = before.open();
    train(&checkpoints, 0, 10);
    let old = checkpoints.dir().to_owned();
    let after = Scene::new();
    copy_dir(&old, after.open().dir());
    train(&after.open(), 10, 20);
    let new = after.open().dir().to_owned();
    let (segment, target) = ("metrics-0002-000000000010.parquet", "checkpoint-000000000020-0002");
    let files = ["online.parquet", "momentum.parquet", "checkpoint.json"];

    let check = |prepare: &dyn Fn(&Path), expected: u64| {
        let scene = Scene::new();
        let dir = scene.open().dir().to_owned();
        copy_dir(&old, &dir);
        prepare(&dir);
        let next = scene.open();
        assert_eq!(load(&next), Some(expected));
        assert!(scene.warnings().is_empty());
        train(&next, expected, 30);
        assert_eq!(next.segments("metrics", 30).unwrap(), Some(metrics(0..30, 0.0)));
        assert_eq!(load(&scene.open()), Some(30));
        assert!(
            fs::read_dir(&dir).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.'))
        );
    };
    let half = |from: &Path, to: &Path| {
        let bytes = fs::read(from).unwrap();
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, &bytes[..bytes.len() / 2]).unwrap();
    };
    check(&|dir| half(&new.join(segment), &dir.join(left(segment, "tmp"))), 10);
    for (count, cut) in (0..=files.len()).flat_map(|count| [(count, false), (count, true)]) {
        let prepare = |dir: &Path| {
            fs::copy(new.join(segment), dir.join(segment)).unwrap();
            let temporary = dir.join(left(target, "tmp"));
            fs::create_dir(&temporary).unwrap();
            for file in &files[..count] {
                fs::copy(new.join(target).join(file), temporary.join(file)).unwrap();
            }
            if let Some(file) = files.get(count).filter(|_| cut) {
                half(&new.join(target).join(file), &temporary.join(file));
            }
        };
        check(&prepare, 10);
    }
    let whole = |dir: &Path| {
        fs::copy(new.join(segment), dir.join(segment)).unwrap();
        copy_dir(&new.join(target), &dir.join(target));
    };
    check(&whole, 20);
    // Killed while an old state is removed.
    check(
        &|dir| {
            whole(dir);
            let old = "checkpoint-000000000010-0001";
            fs::rename(dir.join(old), dir.join(left(old, "tmp"))).unwrap();
            fs::remove_file(dir.join(left(old, "tmp")).join("online.parquet")).unwrap();
        },
        20,
    );
}

#[test]
fn a_failed_save_leaves_the_state_before() {
    let scene = Scene::new();
    let checkpoints = scene.open();
    train(&checkpoints, 0, 10);
    let error = checkpoints.save(20, &[("online", weights(20)), ("no/such/folder", weights(21))]).unwrap_err();
    assert!(format!("{error:#}").starts_with("saving the checkpoint after step 20: writing "), "{error:#}");
    assert_eq!(load(&checkpoints), Some(10));
    assert_eq!(folders(checkpoints.dir()), ["checkpoint-000000000010-0001"]);
}

#[test]
fn two_that_train_at_once_never_write_the_same_file_and_lose_nothing() {
    let scene = Scene::new();
    let (one, two) = (scene.open(), scene.open());
    train(&one, 0, 10);
    train(&two, 0, 10);
    train(&one, 10, 20);
    // A half-written file of another machine, whose processes are unknown here.
    let written = one.dir().join(elsewhere("metrics-0003-000000000010.parquet", "tmp"));
    fs::write(&written, "half").unwrap();
    train(&two, 10, 20);
    train(&one, 20, 30);
    assert_eq!(folders(one.dir()), ["checkpoint-000000000020-0002", "checkpoint-000000000030-0001"]);
    for checkpoints in [one, scene.open()] {
        assert_eq!(load(&checkpoints), Some(30));
        assert_eq!(checkpoints.segments("metrics", 30).unwrap(), Some(metrics(0..30, 0.0)));
    }
    // The other attempt is behind, and continues all the same.
    train(&two, 20, 30);
    assert_eq!(two.segments("metrics", 30).unwrap(), Some(metrics(0..30, 0.0)));
    assert!(written.exists() && scene.warnings().is_empty());
    let three = scene.open();
    assert_eq!(load(&three), Some(30));
    train(&three, 30, 40);
    assert!(folders(three.dir()).contains(&"checkpoint-000000000040-0003".to_owned()));
}

#[test]
fn what_another_machine_removes_meanwhile_is_not_damage() {
    let scene = Scene::new();
    let (one, two) = (scene.open(), scene.open());
    train(&one, 0, 10);
    train(&one, 10, 20);
    fs::remove_dir_all(one.dir().join("checkpoint-000000000010-0001")).unwrap();
    train(&one, 20, 30);
    // The other machine completed the stage, and removed everything.
    fs::remove_dir_all(one.dir()).unwrap();
    assert_eq!(load(&one), None);
    train(&two, 0, 10);
    assert_eq!(load(&two), Some(10));
    assert!(scene.warnings().is_empty());
}

#[test]
fn the_commit_removes_them() {
    let scene = Scene::new();
    let checkpoints = scene.open();
    train(&checkpoints, 0, 10);
    let store = Store::open(scene.root.path());
    let artifact = store.build("pretrain", components(1), |_| Ok(())).unwrap();
    assert!(!checkpoints.dir().exists());
    // Killed between the commit and the removal: the next run sweeps.
    train(&scene.open(), 0, 10);
    store.sweep().unwrap();
    assert!(!checkpoints.dir().exists());
    train(&scene.open(), 0, 10);
    store.tidy(&artifact).unwrap();
    assert!(!checkpoints.dir().exists());
    // Checkpoints of a stage without an artifact stay.
    let other = store.checkpoints("pretrain", &components(2).key(), |_| ()).unwrap();
    train(&other, 0, 10);
    store.sweep().unwrap();
    assert_eq!(load(&other), Some(10));
}

#[test]
fn a_state_may_hold_hundreds_of_megabytes_in_one_value() {
    let scene = Scene::new();
    let big = vec![5u8; 300 << 20];
    let column = Arc::new(LargeBinaryArray::from(vec![&b"small"[..], &big[..]])) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("bytes", column)]).unwrap();
    scene.open().save(1, &[("queue", batch.clone())]).unwrap();
    let (step, tables) = scene.open().load().unwrap().unwrap();
    assert_eq!(step, 1);
    assert_eq!(tables["queue"], batch);
}
