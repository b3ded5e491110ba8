//! Sweeps: points share stages, resume where they stopped, fail independently, and run at once. Each mistake is reported once.

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{Finished, Scratch, TINY, signal, statuses, text};
use expect_test::expect;
use serde_json::{Value, json};

/// A quicker spec than the tiny one, for many points.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("tiny.yaml", TINY.replace("epochs: 5\n", "epochs: 2\n"));
    scratch.write("grid.yaml", "extends: tiny.yaml\nname: grid\nsweep:\n  method.tau: [0.1, 0.2]\n  seed: [1, 2]\n");
    scratch
}

fn points(finished: &Finished) -> Vec<Value> {
    let last = finished.stdout.lines().last().unwrap_or_default();
    let json: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("no JSON: {finished:?}"));
    json["points"].as_array().expect("points").clone()
}

fn all(points: &[Value], field: &str) -> Vec<String> {
    points.iter().map(|point| text(&point[field])).collect()
}

/// How often each stage ran in all points.
fn ran(points: &[Value]) -> BTreeMap<String, usize> {
    let mut ran = BTreeMap::new();
    for (stage, status) in points.iter().flat_map(statuses) {
        *ran.entry(stage).or_default() += usize::from(status == "ran");
    }
    ran
}

/// The content hash of each stage of each run.
fn contents(scratch: &Scratch, runs: &str) -> BTreeMap<String, Value> {
    let results = std::fs::read_dir(scratch.path(runs).join("results")).expect("results");
    results
        .map(|entry| {
            let record = std::fs::read(entry.expect("an entry").path().join("run.json")).expect("run.json");
            let record: Value = serde_json::from_slice(&record).expect("JSON");
            let stages = record["stages"].as_array().expect("stages").iter();
            (text(&record["run"]), stages.map(|stage| stage["content"].clone()).collect())
        })
        .collect()
}

#[test]
fn a_grid_shares_its_stages_runs_once_and_compares_by_seed() {
    let scratch = scratch();
    assert_eq!(scratch.run("validate grid.yaml").stdout, "grid.yaml: ok, 4 points\n");
    let plan = scratch.run("plan grid.yaml");
    assert!(plan.stdout.starts_with("point 1 of 4: method.tau=0.1, seed=1\ndata "), "{}", plan.stdout);
    // One data stage, and one untrained embedding per seed.
    let total = "19 of 19 stages to run, 0 cached in 4 points; shared stages count once";
    assert_eq!(plan.stdout.lines().last(), Some(total));

    let first = scratch.run("run grid.yaml --json");
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(
        first.stderr.contains("\npoint 2 of 4: method.tau=0.1, seed=2\ndata               cached  "),
        "{}",
        first.stderr
    );
    let done = points(&first);
    assert_eq!(all(&done, "status"), ["ran"; 4]);
    assert_eq!(done[2]["values"], json!({"method.tau": 0.2, "seed": 1}));
    assert!(done[3]["metrics"]["knn/top1"].is_f64() && done[3]["error"].is_null());
    let expected =
        [("data", 1), ("embed", 4), ("embed_random_init", 2), ("knn", 4), ("linear_probe", 4), ("pretrain", 4)];
    assert_eq!(ran(&done), expected.map(|(stage, times)| (stage.to_owned(), times)).into());

    let again = scratch.run("run grid.yaml");
    assert_eq!(again.stdout.lines().last(), Some("nothing to do: 24 stages of 4 points cached"));
    assert!(
        again.stdout.contains("│ point ┆ method.tau ┆ seed ┆ status ┆ linear top-1 ┆ kNN top-1 ┆ run "),
        "{}",
        again.stdout
    );
    assert_eq!(scratch.run("plan grid.yaml --check").code, 0);
    let plan = scratch.json("plan grid.yaml --json --sweep seed=1,3");
    assert_eq!(plan["total"], json!({"stages": 19, "pending": 9, "cached": 10}));
    assert_eq!(plan["points"][1]["values"], json!({"method.tau": 0.1, "seed": 3}));

    // `--set` of a swept key keeps the points with that value, and each is the same run as before.
    let one = points(&scratch.run("run grid.yaml --json --set seed=2"));
    assert_eq!(
        (all(&one, "run"), all(&one, "status")),
        (vec![text(&done[1]["run"]), text(&done[3]["run"])], vec!["cached".to_owned(); 2])
    );
    let kept = std::fs::read_to_string(scratch.path("runs/results").join(text(&done[0]["run"])).join("spec.yaml"));
    let kept: Value = serde_yaml::from_str(&kept.expect("spec.yaml")).expect("YAML");
    assert!(kept.get("sweep").is_none() && kept.get("extends").is_none());
    assert_eq!(kept["method"]["tau"], 0.1);

    compares_by_seed(&scratch, &all(&done, "run"));
}

