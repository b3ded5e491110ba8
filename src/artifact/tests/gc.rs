//! What garbage collection removes and keeps: runs that share artifacts, runs in progress, leftovers, age.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::json;

use super::*;

struct Scene {
    root: tempfile::TempDir,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        Scene { root, store }
    }

    fn artifact(&self, stage: &str, seed: u64) -> Artifact {
        let fill = |writer: &mut ArtifactWriter| write_table(writer, "x", Kind::Content, &[numbers(&[seed as i64])]);
        self.store.build(stage, components(seed), fill).unwrap()
    }

    fn run(&self, run: &str, artifacts: &[&Artifact]) {
        let dir = self.root.path().join("results").join(run);
        fs::create_dir_all(&dir).unwrap();
        let stage =
            |a: &&Artifact| json!({ "stage": a.stage(), "key": a.key(), "content": a.content(), "seconds": 1.0 });
        let stages: Vec<_> = artifacts.iter().map(stage).collect();
        let record = json!({ "run": run, "name": run, "created": 1, "stages": stages, "metrics": {}, "notes": [] });
        fs::write(dir.join("run.json"), record.to_string()).unwrap();
    }

    fn removed(&self, keep: &Keep) -> Vec<String> {
        let listed = self.store.cleaning(keep).unwrap();
        let cleaned = Store::open(self.root.path()).clean(keep).unwrap();
        assert_eq!(listed, cleaned, "what is listed goes");
        cleaned.removed.iter().map(|listed| name(&listed.item)).collect()
    }

    fn there(&self) -> Vec<String> {
        self.store.keys().into_iter().map(|(stage, key)| short(&stage, &key)).collect()
    }
}

#[test]
fn a_run_without_results_goes_with_what_it_made_unless_it_is_named_or_at_work() {
    let scene = Scene::new();
    let (data, key) = (scene.artifact("data", 1), components(2).key());
    let record = StageRecord {
        stage: "data".into(),
        key: data.stage_key().clone(),
        content: data.content().to_owned(),
        seconds: 1.0,
    };
    let attempt = RunAttempt::new(&scene.store, "quick", "01234567", String::new());
    attempt.at("pretrain", &key, vec![record]).unwrap();
    let checkpoints = scene.store.checkpoints("pretrain", &key, |_| ()).unwrap();
    checkpoints.append_segment("metrics", 0, &metrics(0..5, 0.0)).unwrap();
    assert_eq!(scene.removed(&Keep::default()), [] as [&str; 0], "it is at work");
    attempt.ended(RunState::Diverged, None).unwrap();
    let young = Keep { younger_than: Some(Duration::from_secs(3600)), ..Keep::default() };
    assert_eq!(scene.removed(&young), [] as [&str; 0]);
    let named = Keep { runs: Some(BTreeSet::from(["quick-01234567".to_owned()])), ..Keep::default() };
    assert_eq!(scene.store.cleaning(&named).unwrap().kept_runs, ["quick-01234567"]);
    assert_eq!(scene.removed(&named), [] as [&str; 0]);
    assert_eq!(scene.removed(&Keep::default()), ["attempt quick-01234567", "data 1", "checkpoints pretrain 2"]);
    assert_eq!(RunRecord::unfinished(scene.root.path()).unwrap().len(), 0);
}

/// Stage and seed.
fn short(stage: &str, key: &Key) -> String {
    let seed = (0..9).find(|seed| components(*seed).key() == *key).unwrap();
    format!("{stage} {seed}")
}

fn name(item: &Item) -> String {
    match item {
        Item::Run(run) => format!("run {run}"),
        Item::Attempt(run) => format!("attempt {run}"),
        Item::Artifact(stage, key) => short(stage, key),
        Item::Checkpoints(stage, key) => format!("checkpoints {}", short(stage, key)),
        Item::Unfinished(stage, key) => format!("unfinished {}", short(stage, key)),
        Item::Leftover(name) => format!("leftover {name}"),
        Item::Damaged(name) => format!("damaged {name}"),
    }
}

fn only(runs: &[&str]) -> Keep {
    Keep { runs: Some(runs.iter().map(ToString::to_string).collect::<BTreeSet<_>>()), younger_than: None }
}

