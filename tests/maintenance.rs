//! The maintenance commands: `gc`, `verify`, `verify resume`, `doctor`, `completions` and `man`.

mod common;

use std::{collections::BTreeSet, process::Stdio, thread::sleep, time::Duration};

use common::{Scratch, statuses, text};
use expect_test::expect;
use serde_json::{Value, json};

fn names(list: &Value) -> BTreeSet<String> {
    let item = |item: &Value| format!("{} {}", text(&item["kind"]), text(&item["name"]).split(' ').next().unwrap());
    list["items"].as_array().expect("items").iter().map(item).collect()
}

#[test]
fn only_what_no_kept_run_needs_is_removed() {
    let scratch = Scratch::new();
    let first = text(&scratch.json("run tiny.yaml --json")["run"]);
    let second = text(&scratch.json("run tiny.yaml --json --set knn.k=[3]")["run"]);
    assert!(scratch.run("gc").stdout.starts_with("nothing to remove; 2 runs and "));

    // The runs share data, weights and features, so only the kNN artifact is removed with the first run.
    let listed = scratch.json(&format!("gc --keep {second} --json"));
    assert_eq!(listed["removed"], false);
    assert_eq!(names(&listed), [format!("run {first}"), "artifact knn".to_owned()].into());
    let dry = scratch.run(&format!("gc --keep {second}"));
    assert!(dry.stdout.ends_with("nothing was removed; use --yes to remove it\n"), "{}", dry.stdout);
    assert_eq!(scratch.json("runs --json")["runs"].as_array().map(Vec::len), Some(2));
    assert_eq!(names(&scratch.json(&format!("gc --keep {second} --older-than 1 --json"))), [].into());

    let done = scratch.json(&format!("gc --keep {second} --yes --json"));
    assert_eq!((names(&done), &done["removed"]), (names(&listed), &json!(true)));
    assert!(scratch.run("gc").stdout.starts_with("nothing to remove; 1 run and "));
    assert_eq!(scratch.run("plan tiny.yaml --check --set knn.k=[3]").code, 0, "the kept run is whole");
    assert_eq!(scratch.run("verify").code, 0);
    let again = statuses(&scratch.json("run tiny.yaml --json"));
    assert_eq!(again.values().filter(|status| *status == "ran").count(), 1, "{again:?}");
}

#[test]
fn a_run_at_work_keeps_what_it_has_made() {
    let scratch = Scratch::new();
    let long = "run tiny.yaml --json --set epochs=2000 --checkpoint-every 0";
    let mut child = scratch.command(long).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
    let work = scratch.path("runs/work");
    while std::fs::read_dir(&work).map_or(0, Iterator::count) == 0 {
        sleep(Duration::from_millis(20));
    }
    // The data artifact belongs to no recorded run yet, and its lock is free again. It still stays.
    let cleaned = scratch.json("gc --yes --json");
    assert_eq!((names(&cleaned), &cleaned["busy"]), ([].into(), &json!([])), "{cleaned}");
    child.kill().expect("SIGKILL");
    child.wait().expect("an end");
    let cleaned = scratch.json("gc --yes --json");
    let (attempt, others): (BTreeSet<_>, _) =
        names(&cleaned).into_iter().partition(|name| name.starts_with("attempt tiny-"));
    let left = ["artifact data", "checkpoints pretrain", "unfinished pretrain"];
    assert_eq!((attempt.len(), others), (1, left.map(str::to_owned).into()));
    assert_eq!(scratch.json("runs --json"), json!({ "runs": [] }));
    assert_eq!(names(&scratch.json("gc --json")), [].into());
}

#[test]
fn damage_anywhere_is_found_and_named() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json");
    let whole = scratch.run("verify");
    assert_eq!(whole.code, 0, "{}", whole.stdout);
    assert!(whole.stdout.starts_with("all whole: 6 artifacts, 0 checkpoint files, 1 run, "), "{}", whole.stdout);

    let dir =
        std::fs::read_dir(scratch.path("runs/store/knn")).expect("knn").next().expect("one").expect("entry").path();
    let file = dir.join("predictions.parquet");
    let mut bytes = std::fs::read(&file).expect("the table");
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).expect("damage");
    let damaged = scratch.run("verify");
    assert_eq!(damaged.code, 1);
    let key = dir.file_name().expect("a key").to_string_lossy().into_owned();
    let expected = format!(
        "damaged: runs/store/knn/{key}\n    predictions.parquet: does not match its hash\n    \
         `snclr run` of its spec moves it to the folder `damaged` and makes it anew\n1 damage in 6 artifacts, "
    );
    assert!(damaged.stdout.starts_with(&expected), "{}", damaged.stdout);
    scratch.json("run tiny.yaml --json");
    assert_eq!(scratch.run("verify").code, 0, "as it said");
    std::fs::remove_dir_all(&dir).expect("a loss");
    let lost: Value = serde_json::from_str(&scratch.run("verify --json").stdout).expect("JSON");
    assert_eq!(lost["damages"][0]["problem"], format!("its knn artifact {} is gone", &key[..8]));
}

