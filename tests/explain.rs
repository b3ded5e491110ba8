//! `snclr explain` and `snclr diff`: every leaf that makes the difference, time and disk, and the test images that flipped.

mod common;

use common::{Scratch, text};
use serde_json::{Value, json};

fn stage<'a>(told: &'a Value, name: &str) -> &'a Value {
    told["stages"].as_array().expect("stages").iter().find(|stage| stage["stage"] == name).expect("the stage")
}

#[test]
fn every_leaf_that_differs_is_told_with_what_it_will_take() {
    let scratch = Scratch::new();
    let nothing = scratch.run("explain tiny.yaml");
    assert_eq!(nothing.code, 0, "{}", nothing.stderr);
    assert!(
        nothing.stdout.starts_with(
            "data               runs; no artifact yet\n    time and size unknown: nothing comparable has run\n"
        ),
        "{}",
        nothing.stdout
    );
    assert!(!scratch.path("runs").exists(), "looking writes nothing");

    let first = text(&scratch.json("run tiny.yaml --json")["run"]);
    assert_eq!(
        scratch.run("explain tiny.yaml").stdout,
        "data               cached\npretrain           cached\nembed              cached\n\
         embed_random_init  cached\nlinear_probe       cached\nknn                cached\n\
         nothing to do: 6 stages cached\n"
    );

    let change = "--set method.tau=0.5 --set epochs=10 --set knn.k=[3]";
    let told = scratch.json(&format!("explain tiny.yaml --json {change}"));
    let pretrain = stage(&told, "pretrain");
    assert_eq!(pretrain["status"], "runs");
    assert_eq!(
        pretrain["differences"],
        json!([
            { "leaf": "epochs", "old": 5, "new": 10 },
            { "leaf": "method.tau", "old": 0.2, "new": 0.5 },
        ])
    );
    let estimate = &pretrain["estimate"];
    assert_eq!((&estimate["basis"]["images"], &estimate["basis"]["images_now"]), (&json!(480), &json!(960)));
    let ratio = estimate["seconds"].as_f64().unwrap() / estimate["basis"]["seconds"].as_f64().unwrap();
    assert!((ratio - 2.0).abs() < 1e-9, "twice the steps, twice the time: {ratio}");
    assert!(estimate["basis"]["elsewhere"].is_null(), "{estimate}");
    assert_eq!(
        (&stage(&told, "embed")["status"], &stage(&told, "linear_probe")["status"]),
        (&json!("depends"), &json!("depends"))
    );
    assert_eq!(stage(&told, "knn")["status"], "runs");
    assert_eq!(stage(&told, "knn")["differences"], json!([{ "leaf": "knn.k", "old": [5, 20], "new": [3] }]));
    assert_eq!(stage(&told, "data")["estimate"], Value::Null);
    assert!(told["seconds"].as_f64().unwrap() > 0.0 && told["no_estimate"] == json!([]));

    let shown = scratch.run(&format!("explain tiny.yaml {change}")).stdout;
    let lines: Vec<_> = shown.lines().filter(|line| !line.trim_start().starts_with("about ")).collect();
    assert_eq!(
        lines[..lines.len() - 1],
        [
            "data               cached",
            "pretrain           runs",
            "    epochs 5 -> 10",
            "    method.tau 0.2 -> 0.5",
            "embed              runs after pretrain, unless the content of pretrain stays the same",
            "embed_random_init  cached",
            "linear_probe       runs after embed, unless the content of embed stays the same",
            "knn                runs after embed",
            "    knn.k [5, 20] -> [3]",
        ]
    );
    let last = lines[lines.len() - 1];
    assert!(last.starts_with("4 of 6 stages to run, 2 cached; about "), "{last}");
    assert!(shown.contains("images, now 960"), "{shown}");

    // The nearest artifact is now the second run's; `--against` selects the first run's.
    scratch.json("run tiny.yaml --json --set knn.k=[3]");
    let near = scratch.json("explain tiny.yaml --json --set knn.k=[3] --set knn.temperature=0.2");
    assert_eq!(stage(&near, "knn")["differences"].as_array().map(Vec::len), Some(1));
    let far =
        scratch.json(&format!("explain tiny.yaml --json --set knn.k=[3] --set knn.temperature=0.2 --against {first}"));
    assert_eq!(far["against"], first.as_str());
    assert_eq!(stage(&far, "knn")["differences"].as_array().map(Vec::len), Some(2));
    let same = scratch.run(&format!("explain tiny.yaml --against {first}")).stdout;
    assert!(same.starts_with(&format!("data               cached; as in {first}\n")), "{same}");

    let other = scratch.json("explain tiny.yaml --json --set encoder.arch=resnet34");
    assert_eq!(stage(&other, "pretrain")["no_estimate"], "nothing comparable has run");
    assert!(other["no_estimate"].as_array().unwrap().contains(&json!("pretrain")));
    assert_eq!(scratch.run("plan tiny.yaml --check").code, 0, "plan says the same");
}

