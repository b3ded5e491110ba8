//! Thousands of runs in one runs folder: they are listed and compared quickly, and written to one file for databases.

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{Scratch, python, text};
use serde_json::{Value, json};
use snclr::{
    artifact::{Components, Kind, Store, table},
    plan::Stage,
    tables::{self, column::*},
};

const RUNS: u64 = 5000;

/// The longest time that a command may take while other tests run at the same time. On an idle machine it takes far less.
const PATIENCE: Duration = Duration::from_secs(8);

/// The value of `method.tau` at an index of the sweep.
fn tau(at: u64) -> f64 {
    (50 + at) as f64 / 1000.0
}

/// Writes the folder of a run as the program does, without artifacts.
fn write_run(scratch: &Scratch, spec: &str, number: u64) {
    let run = format!("sweep-{number:08x}");
    let spec = spec.replace("seed: 1\n", &format!("seed: {}\n", number % 5));
    let spec = spec.replace("tau: 0.2", &format!("tau: {:?}", tau(number / 5)));
    let metrics = json!({ "knn/top1": number as f64 / 10_000.0, "linear/top1": 0.5, "train/loss": 1.25 });
    let record = json!({
        "run": run, "name": "sweep", "created": 1_700_000_000 + number, "stages": [], "metrics": metrics, "notes": [],
    });
    scratch.write(&format!("runs/results/{run}/spec.yaml"), spec);
    scratch.write(&format!("runs/results/{run}/run.json"), format!("{record:#}\n"));
}

#[track_caller]
fn timed(scratch: &Scratch, args: &str) -> Value {
    let begun = Instant::now();
    let value = scratch.json(args);
    let took = begun.elapsed();
    let shown: String = args.chars().take(60).collect();
    println!("{:.2} s: {shown}", took.as_secs_f64());
    assert!(took < PATIENCE, "{shown} took {took:?}");
    value
}

#[test]
fn five_thousand_runs_are_listed_and_compared_in_a_moment() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set epochs=1 --set name=sweep");
    let results = scratch.path("runs/results");
    let own = fs::read_dir(&results).expect("results").next().expect("a run").expect("a folder").path();
    let spec = fs::read_to_string(own.join("spec.yaml")).expect("its spec");
    assert!(spec.contains("seed: 1\n") && spec.contains("tau: 0.2"), "{spec}");
    (0..RUNS).for_each(|number| write_run(&scratch, &spec, number));
    std::thread::sleep(Duration::from_millis(100));

    let first = timed(&scratch, "runs --json");
    assert_eq!(first["runs"].as_array().expect("runs").len() as u64, RUNS + 1);
    let file = scratch.path("runs/tables/runs.parquet");
    assert!(file.exists());
    assert_eq!(timed(&scratch, "runs --json"), first);
    // The list follows later changes, and a damaged file changes nothing: it only saves time.
    fs::remove_dir_all(results.join("sweep-00000007")).expect("a run");
    let without = timed(&scratch, "runs --json");
    assert_eq!(without["runs"].as_array().expect("runs").len() as u64, RUNS);
    fs::write(&file, "damaged").expect("a file");
    assert_eq!(timed(&scratch, "runs --json"), without);

    let taus: Vec<String> = (0..RUNS / 5).map(|at| format!("{:?}", tau(at))).collect();
    let sweep =
        format!("compare tiny.yaml --json --set epochs=1 --set name=sweep --sweep method.tau={}", taus.join(","));
    let compared = timed(&scratch, &sweep);
    assert_eq!(compared["runs"].as_array().expect("columns").len() as u64, RUNS / 5);
    let all: Vec<String> =
        (0..RUNS).filter(|number| *number != 7).map(|number| format!("sweep-{number:08x}")).collect();
    let compared = timed(&scratch, &format!("compare {} --json", all.join(" ")));
    assert_eq!(compared["runs"].as_array().expect("columns").len() as u64, RUNS / 5, "five seeds are a group");
}

#[test]
fn the_state_of_five_thousand_points_is_told_in_a_moment() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set epochs=1 --only data");
    let taus: Vec<String> = (0..RUNS).map(|at| format!("{:?}", tau(at))).collect();
    let points = format!("tiny.yaml --json --set epochs=1 --sweep method.tau={}", taus.join(","));
    let status = timed(&scratch, &format!("status {points}"));
    // Each point has a training, its embeddings and their two evaluations. The data stage and the control are shared.
    assert_eq!((&status["points"], status["tasks"].as_array().map(Vec::len)), (&json!(RUNS), Some(20_002)));
    let submitted = timed(&scratch, &format!("submit {points} --dry-run"));
    assert_eq!((&submitted["tasks"], &submitted["done"]), (&json!(20_002), &json!(1)));
}

