//! Vision transformers run through all stages; what `export` writes comes in through `encoder.init`, or is refused by name.

mod common;

use common::{Finished, Scratch, statuses};
use safetensors::SafeTensors;

const VIT: &str = "encoder={arch: vit_tiny, patch_size: 8, stop_grad_patch_embed: true}";

/// The tiny spec for an epoch with another encoder.
fn command(scratch: &Scratch, command: &str, encoder: &str, more: &[&str]) -> Finished {
    let mut command = scratch.command(command);
    command.args(["--set", encoder, "--set", "epochs=1", "--set", "batch_size=32"]).args(more);
    Finished::of(command.output().expect("the program starts"))
}

fn json(finished: &Finished) -> serde_json::Value {
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("JSON")
}

#[test]
fn a_vision_transformer_is_trained_exported_and_started_from() {
    let scratch = Scratch::new();
    let first = json(&command(&scratch, "run tiny.yaml --json", VIT, &[]));
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

    // Another start: pretraining runs again, the untrained control does not.
    let start = ["--set", "encoder.init=w.safetensors"];
    let plan = json(&command(&scratch, "plan tiny.yaml --json", VIT, &start));
    let status = statuses(&plan);
    assert_eq!((status["pretrain"].as_str(), status["embed_random_init"].as_str()), ("pending", "cached"));
    let reason = plan["stages"][1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("encoder.init_file (none) -> "), "{reason}");
    let second = json(&command(&scratch, "run tiny.yaml --json", VIT, &start));
    assert_eq!(first["metrics"]["knn/top1_random_init"], second["metrics"]["knn/top1_random_init"]);

    // Where the file lies does not matter; what is in it does.
    std::fs::rename(scratch.path("w.safetensors"), scratch.path("moved.safetensors")).unwrap();
    let moved = ["--set", "encoder.init=moved.safetensors"];
    let status = statuses(&json(&command(&scratch, "plan tiny.yaml --json", VIT, &moved)));
    assert!(status.values().all(|status| status == "cached"), "{status:?}");
    let missing = command(&scratch, "plan tiny.yaml", VIT, &start);
    assert_eq!(missing.code, 1);
    assert_eq!(
        missing.stderr,
        "error: encoder.init: cannot read w.safetensors\n  because: No such file or directory (os error 2)\n"
    );
    let other = command(&scratch, "run tiny.yaml", "encoder={arch: vit_tiny, patch_size: 4}", &moved);
    assert_eq!(other.code, 1);
    for part in [
        "because: encoder.init: moved.safetensors\n  because: the weights do not fit the encoder; nothing was computed\n",
        "missing (0): none\n",
        "unexpected (0): none\n",
        "of another shape (2): patch_embed.proj.weight [192, 3, 8, 8] instead of [192, 3, 4, 4], pos_embed [1, 5, 192] \
         instead of [1, 17, 192]",
    ] {
        assert!(other.stderr.contains(part), "{}", other.stderr);
    }
    std::fs::write(scratch.path("moved.safetensors"), b"garbage").unwrap();
    let damaged = command(&scratch, "run tiny.yaml", VIT, &moved);
    assert_eq!(damaged.code, 1);
    assert!(
        damaged.stderr.contains("encoder.init: moved.safetensors\n  because: not a complete"),
        "{}",
        damaged.stderr
    );
}
