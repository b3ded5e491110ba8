//! Committing, finding and checking artifacts.

use std::fs;

use super::*;

fn build(store: &Store, seed: u64) -> Artifact {
    store
        .build("knn", components(seed), |writer| {
            write_table(writer, "scores", Kind::Content, &[numbers(&[1, 2]), numbers(&[3])])?;
            write_table(writer, "shard-00001", Kind::Content, &[numbers(&[5])])?;
            write_table(writer, "shard-00000", Kind::Content, &[numbers(&[4])])?;
            write_table(writer, "timing", Kind::Measurement, &[numbers(&[seed as i64])])
        })
        .unwrap()
}

fn hit(store: &Store, seed: u64) -> Artifact {
    match store.find("knn", &components(seed).key()) {
        Found::Hit(artifact) => artifact,
        other => panic!("{other:?}"),
    }
}

fn damage(store: &Store, seed: u64) -> String {
    match store.find("knn", &components(seed).key()) {
        Found::Damaged { what } => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_committed_is_found_and_read_back() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    assert!(matches!(store.find("knn", &components(1).key()), Found::Missing));
    assert!(files(root.path()).is_empty(), "looking writes nothing");
    build(&store, 1);

    let artifact = hit(&Store::open(root.path()), 1);
    assert_eq!((artifact.stage(), artifact.key()), ("knn", components(1).key().as_str()));
    assert_eq!(artifact.tables(), ["scores", "shard-00000", "shard-00001", "timing"]);
    let shards = artifact.files_of(&crate::tables::Table { name: "shard-*", columns: &[] });
    assert_eq!(shards, [artifact.dir().join("shard-00000.parquet"), artifact.dir().join("shard-00001.parquet")]);
    let rows: Vec<_> = artifact.read("scores").unwrap().map(Result::unwrap).collect();
    assert_eq!(arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap(), numbers(&[1, 2, 3]));
    let error = artifact.table_path("score").unwrap_err().to_string();
    assert!(error.ends_with("has no table \"score\"; it has scores, shard-00000, shard-00001, timing"), "{error}");
    assert!(matches!(store.find("knn", &components(2).key()), Found::Missing));
    assert!(matches!(store.find("data", &components(1).key()), Found::Missing));
}

#[test]
fn a_large_artifact_is_not_read_again_after_it_was_written() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let key = components(1).key();
    let fill = |writer: &mut ArtifactWriter| {
        for name in ["shard-00000", "shard-00001"] {
            // Numbers that do not compress, 8 MB of them.
            let numbers: Vec<i64> = (0..1i64 << 20).map(|i| i.wrapping_mul(0x1E37_79B9_7F4A_7C15)).collect();
            write_table(writer, name, Kind::Content, &[super::numbers(&numbers)])?;
        }
        // As a stage does that resumes after its finished tables. The commit removes the folder.
        writer.keep("shard-00000", &store.work_dir("knn", &key))
    };
    let artifact = store.build("knn", components(1), fill).unwrap();
    assert!(!store.work_dir("knn", &key).exists());
    let stamps = StatCache::open(store.stamps_path("knn", &key));
    for entry in &artifact.manifest().files {
        let stamp = Stamp::of(&fs::metadata(artifact.dir().join(entry.file())).unwrap());
        assert_eq!(stamps.lookup(&entry.file(), &stamp), Some(&*entry.sha256), "{}", entry.file());
    }
}

#[test]
fn the_content_is_that_of_the_content_tables() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let content = |seed, batches: &[RecordBatch], time| {
        let fill = |writer: &mut ArtifactWriter| {
            write_table(writer, "timing", Kind::Measurement, &[numbers(&[time])])?;
            write_table(writer, "scores", Kind::Content, batches)
        };
        store.build("knn", components(seed), fill).unwrap().content().to_owned()
    };
    let base = content(1, &[numbers(&[1, 2, 3])], 7);
    assert_eq!(content(2, &[numbers(&[1]), numbers(&[2, 3])], 8), base, "neither batches nor measurements matter");
    assert_ne!(content(3, &[numbers(&[1, 2, 4])], 7), base);
}

#[test]
fn every_damage_is_found_and_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = build(&Store::open(root.path()), 1).dir().to_owned();
    let whole = root.path().join("whole");
    copy_dir(&dir, &whole);
    let check = |expected: &str| {
        let what = damage(&Store::open(root.path()), 1);
        assert!(what.starts_with(expected), "{what}");
        fs::remove_dir_all(&dir).unwrap();
        copy_dir(&whole, &dir);
        hit(&Store::open(root.path()), 1);
    };
    let table = dir.join("scores.parquet");
    flip_a_byte(&table);
    check("scores.parquet: does not match its hash");

    let length = fs::metadata(&table).unwrap().len();
    fs::File::options().write(true).open(&table).unwrap().set_len(length - 1).unwrap();
    check(&format!("scores.parquet: {} bytes instead of {length}", length - 1));

    fs::write(&table, "").unwrap();
    check(&format!("scores.parquet: 0 bytes instead of {length}"));

    fs::remove_file(dir.join("timing.parquet")).unwrap();
    check("timing.parquet: No such file");

    flip_a_byte(&dir.join("manifest.json"));
    check("manifest.json: ");

    fs::remove_file(dir.join("manifest.json")).unwrap();
    check("manifest.json: No such file");

    let other = build(&Store::open(root.path()), 2);
    fs::copy(other.dir().join("manifest.json"), dir.join("manifest.json")).unwrap();
    check("manifest.json: belongs to another stage or key");
}

