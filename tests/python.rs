//! Checks with Python: TensorBoard reads the event files, and a script makes the page of an ablation. `tests/docs.rs` runs the
//! Python code of the documentation.

mod common;

use std::process::Command;

use common::{Scratch, python};
use serde_json::json;

/// The output of a shell line in the scratch folder. The line must succeed.
#[track_caller]
fn shell(scratch: &Scratch, line: &str) -> String {
    let output = Command::new("sh").current_dir(scratch.path("")).args(["-c", line]).output().expect("a shell");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {out}{err}");
    out.into_owned()
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

/// `scripts/ablation.py` fills the tables of a page from runs, and draws their curves.
#[test]
fn a_page_of_an_ablation_is_made_from_runs() {
    let Some(python) = python(&["pyarrow"]) else { return };
    let scratch = Scratch::new();
    scratch.write("base.yaml", "extends: tiny.yaml\nname: base\nsweep:\n  seed: [1, 2]\n");
    scratch.write("tau.yaml", "extends: base.yaml\nname: other\nsweep:\n  method.tau: [0.2, 0.4]\n");
    for spec in ["base.yaml", "tau.yaml"] {
        assert_eq!(scratch.run(&format!("run {spec}")).code, 0);
    }
    let page = "Before.\n<!-- table base tau by method.tau -->\nold\n<!-- end -->\nBetween.\n\
        <!-- seeds base --sweep seed=1,2 / --set epochs=5 -->\n<!-- end -->\n<!-- correlations tau -->\n<!-- end -->\n\
        <!-- curves tau method.tau=0.4 -->\n<!-- end -->\n\
        <!-- table tau by method.tau with --sweep method.tau=0.4 -->\n<!-- end -->\nBehind.\n";
    scratch.write("page.md", page);
    let program = env!("CARGO_BIN_EXE_snclr");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ablation.py");
    let line = format!("'{python}' '{script}' --snclr '{program}' --specs . --page page.md");
    shell(&scratch, &line);
    let made = std::fs::read_to_string(scratch.path("page.md")).expect("the page");

    let json = scratch.json("compare base.yaml tau.yaml --json");
    let labels: Vec<String> = json["runs"].as_array().expect("runs").iter().map(common::text).collect();
    let knn = json["scores"].as_array().expect("scores").iter().find(|row| row["metric"] == "knn/top1").expect("kNN");
    let of = |label: &String| {
        let (mean, deviation) = (&knn["values"][label], &knn["groups"][label]["deviation"]);
        format!("{:.1} ± {:.1}", 100.0 * mean.as_f64().expect("it"), 100.0 * deviation.as_f64().expect("it"))
    };
    let mut differences = json["differences"].as_array().expect("differences").iter();
    let row = differences.find(|row| row["metric"] == "knn/top1" && row["compared"] == json!(labels[2]));
    let row = row.expect("the difference of the second setting");
    let [difference, low, high] = ["difference", "low", "high"].map(|end| 100.0 * row[end].as_f64().expect("a number"));
    let rows: Vec<&str> = made.lines().filter(|line| line.starts_with("| 0.")).collect();
    // The sweep's first setting is the base's, and stands there once.
    assert_eq!((labels.len(), rows.len()), (3, 2), "{made}");
    assert!(rows[0].starts_with(&format!("| 0.2 | 2 | {} |  |", of(&labels[0]))), "{made}");
    let expected = format!("| 0.4 | 2 | {} | {difference:+.1} [{low:.1}, {high:.1}] |", of(&labels[2]));
    assert!(rows[1].starts_with(&expected), "{expected}: {made}");
    assert!(made.starts_with("Before.\n<!-- table base tau by method.tau -->\n\n| `method.tau` | seeds |"), "{made}");
    assert!(made.contains("\nsnclr compare base.yaml tau.yaml\n") && !made.contains("old"), "{made}");
    assert!(made.contains("<!-- end -->\nBetween.\n") && made.ends_with("Behind.\n"), "{made}");
    assert!(made.contains("| effective positives | "), "{made}");
    assert!(made.contains("\nsnclr compare tau.yaml --sweep method.tau=0.4\n"), "{made}");
    let drawn = std::fs::read_to_string(scratch.path("images/ablation-effective-positives.svg")).expect("curves");
    assert_eq!(drawn.matches("<polyline").count(), 1, "{drawn}");

    shell(&scratch, &line);
    assert_eq!(std::fs::read_to_string(scratch.path("page.md")).expect("the page"), made, "again the same");

    // What does not name the spec stays as it is.
    scratch.write("page.md", page);
    shell(&scratch, &format!("{line} --of tau"));
    let empty = "<!-- seeds base --sweep seed=1,2 / --set epochs=5 -->\n<!-- end -->";
    let part = std::fs::read_to_string(scratch.path("page.md")).expect("the page");
    let before = |text: &str| text.split("<!-- seeds").next().expect("a part").to_owned();
    assert!(part.contains(empty) && before(&part) == before(&made), "{part}");
}
