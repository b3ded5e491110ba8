//! `snclr submit` and `snclr status` against a real Slurm: one controller and two nodes on this machine (Debian's packages
//! slurmctld, slurmd, slurm-client and munge). Without them these tests print that they are skipped; with `SNCLR_REQUIRE_SLURM`
//! they fail. The Kubernetes tests need no cluster.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Output},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{
    Scratch, TINY, python,
    slurm::{Slurm, printed},
    text,
};
use expect_test::expect;
use serde_json::{Value, json};

fn short() -> String {
    TINY.replace("epochs: 5\n", "epochs: 2\n").replace("train_images: 96", "train_images: 48")
}

const SWEEP: &str = "--sweep method.tau=0.1,0.2 --sweep knn.k=[3],[5] --threads 1";

/// The content hash of every artifact, by stage and key.
fn contents(runs: &Path) -> BTreeMap<String, String> {
    let mut contents = BTreeMap::new();
    for stage in fs::read_dir(runs.join("store")).expect("the store") {
        for artifact in fs::read_dir(stage.expect("a stage").path()).expect("artifacts") {
            let manifest = fs::read_to_string(artifact.expect("an artifact").path().join("manifest.json"));
            let manifest: Value = serde_json::from_str(&manifest.expect("a manifest")).expect("JSON");
            contents
                .insert(format!("{} {}", text(&manifest["stage"]), text(&manifest["key"])), text(&manifest["content"]));
        }
    }
    contents
}

#[test]
fn a_sweep_makes_each_stage_once_on_two_nodes_to_the_bits_of_one_machine() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    scratch.write("short.yaml", short());
    let expected = scratch.json(&format!("run short.yaml --runs alone --json {SWEEP}"));

    let submitted = slurm.json(&scratch, &format!("submit short.yaml --json {SWEEP}"));
    // One data task, two trainings and their embeddings, one control, two probes, four kNN evaluations.
    let arrays = submitted["submitted"].as_array().expect("arrays").iter();
    let arrays: Vec<_> =
        arrays.map(|array| (text(&array["stage"]), array["tasks"].as_u64().expect("a number"))).collect();
    let named = [("data", 1), ("pretrain", 2), ("embed", 2), ("embed_random_init", 1), ("linear_probe", 2), ("knn", 4)];
    assert_eq!(arrays, named.map(|(stage, tasks)| (stage.to_owned(), tasks)));
    slurm.drain(&scratch);

    let status = slurm.json(&scratch, &format!("status short.yaml --json {SWEEP}"));
    assert_eq!((&status["points"], &status["points_done"]), (&json!(4), &json!(4)), "{}", printed(&scratch));
    assert_eq!(contents(&scratch.path("runs")), contents(&scratch.path("alone")));
    let all = printed(&scratch);
    assert_eq!(all.matches("ran 1 stage").count(), 12, "{all}");
    let runs = |json: &Value, list: &str| -> BTreeSet<String> {
        json[list].as_array().expect("a list").iter().map(|run| text(&run["run"])).collect()
    };
    assert_eq!(runs(&scratch.json("runs --json"), "runs"), runs(&expected, "points"));
    let again = slurm.snclr(&scratch, &format!("submit short.yaml {SWEEP}"));
    assert_eq!(again, "nothing to do: 12 stages of 4 points done\n");
}