#[test]
fn a_damaged_artifact_makes_room_and_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    for round in 1..3 {
        let artifact = build(&store, 1);
        flip_a_byte(&artifact.dir().join("scores.parquet"));
        assert!(store.verify(&artifact, &mut |_| ()).is_ok(), "this process wrote it");
        assert!(Store::open(root.path()).verify(&artifact, &mut |_| ()).is_err());
        let Attempt::Held(lock) = store.lock("knn", artifact.stage_key()).unwrap() else { panic!() };
        let moved = store.set_aside(&lock, "knn", artifact.stage_key()).unwrap().unwrap();
        assert_eq!(moved, root.path().join(format!("damaged/knn-{}-{round}", artifact.stage_key().short())));
        assert!(moved.join("scores.parquet").exists());
        assert!(matches!(store.find("knn", artifact.stage_key()), Found::Missing));
    }
}

#[test]
fn large_artifacts_are_hashed_again_when_their_files_changed() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let bytes = vec![7u8; 33 << 20];
    let column = Arc::new(LargeBinaryArray::from(vec![&bytes[..]])) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("bytes", column)]).unwrap();
    let artifact = store
        .build("knn", components(1), |writer| {
            let properties = super::super::table::uncompressed(&batch.schema());
            let mut table = writer.table_with("weights", batch.schema(), Kind::Content, properties)?;
            table.write(&batch)?;
            table.finish()
        })
        .unwrap();
    assert!(artifact.size() > 32 << 20);
    std::thread::sleep(std::time::Duration::from_millis(80));
    hit(&Store::open(root.path()), 1);
    let file = artifact.dir().join("weights.parquet");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    flip_a_byte(&file);
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    assert_eq!(damage(&Store::open(root.path()), 1), "weights.parquet: does not match its hash");
    flip_a_byte(&file);
    let found = hit(&Store::open(root.path()), 1);
    assert_eq!(found.read("weights").unwrap().next().unwrap().unwrap(), batch);
}

#[test]
fn a_writer_that_is_given_up_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let error = store
        .build("knn", components(1), |writer| {
            write_table(writer, "scores", Kind::Content, &[numbers(&[1])])?;
            anyhow::bail!("disk full")
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "disk full");
    let lock = format!("locks/knn-{}.lock", components(1).key());
    assert_eq!(files(root.path()), [lock]);
}

#[test]
fn a_table_that_is_given_up_is_no_part_of_the_artifact() {
    let root = tempfile::tempdir().unwrap();
    let artifact = Store::open(root.path())
        .build("knn", components(1), |writer| {
            writer.table("lost", numbers(&[]).schema(), Kind::Content)?.write(&numbers(&[1]))?;
            write_table(writer, "kept", Kind::Content, &[numbers(&[1])])?;
            let twice = write_table(writer, "kept", Kind::Content, &[numbers(&[1])]).unwrap_err();
            assert_eq!(twice.to_string(), "table \"kept\" is written twice");
            let path = write_table(writer, "../escape", Kind::Content, &[numbers(&[1])]).unwrap_err();
            assert_eq!(path.to_string(), "table name \"../escape\": not a plain name");
            Ok(())
        })
        .unwrap();
    assert_eq!(artifact.tables(), ["kept"]);
    assert_eq!(files(artifact.dir()), ["kept.parquet", "manifest.json"]);
}

#[test]
fn a_second_writer_of_the_same_key_is_turned_away() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let artifact = store
        .build("knn", components(1), |writer| {
            let error = Store::open(root.path()).build("knn", components(1), |_| Ok(())).unwrap_err();
            assert_eq!(error.to_string(), "another process is making this knn artifact");
            // Another key is not locked.
            Store::open(root.path()).build("knn", components(2), |_| Ok(()))?;
            write_table(writer, "scores", Kind::Content, &[numbers(&[1])])
        })
        .unwrap();
    assert_eq!(hit(&store, 1).content(), artifact.content());
}

