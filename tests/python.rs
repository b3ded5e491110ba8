//! Checks with Python that TensorBoard can read the event files. `tests/docs.rs` runs the Python code of the documentation.

mod common;

use std::process::Command;

use common::{Scratch, python};

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
