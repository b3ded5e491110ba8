//! The error messages for invalid specs, compared word for word.

use std::path::Path;

use snclr::spec::{self, SpecErrors};

/// A spec without mistakes. Tests put mistakes into it.
const GOOD: &str = "\
# A comment above.
name: good
data:
  format: synthetic
  classes: 10
  train_images: 4096
  test_images: 1000
  image_size: 32
augmentations:
  size: 32
  view1:
    random_resized_crop: {scale: [0.2, 1.0]}
  view2:
    random_resized_crop: {}
encoder:
  arch: resnet18
projector: {layers: 2, hidden: 256, output: 64}
predictor: {layers: 2, hidden: 256, output: 64}
method:
  name: snclr
  k: 5
  queue_length: 1024
  tau: 0.2
optimizer:
  name: sgd
  base_lr: 0.06
epochs: 8
batch_size: 128
";

/// `GOOD` with each `old` line replaced.
fn edited(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(GOOD.to_owned(), |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old:?} is not once in the spec");
        text.replace(old, new)
    })
}

fn errors(text: &str, overrides: &[&str]) -> SpecErrors {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    spec::load_text(Path::new("specs/a.yaml"), text, &overrides).expect_err("the spec is invalid")
}

#[track_caller]
fn prints(text: &str, overrides: &[&str], expected: &str) {
    assert_eq!(errors(text, overrides).to_string(), expected);
}