/// Several specs run as one sweep. Points have the name of their spec, and keys that their spec does not vary are left empty.
#[test]
fn several_specs_are_one_sweep() {
    let scratch = scratch();
    scratch.write("tau.yaml", "extends: tiny.yaml\nname: tau\nsweep:\n  method.tau: [0.1]\n");
    let run = scratch.run("run tau.yaml tiny.yaml --json");
    assert_eq!(run.code, 0, "{}", run.stderr);
    let done = points(&run);
    assert_eq!(done[0]["values"], json!({ "name": "tau", "method.tau": 0.1 }));
    assert_eq!(done[1]["values"], json!({ "name": "tiny" }));
    let cells = |line: &str| line.split(['│', '┆']).map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let table: Vec<_> = run.stderr.lines().filter(|line| line.starts_with('│')).map(cells).collect();
    assert_eq!(table[0][1..5], ["point", "name", "method.tau", "status"]);
    assert_eq!(
        (&table[1][1..5], &table[2][1..5]),
        (&["1", "tau", "0.1", "ran"].map(str::to_owned)[..], &["2", "tiny", "-", "ran"].map(str::to_owned)[..])
    );
    // Each is the same run as by itself.
    let alone = scratch.json("run tiny.yaml --json");
    assert_eq!(alone["run"], done[1]["run"]);
    assert_eq!(scratch.run("plan tau.yaml tiny.yaml --check").code, 0);
}

