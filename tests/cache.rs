//! Which changes make which stages run again: the cache's keys hold what a result depends on, and nothing else.

mod common;

use common::{Scratch, copy_tree, statuses, text};
use serde_json::{Value, json};

/// Names of the stages that are pending.
fn pending(plan: &Value) -> Vec<String> {
    statuses(plan).into_iter().filter(|(_, status)| status == "pending").map(|(stage, _)| stage).collect()
}

fn reason(plan: &Value, stage: &str) -> String {
    let stages = plan["stages"].as_array().expect("stages");
    text(&stages.iter().find(|s| s["stage"] == stage).expect("the stage")["reason"])
}

#[test]
fn only_what_depends_on_a_change_runs_again() {
    let scratch = Scratch::new();
    let plan = scratch.json("plan tiny.yaml --json");
    assert_eq!(pending(&plan).len(), 6);
    assert_eq!(scratch.run("plan tiny.yaml --check").code, 3);

    let first = scratch.json("run tiny.yaml --json");
    assert!(statuses(&first).values().all(|s| s == "ran"));
    let top1 = |metric: &str| first["metrics"][metric].as_f64().unwrap_or_else(|| panic!("no {metric}"));
    for metric in ["linear/top1", "knn/top1", "knn/top1_random_init", "knn/top1_shuffled_labels"] {
        assert!((0.0..=1.0).contains(&top1(metric)), "{metric}");
    }
    assert!(top1("train/images_per_second") > 0.0);

    let again = scratch.run("run tiny.yaml");
    assert_eq!(again.stdout.lines().last(), Some("nothing to do: 6 stages cached"));
    assert_eq!(scratch.run("plan tiny.yaml --check").code, 0);

    assert_eq!(pending(&scratch.json("plan tiny.yaml --json --set knn.k=[3]")), ["knn"]);
    let plan = scratch.json("plan tiny.yaml --json --set method.tau=0.5");
    assert_eq!(pending(&plan), ["embed", "knn", "linear_probe", "pretrain"]);
    assert_eq!(reason(&plan, "pretrain"), "method.tau 0.2 -> 0.5");
    assert_eq!(reason(&plan, "knn"), "waits for embed");
    let plan = scratch.json("plan tiny.yaml --json --set data.seed=9");
    assert_eq!(pending(&plan).len(), 6);
    assert_eq!(reason(&plan, "data"), "data.seed 0 -> 9");
    assert_eq!(pending(&scratch.json("plan tiny.yaml --json --set name=other --threads 1")), [] as [&str; 0]);
    assert_eq!(statuses(&scratch.json("run tiny.yaml --json --set knn.k=[3]"))["knn"], "ran");
}