#[test]
fn killed_training_is_proved_to_resume_exactly() {
    let scratch = Scratch::new();
    scratch.write("accumulating.yaml", format!("{}gradient_accumulation: 3\n", common::TINY));
    for (spec, steps) in [("tiny.yaml", 40), ("accumulating.yaml", 42)] {
        let args = format!("verify resume {spec} --set epochs=60 --steps 40 --kill-seed 1 --json");
        let finished = scratch.run(&args);
        assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
        let verdict: Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(verdict["equal"], true);
        // Wherever a kill falls, even after the last update, each training ends with the first update that reaches the steps.
        assert_eq!(verdict["steps"], steps);
        assert!(!verdict["saved_steps_at_kills"].as_array().expect("kills").is_empty());
        let parts: Vec<_> = verdict["parts"].as_array().expect("parts").iter().map(|row| text(&row["part"])).collect();
        for part in ["weights", "optimiser", "EMA branch", "running statistics", "queue", "cursor"] {
            assert!(parts.iter().any(|p| p == part), "{part}: {parts:?}");
        }
        assert!(!scratch.path("runs").exists(), "the runs folder is left alone");
    }
    let short = scratch.run("verify resume tiny.yaml --set epochs=1 --steps 50");
    assert_eq!(short.code, 1);
    expect![[r#"
        training 50 steps without a kill
        error: the training must have more than 50 steps; use fewer (--steps) or more epochs (--set epochs=…)
        error: the training ended with exit status: 1; nothing was compared
    "#]]
    .assert_eq(&short.stderr);
}

#[test]
fn the_doctor_looks_at_machine_and_folder() {
    let scratch = Scratch::new();
    let report = scratch.json("doctor --json");
    assert_eq!(report["ok"], true);
    let checks = report["checks"].as_array().expect("checks");
    let names: Vec<_> = checks.iter().map(|check| text(&check["check"])).collect();
    let expected = [
        "version",
        "target",
        "cpu",
        "vector unit",
        "convolutions",
        "bf16 products",
        "threads",
        "memory",
        "runs folder",
        "file system",
        "locks",
        "disk",
        "device cpu",
        "device cuda",
    ];
    assert_eq!(names, expected);
    assert!(!scratch.path("runs").exists());
    let shown = scratch.run("doctor").stdout;
    let cuda = match cfg!(feature = "cuda") {
        true => "ok       device cuda  ", // what follows is the machine's
        false => "ok       device cuda  not usable: this build has no CUDA support; build it with --features cuda",
    };
    assert!(shown.contains(cuda), "{shown}");
    let forced = scratch.command("doctor --json").env("SNCLR_VECTOR_UNIT", "scalar").output().expect("the program");
    let forced: Value = serde_json::from_slice(&forced.stdout).expect("JSON");
    assert_eq!((&forced["vector_unit"]["used"], &forced["ok"]), (&json!("scalar"), &json!(true)));
    assert_eq!(forced["vector_unit"]["chosen_by"], "SNCLR_VECTOR_UNIT");
    assert_eq!(forced["vector_unit"]["available"], report["vector_unit"]["available"]);
    scratch.write("file", "");
    let broken = scratch.run("doctor --runs file/runs");
    assert_eq!(broken.code, 1);
    assert!(broken.stdout.contains("no folder above file/runs exists"), "{}", broken.stdout);
}

#[test]
fn shells_and_man_get_their_files() {
    let scratch = Scratch::new();
    for (shell, part) in [("bash", "_snclr()"), ("zsh", "#compdef snclr"), ("fish", "complete -c snclr")] {
        let finished = scratch.run(&format!("completions {shell}"));
        assert!(finished.code == 0 && finished.stdout.contains(part), "{shell}");
    }
    assert!(scratch.run("man").stdout.contains(".TH snclr 1"));
    assert_eq!(scratch.run("man --out pages").stdout, "manual pages written to pages\n");
    assert!(scratch.path("pages/snclr.1").exists() && scratch.path("pages/snclr-run.1").exists());
}
