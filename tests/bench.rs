//! `snclr bench`: its cases, its options, its output, and the requests that it refuses.

mod common;

use common::{Scratch, text};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

#[test]
fn a_case_is_told_with_its_machine() {
    let measured = Scratch::new().json("bench --case small --steps 2 --queue-length 256 -k 3 --threads 1 --json");
    let case = &measured["cases"][0];
    assert_eq!(case["case"], "small");
    assert_eq!(case["what"], "step: ResNet-18 of width 16, 32x32, batch 128, queue 256, K 3");
    assert_eq!((&case["precision"], &case["device"]), (&json!("f32"), &json!("cpu")));
    assert_eq!((&case["threads"], &case["steps"]), (&json!(1), &json!(2)));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number in {case}"));
    let (median, minimum) = (number(&case["milliseconds"]["median"]), number(&case["milliseconds"]["minimum"]));
    assert!(0.0 < minimum && minimum <= median, "{case}");
    assert!((number(&case["images_per_second"]["median"]) * median / 128e3 - 1.0).abs() < 1e-9, "{case}");
    assert!(number(&case["images_per_second"]["maximum"]) >= number(&case["images_per_second"]["median"]));
    // The activations of 128 images in two branches take this much.
    assert!((50.0..5000.0).contains(&number(&case["peak_rss_mb"])), "{case}");
    // The passes of both branches are 85 million multiply-adds, the heads a few more. One multiply-add is two operations.
    let flops = &case["flops"];
    assert!((0.5..0.7).contains(&number(&flops["gflop_per_image"])), "{flops}");
    let rate = number(&case["images_per_second"]["median"]);
    assert!((number(&flops["tflops"]) / rate / number(&flops["gflop_per_image"]) * 1e3 - 1.0).abs() < 1e-9, "{flops}");
    assert!(flops["utilisation"].is_null() && case["gpu"].is_null() && case["waiting_share"].is_null(), "{case}");
    assert!(number(&case["machine"]["cores"]) >= 1.0 && !text(&case["machine"]["vector_unit"]).is_empty());
    assert_eq!(text(&case["version"]), format!("snclr {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn several_cases_have_a_process_each() {
    let scratch = Scratch::new();
    let line = "bench --case augment-cifar,augment-imagenet --images 3 --steps 1 --save-images images --json";
    let measured = scratch.json(line);
    let cases = measured["cases"].as_array().expect("cases");
    let names: Vec<_> = cases.iter().map(|case| text(&case["case"])).collect();
    assert_eq!(names, ["augment-cifar", "augment-imagenet"]);
    // Augmentation is measured per core, so it uses one thread.
    assert!(cases.iter().all(|case| case["threads"] == 1 && case["steps"] == 1), "{measured}");
    for (name, side) in [("00002.png", 32), ("00002.jpg", 400)] {
        let picture = image::open(scratch.path("images").join(name)).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (side, side));
    }
}

#[test]
fn a_training_from_images_tells_how_long_it_waited_for_them() {
    let scratch = Scratch::new();
    let line = "bench --case epoch --batch 8 --images 20 --steps 3 --queue-length 64 -k 3 --json";
    let case = &scratch.json(line)["cases"][0];
    let share = case["waiting_share"].as_f64().expect("a share");
    assert!((0.0..1.0).contains(&share), "{case}");
    let what = text(&case["what"]);
    assert!(what.starts_with("20 Png images of 32x32 in shards, augmented on "), "{what}");
    assert!(what.ends_with("; step: ResNet-18 of width 16, 32x32, batch 8, queue 64, K 3"), "{what}");
}

#[test]
fn people_get_a_table() {
    let finished = Scratch::new().run("bench --case queue --queue-length 300 -k 5 --steps 1");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stdout.starts_with("queue: the 5 nearest of 300 rows to each of 256 queries, width 256\n┌"));
    assert!(finished.stdout.contains("│ queue ┆       f32 ┆"), "{}", finished.stdout);
    assert_eq!(finished.stderr, "queue              runs    measured\n");
    let quiet = Scratch::new().run("bench --case queue --queue-length 300 -k 5 --steps 1 --quiet");
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn what_cannot_be_measured_is_a_matter_of_usage() {
    let scratch = Scratch::new();
    let refused = |args: &str, expected: Expect| {
        let finished = scratch.run(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{args}: {}", finished.stderr);
        expected.assert_eq(&finished.stderr);
    };
    refused(
        "bench --case resnet19",
        expect![[r#"
            error: invalid value 'resnet19' for '--case <CASE>'
              [possible values: small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet, queue, augment-cifar, augment-imagenet, knn, probe]

              tip: a similar value exists: 'resnet18'

            For more information, try '--help'.
        "#]],
    );
    refused(
        "bench --precision f8",
        expect![[r#"
            error: invalid value 'f8' for '--precision <PRECISION>': unknown variant `f8`, expected one of `f32`, `tf32`, `bf16`, `f16`

            For more information, try '--help'.
        "#]],
    );
    refused(
        "bench --steps 0",
        expect![[r#"
            error: invalid value '0' for '--steps <N>': expected a whole number from 1

            For more information, try '--help'.
        "#]],
    );
    refused(
        "bench --scaling --case small",
        expect![[r#"
            error: the argument '--scaling' cannot be used with '--case <CASE>'

            Usage: snclr bench --scaling

            For more information, try '--help'.
        "#]],
    );
    refused(
        "bench --case knn --precision f16",
        expect![[r#"
            error: --case knn is measured in f32 only, not in f16; leave --precision out, or choose a case that trains (small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet; of the others queue knows bf16)
        "#]],
    );
    refused(
        "bench --case small --precision f16",
        expect![[r#"
            small              runs    measured
            error: --case small cannot be measured: precision: f16 needs a GPU; add --device cuda:0, or use precision: f32 (--set precision=f32)
        "#]],
    );
    // A bad option of the second case is refused before the first case runs.
    refused(
        "bench --case queue --case probe -k 3",
        expect![[r#"
            error: --case probe has no -k; leave it out, or choose a case that has it (small, resnet18, resnet50, vit_tiny, vit_small, epoch, epoch-imagenet, queue, knn)
        "#]],
    );
}

/// The PyTorch script of the comparison prints the same fields. `SNCLR_TORCH_PYTHON` names a Python with torch and torchvision.
#[test]
fn the_reference_in_python_has_the_same_shape() {
    let Ok(python) = std::env::var("SNCLR_TORCH_PYTHON") else {
        return println!("skipped: set SNCLR_TORCH_PYTHON to a Python that has torch and torchvision");
    };
    let scratch = Scratch::new();
    let ours = scratch.json("bench --case augment-cifar --images 2 --steps 1 --save-images images --json");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bench_reference.py");
    let args = ["queue", "augment-cifar", "--queue-length", "300", "-k", "3", "--steps", "1", "--images", "images"];
    let output = std::process::Command::new(python).current_dir(scratch.path("")).arg(script).args(args).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let keys = |case: &Value| case.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let cases = theirs["cases"].as_array().expect("cases");
    assert!(cases.len() >= 2, "{theirs}");
    for case in cases {
        assert_eq!(keys(case), keys(&ours["cases"][0]));
        assert_eq!(keys(&case["machine"]), keys(&ours["cases"][0]["machine"]));
    }
}