#[test]
fn what_a_kept_run_shares_with_a_removed_one_stays() {
    let scene = Scene::new();
    let (data, one, two) = (scene.artifact("data", 1), scene.artifact("knn", 1), scene.artifact("knn", 2));
    scene.artifact("knn", 3);
    scene.run("first", &[&data, &one]);
    scene.run("second", &[&data, &two]);
    assert_eq!(scene.removed(&Keep::default()), ["knn 3"], "every run is kept, and what no run refers to goes");
    assert_eq!(scene.removed(&Keep::default()), [] as [&str; 0]);
    assert_eq!(scene.removed(&only(&["second"])), ["run first", "knn 1"]);
    assert_eq!(scene.there(), ["data 1", "knn 2"]);
    assert!(matches!(Store::open(scene.root.path()).find("data", data.stage_key()), Found::Hit(_)));
    assert!(!scene.root.path().join("results/first").exists());
    assert_eq!(scene.removed(&only(&[])), ["run second", "data 1", "knn 2"]);
}

#[test]
fn what_a_run_at_work_counts_on_stays_until_it_ends() {
    let scene = Scene::new();
    scene.artifact("data", 1);
    scene.artifact("pretrain", 2);
    let at_work = Store::open(scene.root.path());
    at_work.count_on("data", &components(1).key()).unwrap();
    // Its checkpoints too, and what it has not made yet.
    at_work.count_on("knn", &components(4).key()).unwrap();
    at_work.checkpoints("knn", &components(4).key(), |_| ()).unwrap().save(3, &[("state", weights(3))]).unwrap();
    assert_eq!(scene.removed(&Keep::default()), ["pretrain 2"]);
    drop(at_work);
    assert_eq!(scene.removed(&Keep::default()), ["data 1", "checkpoints knn 4"]);
}

#[test]
fn what_another_machine_may_be_at_work_on_stays_for_a_day() {
    let scene = Scene::new();
    scene.artifact("data", 1);
    let (data, knn) = (components(1).key(), components(4).key());
    scene.store.checkpoints("knn", &knn, |_| ()).unwrap().save(3, &[("state", weights(3))]).unwrap();
    let record = scene.root.path().join("unfinished/quick-01234567");
    fs::create_dir_all(&record).unwrap();
    let text = json!({
        "run": "quick-01234567", "name": "quick", "created": 1, "stages": [], "metrics": {}, "notes": [],
        "unfinished": { "state": "running", "stage": "knn", "key": knn, "why": null },
    });
    fs::write(record.join("run.json"), text.to_string()).unwrap();
    // As this machine sees it: lock files that no local process holds, written by a process whose state is unknown here.
    let process = Process::elsewhere();
    let locks = scene.root.path().join("locks");
    fs::write(locks.join(format!("lease-{process}-0.lock")), format!("{process}\ndata {data}\n")).unwrap();
    for name in [format!("knn-{knn}"), "unfinished-quick-01234567".to_owned()] {
        fs::write(locks.join(format!("{name}.lock")), format!("{process}\n")).unwrap();
    }
    age(&locks, 23);
    for _ in 0..2 {
        scene.store.sweep().unwrap();
        assert_eq!(scene.removed(&Keep::default()), [] as [&str; 0]);
    }
    age(&locks, 25);
    let gone = ["attempt quick-01234567", "data 1", "checkpoints knn 4"];
    assert_eq!(scene.removed(&Keep::default()), gone);
}

#[test]
fn what_is_locked_is_named_and_stays() {
    let scene = Scene::new();
    let artifact = scene.artifact("knn", 1);
    let Attempt::Held(lock) = Store::open(scene.root.path()).lock("knn", artifact.stage_key()).unwrap() else {
        panic!()
    };
    let cleaning = scene.store.clean(&Keep::default()).unwrap();
    assert_eq!((cleaning.removed.len(), cleaning.busy.len()), (0, 1));
    assert_eq!(scene.there(), ["knn 1"]);
    drop(lock);
    assert_eq!(scene.removed(&Keep::default()), ["knn 1"]);
}