#[test]
fn touching_and_moving_reruns_nothing() {
    let scratch = Scratch::new();
    let image = |name: &str, shade: u8| {
        let pixels = image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([shade, (x * 9) as u8, (y * 11) as u8]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        pixels.write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG");
        scratch.write(name, bytes.into_inner());
    };
    for i in 0..20u8 {
        image(&format!("photos/train/cat/{i}.png"), i);
        image(&format!("photos/train/dog/{i}.png"), 100 + i);
        image(&format!("photos/test/{}/{i}.png", if i % 2 == 0 { "cat" } else { "dog" }), 50 + i);
    }
    let data = |folder: &str| {
        format!("data={{format: image_folder, train: {folder}/train, test: {folder}/test, on_error: skip}}")
    };
    let with = |command: &str, folder: &str, runs: &str| {
        let mut command = scratch.command(&format!("{command} tiny.yaml --json --runs {runs}"));
        command.args(["--set", &data(folder), "--set", "method.queue_length=32", "--set", "batch_size=8"]);
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    with("run", "photos", "runs");

    let now = std::fs::FileTimes::new().set_modified(std::time::SystemTime::now());
    let file = std::fs::File::options().append(true).open(scratch.path("photos/train/cat/3.png")).expect("the file");
    file.set_times(now).expect("a new time");
    assert_eq!(pending(&with("plan", "photos", "runs")), [] as [&str; 0]);
    std::fs::rename(scratch.path("photos"), scratch.path("elsewhere")).expect("a move");
    assert_eq!(pending(&with("plan", "elsewhere", "runs")), [] as [&str; 0]);
    copy_tree(&scratch.path("runs"), &scratch.path("copied"));
    assert_eq!(pending(&with("plan", "elsewhere", "copied")), [] as [&str; 0]);

    // Images count by their bytes and labels. After a renamed image and a new unreadable file, only the data stage runs again.
    std::fs::rename(scratch.path("elsewhere/train/cat/3.png"), scratch.path("elsewhere/train/cat/3a.png"))
        .expect("a name");
    scratch.write("elsewhere/train/cat/9z.png", "no image");
    assert_eq!(pending(&with("plan", "elsewhere", "runs")).len(), 6, "what comes of data is not known yet");
    let run = with("run", "elsewhere", "runs");
    let ran: Vec<_> =
        statuses(&run).into_iter().filter(|(_, status)| status == "ran").map(|(stage, _)| stage).collect();
    assert_eq!(ran, ["data"]);

    image("elsewhere/train/cat/3a.png", 200);
    let plan = with("plan", "elsewhere", "runs");
    assert_eq!(pending(&plan).len(), 6);
    assert!(reason(&plan, "data").starts_with("data.source"), "{}", reason(&plan, "data"));
}

/// The content hash of a table in the only artifact of a stage.
fn content(scratch: &Scratch, runs: &str, stage: &str, table: &str) -> String {
    let dir = std::fs::read_dir(scratch.path(&format!("{runs}/store/{stage}"))).expect("the stage").next();
    let manifest = dir.expect("an artifact").expect("an entry").path().join("manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).expect("a manifest")).expect("JSON");
    let files = manifest["files"].as_array().expect("files");
    text(&files.iter().find(|file| file["name"] == table).expect("the table")["content"])
}

#[test]
fn diagnostics_change_no_weights_and_rerun_nothing() {
    let scratch = Scratch::new();
    let often = "tiny.yaml --json --set health.every=1 --set health.knn_every_epochs=0";
    scratch.json("run tiny.yaml --json");
    assert_eq!(pending(&scratch.json(&format!("plan {often}"))), [] as [&str; 0]);
    let hit = scratch.run(&format!("run {often}"));
    let told = "kept with 8 rows of health, every 4 steps (health.every: 1) and 2 of kNN, every 2 epochs \
                (health.knn_every_epochs: 0); diagnostics alone rerun nothing";
    assert!(hit.code == 0 && hit.stderr.contains(&format!("pretrain was {told}\n")), "{}", hit.stderr);
    let (plan, explain) = (scratch.json(&format!("plan {often}")), scratch.json(&format!("explain {often}")));
    assert_eq!((&plan["stages"][1]["kept"], &explain["stages"][1]["kept"]), (&json!(told), &json!(told)));
    let same = scratch.run("run tiny.yaml");
    assert!(same.code == 0 && !same.stderr.contains("was kept with"), "{}", same.stderr);
    scratch.json(&format!("run {often} --runs often"));
    let both = |stage, table| ["runs", "often"].map(|runs| content(&scratch, runs, stage, table));
    let [seldom, often] = both("pretrain", "metrics");
    assert_ne!(seldom, often, "other rows of health");
    for (stage, table) in [("pretrain", "weights"), ("pretrain", "queue"), ("embed", "features"), ("knn", "scores")] {
        let [seldom, often] = both(stage, table);
        assert_eq!(seldom, often, "{stage} {table}");
    }
}

#[test]
fn a_damaged_artifact_is_named_and_rebuilt_and_what_follows_stays_cached() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json");
    let before = scratch.contents("runs");
    for stage in ["data", "pretrain", "embed", "knn"] {
        let key = std::fs::read_dir(scratch.path(&format!("runs/store/{stage}"))).expect("the stage").next();
        let dir = key.expect("an artifact").expect("an entry").path();
        let file = std::fs::read_dir(&dir).expect("tables").map(|e| e.expect("an entry").path());
        let file = file.filter(|p| p.extension().is_some_and(|e| e == "parquet")).max().expect("a table");
        let mut bytes = std::fs::read(&file).expect("the table");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&file, bytes).expect("damage");

        let plan = scratch.json("plan tiny.yaml --json");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(reason(&plan, stage).contains(&name), "{stage}: {}", reason(&plan, stage));
        let run = scratch.json("run tiny.yaml --json");
        let ran: Vec<_> = statuses(&run).into_iter().filter(|(_, status)| status == "ran").map(|(s, _)| s).collect();
        assert_eq!(ran, [stage], "early cutoff keeps the rest");
        assert_eq!(scratch.contents("runs"), before);
    }
    assert_eq!(std::fs::read_dir(scratch.path("runs/damaged")).expect("set aside").count(), 4);
}

#[test]
fn two_runs_at_once_share_the_work() {
    let scratch = Scratch::new();
    let spawn = || {
        let mut command = scratch.command("run tiny.yaml --json");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("the program starts")
    };
    let outputs = [spawn(), spawn()].map(|child| child.wait_with_output().expect("an end"));
    let mut ran = std::collections::BTreeMap::new();
    for output in outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for (stage, status) in statuses(&json) {
            *ran.entry(stage).or_insert(0) += usize::from(status == "ran");
        }
    }
    assert!(ran.values().all(|times| *times == 1), "every stage runs once: {ran:?}");
    assert_eq!(pending(&scratch.json("plan tiny.yaml --json")), [] as [&str; 0]);
}