#[test]
fn what_fails_or_is_stopped_is_submitted_again_and_harms_no_other() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    scratch.write("long.yaml", TINY.replace("epochs: 5\n", "epochs: 60\n"));
    scratch.json("run long.yaml --runs alone --json --threads 1");
    // The second of the two points diverges.
    let sweep = "long.yaml --sweep optimizer.base_lr=0.1,1e30 --threads 1";
    scratch.write("cluster.yaml", "all: {cpus: 1, warning: 30}\n");
    let submit = || slurm.json(&scratch, &format!("submit {sweep} --cluster cluster.yaml --json"));
    submit();

    // SIGTERM stops the first point's training, as a time limit or a preemption would: it saves a checkpoint and is requeued.
    let at_work = |status: &Value| -> bool {
        let tasks = status["tasks"].as_array().expect("tasks").iter();
        tasks
            .filter(|task| task["stage"] == "pretrain")
            .any(|task| task["state"] == "running" && task["host"].is_string())
    };
    let status = || slurm.json(&scratch, &format!("status {sweep} --json"));
    let begun = Instant::now();
    while !at_work(&status()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}{}", status(), printed(&scratch));
        sleep(Duration::from_millis(100));
    }
    sleep(Duration::from_secs(1));
    slurm.run("scancel", &["--signal=TERM", "--name=tiny-pretrain-0"]).expect("a signal");
    let begun = Instant::now();
    while !printed(&scratch).contains("interrupted in pretrain after step") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", printed(&scratch));
        sleep(Duration::from_millis(100));
    }
    // Slurm holds a requeued task for two minutes. This test cancels it and submits again instead of waiting.
    sleep(Duration::from_secs(1));
    let waiting = slurm.ask("squeue", &["--noheader", "--name=tiny-pretrain-0", "--format=%T %r"]);
    assert!(waiting.contains("PENDING"), "{waiting}");
    slurm.run("scancel", &["--full", "--name=tiny-pretrain-0"]).expect("an end");
    slurm.drain(&scratch);
    submit();
    slurm.drain(&scratch);

    let status = status();
    assert_eq!(status["points_done"], 1, "{status}{}", printed(&scratch));
    let diverged: Vec<&Value> =
        status["tasks"].as_array().expect("tasks").iter().filter(|task| task["state"] == "diverged").collect();
    assert_eq!(diverged.len(), 1);
    assert!(text(&diverged[0]["why"]).contains("the loss is NaN"), "{status}");
    let (whole, stopped) = (contents(&scratch.path("alone")), contents(&scratch.path("runs")));
    assert!(whole.iter().all(|(key, content)| stopped.get(key) == Some(content)), "{whole:?} {stopped:?}");
    let again = slurm.snclr(&scratch, &format!("submit {sweep}"));
    let expected = "nothing to do: 6 stages of 2 points done, 4 impossible: their training diverged\n";
    assert_eq!(again, expected);
    let shown = slurm.snclr(&scratch, &format!("status {sweep}"));
    assert!(shown.ends_with("1 of 2 points done\n") && shown.contains(": diverged: "), "{shown}");
}

#[test]
fn a_thousand_points_are_six_arrays_in_three_seconds() {
    let scratch = Scratch::new();
    let seeds: Vec<String> = (0..1000).map(|seed| seed.to_string()).collect();
    let begun = Instant::now();
    let printed = scratch.run(&format!("submit tiny.yaml --dry-run --sweep seed={}", seeds.join(",")));
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let last = printed.stdout.lines().last().expect("a line");
    // Without a Slurm to ask for its limit, an array has at most 1,000 tasks.
    assert_eq!(last, "would submit 5001 tasks in 6 arrays; 0 done");
    println!("{seconds:.2} s");
    assert!(!scratch.path("runs").exists());
}

#[test]
fn a_stage_alone_needs_its_inputs_and_nothing_else() {
    let scratch = Scratch::new();
    let many = scratch.run("run tiny.yaml --only knn --sweep seed=1,2");
    assert_eq!(many.code, 2);
    assert_eq!(many.stderr, "error: --only runs a stage of one point, and the spec has 2; choose one with --set\n");
    let missing = scratch.run("run tiny.yaml --only knn");
    assert_eq!(missing.code, 3);
    assert_eq!(
        missing.stderr,
        "error: stage knn cannot run yet: its input data is missing; run that first (--only data)\n"
    );
    for stage in ["data", "pretrain", "embed", "embed_random_init", "linear_probe"] {
        let run = scratch.json(&format!("run tiny.yaml --only {stage} --json"));
        assert_eq!(run["run"], Value::Null);
        assert_eq!(common::statuses(&run), BTreeMap::from([(stage.to_owned(), "ran".to_owned())]));
    }
    assert_eq!(scratch.json("runs --json"), json!({ "runs": [] }));
    // Once the last stage is done, the point is recorded as a run.
    let last = scratch.json("run tiny.yaml --only knn --json");
    let whole = scratch.json("run tiny.yaml --json");
    assert_eq!(last["run"], whole["run"]);
    assert!(common::statuses(&whole).values().all(|status| status == "cached"));
    let again = scratch.json("run tiny.yaml --only pretrain --json");
    assert_eq!(common::statuses(&again), BTreeMap::from([("pretrain".to_owned(), "cached".to_owned())]));
}