#[test]
fn the_good_spec_is_good() {
    spec::load_text(Path::new("a.yaml"), GOOD, &[]).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn five_mistakes_are_five_errors_with_their_places() {
    let text = edited(&[
        ("arch: resnet18", "arch: ResNet-18"),
        ("k: 5", "k: 3000"),
        ("tau: 0.2", "temperature: 0.2"),
        ("base_lr: 0.06", "base_lr: \"0.06\""),
        ("epochs: 8", "epochs: 0"),
    ]);
    prints(
        &text,
        &[],
        "\
error: specs/a.yaml:16:9: encoder.arch: unknown value
  found:   \"ResNet-18\"
  allowed: resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base
  help:    did you mean `resnet18`?

error: specs/a.yaml:21:6: method.k: a queue of 1024 has no 3000 neighbours
  found:   method.k: 3000, method.queue_length: 1024
  allowed: method.k <= method.queue_length
  help:    lower `method.k` to 1024 or less, or raise `method.queue_length` to 3000 or more

error: specs/a.yaml:23:3: method.temperature: unknown key
  found:   temperature: 0.2
  allowed: name, k, queue_length, gamma, objective, tau, attention, normalize_attention, attention_dim, detach_w, threshold, queue_overflow, exclude_self, loss_scale, momentum
  help:    did you mean `tau`?

error: specs/a.yaml:26:12: optimizer.base_lr: wrong type
  found:   \"0.06\"
  allowed: a number, at least 0
  help:    remove the quotes: `base_lr: 0.06`

error: specs/a.yaml:27:9: epochs: out of range
  found:   0
  allowed: a whole number, at least 1
  help:    the nearest allowed value is 1

specs/a.yaml: 5 errors",
    );
}

#[test]
fn overrides_are_the_place_of_their_errors() {
    prints(
        GOOD,
        &["method.queue_size=64", "knn.k=5", "seed"],
        "\
error: --set seed: there is no `=`
  help:    write `--set key=value`, e.g. `--set method.tau=0.2`

error: --set method.queue_size=64: method.queue_size: unknown key
  found:   queue_size: 64
  allowed: name, k, queue_length, gamma, objective, tau, attention, normalize_attention, attention_dim, detach_w, threshold, queue_overflow, exclude_self, loss_scale, momentum
  help:    did you mean `queue_length`?

error: --set knn.k=5: knn.k: wrong type
  found:   5
  allowed: a list of 1 or more whole numbers, each at least 1
  help:    write a list: `k: [5]`

specs/a.yaml: 3 errors",
    );
}

#[test]
fn a_missing_key_is_an_error_of_its_section() {
    prints(
        &edited(&[("  queue_length: 1024\n", "")]),
        &[],
        "\
error: specs/a.yaml:19:1: method.queue_length: required key is missing
  allowed: a whole number, at least 1
  help:    add `queue_length:` to `method`: length of the FIFO queue of momentum projections that neighbours come from

specs/a.yaml: 1 error",
    );
}

#[test]
fn a_missing_section_is_an_error_of_the_spec() {
    let text = edited(&[("encoder:\n  arch: resnet18\n", "")]);
    prints(
        &text,
        &[],
        "\
error: specs/a.yaml:2:1: encoder: required key is missing
  allowed: a section with `arch:` one of resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base
  help:    add `encoder:` to the spec: network that is trained and kept

specs/a.yaml: 1 error",
    );
}

#[test]
fn a_key_of_another_variant_names_its_owner() {
    prints(
        &edited(&[("  base_lr: 0.06", "  base_lr: 0.06\n  eta: 0.02")]),
        &[],
        "\
error: specs/a.yaml:27:3: optimizer.eta: unknown key
  found:   eta: 0.02
  allowed: name, base_lr, lr_scaling, momentum, weight_decay
  help:    `eta` belongs to `name: lars`, and this section says `name: sgd`; remove it, or change `name`

specs/a.yaml: 1 error",
    );
}

#[test]
fn an_unknown_variant_lists_the_known_ones() {
    prints(
        &edited(&[("name: sgd", "name: adam")]),
        &[],
        "\
error: specs/a.yaml:25:9: optimizer.name: unknown value
  found:   \"adam\"
  allowed: sgd, adamw, lars
  help:    did you mean `adamw`?

specs/a.yaml: 1 error",
    );
}

#[test]
fn a_tag_under_another_name_is_one_error() {
    prints(
        &edited(&[("format: synthetic", "type: synthetic")]),
        &[],
        "\
error: specs/a.yaml:4:3: data.type: unknown key
  found:   type: \"synthetic\"
  allowed: format
  help:    did you mean `format`?

specs/a.yaml: 1 error",
    );
}

#[test]
fn a_section_given_as_a_text_says_how_to_write_it() {
    prints(
        &edited(&[("encoder:\n  arch: resnet18", "encoder: resnet50")]),
        &[],
        "\
error: specs/a.yaml:15:10: encoder: wrong type
  found:   \"resnet50\"
  allowed: a section with `arch:` one of resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base
  help:    write a section: `encoder: {arch: resnet50}`

specs/a.yaml: 1 error",
    );
}

#[test]
fn settings_of_another_network_say_whose_they_are() {
    prints(
        &edited(&[("arch: resnet18", "arch: resnet50\n  patch_size: 16")]),
        &[],
        "\
error: specs/a.yaml:17:3: encoder.patch_size: unknown key
  found:   patch_size: 16
  allowed: arch, width_multiplier, stem, init
  help:    `patch_size` belongs to `arch: vit_tiny` or `vit_small` or `vit_base`, and this section says `arch: resnet50`; remove it, or change `arch`

specs/a.yaml: 1 error",
    );
    prints(
        &edited(&[("arch: resnet18", "arch: vit_small\n  num_heads: 5"), ("size: 32\n  view1", "size: 40\n  view1")]),
        &["data.image_size=64"],
        "\
error: specs/a.yaml:10:9: augmentations.size: patches of 16 pixels do not tile images of 40
  found:   augmentations.size: 40, encoder.patch_size: 16 (the default)
  allowed: augmentations.size a multiple of encoder.patch_size
  help:    the nearest `augmentations.size` is 48

error: specs/a.yaml:17:3: encoder.num_heads: unknown key
  found:   num_heads: 5
  allowed: arch, patch_size, heads, image_size, stop_grad_patch_embed, init
  help:    did you mean `heads`?

specs/a.yaml: 2 errors",
    );
}

#[test]
fn a_key_of_another_section_is_found_there() {
    prints(
        &edited(&[("epochs: 8", "epochs: 8\nlr: 0.1\ntau: 0.1")]),
        &[],
        "\
error: specs/a.yaml:28:1: lr: unknown key
  found:   lr: 0.1
  allowed: name, description, seed, data, augmentations, encoder, projector, predictor, method, optimizer, schedule, epochs, batch_size, gradient_accumulation, batch_norm, precision, health, linear_probe, knn, extends, sweep
  help:    did you mean `optimizer.base_lr` or `linear_probe.base_lr`?

error: specs/a.yaml:29:1: tau: unknown key
  found:   tau: 0.1
  allowed: name, description, seed, data, augmentations, encoder, projector, predictor, method, optimizer, schedule, epochs, batch_size, gradient_accumulation, batch_norm, precision, health, linear_probe, knn, extends, sweep
  help:    did you mean `method.tau`?

specs/a.yaml: 2 errors",
    );
}

#[test]
fn text_that_is_not_yaml() {
    prints(
        &edited(&[("{scale: [0.2, 1.0]}", "{scale: [0.2, 1.0}")]),
        &[],
        "\
error: specs/a.yaml:12:43: not valid YAML: did not find expected ',' or ']', while parsing a flow sequence at line 12 column 34
  help:    check the indentation, brackets and quotes of this line and the one before

specs/a.yaml: 1 error",
    );
    prints(
        "name: a\n\tseed: 1\n",
        &[],
        "\
error: specs/a.yaml:2:1: not valid YAML: found a tab character that violates indentation, while scanning a plain scalar at line 1 column 7
  help:    indent with spaces: YAML does not allow tabs

specs/a.yaml: 1 error",
    );
    prints(
        "# nothing yet\n",
        &[],
        "\
error: specs/a.yaml:1:1: the spec is empty
  help:    start from a copy of specs/quickstart.yaml; `snclr schema` lists every key

specs/a.yaml: 1 error",
    );
}

#[test]
fn keys_given_twice_are_refused_all_at_once() {
    prints(
        &edited(&[("  k: 5", "  k: 5\n  k: 6"), ("epochs: 8", "epochs: 8\nname: b")]),
        &[],
        "\
error: specs/a.yaml:22:3: method.k: key given twice
  help:    it is given first at line 21, column 3; keep one of the two

error: specs/a.yaml:29:1: name: key given twice
  help:    it is given first at line 2, column 1; keep one of the two

specs/a.yaml: 2 errors",
    );
}

#[test]
fn a_missing_file_names_its_neighbour() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("quickstart.yaml"), GOOD).unwrap();
    let path = folder.path().join("quikstart.yaml");
    let told = spec::load(&path, &[]).unwrap_err().to_string();
    let (path, near) = (path.display(), folder.path().join("quickstart.yaml").display().to_string());
    assert_eq!(
        told,
        format!(
            "error: {path}: cannot be read: no such file or directory\n  help:    did you mean `{near}`?\n\n{path}: 1 error"
        )
    );
}

