//! Helpers of the integration tests: they run the program in a scratch directory, as a user would.
//!
//! Texts that the program prints stand whole in the tests, in `expect!`; `UPDATE_EXPECT=1 cargo test --release --features remote`
//! takes them again, for `git diff` to show. Tests look for parts only where the rest of a text differs from run to run.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod figures;
pub mod mpirun;
pub mod slurm;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// A spec that runs through all stages in seconds.
pub const TINY: &str = r#"
name: tiny
seed: 1
data: {format: synthetic, classes: 4, train_images: 96, test_images: 40, image_size: 16}
augmentations:
  size: 16
  view1: &view
    random_resized_crop: {scale: [0.3, 1.0]}
    color_jitter: {p: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1}
    grayscale: {p: 0.2}
    gaussian_blur: {p: 0.5}
    horizontal_flip: {p: 0.5}
  view2: *view
encoder: {arch: resnet18, width_multiplier: 0.0625, stem: cifar}
projector: {layers: 2, hidden: 32, output: 16}
predictor: {layers: 2, hidden: 32, output: 16}
method: {name: snclr, k: 3, queue_length: 64, tau: 0.2}
optimizer: {name: sgd, base_lr: 0.1, momentum: 0.9, weight_decay: 1e-4}
schedule: {warmup_epochs: 1}
epochs: 5
batch_size: 16
health: {every: 4, knn_every_epochs: 2}
linear_probe: {epochs: 5, batch_size: 32}
knn: {k: [5, 20]}
"#;

/// How [`TINY`] changes for every method: the name of the spec, the value of its `method:` line, whether the method has a
/// predictor, and lines to add.
pub const METHODS: [(&str, &str, bool, &str); 6] = [
    ("snclr", "{name: snclr, k: 3, queue_length: 64, tau: 0.2}", true, ""),
    ("infonce", "{name: infonce, tau: 0.2}", true, "gradient_accumulation: 2"),
    ("simclr", "{name: simclr, tau: 0.2}", false, ""),
    ("nnclr", "{name: nnclr, queue_length: 32, tau: 0.2}", true, ""),
    ("swav", "{name: swav, prototypes: 24, queue_length: 16}", false, ""),
    ("snclr-release", AS_RELEASED, true, "gradient_accumulation: 3"),
];

/// The settings of SNCLR in the code that its authors released.
const AS_RELEASED: &str =
    "{name: snclr, k: 3, queue_length: 64, tau: 0.2, objective: soft_ce, attention: cosine, queue_overflow: truncate}";

/// [`TINY`] with another method; `small_crops` adds two small crops where the method allows it.
pub fn tiny_with(method: (&str, &str, bool, &str), small_crops: bool) -> String {
    let (name, settings, predictor, more) = method;
    let lines = TINY.lines().filter(|line| predictor || !line.starts_with("predictor:")).map(|line| {
        if line.starts_with("name:") {
            format!("name: {name}")
        } else if line.starts_with("method:") {
            format!("method: {settings}")
        } else if line.starts_with("  view2:") && small_crops && name != "simclr" {
            format!(
                "{line}\n  local_crops: {{count: 2, size: 8, view: {{random_resized_crop: {{scale: [0.1, 0.4]}}}}}}"
            )
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n" + more + "\n"
}

/// A scratch directory with a spec in it.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A directory that holds `tiny.yaml`.
    pub fn new() -> Self {
        let scratch = Self { dir: TempDir::new().expect("a scratch directory") };
        scratch.write("tiny.yaml", TINY);
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file has a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }

    /// A text in which `SCRATCH` stands for the path of the scratch directory.
    pub fn relative(&self, text: &str) -> String {
        let (given, real) = (self.dir.path(), self.dir.path().canonicalize().expect("the scratch directory"));
        text.replace(&real.display().to_string(), "SCRATCH").replace(&given.display().to_string(), "SCRATCH")
    }

    /// The program with `args` (separated by blanks), in the scratch directory.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_snclr"));
        command.current_dir(self.dir.path()).args(args.split_whitespace());
        for name in ["RUST_BACKTRACE", "NO_COLOR", "SNCLR_CACHE", "SNCLR_CACHE_MODE", "SNCLR_CACHE_CHECKPOINTS"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &str) -> Finished {
        Finished::of(self.command(args).output().expect("the program starts"))
    }

    /// Runs the program and returns the JSON that it prints: its last line, or else all of its output. The program must succeed.
    #[track_caller]
    pub fn json(&self, args: &str) -> Value {
        let finished = self.run(args);
        assert_eq!(finished.code, 0, "{args}: {}", finished.stderr);
        let last = finished.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).or_else(|_| serde_json::from_str(&finished.stdout)).unwrap_or_else(|error| {
            panic!("{args} printed no JSON ({error}): {}", finished.stdout);
        })
    }

    /// The content hash of each stage, from the record in `runs` that was written last.
    pub fn contents(&self, runs: &str) -> BTreeMap<String, String> {
        let results = self.path(runs).join("results");
        let run = std::fs::read_dir(&results).expect("results").map(|e| e.expect("an entry").path());
        let records = run.map(|dir| dir.join("run.json"));
        let written = records.filter_map(|record| Some((record.metadata().ok()?.modified().expect("a time"), record)));
        let (_, newest) = written.max().expect("a run");
        let run = std::fs::read_to_string(newest).expect("run.json");
        let run: Value = serde_json::from_str(&run).expect("JSON");
        let stages = run["stages"].as_array().expect("stages");
        stages.iter().map(|s| (text(&s["stage"]), text(&s["content"]))).collect()
    }
}

/// A Python that has all of `packages`. If `SNCLR_PYTHON` names a Python that lacks one of them, this panics. Without the
/// variable it tries `python3`; if that lacks a package, the result is None, and a line says that the test is skipped.
pub fn python(packages: &[&str]) -> Option<String> {
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

/// The text of a JSON string.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_string()
}

/// Status of each stage in the JSON of `plan` or `run`.
pub fn statuses(json: &Value) -> BTreeMap<String, String> {
    let stages = json["stages"].as_array().expect("stages");
    stages.iter().map(|s| (text(&s["stage"]), text(&s["status"]))).collect()
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The error at the end of a program's stderr, without the progress before it; all of the text if it has no error.
pub fn complaint(stderr: &str) -> &str {
    match stderr.starts_with("error:") {
        true => stderr,
        false => stderr.find("\nerror:").map_or(stderr, |at| &stderr[at + 1..]),
    }
}

/// The lines of a text that begin with `begin`.
pub fn lines(text: &str, begin: &str) -> String {
    text.lines().filter(|line| line.starts_with(begin)).map(|line| format!("{line}\n")).collect()
}

/// Copies a folder.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Sends a signal to a process.
pub fn signal(id: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().expect("kill").success());
}

/// Names of the checkpoints in a runs folder.
pub fn checkpoints(runs: &Path) -> BTreeSet<String> {
    let stages = std::fs::read_dir(runs.join("work")).into_iter().flatten().flatten();
    let entries = stages.flat_map(|stage| std::fs::read_dir(stage.path()).into_iter().flatten().flatten());
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("checkpoint-")).collect()
}

/// Blocks until a runs folder has a checkpoint that is not in `before`.
pub fn wait_for_another_checkpoint(runs: &Path, before: &BTreeSet<String>) {
    let begun = Instant::now();
    while checkpoints(runs).is_subset(before) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
}