#[test]
fn a_half_written_artifact_is_never_a_hit_and_is_swept_away_when_its_writer_is_dead() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let artifact = build(&store, 1);
    let (key, dir) = (artifact.stage_key().clone(), artifact.dir().to_owned());
    let staging = dir.with_file_name(left(key.as_str(), "staging"));
    let others = dir.with_file_name(elsewhere(key.as_str(), "staging"));
    let whole = root.path().join("whole");
    copy_dir(&dir, &whole);
    fs::remove_dir_all(&dir).unwrap();
    // The states that a commit passes through: one file after the other, each one cut short first, the manifest last.
    let order = ["scores.parquet", "shard-00000.parquet", "shard-00001.parquet", "timing.parquet", "manifest.json"];
    for (count, half) in (0..=order.len()).flat_map(|count| [(count, false), (count, true)]) {
        fs::create_dir_all(&staging).unwrap();
        for file in &order[..count] {
            fs::copy(whole.join(file), staging.join(file)).unwrap();
        }
        if let Some(file) = order.get(count).filter(|_| half) {
            let bytes = fs::read(whole.join(file)).unwrap();
            fs::write(staging.join(file), &bytes[..bytes.len() / 2]).unwrap();
        }
        assert!(matches!(store.find("knn", &key), Found::Missing), "{count} files");
        assert!(store.manifests("knn").is_empty());
        copy_dir(&staging, &others);
        fs::create_dir_all(&others).unwrap();
        store.sweep().unwrap();
        assert!(!staging.exists() && others.exists(), "the writer on another machine may live");
        age(&others, 23);
        store.sweep().unwrap();
        assert!(others.exists());
        age(&others, 25);
        store.sweep().unwrap();
        assert!(!others.exists());
    }
    // A new writer does not need the sweep.
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join("left-over.parquet"), "x").unwrap();
    assert_eq!(files(build(&store, 1).dir()).len(), 5);
    let mut writer = None;
    let Attempt::Held(lock) = store.lock("knn", &components(2).key()).unwrap() else { panic!() };
    for _ in 0..2 {
        writer = Some(store.begin(&lock, "knn", components(2)).unwrap());
        store.sweep().unwrap();
    }
    write_table(writer.as_mut().unwrap(), "scores", Kind::Content, &[numbers(&[1])]).unwrap();
    store.commit(&lock, writer.unwrap()).unwrap();
}

/// The lock of the artifact `seed`, as taken on a machine whose locks do not reach the others.
fn unshared_lock(store: &Store, seed: u64) -> Lock {
    fs::remove_dir_all(store.root().join("locks")).unwrap_or_default();
    let Attempt::Held(lock) = store.lock("knn", &components(seed).key()).unwrap() else { panic!() };
    lock
}

fn begin(store: &Store, lock: &Lock, value: i64) -> ArtifactWriter {
    let mut writer = store.begin(lock, "knn", components(1)).unwrap();
    write_table(&mut writer, "scores", Kind::Content, &[numbers(&[value])]).unwrap();
    writer
}

#[test]
fn of_two_writers_of_one_key_the_first_to_commit_counts_and_neither_harms_the_other() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (Store::open(root.path()), Store::open(root.path()));
    let (lock_a, lock_b) = (unshared_lock(&a, 1), unshared_lock(&b, 1));
    let (ours, theirs) = (begin(&a, &lock_a, 1), begin(&b, &lock_b, 2));
    a.sweep().unwrap();
    let first = b.commit(&lock_b, theirs).unwrap();
    let second = a.commit(&lock_a, ours).unwrap();
    assert_eq!((second.dir(), second.content()), (first.dir(), first.content()));
    assert_eq!(hit(&Store::open(root.path()), 1).content(), first.content());
    assert_eq!(files(&root.path().join("store")).len(), 2, "ours is gone");
}

#[test]
fn a_commit_onto_something_damaged_takes_its_place() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let lock = unshared_lock(&store, 1);
    for harm in [
        |dir: &Path| flip_a_byte(&dir.join("scores.parquet")),
        |dir: &Path| fs::remove_file(dir.join("manifest.json")).unwrap(),
        |dir: &Path| {
            fs::remove_dir_all(dir).unwrap();
            fs::write(dir, "a file").unwrap();
        },
    ] {
        let before = store.commit(&lock, begin(&store, &lock, 1)).unwrap();
        harm(before.dir());
        let after = store.commit(&lock, begin(&store, &lock, 1)).unwrap();
        assert_eq!(hit(&Store::open(root.path()), 1).content(), after.content());
    }
    assert_eq!(fs::read_dir(root.path().join("damaged")).unwrap().count(), 3);
}

#[test]
fn what_is_whole_is_never_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let artifact = build(&store, 1);
    let lock = unshared_lock(&store, 1);
    // As if another machine had already replaced a damaged artifact by an intact one.
    assert_eq!(store.set_aside(&lock, "knn", artifact.stage_key()).unwrap(), None);
    hit(&Store::open(root.path()), 1);
    fs::remove_dir_all(artifact.dir()).unwrap();
    assert_eq!(store.set_aside(&lock, "knn", artifact.stage_key()).unwrap(), None, "or to move it away");
}
