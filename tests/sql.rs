//! The README's one-liners over all runs. They need a Python with the package (SNCLR_PYTHON, or python3); without it the test
//! says so and passes.

mod common;

use std::process::Command;

use common::{Scratch, text};

#[test]
fn the_one_liners_of_the_readme_find_the_scores() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let lines: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("python -c ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let python = std::env::var("SNCLR_PYTHON").unwrap_or("python3".to_owned());
    let scratch = Scratch::new();
    let mut run = None;
    for package in ["duckdb", "pyarrow"] {
        let has = Command::new(&python).args(["-c", &format!("import {package}")]).output();
        if !has.is_ok_and(|output| output.status.success()) {
            println!("skipped: {python} has no {package}; set SNCLR_PYTHON to one that has");
            continue;
        }
        let line = lines.iter().find(|line| line.contains(package)).expect("a line for the package");
        let name = run.get_or_insert_with(|| text(&scratch.json("run tiny.yaml --json --set epochs=1")["run"])).clone();
        let mut shell = Command::new("sh");
        shell.current_dir(scratch.path("")).args(["-c", &format!("'{python}' -c {line}")]);
        let output = shell.output().expect("a shell");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains(&name), "{package}: {out}{err}");
    }
}