fn compares_by_seed(scratch: &Scratch, runs: &[String]) {
    let json = scratch.json("compare grid.yaml --json");
    let labels = [format!("{} (n=2)", runs[0]), format!("{} (n=2)", runs[2])];
    assert_eq!(json["runs"], json!(labels));
    assert_eq!(json["groups"][0], json!({"label": labels[0], "runs": runs[..2], "seeds": [1, 2]}));
    assert_eq!(json["spec"].as_array().expect("spec").len(), 1);
    assert_eq!(json["spec"][0]["key"], "method.tau");
    let score = |json: &Value, metric: &str| {
        json["scores"].as_array().expect("scores").iter().find(|row| row["metric"] == metric).expect("it").clone()
    };
    let knn = score(&json, "knn/top1");
    let single: Vec<f64> =
        runs[..2].iter().map(|run| knn["groups"][&labels[0]]["values"][run].as_f64().expect("a score")).collect();
    let mean = (single[0] + single[1]) / 2.0;
    assert!((knn["values"][&labels[0]].as_f64().expect("a mean") - mean).abs() < 1e-12);
    let deviation = (single[0] - single[1]).abs() / 2f64.sqrt();
    assert!((knn["groups"][&labels[0]]["deviation"].as_f64().expect("a deviation") - deviation).abs() < 1e-12);

    let differences = json["differences"].as_array().expect("differences");
    assert_eq!(differences.len(), 2, "one per evaluation: {json}");
    let knn = differences.iter().find(|row| row["metric"] == "knn/top1").expect("knn");
    assert_eq!(
        (&knn["baseline"], &knn["compared"], &knn["samples"]),
        (&json!(labels[0]), &json!(labels[1]), &json!(40))
    );
    let of = |name: &str| knn[name].as_f64().expect("a number");
    let scores = score(&json, "knn/top1");
    let difference =
        scores["values"][&labels[1]].as_f64().expect("it") - scores["values"][&labels[0]].as_f64().expect("it");
    assert!((of("difference") - difference).abs() < 1e-12 && knn["p"].is_null());
    assert!(of("low") <= of("difference") && of("difference") <= of("high"));
    assert_eq!(knn["over_seeds"], true);

    // Single runs have McNemar's p, and each of them can be the baseline.
    let json = scratch.json(&format!("compare grid.yaml --json --no-group --baseline {}", runs[3]));
    assert_eq!(json["runs"].as_array().expect("runs").len(), 4);
    let differences = json["differences"].as_array().expect("differences");
    assert_eq!(differences.len(), 6);
    assert!(
        differences
            .iter()
            .all(|row| row["baseline"] == json!(runs[3]) && row["p"].is_f64() && row["over_seeds"] == false),
        "{json}"
    );
    let table = scratch.run("compare grid.yaml").stdout;
    assert!(table.contains(" ± ") && table.contains("± sample standard deviation over seeds\n"), "{table}");
    assert!(
        table.contains("│ knn/top1 difference ") && table.contains("interval over seeds and 40 test samples"),
        "{table}"
    );

    // A point that has not run is reported and left out.
    let partly = scratch.run("compare grid.yaml --sweep seed=1,5 --json");
    assert_eq!(partly.code, 0);
    expect![[r#"
        note: grid.yaml: no finished run of method.tau=0.1, seed=5
        note: grid.yaml: no finished run of method.tau=0.2, seed=5
        comparison written to runs/results/comparison.parquet
    "#]]
    .assert_eq(&partly.stderr);
}

#[test]
fn jobs_come_to_the_same_results_and_share_what_they_share() {
    let scratch = scratch();
    let sweep = "tiny.yaml --sweep seed=1,2 --sweep knn.k=[[5],[3]] --json";
    let one = scratch.run(&format!("run {sweep} --runs one"));
    assert_eq!(one.code, 0, "{}", one.stderr);
    let two = scratch.run(&format!("run {sweep} --runs two --jobs 2"));
    assert_eq!(two.code, 0, "{}", two.stderr);
    assert_eq!(ran(&points(&one)), ran(&points(&two)), "{}", two.stderr);
    assert_eq!(ran(&points(&two))["pretrain"], 2);
    assert_eq!(contents(&scratch, "one"), contents(&scratch, "two"));
    assert_eq!(contents(&scratch, "two").len(), 4);
    assert!(two.stderr.contains("point 2 of 4: seed=1, knn.k=[3]\n"), "{}", two.stderr);
    let is_prefixed = |line: &str| line.starts_with("point ") || line.starts_with(['┌', '│', '╞', '└']);
    assert!(
        two.stderr
            .lines()
            .filter(|line| line.contains(" ran "))
            .all(|line| line.starts_with("ran ") || is_prefixed(line)),
        "{}",
        two.stderr
    );
}

#[test]
fn a_point_that_fails_stops_the_rest_or_not() {
    let scratch = scratch();
    let sweep = "run tiny.yaml --json --set schedule.warmup_epochs=0 --sweep optimizer.base_lr=1.0e+30,0.1";
    let stopped = scratch.run(sweep);
    assert_eq!(stopped.code, 4, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("error: point 1 of 2: optimizer.base_lr=1e+30\n  because: "), "{}", stopped.stderr);
    assert_eq!(all(&points(&stopped), "status"), ["diverged", "skipped"]);

    let going = scratch.run(&format!("{sweep} -k"));
    assert_eq!(going.code, 4, "{}", going.stderr);
    let ended = points(&going);
    assert_eq!(all(&ended, "status"), ["diverged", "ran"]);
    assert!(text(&ended[0]["error"]).contains("training diverged"), "{}", ended[0]["error"]);
    assert!(ended[0]["run"].is_null() && ended[1]["error"].is_null());
    assert!(going.stderr.ends_with("1 of 2 points done (ran 5 stages, 1 cached), 1 diverged\n"), "{}", going.stderr);
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_stopped() {
    let scratch = scratch();
    for jobs in ["1", "2"] {
        let sweep = format!("run tiny.yaml --set epochs=40 --sweep seed=1,2 --jobs {jobs} --runs runs{jobs}");
        let mut child =
            scratch.command(&sweep).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let trains = |line: &Result<String, _>| line.as_ref().is_ok_and(|line| line.contains("learning rate"));
        lines.by_ref().find(trains).expect("training").expect("a line");
        signal(child.id(), "INT");
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest:?}");
        let last = rest.last().expect("a last line");
        assert!(last.starts_with("interrupted ") && last.contains("run the same command again"), "{last}");

        let resumed = scratch.run(&format!("{sweep} --json"));
        assert_eq!(resumed.code, 0, "{}", resumed.stderr);
        assert!(resumed.stderr.contains("resuming after step"), "{}", resumed.stderr);
        assert_eq!(all(&points(&resumed), "status"), ["ran", "ran"]);
    }
    assert_eq!(contents(&scratch, "runs1"), contents(&scratch, "runs2"));
}

#[test]
fn mistakes_of_all_points_come_once_and_before_anything_runs() {
    let scratch = scratch();
    let sweep = "tiny.yaml --sweep method.tua=0.1,0.2 --sweep seed=1,x --set knn.k=5";
    let finished = scratch.run(&format!("run {sweep}"));
    assert_eq!(finished.code, 2);
    assert_eq!(
        finished.stderr,
        "\
error: --set knn.k=5: knn.k: wrong type
  found:   5
  allowed: a list of 1 or more whole numbers, each at least 1
  help:    write a list: `k: [5]`

error: --sweep method.tua=0.1,0.2: method.tua: unknown key
  found:   tua: 0.1
  allowed: name, k, queue_length, gamma, objective, tau, attention, normalize_attention, attention_dim, detach_w, threshold, queue_overflow, exclude_self, loss_scale, momentum
  help:    did you mean `tau`?

error: --sweep seed=x: seed: wrong type
  found:   \"x\"
  allowed: a whole number, at least 0

tiny.yaml: 3 errors
"
    );
    assert!(!scratch.path("runs").exists());

    scratch.write(
        "bad.yaml",
        "extends: tiny.yaml\nsweep:\n  seed: 1\n  method.k: [3, 100]\n  method.k.x: [1]\n  epochs: []\n",
    );
    let finished = scratch.run("validate bad.yaml");
    assert_eq!(
        finished.stderr,
        "\
error: bad.yaml:3:9: sweep.seed: wrong type
  found:   1
  allowed: a list of 1 or more values
  help:    write a list: `seed: [1]`

error: bad.yaml:4:17: method.k: a queue of 64 has no 100 neighbours
  found:   method.k: 100, method.queue_length: 64
  allowed: method.k <= method.queue_length
  help:    lower `method.k` to 64 or less, or raise `method.queue_length` to 100 or more

error: bad.yaml:5:3: method.k.x: `method.k.x` is inside `method.k`, which is swept too
  found:   method.k, method.k.x
  help:    give the values of `method.k` whole, or sweep single keys of it

error: bad.yaml:6:11: sweep.epochs: wrong number of items
  found:   []
  allowed: a list of 1 or more values

bad.yaml: 4 errors
"
    );
}

#[test]
fn four_methods_are_compared_by_one_command() {
    let scratch = scratch();
    let named = "tiny.yaml --sweep method.name=snclr,infonce,nnclr,swav";
    let first = scratch.run(&format!("run {named} --json"));
    assert_eq!(first.code, 0, "{}", first.stderr);
    let told = "\
note: --sweep method.name=infonce: dropped method.k, method.queue_length, which infonce does not take; kept method.tau
note: --sweep method.name=nnclr: dropped method.k, which nnclr does not take; kept method.queue_length, method.tau
note: --sweep method.name=swav: dropped method.k, predictor, which swav does not take; kept method.queue_length, method.tau
point 1 of 4: method.name=snclr
";
    assert!(first.stderr.starts_with(told), "{}", first.stderr);
    let done = points(&first);
    assert_eq!(all(&done, "status"), ["ran"; 4]);
    let compared = scratch.json(&format!("compare {named} --json"));
    assert_eq!(compared["runs"], json!(all(&done, "run")));
    let methods = &compared["spec"].as_array().expect("spec").iter().find(|row| row["key"] == "method.name");
    let methods = methods.expect("the method")["values"].as_object().expect("values").values().map(text);
    assert_eq!(methods.collect::<Vec<_>>(), ["snclr", "infonce", "nnclr", "swav"]);

    // Other ways to set the same method give the same run. A section that is given whole keeps no key of the spec's section, so
    // `sections` repeats tau.
    let run_of = |arguments: &[&str]| {
        let output = scratch.command("run tiny.yaml --json").args(arguments).output().expect("the program");
        let finished = Finished::of(output);
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    };
    for (arguments, place) in
        [(["--method", "infonce"], "--method infonce"), (["--set", "method.name=infonce"], "--set method.name=infonce")]
    {
        let finished = run_of(&arguments);
        let told = format!(
            "note: {place}: dropped method.k, method.queue_length, which infonce does not take; kept method.tau\n"
        );
        assert!(finished.stderr.starts_with(&told), "{}", finished.stderr);
        let json: Value = serde_json::from_str(finished.stdout.lines().last().expect("a line")).expect("JSON");
        assert_eq!(json["run"], done[1]["run"]);
    }
    let sections = "method={name: infonce, tau: 0.2},{name: swav, queue_length: 64, tau: 0.2}";
    let whole = points(&run_of(&["--sweep", sections]));
    assert_eq!(all(&whole, "run"), [text(&done[1]["run"]), text(&done[3]["run"])]);
}

#[test]
fn methods_that_cannot_be_are_refused_where_they_are_named() {
    let scratch = scratch();
    let refused = |arguments: &str| {
        let finished = scratch.run(arguments);
        assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{arguments}");
        finished.stderr
    };
    assert_eq!(
        refused("run tiny.yaml --method infonse"),
        "\
error: --method infonse: method.name: unknown value
  found:   \"infonse\"
  allowed: infonce, simclr, nnclr, swav, snclr
  help:    did you mean `infonce`?

tiny.yaml: 1 error
"
    );
    scratch.write("infonce.yaml", "extends: tiny.yaml\nmethod: {name: infonce, tau: 0.2}\n");
    assert_eq!(
        refused("plan infonce.yaml --method nnclr"),
        "\
error: --method nnclr: method.queue_length: required key is missing
  allowed: a whole number, at least 1
  help:    add `--set method.queue_length=…`: length of the FIFO queue of projections that the neighbours come from

infonce.yaml: 1 error
"
    );
    scratch.write(
        "both.yaml",
        "extends: tiny.yaml\nsweep: {method: [{name: infonce, tau: 0.2}, {name: infonce, tau: 0.3}]}\n",
    );
    for (option, key) in [("--method swav", "method.name"), ("--set method.tau=0.3", "method.tau")] {
        assert_eq!(
            refused(&format!("plan both.yaml {option}")),
            format!(
                "\
error: {option}: {key}: `{key}` is inside `method`, which is swept
  help:    give the values of `method` on the command line: `--sweep method=…`, or `--set method=…`

both.yaml: 1 error
"
            )
        );
    }
    let twice = refused("plan tiny.yaml --method swav --sweep method.name=infonce,nnclr");
    expect![[r#"
        error: --sweep method.name=infonce,nnclr: method.name: given twice on the command line
          help:    keep one `--sweep` or `--set` of it

        tiny.yaml: 1 error
    "#]]
    .assert_eq(&twice);
}