#[test]
fn figures_and_curves_of_all_runs_are_one_file_each() {
    let scratch = Scratch::new();
    let sweep = scratch.json("run tiny.yaml --json --sweep seed=1,2");
    let printed = scratch.run("runs --tables");
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let [figures, curves] = [tables::FIGURES, tables::CURVES].map(|table| {
        let path = scratch.path("runs/tables").join(format!("{}.parquet", table.name));
        let (rows, _) = table::read_whole(&path, "").expect("a table");
        assert_eq!(*rows.schema(), *table.schema());
        assert!(printed.stdout.contains(&format!("{} rows in runs/tables/{}.parquet\n", rows.num_rows(), table.name)));
        rows
    });
    let points = sweep["points"].as_array().expect("points");
    let metrics: usize = points.iter().map(|point| point["metrics"].as_object().expect("metrics").len()).sum();
    assert_eq!(figures.num_rows(), metrics);
    // Two runs have five epochs of 96 images in batches of 16.
    assert_eq!(curves.num_rows(), 60);
    let runs = tables::CURVES.texts(&curves, RUN).expect("runs");
    let runs: Vec<&str> = (0..60).map(|row| runs.value(row)).collect();
    assert!(runs.is_sorted(), "a database finds the rows of one run together");
    if let Some(python) = python(&["duckdb"]) {
        let query = "import duckdb; print(duckdb.sql(\"select f.run, max(step) from 'runs/tables/figures.parquet' f join \
                     'runs/tables/metrics.parquet' m using (run) where metric = 'knn/top1' group by all order by all\").fetchall())";
        let output = scratch.command("");
        let output = std::process::Command::new(python)
            .current_dir(output.get_current_dir().expect("a folder"))
            .args(["-c", query])
            .output()
            .expect("Python");
        let mut names: Vec<String> = points.iter().map(|point| text(&point["run"])).collect();
        names.sort();
        let expected = format!("[('{}', 29), ('{}', 29)]\n", names[0], names[1]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    }

    // A missing training is reported, and the curves of the others stay.
    let gone = text(&points[0]["run"]);
    let record = fs::read_to_string(scratch.path(&format!("runs/results/{gone}/run.json"))).expect("its record");
    let record: Value = serde_json::from_str(&record).expect("JSON");
    let key = text(
        &record["stages"].as_array().expect("stages").iter().find(|s| s["stage"] == "pretrain").expect("it")["key"],
    );
    fs::remove_dir_all(scratch.path(&format!("runs/store/pretrain/{key}"))).expect("its training");
    let printed = scratch.run("runs --tables").stdout;
    assert!(printed.contains("30 rows in runs/tables/metrics.parquet\n"), "{printed}");
    assert!(printed.contains(&format!("note: {gone}: omitting its curves: the pretrain artifact")), "{printed}");
}

/// Makes a pretrain artifact whose metrics have `steps` rows.
fn training(store: &Store, number: u64, steps: i64) -> snclr::artifact::Artifact {
    let mut components = Components::default();
    components.insert("number", &number.into());
    let real = |scale: f64| (0..steps).map(move |step| libm::sin(step as f64 * scale + number as f64));
    let some = |scale: f64| real(scale).map(Some);
    let rows = tables::METRICS.rows([
        STEP.of(0..steps),
        EPOCH.of((0..steps).map(|step| step as f64 / 100.0)),
        LOSS.of(real(0.1)),
        LEARNING_RATE.of(real(0.01)),
        MOMENTUM.of(some(0.02)),
        STD.of(some(0.3)),
        EFFECTIVE_RANK.of(some(0.4)),
        ALIGNMENT.of(some(0.5)),
        UNIFORMITY.of(some(0.6)),
        MEAN_POSITIVENESS.of(some(0.7)),
        MAX_POSITIVENESS.of(some(0.8)),
        NEIGHBOUR_AGREEMENT.of(some(0.9)),
        KNN_TOP1.of((0..steps).map(|_| None::<f64>)),
    ]);
    let stage = Stage::Pretrain.name();
    store.build(stage, components, |writer| writer.whole(&tables::METRICS, Kind::Content, &rows)).expect("an artifact")
}

#[test]
#[ignore = "a minute; scripts/soak.sh runs it"]
fn soak_two_million_steps_are_read_in_a_moment() {
    const STEPS: i64 = 2000;
    let scratch = Scratch::new();
    let store = Store::open(&scratch.path("runs"));
    for number in 0..1000 {
        let artifact = training(&store, number, STEPS);
        let run = format!("sweep-{number:08x}");
        let stage =
            json!({ "stage": artifact.stage(), "key": artifact.key(), "content": artifact.content(), "seconds": 1.0 });
        let record = json!({
            "run": run, "name": "sweep", "created": number, "stages": [stage], "metrics": { "knn/top1": 0.5 }, "notes": [],
        });
        scratch.write(&format!("runs/results/{run}/spec.yaml"), format!("name: sweep\nseed: {number}\n"));
        scratch.write(&format!("runs/results/{run}/run.json"), record.to_string());
    }
    let begun = Instant::now();
    let printed = scratch.run("runs --tables").stdout;
    println!("{:.2} s: runs --tables", begun.elapsed().as_secs_f64());
    assert!(printed.contains("2000000 rows in runs/tables/metrics.parquet\n"), "{printed}");
    let Some(python) = python(&["duckdb"]) else { return };
    let script = "\
import duckdb, time
for query in ['select run, min(loss), max(std) from t group by run', \"select * from t where run = 'sweep-00000123'\"]:
    best = 9
    for _ in range(6):
        begun = time.time()
        rows = duckdb.sql(query.replace('from t', \"from 'runs/tables/metrics.parquet'\")).fetchall()
        best = min(best, time.time() - begun)
    print(f'{len(rows)} rows in {best:.3f} s: {query}')
    assert best < 0.5, best
";
    let output = std::process::Command::new(python)
        .current_dir(scratch.path("."))
        .args(["-c", script])
        .output()
        .expect("Python");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