#[test]
fn a_sweep_is_told_by_its_points_and_their_sum() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json");
    scratch.write("tau.yaml", "extends: tiny.yaml\nname: tau\nsweep:\n  method.tau: [0.2, 0.4]\n");
    scratch.write("seed.yaml", "extends: tiny.yaml\nname: seeds\nsweep:\n  seed: [1, 2]\n");
    let specs = "explain tau.yaml seed.yaml --set epochs=10";
    let told = scratch.json(&format!("{specs} --json"));
    let points = told["points"].as_array().expect("points");
    assert_eq!(
        points.iter().map(|point| &point["values"]).collect::<Vec<_>>(),
        [
            &json!({ "name": "tau", "method.tau": 0.2 }),
            &json!({ "name": "tau", "method.tau": 0.4 }),
            &json!({ "name": "seeds", "seed": 1 }),
            &json!({ "name": "seeds", "seed": 2 }),
        ]
    );
    // Two points are the same experiment, of a seed whose data and untrained encoder are there. What is shared counts once, in
    // the sum too.
    let total = &told["total"];
    assert_eq!((&total["stages"], &total["pending"], &total["cached"]), (&json!(15), &json!(13), &json!(2)));
    let of = |point: &Value, name: &str| stage(point, name)["estimate"]["seconds"].as_f64().unwrap_or(0.0);
    let stages = ["data", "pretrain", "embed", "embed_random_init", "linear_probe", "knn"];
    let sum: f64 = [0, 1, 3].iter().flat_map(|&i| stages.map(|name| of(&points[i], name))).sum();
    assert!((total["seconds"].as_f64().unwrap() - sum).abs() < 1e-9 && sum > 0.0, "{total} {sum}");
    assert_eq!(total["no_estimate"], json!([]));

    let shown = scratch.run(specs).stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 5, "{shown}");
    assert!(
        lines[1].starts_with("point 2 of 4: name=tau, method.tau=0.4: 4 of 6 stages to run, 2 cached; about "),
        "{shown}"
    );
    assert!(lines[4].starts_with("13 of 15 stages to run, 2 cached; about "), "{shown}");
    assert!(lines[4].ends_with(" in 4 points; shared stages count once"), "{shown}");
}

/// In bf16 the key holds the kind of unit that multiplies; in f32 it does not.
#[test]
#[cfg(target_arch = "x86_64")]
fn another_kind_of_bf16_products_makes_training_run_again() {
    let scratch = Scratch::new();
    let with = |unit: &str, args: &str| {
        let output = scratch.command(args).env("SNCLR_VECTOR_UNIT", unit).output().expect("the program");
        let finished = common::Finished::of(output);
        assert_eq!(finished.code, 0, "{unit}: {args}: {}", finished.stderr);
        serde_json::from_str::<Value>(finished.stdout.trim_end().lines().last().expect("JSON")).expect("JSON")
    };
    let doctor = scratch.json("doctor --json");
    let kind = doctor["checks"].as_array().expect("checks").iter().find(|check| check["check"] == "bf16 products");
    let kind = text(&kind.expect("the check")["found"]);
    if !kind.ends_with("BF16") {
        return println!("skipped: this CPU multiplies bf16 in one way only; tested within src/plan/key.rs");
    }
    let short = "tiny.yaml --json --set epochs=1 --set schedule.warmup_epochs=0";
    with("avx512", &format!("run {short} --set precision=bf16"));
    let told = with("avx2", &format!("explain {short} --set precision=bf16"));
    let expected = json!([{ "leaf": "precision.unit", "old": kind, "new": "f32" }]);
    assert_eq!(stage(&told, "pretrain")["differences"], expected);
    assert_eq!(stage(&told, "embed_random_init")["status"], "cached", "features are computed in f32");
    let plan = with("avx2", &format!("plan {short} --set precision=bf16"));
    assert_eq!(stage(&plan, "pretrain")["reason"], format!("precision.unit {kind} -> f32"));

    with("avx512", &format!("run {short}"));
    let plan = with("avx2", &format!("plan {short}"));
    assert!(common::statuses(&plan).values().all(|status| status == "cached"), "{plan}");
}