#[test]
fn leftovers_and_damage_go_and_what_is_young_stays() {
    let scene = Scene::new();
    let artifact = scene.artifact("knn", 1);
    scene.run("kept", &[&artifact]);
    let damaged = scene.artifact("data", 2);
    let Attempt::Held(lock) = scene.store.lock("data", damaged.stage_key()).unwrap() else { panic!() };
    flip_a_byte(&damaged.dir().join("x.parquet"));
    scene.store.set_aside(&lock, "data", damaged.stage_key()).unwrap().expect("it is damaged");
    drop(lock);
    let staging = |name| scene.root.path().join("store/knn").join(name);
    fs::create_dir_all(staging(left(components(5).key().as_str(), "staging"))).unwrap();
    fs::create_dir_all(staging(elsewhere(components(6).key().as_str(), "staging"))).unwrap();
    // A leftover in the folder of a removed run is removed with the folder.
    for (folder, name) in [("results/kept", "report.html"), ("cache", "sources.txt")] {
        fs::create_dir_all(scene.root.path().join(folder)).unwrap();
        fs::write(scene.root.path().join(folder).join(left(name, "tmp")), "half").unwrap();
    }
    let day = Keep { runs: Some(BTreeSet::new()), younger_than: Some(Duration::from_secs(86_400)) };
    // The run's record says 1970, so it is removed. Its artifact is of today and stays. Unfinished artifacts of dead processes
    // are removed at any age.
    assert_eq!(scene.removed(&day), ["run kept", "unfinished knn 5", "leftover sources.txt"]);
    let label = format!("damaged data-{}-1", components(2).key().short());
    assert_eq!(scene.removed(&Keep::default()), ["knn 1".to_owned(), label]);
    assert!(files(scene.root.path()).iter().all(|file| file.starts_with("locks/")), "{:?}", files(scene.root.path()));
    assert_eq!(fs::read_dir(scene.root.path().join("store/knn")).unwrap().count(), 1, "another machine's stays");
}

#[test]
fn a_record_that_cannot_be_read_stops_everything() {
    let scene = Scene::new();
    scene.artifact("knn", 1);
    scene.run("broken", &[]);
    fs::write(scene.root.path().join("results/broken/run.json"), "{").unwrap();
    let error = scene.store.clean(&Keep::default()).unwrap_err().to_string();
    assert!(error.starts_with("what a run needs is not known while its record cannot be read"), "{error}");
    assert_eq!(scene.there(), ["knn 1"]);
}

#[test]
fn a_look_at_everything_finds_every_damage() {
    let scene = Scene::new();
    let (one, two) = (scene.artifact("data", 1), scene.artifact("knn", 2));
    scene.run("run", &[&one, &two]);
    let key = components(3).key();
    let checkpoints = scene.store.checkpoints("pretrain", &key, |_| ()).unwrap();
    checkpoints.append_segment("metrics", 0, &metrics(0..3, 0.0)).unwrap();
    checkpoints.save(3, &[("state", weights(3))]).unwrap();
    let mut seen = 0;
    let inspected = scene.store.inspect(&mut |n| seen += n).unwrap();
    assert_eq!((inspected.artifacts, inspected.checkpoints, inspected.runs), (2, 2, 1));
    assert_eq!((inspected.damages.as_slice(), inspected.bytes, seen), (&[][..], one.size() + two.size(), seen));
    assert_eq!(scene.store.bytes_to_inspect(), seen);

    let problems = || {
        let damages = scene.store.inspect(&mut |_| ()).unwrap().damages;
        damages.into_iter().map(|damage| damage.problem).collect::<Vec<_>>()
    };
    flip_a_byte(&two.dir().join("x.parquet"));
    assert_eq!(problems(), ["x.parquet: does not match its hash"]);
    fs::remove_dir_all(two.dir()).unwrap();
    assert_eq!(problems(), [format!("its knn artifact {} is gone", components(2).key().short())]);
    fs::remove_dir_all(scene.root.path().join("results")).unwrap();
    fs::write(one.dir().join("stray"), "").unwrap();
    assert_eq!(problems(), ["stray: the manifest does not know it"]);
    fs::remove_file(one.dir().join("stray")).unwrap();
    flip_a_byte(&checkpoints.dir().join("checkpoint-000000000003-0001/state.parquet"));
    assert_eq!(problems(), ["state.parquet: does not match its hash"]);
    let Attempt::Held(_lock) = Store::open(scene.root.path()).lock("pretrain", &key).unwrap() else { panic!() };
    assert_eq!(problems(), [] as [&str; 0], "somebody works on it");
    assert_eq!(scene.store.inspect(&mut |_| ()).unwrap().busy, [format!("pretrain {}", key.short())]);
}