const KUBERNETES: &str = "all: {cpus: 1, memory: 1G, time: '1:00:00', pod: {nodeSelector: {disk: ssd}}}\n\
    stages: {pretrain: {gpus: 1, at_once: 1}}\nkubernetes: {image: lab/snclr, claim: team, mount: MOUNT, namespace: lab}\n";

/// Writes a cluster file whose volume is mounted at the scratch folder. Returns the options of `submit` that use the file.
fn kubernetes(scratch: &Scratch) -> &'static str {
    let mount = scratch.path("").canonicalize().expect("the folder").display().to_string();
    scratch.write("cluster.yaml", KUBERNETES.replace("MOUNT", &mount));
    "--executor kubernetes --cluster cluster.yaml"
}

#[test]
fn manifests_keep_to_the_published_schema() {
    let required = std::env::var_os("SNCLR_REQUIRE_KUBERNETES").is_some();
    let Some(python) = python(&["kubernetes_validate"]) else {
        assert!(!required, "pip install kubernetes-validate");
        return;
    };
    let scratch = Scratch::new();
    let options = kubernetes(&scratch);
    let spec = TINY.replace("name: tiny", &format!("name: Tiny_{}", "x".repeat(190)));
    scratch.write("long.yaml", spec);
    let printed = scratch.run(&format!("submit long.yaml {options} {SWEEP}"));
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(printed.stderr.ends_with("printed 12 tasks in 6 arrays; 0 done\n"), "{}", printed.stderr);
    let validate = |manifests: &str| -> Output {
        scratch.write("manifests.yaml", manifests);
        let mut command = Command::new(&python);
        command.args(["-m", "kubernetes_validate", "--strict", "--no-warn"]).arg(scratch.path("manifests.yaml"));
        command.output().expect("Python")
    };
    let told = validate(&printed.stdout);
    assert!(
        told.status.success(),
        "{}{}",
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr)
    );
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told.matches("passed").count(), 6, "{told}");
    for (key, wrong) in [("podFailurePolicy:", "podFailurePolicies:"), ("claimName:", "claim:")] {
        assert!(!validate(&printed.stdout.replacen(key, wrong, 1)).status.success(), "{wrong}");
    }
    // The name of a Job, and of each of its pods, is a DNS label.
    for line in printed.stdout.lines().filter_map(|line| line.strip_prefix("  name: ")) {
        let plain = line.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(plain && line.len() <= 57 && !line.starts_with('-') && !line.ends_with('-'), "{line}");
    }
}