#[test]
fn two_runs_differ_in_leaves_metrics_and_images() {
    let scratch = Scratch::new();
    let one = scratch.json("run tiny.yaml --json --threads 1");
    let two = scratch.json("run tiny.yaml --json --threads 2 --set method.tau=0.5 --set name=warm");
    let (a, b) = (text(&one["run"]), text(&two["run"]));

    let diff = scratch.json(&format!("diff {a} {b} --json --samples 1000"));
    assert_eq!(diff["spec"], json!([{ "key": "method.tau", "a": 0.2, "b": 0.5 }]));
    let threads =
        json!([{ "field": "threads", "a": "1", "b": "2", "stages": ["pretrain", "embed", "linear_probe", "knn"] }]);
    assert_eq!(diff["environment"], threads);
    let metric = |name: &str| {
        let row = diff["metrics"].as_array().unwrap().iter().find(|row| row["metric"] == name).expect("the metric");
        (row["a"].as_f64().unwrap(), row["b"].as_f64().unwrap(), row["difference"].as_f64().unwrap())
    };
    for (name, stage) in [("knn/top1", "knn"), ("linear/top1", "linear_probe")] {
        let (in_a, in_b, difference) = metric(name);
        assert_eq!((in_a, in_b), (one["metrics"][name].as_f64().unwrap(), two["metrics"][name].as_f64().unwrap()));
        assert!((in_b - in_a - difference).abs() < 1e-12);
        let paired = diff["predictions"].as_array().unwrap().iter().find(|p| p["stage"] == stage).expect("the stage");
        let count = |key: &str| paired[key]["count"].as_u64().unwrap() as f64;
        let (lost, won) = (count("right_to_wrong"), count("wrong_to_right"));
        // The flipped predictions explain the difference of the scores on the 40 test images.
        assert!(((won - lost) / 40.0 - difference).abs() < 1e-9, "{name}: {won} {lost} {difference}");
        let samples = paired["right_to_wrong"]["samples"].as_array().unwrap();
        assert!(samples.len() as f64 == lost && samples.iter().all(|sample| sample.as_u64().is_some_and(|s| s < 40)));
        let rest = paired["right_in_both"].as_u64().unwrap() + paired["wrong_in_both"].as_u64().unwrap();
        assert_eq!(rest as f64 + lost + won, 40.0);
        assert!((0.0..=1.0).contains(&paired["mcnemar_p"].as_f64().unwrap()));
    }

    let shown = scratch.run(&format!("diff {a} {b}")).stdout;
    let start = format!(
        "a: {a}\nb: {b}\nspec, a -> b\n    method.tau 0.2 -> 0.5\nenvironment, a -> b\n    threads 1 -> 2 in pretrain, embed, linear_probe, knn\n"
    );
    assert!(shown.starts_with(&start), "{shown}");
    assert!(shown.contains("\nkNN, k = 5, 40 test images: "), "{shown}");
    assert_eq!(scratch.run(&format!("diff {a} {a}")).stdout, format!("a: {a}\nb: {a}\nthe same run\n"));

    // A spec file stands for the run of exactly this spec, or for the spec alone if it has not run.
    assert_eq!(scratch.json("diff tiny.yaml warm --json")["a"], a.as_str());
    scratch.write("new.yaml", common::TINY.replace("epochs: 5\nbatch", "epochs: 6\nbatch"));
    let planned = scratch.json(&format!("diff {a} new.yaml --json"));
    assert_eq!(planned["b"], "new.yaml (not run)");
    assert_eq!(planned["spec"], json!([{ "key": "epochs", "a": 5, "b": 6 }]));
    assert_eq!(planned["predictions"], json!([]));

    // With other images the same sample number is another image, so predictions cannot be paired.
    let three = scratch.json("run tiny.yaml --json --set data.seed=9 --set epochs=1");
    let shown = scratch.run(&format!("diff {a} {}", text(&three["run"]))).stdout;
    assert!(shown.contains("kNN: predictions cannot be compared: the runs have different test images\n"), "{shown}");
}

#[test]
fn an_audit_shows_the_encoder_and_the_controls() {
    let scratch = Scratch::new();
    let run = text(&scratch.json("run tiny.yaml --json")["run"]);
    let audit = scratch.run("audit tiny");
    for line in [
        run.as_str(),
        "    mode                   eval: batch norm uses its running statistics",
        "ok      embed: the encoder is the same after the last image as before the first",
        "ok      embed: eval mode",
        "ok      embed: every tensor of the encoder was loaded",
        "ok      embed_random_init: every tensor of the encoder was loaded",
    ] {
        assert!(audit.stdout.lines().any(|l| l == line), "{line}: {}", audit.stdout);
    }
    assert!(audit.stdout.contains("│ top-1 in %   ┆ trained ┆ untrained ┆ shuffled labels │"), "{}", audit.stdout);
    let json: Value = serde_json::from_str(&scratch.run("audit tiny --json").stdout).expect("JSON");
    assert_eq!(json["ok"].as_bool(), Some(audit.code == 0));
    assert_eq!(json["encoders"]["embed"]["encoder_sha256_before"], json["encoders"]["embed"]["encoder_sha256_after"]);
}
