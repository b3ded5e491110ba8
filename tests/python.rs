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
