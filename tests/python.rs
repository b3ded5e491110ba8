//! What the README shows of Python, run as it stands there. It needs a Python with the packages: `SNCLR_PYTHON` names one, and
//! then a missing package is a failure; without the variable `python3` is tried, and what it lacks is skipped aloud.

mod common;

use std::process::Command;

use common::{Scratch, text};

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README")
}

/// A Python that has all of `packages`.
fn python(packages: &[&str]) -> Option<String> {
    let named = std::env::var("SNCLR_PYTHON").ok();
    let python = named.clone().unwrap_or("python3".to_owned());
    let imports = format!("import {}", packages.join(", "));
    let has = Command::new(&python).args(["-c", &imports]).output().is_ok_and(|output| output.status.success());
    assert!(has || named.is_none(), "{python}, which SNCLR_PYTHON names, cannot {imports}");
    if !has {
        println!("skipped: {python} cannot {imports}; set SNCLR_PYTHON to one that can");
    }
    has.then_some(python)
}

/// What a shell line prints in the scratch folder; it must succeed.
#[track_caller]
fn shell(scratch: &Scratch, line: &str) -> String {
    let output = Command::new("sh").current_dir(scratch.path("")).args(["-c", line]).output().expect("a shell");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
}

#[test]
fn the_one_liners_find_the_scores() {
    let readme = readme();
    let lines: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("python -c ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let scratch = Scratch::new();
    for package in ["duckdb", "pyarrow"] {
        let Some(python) = python(&[package]) else { continue };
        let run = text(&scratch.json("run tiny.yaml --json --set epochs=1")["run"]);
        let line = lines.iter().find(|line| line.contains(package)).expect("a line for the package");
        let found = shell(&scratch, &format!("'{python}' -c {line}"));
        assert!(found.contains(&run), "{package}: {found}");
    }
}

#[test]
fn the_snippet_loads_weights_embeddings_and_metrics() {
    let readme = readme();
    let (_, snippet) = readme.split_once("```python\n").expect("a snippet");
    let (snippet, _) = snippet.split_once("```").expect("its end");
    let Some(python) = python(&["numpy", "pyarrow", "safetensors"]) else { return };
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set name=quickstart");
    assert_eq!(scratch.run("export quickstart -o encoder.safetensors").code, 0);
    scratch.write("snippet.py", snippet);
    // 96 training and 40 test images, 32 features, 30 steps, the 20 convolutions of a ResNet-18.
    let found = shell(&scratch, &format!("'{python}' snippet.py"));
    assert_eq!(found.lines().collect::<Vec<_>>(), ["(136, 32) 40 test images", "30 steps", "20 convolutions"]);
}

#[test]
fn tensorboard_reads_the_event_files() {
    let scratch = Scratch::new();
    let json = scratch.json("run tiny.yaml --json");
    let finished = scratch.run("tensorboard tiny -o logs");
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""));
    let Some(python) = python(&["tensorboard"]) else { return };
    let read = r#"
import glob
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(glob.glob("logs/*")[0])
events.Reload()
loss = events.Scalars("train/loss")
print([event.step for event in loss] == list(range(30)), all(a.wall_time < b.wall_time for a, b in zip(loss, loss[1:])))
print(len(events.Scalars("train/effective_rank")), len(events.Scalars("train/images_per_second")))
print(round(events.Scalars("knn/top1")[0].value, 4))
"#;
    scratch.write("read.py", read);
    let found = shell(&scratch, &format!("'{python}' read.py"));
    let score = json["metrics"]["knn/top1"].as_f64().expect("a score");
    assert_eq!(found.lines().collect::<Vec<_>>(), ["True True", "8 30", &score.to_string()]);
}