#[test]
fn the_command_of_a_manifest_runs_its_stage() {
    let scratch = Scratch::new();
    scratch.write("short.yaml", short());
    let options = kubernetes(&scratch);
    let line = format!("submit short.yaml {options} --json {SWEEP}");
    assert_eq!(scratch.json(&format!("{line} --dry-run"))["folder"], Value::Null);
    assert!(!scratch.path("runs").exists(), "a dry run writes nothing");

    let printed = scratch.json(&line);
    let manifests = printed["manifests"].as_array().expect("manifests");
    let spec = |manifest: &Value| manifest["spec"].clone();
    let shown: Vec<_> =
        manifests.iter().map(|job| (spec(job)["completions"].clone(), spec(job)["parallelism"].clone())).collect();
    let expected = [(1, 1), (2, 1), (2, 2), (1, 1), (2, 2), (4, 4)];
    assert_eq!(shown, expected.map(|(tasks, at_once)| (json!(tasks), json!(at_once))));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_snclr"), scratch.path("snclr")).expect("a link");
    // Starts the command as the kubelet does, but without the image.
    let run = |manifest: &Value, index: u64| -> (i32, String) {
        let container = &spec(manifest)["template"]["spec"]["containers"][0];
        let words = container["command"].as_array().expect("a command").iter();
        let words: Vec<String> = words.map(|word| text(word).replace("$$", "$")).collect();
        let path = format!("{}:{}", scratch.path("").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(text(&container["workingDir"])).env("PATH", path);
        let output = command.env("JOB_COMPLETION_INDEX", index.to_string()).output().expect("a shell");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, why) = run(&manifests[5], 3);
    assert_eq!((code, why.contains("its input data is missing")), (3, true), "{why}");
    for manifest in manifests {
        for index in 0..spec(manifest)["completions"].as_u64().expect("a number") {
            let (code, why) = run(manifest, index);
            assert_eq!(code, 0, "{manifest} {index}: {why}");
        }
    }
    assert_eq!(scratch.json(&format!("status short.yaml --json {SWEEP}"))["points_done"], 4);
    let again = scratch.run(&format!("submit short.yaml {options} {SWEEP}"));
    assert_eq!((again.stdout.as_str(), again.stderr.as_str()), ("", "nothing to do: 12 stages of 4 points done\n"));
}

#[test]
fn what_kubernetes_cannot_do_without_is_asked_for() {
    let scratch = Scratch::new();
    let none = scratch.run("submit tiny.yaml --executor kubernetes");
    assert_eq!(none.code, 2);
    assert_eq!(
        none.stderr,
        "error: Kubernetes has to know an image and a volume; give --cluster FILE with `kubernetes: {image: …, claim: …, \
         mount: /…}`\n"
    );
    scratch.write("cluster.yaml", KUBERNETES.replace("MOUNT", "/elsewhere"));
    let outside = scratch.run("submit tiny.yaml --executor kubernetes --cluster cluster.yaml");
    assert_eq!(outside.code, 2);
    expect![[r#"
        error: the runs folder SCRATCH/runs is not on the volume that is mounted at /elsewhere; pods see nothing else (kubernetes.mount)
    "#]]
    .assert_eq(&scratch.relative(&outside.stderr));
    scratch.write("cluster.yaml", "al: {gpus: 1}\n");
    let wrong = scratch.run("submit tiny.yaml --dry-run --cluster cluster.yaml");
    assert_eq!(wrong.code, 2);
    expect![[r#"
        error: cluster.yaml:1:1: al: unknown key
          found:   al: a section with the keys gpus
          allowed: all, stages, kubernetes
          help:    did you mean `all`?

        cluster.yaml: 1 error
    "#]]
    .assert_eq(&wrong.stderr);
}

#[test]
fn whoever_waits_for_a_training_that_diverged_is_told() {
    let scratch = Scratch::new();
    let options = "tiny.yaml --set optimizer.base_lr=1e30";
    scratch.json(&format!("run {options} --only data --json"));
    assert_eq!(scratch.run(&format!("run {options} --only embed")).code, 3);
    assert_eq!(scratch.run(&format!("run {options} --only pretrain")).code, 4);
    let hopeless = scratch.run(&format!("run {options} --only embed"));
    assert_eq!(
        (hopeless.code, hopeless.stderr.as_str()),
        (4, "error: stage embed will never run: its input pretrain diverged\n")
    );
}

#[test]
fn what_is_killed_or_cancelled_is_finished_to_the_same_bits() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    scratch.write("long.yaml", TINY.replace("epochs: 5\n", "epochs: 40\n"));
    scratch.json("run long.yaml --runs alone --json --threads 1");
    let submit = || slurm.json(&scratch, "submit long.yaml --json --threads 1");
    // Blocks until a process trains, and returns its process id.
    let training = || -> String {
        let begun = Instant::now();
        loop {
            let status = slurm.snclr(&scratch, "status long.yaml --threads 1");
            let line = status.lines().find(|line| line.starts_with("pretrain ")).unwrap_or_default();
            if let Some((_, rest)) = line.split_once(": running, ") {
                return rest.split(' ').next().expect("a number").to_owned();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{status}{}", printed(&scratch));
            sleep(Duration::from_millis(100));
        }
    };
    submit();
    let process = training();
    sleep(Duration::from_secs(1));
    assert!(Command::new("kill").args(["-KILL", &process]).status().expect("kill").success());
    slurm.drain(&scratch);
    // The tasks behind the killed one found their input missing, and ended without damage.
    let status = slurm.json(&scratch, "status long.yaml --json");
    assert_eq!(status["points_done"], 0, "{status}");

    submit();
    let another = training();
    assert_ne!(process, another);
    slurm.run("scancel", &["--name=tiny-pretrain-0"]).expect("an end");
    slurm.drain(&scratch);
    submit();
    slurm.drain(&scratch);
    assert_eq!(slurm.json(&scratch, "status long.yaml --json")["points_done"], 1, "{}", printed(&scratch));
    assert_eq!(contents(&scratch.path("runs")), contents(&scratch.path("alone")));
}

#[test]
fn a_thousand_points_are_handed_to_slurm_in_a_moment() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    // `--hold` keeps the tasks in the queue: the test only counts them.
    scratch.write("cluster.yaml", "all: {options: [--hold]}\n");
    let seeds: Vec<String> = (0..1000).map(|seed| seed.to_string()).collect();
    let line = format!("submit tiny.yaml --json --cluster cluster.yaml --sweep seed={}", seeds.join(","));
    let begun = Instant::now();
    let submitted = slurm.json(&scratch, &line);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seconds:.2} s");
    let jobs = submitted["submitted"].as_array().expect("arrays");
    assert_eq!((jobs.len(), jobs.iter().filter_map(|job| job["tasks"].as_u64()).sum::<u64>()), (6, 5001));
    // It takes 3 seconds on an idle machine; other tests may run at the same time.
    assert!(seconds < 10.0, "{seconds}");
    let waiting = slurm.ask("squeue", &["--noheader", "--array", "--name=tiny-knn-0"]);
    assert_eq!(waiting.lines().count(), 1000);
    slurm.run("scancel", &["--user=root"]).expect("an end");
    slurm.drain(&scratch);
}

#[test]
#[ignore = "six minutes; scripts/soak.sh runs it"]
fn soak_a_time_limit_ends_with_a_checkpoint() {
    let Some(slurm) = Slurm::start() else { panic!("it takes a Slurm") };
    let scratch = Scratch::new();
    // This training takes longer than a minute, the shortest time limit of Slurm.
    scratch.write("long.yaml", TINY.replace("epochs: 5\n", "epochs: 600\n").replace("every: 4", "every: 400"));
    let begun = Instant::now();
    scratch.json("run long.yaml --runs alone --json --threads 1");
    println!("{:.1} s alone", begun.elapsed().as_secs_f64());
    scratch.write("cluster.yaml", "all: {cpus: 1, time: '1', warning: 30}\n");
    let status = || slurm.json(&scratch, "status long.yaml --json");
    let begun = Instant::now();
    while status()["points_done"] != 1 {
        slurm.json(&scratch, "submit long.yaml --cluster cluster.yaml --json");
        // Waits for Slurm, which starts a requeued task again two minutes later.
        let idle = |state: &str| !["RUNNING", "PENDING", "COMPLETING", "CONFIGURING"].contains(&state);
        while !slurm.ask("squeue", &["--noheader", "--format=%T"]).lines().all(|state| idle(state.trim())) {
            assert!(begun.elapsed() < Duration::from_secs(1500), "{}{}", slurm.ask("squeue", &[]), printed(&scratch));
            sleep(Duration::from_secs(1));
        }
    }
    let all = printed(&scratch);
    println!("{:.1} s with limits of a minute, {}", begun.elapsed().as_secs_f64(), all.matches("interrupted").count());
    assert!(all.contains("interrupted in pretrain after step"), "{all}");
    assert_eq!(contents(&scratch.path("runs")), contents(&scratch.path("alone")));
}