/// Each rule between keys, with a mistake, the key of the error and its message.
#[test]
fn rules_between_keys() {
    let cases = [
        ("method.k=2000", "method.k", "a queue of 1024 has no 2000 neighbours"),
        ("method.queue_length=100", "batch_size", "a batch of 128 does not fit into a queue of 100"),
        ("batch_size=1000000", "batch_size", "4096 training images do not fill a batch of 1000000"),
        ("schedule.warmup_epochs=9", "schedule.warmup_epochs", "a warm-up of 9 epochs does not end within 8"),
        ("augmentations.size=40", "augmentations.size", "crops of 40 pixels cannot be taken from images of 32"),
        (
            "augmentations.eval.resize=24",
            "augmentations.size",
            "a centre crop of 32 pixels cannot be taken from a shorter side of 24",
        ),
        (
            "augmentations.view1.random_resized_crop.scale=[1, 0.2]",
            "augmentations.view1.random_resized_crop.scale",
            "the range begins at 1, above its end 0.2",
        ),
        (
            "augmentations.view2.random_resized_crop.scale=[0.1, 1.1]",
            "augmentations.view2.random_resized_crop.scale",
            "a share of the image's area is at most 1",
        ),
        (
            "augmentations.view2.random_resized_crop.ratio=[0, 1.1]",
            "augmentations.view2.random_resized_crop.ratio",
            "a ratio of width to height is greater than 0",
        ),
        (
            "augmentations.view2.gaussian_blur={p: 1, sigma: [2, 1]}",
            "augmentations.view2.gaussian_blur.sigma",
            "the range begins at 2, above its end 1",
        ),
        ("knn.k=[5, 5000]", "knn.k", "4096 training images have no 5000 neighbours"),
        (
            "encoder={arch: vit_tiny, patch_size: 5}",
            "augmentations.size",
            "patches of 5 pixels do not tile images of 32",
        ),
        (
            "encoder={arch: vit_tiny, image_size: 40}",
            "encoder.image_size",
            "patches of 16 pixels do not tile images of 40",
        ),
        ("encoder={arch: vit_small, heads: 5}", "encoder.heads", "5 heads do not divide a width of 384"),
        ("encoder={arch: vit_small, width_multiplier: 0.3}", "encoder.width_multiplier", "unknown key"),
        ("encoder.width_multiplier=0.3", "encoder.width_multiplier", "19.2 is not a whole number of channels"),
        (
            "predictor.output=32",
            "predictor.output",
            "predictions of width 32 cannot be compared with projections of width 64",
        ),
        ("augmentations.std=[0.2, 0, 0.2]", "augmentations.std.1", "out of range"),
        ("optimizer={name: adamw, base_lr: 0.1, betas: [0.9, 1.0]}", "optimizer.betas.1", "out of range"),
        ("knn.k=[0]", "knn.k.0", "out of range"),
        ("knn.k=[5, 5]", "knn.k", "an item is listed twice"),
    ];
    for (override_, key, headline) in cases {
        let told = errors(GOOD, &[override_]).errors;
        let told: Vec<(&str, String)> = told.iter().map(|e| (e.key.as_str(), e.problem.to_string())).collect();
        assert!(told.contains(&(key, headline.to_owned())), "{override_}: {told:?}");
        let most =
            if override_.starts_with("method.queue_length") || override_.starts_with("batch_size") { 2 } else { 1 };
        assert!(told.len() <= most, "{override_}: {told:?}");
    }
}

