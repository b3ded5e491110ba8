//! Tests of `scripts/gpu_table.py`, which makes the table of `scripts/gpu-check.sh`: measurements, bars, and parts not run. And of that
//! script's groups of parts.
//!
//! The inputs here are outputs of the programs on a CPU. The test runs `snclr` itself. PyTorch's output was recorded by
//! `scripts/bench_reference.py queue small --queries 64 --queue-length 8192 --batch 16` in `tests/gpu_table/torch.json`.

mod common;

use std::process::Command;

use common::{Scratch, python, text};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("gpu_table/torch.json");

/// The table that the script makes from files with these contents, as JSON rows and as printed.
fn table(python: &str, scratch: &Scratch, files: &[String], parts: &str) -> (Vec<Value>, String) {
    let names: Vec<String> = (0..files.len()).map(|i| format!("{i}.json")).collect();
    names.iter().zip(files).for_each(|(name, text)| scratch.write(name, text));
    scratch.write("parts", parts);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu_table.py");
    let mut command = Command::new(python);
    command.current_dir(scratch.path("")).args([script, "--parts", "parts", "--json", "table.json"]).args(names);
    let output = command.output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read_to_string(scratch.path("table.json")).expect("the table as JSON");
    let written: Value = serde_json::from_str(&written).expect("JSON");
    (written["rows"].as_array().expect("rows").clone(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[track_caller]
fn row<'a>(rows: &'a [Value], what: &str) -> &'a Value {
    rows.iter().find(|row| text(&row["what"]).starts_with(what)).unwrap_or_else(|| panic!("no {what}: {rows:#?}"))
}

fn recorded(case: &str) -> Value {
    let all: Value = serde_json::from_str(RECORDED).expect("JSON");
    let cases = all["cases"].as_array().expect("cases");
    cases.iter().find(|found| found["case"] == case).unwrap_or_else(|| panic!("no {case} was recorded")).clone()
}

fn file(cases: &[&Value]) -> String {
    json!({ "cases": cases }).to_string()
}

#[test]
fn both_sides_of_a_case_meet_in_a_row() {
    let Some(python) = python(&["json"]) else { return };
    let scratch = Scratch::new();
    let ours =
        |line: &str| scratch.json(&format!("bench {line} --queue-length 8192 --steps 1 --json"))["cases"][0].clone();
    let (queue, small) = (ours("--case queue --queries 64"), ours("--case small --batch 16"));
    let files = [file(&[&queue]), file(&[&small]), RECORDED.to_owned()];
    let (rows, printed) = table(&python, &scratch, &files, "");

    let found = row(&rows, "the 30 nearest of 8192 rows to each of 64 queries, width 256 (f32)");
    let milliseconds = |case: &Value| case["milliseconds"]["median"].as_f64().expect("a number");
    let ratio = milliseconds(&recorded("queue")) / milliseconds(&queue);
    assert!((found["ratio"].as_f64().expect("a ratio") / ratio - 1.0).abs() < 1e-9, "{found}");
    assert_eq!((&found["bar"], &found["aim"]), (&json!(1.0), &json!(3.0)));
    assert!(text(&found["ours"]).ends_with(" ms") && text(&found["pytorch"]).contains(" ms, torch 2."), "{found}");
    // A case without a bar has figures only.
    let found = row(&rows, "step: ResNet-18 of width 16, 32x32, batch 16, queue 8192, K 30 (f32)");
    assert!(found["ratio"].is_f64() && found["bar"].is_null() && found["met"].is_null(), "{found}");
    assert!(text(&found["ours"]).contains(" images/s, ") && text(&found["ours"]).ends_with(" TFLOP/s"), "{found}");
    assert!(text(&found["pytorch"]).ends_with(" eager"), "{found}");
    // A required case that was not measured has a row too.
    for what in [
        "resnet50 (f16)",
        "resnet18 (f16)",
        "waiting for images",
        "the doctor finds the device fit",
        "killed and resumed",
    ] {
        assert_eq!(row(&rows, what)["met"], "not run", "{what}");
    }
    assert_eq!(printed.lines().count(), rows.len() + 2, "{printed}");
}

/// Figures of a GPU, with made-up numbers in the shape of a CPU's output, meet the bar, the aim, or neither.
#[test]
fn bars_are_met_or_not() {
    let Some(python) = python(&["json"]) else { return };
    let scratch = Scratch::new();
    let on_gpu = |version: &str, milliseconds: f64| {
        let mut case = recorded("small");
        case["case"] = json!("resnet50");
        (case["precision"], case["device"], case["version"]) = (json!("f16"), json!("cuda:0"), json!(version));
        case["milliseconds"]["median"] = json!(milliseconds);
        case["images_per_second"]["median"] = json!(256e3 / milliseconds);
        case
    };
    let mut ours = on_gpu("snclr 0.1.0", 100.0);
    ours["flops"] = json!({"gflop_per_image": 65.4, "tflops": 167.4, "utilisation": 0.169});
    let eager = on_gpu("torch 2.15.0, channels last", 150.0);
    for (compiled, expected) in [(131.0, "aim"), (101.0, "bar"), (99.0, "no"), (160.0, "aim")] {
        let compiled = on_gpu("torch 2.15.0 compiled, channels last", compiled);
        let files = [file(&[&ours]), file(&[&eager]), file(&[&compiled])];
        let (rows, _) = table(&python, &scratch, &files, "");
        let found = row(&rows, "step: ");
        assert_eq!(found["met"], expected, "{found}");
        assert_eq!(found["ours"], "2560 images/s, 167.4 TFLOP/s, MFU 16.9 %");
    }
    // PyTorch's best result counts. Its utilisation is computed from ours, since both run the same model.
    let (rows, printed) = table(&python, &scratch, &[file(&[&ours, &eager])], "");
    assert_eq!(row(&rows, "step: ")["pytorch"], "1707 images/s, 111.6 TFLOP/s, MFU 11.3 %, torch 2.15.0 eager");
    assert!(printed.contains(" | 1.50x | 1.00x | 1.30x | aim\n"), "{printed}");
    for (share, expected) in [(0.049, "yes"), (0.05, "no")] {
        let mut epoch = on_gpu("snclr 0.1.0", 100.0);
        (epoch["case"], epoch["waiting_share"]) = (json!("epoch-imagenet"), json!(share));
        let (rows, _) = table(&python, &scratch, &[file(&[&epoch])], "");
        assert_eq!(row(&rows, "waiting for images from JPEG in Parquet (epoch-imagenet)")["met"], expected);
    }
}

#[test]
fn what_failed_or_was_cut_off_is_told() {
    let Some(python) = python(&["json"]) else { return };
    let scratch = Scratch::new();
    let checks = json!({"ok": false, "cases": [], "rows": [
        {"what": "dfdx: matmul", "result": "ok", "detail": "off by 1e-7"},
        {"what": "dfdx: Linear", "result": "FAILED", "detail": "off by 1"},
        {"what": "a small ResNet resumes to the same bits (f16)", "result": "ok", "detail": "9 values"},
        {"what": "a small ViT of one rank with NCCL as without (f16)", "result": "FAILED", "detail": "1 of 9 values differ"},
    ]});
    let parts = r#"{"part": "doctor", "result": "ok", "seconds": 2, "why": ""}
{"part": "kernels", "result": "not run", "seconds": null, "why": "no time was left"}
{"part": "resume", "result": "failed", "seconds": 60, "why": "stopped after its 60 s"}
"#;
    let (rows, printed) =
        table(&python, &scratch, &[checks.to_string(), "{\"cases\": [{".to_owned(), String::new()], parts);
    let met = |what: &str| row(&rows, what)["met"].clone();
    assert_eq!(row(&rows, "dfdx's operations and training in f32")["ours"], "failed, 1 of 2");
    assert_eq!(met("dfdx's operations and training in f32"), "no");
    assert_eq!(met("restored trainers go on to the same bits"), "yes");
    assert_eq!(met("one rank with NCCL comes to the bits of one without"), "no");
    assert_eq!(
        (met("the doctor finds the device fit"), met("every kernel test"), met("killed and resumed")),
        (json!("yes"), json!("not run"), json!("no"))
    );
    assert!(
        printed.ends_with("kernels: not run: no time was left\nresume: failed: stopped after its 60 s\n"),
        "{printed}"
    );
}

/// The table in the documentation is made from the results of a real GPU, which are kept in `docs/gpu-check.json`.
#[test]
fn the_documentation_has_the_figures_that_were_kept() {
    let Some(python) = python(&["json"]) else { return };
    let root = |path: &str| format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.args([root("scripts/gpu_table.py"), "--markdown".into(), root("docs/gpu-check.json")]);
    let output = command.output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = String::from_utf8(output.stdout).expect("UTF-8");
    let page = std::fs::read_to_string(root("docs/benchmarks.md")).expect("the page");
    assert!(made.lines().count() > 5 && page.contains(&made), "docs/benchmarks.md needs this table:\n{made}");
}

/// `--part` runs the parts of a group, and keeps what earlier calls left. What cannot run here says why.
#[test]
fn a_group_of_parts_runs_alone() {
    let Some(python) = python(&["json"]) else { return };
    let scratch = Scratch::new();
    let call = |args: &[&str]| {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check.sh"));
        command.arg("--without-gpu").args(args).arg(scratch.path("out")).env("PYTHON", &python).env_remove("CIFAR10");
        let output = command.output().expect("bash");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"), output.stderr)
    };
    let parts = || {
        let log = std::fs::read_to_string(scratch.path("out/parts.log")).expect("the parts");
        let part = |line: &str| text(&serde_json::from_str::<Value>(line).expect("JSON")["part"]);
        log.lines().map(part).collect::<Vec<_>>()
    };
    let (code, printed, _) = call(&["--part", "cifar10", "--part", "sanitizer"]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(parts(), ["memcheck", "racecheck", "cifar10-snclr", "cifar10-infonce"]);
    assert!(printed.contains("memcheck: not run: needs a GPU\n"), "{printed}");
    assert!(printed.contains("cifar10-snclr: not run: CIFAR10 names no folder with train.parquet"), "{printed}");
    assert!(printed.contains("no kernel test has a race"), "{printed}");

    call(&["--part", "sanitizer"]);
    assert_eq!(parts(), ["cifar10-snclr", "cifar10-infonce", "memcheck", "racecheck"]);

    let (code, _, error) = call(&["--part", "everything"]);
    assert_eq!(code, Some(2));
    assert!(String::from_utf8_lossy(&error).starts_with("--part everything: one of checks, speed, "));
}
