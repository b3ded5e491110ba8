//! Vision transformers run through all stages, and `encoder.init` reads the weights that `export` writes, or refuses a file with
//! a reason.

mod common;

use common::{Finished, Scratch, statuses, text};
use expect_test::expect;
use safetensors::SafeTensors;
use serde_json::{Value, json};

const VIT: &str = "encoder={arch: vit_tiny, patch_size: 8, stop_grad_patch_embed: true}";

/// Runs a command with the encoder `encoder`, one epoch and batches of 32.
fn command(scratch: &Scratch, command: &str, encoder: &str, more: &[&str]) -> Finished {
    let mut command = scratch.command(command);
    command.args(["--set", encoder, "--set", "epochs=1", "--set", "batch_size=32"]).args(more);
    Finished::of(command.output().expect("the program starts"))
}

fn parsed(finished: &Finished) -> Value {
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("JSON")
}

#[test]
fn a_vision_transformer_is_trained_exported_and_started_from() {
    let scratch = Scratch::new();
    let first = parsed(&command(&scratch, "run tiny.yaml --json", VIT, &[]));
    assert!(first["metrics"]["knn/top1"].as_f64().is_some());
    let exported = scratch.run("export tiny -o w.safetensors");
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    assert!(exported.stdout.contains("152 tensors"), "{}", exported.stdout);
    let bytes = std::fs::read(scratch.path("w.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape) in
        [("head.weight", vec![4, 192]), ("pos_embed", vec![1, 5, 192]), ("blocks.11.mlp.fc2.bias", vec![192])]
    {
        assert_eq!(file.tensor(name).unwrap().shape(), shape, "{name}");
    }

    // With other initial weights pretraining runs again; the untrained control does not.
    let start = ["--set", "encoder.init=w.safetensors"];
    let plan = parsed(&command(&scratch, "plan tiny.yaml --json", VIT, &start));
    let status = statuses(&plan);
    assert_eq!((status["pretrain"].as_str(), status["embed_random_init"].as_str()), ("pending", "cached"));
    let reason = plan["stages"][1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("encoder.init_file (none) -> "), "{reason}");
    let second = parsed(&command(&scratch, "run tiny.yaml --json", VIT, &start));
    assert_eq!(first["metrics"]["knn/top1_random_init"], second["metrics"]["knn/top1_random_init"]);

    // The key depends on the content of the weights file, not on its path.
    std::fs::rename(scratch.path("w.safetensors"), scratch.path("moved.safetensors")).unwrap();
    let moved = ["--set", "encoder.init=moved.safetensors"];
    let status = statuses(&parsed(&command(&scratch, "plan tiny.yaml --json", VIT, &moved)));
    assert!(status.values().all(|status| status == "cached"), "{status:?}");
    let missing = command(&scratch, "plan tiny.yaml", VIT, &start);
    assert_eq!(missing.code, 1);
    assert_eq!(
        missing.stderr,
        "error: encoder.init: cannot read w.safetensors\n  because: No such file or directory (os error 2)\n"
    );
    let other = command(&scratch, "run tiny.yaml", "encoder={arch: vit_tiny, patch_size: 4}", &moved);
    assert_eq!(other.code, 1);
    expect![[r#"
        error: encoder.init: moved.safetensors
          because: the weights do not fit the encoder; nothing was computed
          missing (0): none
          unexpected (0): none
          of another shape (2): patch_embed.proj.weight [192, 3, 8, 8] instead of [192, 3, 4, 4], pos_embed [1, 5, 192] instead of [1, 17, 192]
    "#]]
    .assert_eq(&other.stderr);
    std::fs::write(scratch.path("moved.safetensors"), b"garbage").unwrap();
    let damaged = command(&scratch, "run tiny.yaml", VIT, &moved);
    assert_eq!(damaged.code, 1);
    expect![[r#"
        error: encoder.init: moved.safetensors
          because: not a complete safetensors file
          because: header too small
    "#]]
    .assert_eq(&damaged.stderr);
}

const RESNET: &str = "encoder={arch: resnet18, width_multiplier: 0.0625, stem: cifar}";
const FROM_FILE: [&str; 2] = ["--set", "encoder.init=w.safetensors"];

#[test]
fn weights_as_they_were_given_are_a_control_of_their_own() {
    let scratch = Scratch::new();
    let first = parsed(&command(&scratch, "run tiny.yaml --json", RESNET, &[]));
    assert_eq!(scratch.run("export tiny -o w.safetensors").code, 0);

    // The weights as given are those of the first run, so their scores equal that run's.
    let second = parsed(&command(&scratch, "run tiny.yaml --json", RESNET, &FROM_FILE));
    assert_eq!(statuses(&second)["embed_initial"], "ran");
    assert!(first["metrics"].get("knn/top1_initial").is_none() && !statuses(&first).contains_key("embed_initial"));
    for metric in ["knn/top1", "linear/top1"] {
        assert_eq!(second["metrics"][format!("{metric}_initial")], first["metrics"][metric], "{metric}");
    }
    let table = scratch.run("runs").stdout;
    assert!(table.contains("┆ kNN top-1 ┆ kNN top-1 as given ┆ kNN top-1 untrained │"), "{table}");

    // With a learning rate of 0 nothing changes, not even batch norm's running statistics.
    let still = [&FROM_FILE[..], &["--set", "optimizer.base_lr=0"]].concat();
    let shown = command(&scratch, "run tiny.yaml", RESNET, &still);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    let header = "│ top-1 in %   ┆ trained ┆ over as given, in points ┆ as given ┆ untrained ┆ shuffled labels │";
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.stdout.lines().any(|line| words(line) == words(header)), "{}", shown.stdout);
    let still = parsed(&command(&scratch, "run tiny.yaml --json", RESNET, &still));
    for metric in ["knn/top1", "linear/top1"] {
        assert_eq!(still["metrics"][metric], still["metrics"][format!("{metric}_initial")], "{metric}");
    }
    let features = |stage: &str| {
        let stages = still["stages"].as_array().expect("stages");
        let key = &stages.iter().find(|row| row["stage"] == stage).expect("the stage")["key"];
        let manifest = scratch.path(&format!("runs/store/{stage}/{}/manifest.json", text(key)));
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).expect("a manifest")).expect("JSON");
        let files = manifest["files"].as_array().expect("files");
        files.iter().find(|file| file["name"] == "features").expect("features")["content"].clone()
    };
    assert_eq!(features("embed"), features("embed_initial"));
    assert_ne!(features("embed"), features("embed_random_init"));

    let run = text(&still["run"]);
    let audit = scratch.run(&format!("audit {run}")).stdout;
    assert!(audit.contains("ok      kNN: not below the weights that training started from\n"), "{audit}");
    assert!(audit.contains("+0.00 [0.00, 0.00], p 1.000"), "{audit}");
    let compared = scratch.json(&format!("compare {run} {} --json", text(&first["run"])));
    let gains = compared["gains"].as_array().expect("gains");
    assert_eq!(gains.len(), 2, "one per evaluation, of the run that started from a file: {compared}");
    assert_eq!((&gains[0]["run"], &gains[0]["difference"], &gains[0]["high"]), (&json!(run), &json!(0.0), &json!(0.0)));
    let shown = scratch.run(&format!("compare {run}")).stdout;
    assert!(
        shown.contains("│ knn/top1 over initial ") && shown.contains("over initial: trained minus the weights"),
        "{shown}"
    );
    let page = scratch.run(&format!("report {run} -o page.html"));
    assert_eq!(page.code, 0, "{}", page.stderr);
    let page = std::fs::read_to_string(scratch.path("page.html")).expect("the page");
    assert!(page.contains("\"gains\":[{\"knn/top1\":\"+0.00 [0.00, 0.00], p 1.000\""), "no gains");
}

#[test]
fn weights_that_training_cannot_start_from_are_refused_before_anything_runs() {
    let scratch = Scratch::new();
    parsed(&command(&scratch, "run tiny.yaml --json", RESNET, &[]));
    assert_eq!(scratch.run("export tiny -o w.safetensors").code, 0);
    let mut bytes = std::fs::read(scratch.path("w.safetensors")).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor("conv1.weight").unwrap().data().as_ptr();
    let at = data as usize - bytes.as_ptr() as usize + 8;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    scratch.write("w.safetensors", bytes);
    let refused = command(&scratch, "run tiny.yaml --runs fresh", RESNET, &FROM_FILE);
    let told = "error: encoder.init: w.safetensors\n  because: tensor conv1.weight holds NaN at index 2\n";
    assert_eq!((refused.code, refused.stderr.as_str()), (1, told));
    let wide = "encoder={arch: resnet18, width_multiplier: 0.125, stem: cifar}";
    let refused = command(&scratch, "run tiny.yaml --runs fresh", wide, &FROM_FILE);
    assert_eq!((refused.code, refused.stderr.as_str()), (1, told));
    assert!(!scratch.path("fresh/store").exists() && !scratch.path("fresh/unfinished").exists());
}
