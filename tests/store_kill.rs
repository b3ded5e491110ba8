//! Kills a process that writes to the store again and again at random moments. The next process can always continue, and the
//! final artifact is the same as without the kills.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::Instant,
};

use arrow::array::{ArrayRef, AsArray, Int64Array, LargeBinaryArray, RecordBatch};
use arrow::datatypes::Int64Type;
use snclr::artifact::{Artifact, Attempt, Components, Found, Kind, Store};

const ROOT: &str = "SNCLR_TEST_STORE";
const STEPS: u64 = 12;

fn components() -> Components {
    let mut components = Components::default();
    components.insert("stage", &"pretrain".into());
    components
}

/// The state after a step. It depends on the state before, as in training, so a lost or repeated step changes the final state.
fn next(state: &[u8], step: u64) -> Vec<u8> {
    state.iter().enumerate().map(|(i, b)| b.wrapping_mul(31).wrapping_add((i as u64 + step) as u8)).collect()
}

fn state_batch(state: &[u8]) -> RecordBatch {
    let column = Arc::new(LargeBinaryArray::from(vec![state])) as ArrayRef;
    RecordBatch::try_from_iter([("bytes", column)]).unwrap()
}

fn row(step: u64, state: &[u8]) -> RecordBatch {
    let sum: i64 = state.iter().map(|b| i64::from(*b)).sum();
    RecordBatch::try_from_iter([
        ("step", Arc::new(Int64Array::from(vec![step as i64])) as ArrayRef),
        ("sum", Arc::new(Int64Array::from(vec![sum])) as ArrayRef),
    ])
    .unwrap()
}

/// A small stage: it resumes from the newest checkpoint, saves one after every step, and commits its artifact.
fn stage(root: &Path) {
    let store = Store::open(root);
    let key = components().key();
    let Attempt::Held(lock) = store.lock("pretrain", &key).unwrap() else { panic!("nobody else is there") };
    store.sweep().unwrap();
    match store.find("pretrain", &key) {
        Found::Hit(artifact) => {
            drop(lock);
            return store.tidy(&artifact).unwrap();
        }
        Found::Damaged { what } => panic!("{what}"),
        Found::Missing => {}
    }
    let checkpoints = store.checkpoints("pretrain", &key, |warning| panic!("{warning}")).unwrap();
    let (begin, mut state) = match checkpoints.load().unwrap() {
        Some((step, tables)) => (step, tables["state"].column(0).as_binary::<i64>().value(0).to_vec()),
        None => (0, vec![1; 100_000]),
    };
    for step in begin..STEPS {
        checkpoints.append_segment("metrics", step, &row(step, &state)).unwrap();
        state = next(&state, step);
        checkpoints.save(step + 1, &[("state", state_batch(&state))]).unwrap();
    }
    let mut writer = store.begin(&lock, "pretrain", components()).unwrap();
    for (name, batch) in
        [("state", state_batch(&state)), ("metrics", checkpoints.segments("metrics", STEPS).unwrap().unwrap())]
    {
        let mut table = writer.table(name, batch.schema(), Kind::Content).unwrap();
        table.write(&batch).unwrap();
        table.finish().unwrap();
    }
    store.commit(&lock, writer).unwrap();
}

fn artifact(root: &Path) -> Option<Artifact> {
    match Store::open(root).find("pretrain", &components().key()) {
        Found::Hit(artifact) => Some(artifact),
        Found::Missing => None,
        Found::Damaged { what } => panic!("{what}"),
    }
}

/// Runs the stage in a process of its own, which the test below starts.
#[test]
fn child() {
    if let Some(root) = std::env::var_os(ROOT) {
        stage(Path::new(&root));
    }
}

/// Starts a process that runs the stage in the store at `root`.
fn spawn(root: &Path) -> std::process::Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", "child", "--nocapture"]).env(ROOT, root).stdout(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_writer_that_is_killed_at_random_ends_as_one_that_is_not() {
    let whole = tempfile::tempdir().unwrap();
    stage(whole.path());
    let expected = artifact(whole.path()).unwrap();
    let begun = Instant::now();
    let timed = tempfile::tempdir().unwrap();
    assert!(spawn(timed.path()).wait().unwrap().success());
    let lifetime = begun.elapsed();
    let metrics = expected.read("metrics").unwrap().next().unwrap().unwrap();
    let steps = metrics.column(0).as_primitive::<Int64Type>();
    assert_eq!((steps.len() as u64, steps.value(0)), (STEPS, 0));

    let mut kills = 0;
    for round in 0..6u64 {
        let root = tempfile::tempdir().unwrap();
        for attempt in 0u64.. {
            let mut child = spawn(root.path());
            // The moments of the kills are spread over the life of the process. Later attempts live longer, so that one finishes.
            let spread = (round * 7919 + attempt * 10_473) % 1000 * 6 / 10 + attempt * 50;
            sleep(lifetime.mul_f64(spread as f64 / 1000.0));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            match status.code() {
                Some(code) => assert_eq!(code, 0, "the store was left in a state that cannot be gone on from"),
                None => kills += 1,
            }
            if artifact(root.path()).is_some() {
                break;
            }
        }
        let found = artifact(root.path()).unwrap();
        assert_eq!(found.content(), expected.content(), "round {round}");
        stage(root.path());
        assert_eq!(std::fs::read_dir(root.path().join("work")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(root.path().join("store/pretrain")).unwrap().count(), 1);
    }
    assert!(kills >= 6, "the kills came too late: {kills}");
}