#[test]
fn rules_hold_for_defaults_and_point_at_what_is_given() {
    prints(
        &edited(&[("train_images: 4096", "train_images: 150")]),
        &[],
        "\
error: specs/a.yaml:6:17: data.train_images: 150 training images have no 200 neighbours
  found:   knn.k: [20, 10, 100, 200] (the default), data.train_images: 150
  allowed: each item of knn.k <= data.train_images
  help:    give numbers up to 150 in `knn.k`, or raise `data.train_images` to 200 or more

specs/a.yaml: 1 error",
    );
}

#[test]
fn rules_that_cannot_be_judged_stay_silent() {
    // The spec does not say how many images there are, and the queue's length is not a number.
    let errors = errors(
        GOOD,
        &["data={format: parquet, train: x.parquet}", "knn.k=[100000]", "method.queue_length=long", "method.k=99999"],
    );
    let keys: Vec<&str> = errors.errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["method.queue_length"]);
}

#[test]
fn no_message_is_the_validators_own() {
    let overrides = [
        "data.format=3",
        "data={}",
        "data=[]",
        "data={format: parquet, train: {a: 1}}",
        "data={format: parquet, train: [[1]]}",
        "data={format: idx, train: x, test: 3}",
        "method={name: [snclr]}",
        "optimizer={name: sgd, base_lr: 1, lr_scaling: 3}",
        "augmentations.view1.gaussian_blur=0.5",
        "augmentations.mean=[1, 2, 3, 4]",
        "precision=[f32]",
        "name=-x",
        "seed=1.5",
    ];
    for override_ in overrides {
        let told = errors(GOOD, &[override_]).to_string();
        for word in ["schema", "oneOf", "anyOf", "is not of type", "valid under"] {
            assert!(!told.contains(word), "{override_}: {told}");
        }
        assert!(told.contains("found:") || told.contains("missing"), "{override_}: {told}");
        assert!(told.contains("allowed:"), "{override_}: {told}");
    }
}
