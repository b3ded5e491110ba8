//! `extends` in specs: how a spec overrides its base, where errors are reported, and the source of each value.

mod common;

use common::{Scratch, TINY};
use expect_test::expect;
use serde_json::{Value, json};

/// A scratch directory with the base `base/tiny.yaml` and the spec `new.yaml`.
fn scratch(spec: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("base/tiny.yaml", TINY);
    scratch.write("new.yaml", spec);
    scratch
}

/// Asserts that `validate` refuses `new.yaml` with this text on stderr.
#[track_caller]
fn told(scratch: &Scratch, options: &str, expected: &str) {
    let finished = scratch.run(&format!("validate new.yaml {options}"));
    assert_eq!(finished.stderr, expected);
    assert_eq!((finished.code, finished.stdout.as_str()), (2, ""));
}

#[test]
fn a_spec_says_what_it_changes_and_the_run_keeps_the_whole() {
    let scratch = scratch("extends: base/tiny.yaml\nname: new\nmethod: {tau: 0.3}\nknn: {k: [7]}\n");
    scratch.write("newer.yaml", "extends: ./new.yaml\nname: newer\nseed: 2\n");
    let whole: Value = serde_yaml::from_str(TINY).expect("YAML");
    let resolved =
        |arguments: &str| scratch.json(&format!("validate {arguments} --resolved --json"))["resolved"].clone();
    let same = [
        resolved("newer.yaml"),
        resolved("tiny.yaml --set name=newer --set seed=2 --set method.tau=0.3 --set knn.k=[7]"),
    ];
    let values = |list: &Value| {
        let entries = list.as_array().expect("a list").iter();
        entries.map(|leaf| (leaf["key"].clone(), leaf["value"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(values(&same[0]), values(&same[1]));
    let of = |key: &str| {
        same[0].as_array().expect("a list").iter().find(|leaf| leaf["key"] == key).expect("the key").clone()
    };
    assert_eq!(of("name"), json!({"key": "name", "value": "newer", "source": "newer.yaml:2"}));
    assert_eq!(of("method.tau"), json!({"key": "method.tau", "value": 0.3, "source": "./new.yaml:3"}));
    assert_eq!(of("method.gamma")["source"], "default");
    assert_eq!(
        (of("epochs")["value"].clone(), &of("epochs")["source"]),
        (whole["epochs"].clone(), &json!("./base/tiny.yaml:20"))
    );

    // The key of the data stage equals the base's: `extends` itself is not part of a key.
    let plan = |arguments: &str| scratch.json(&format!("plan {arguments} --json"))["stages"][0]["key"].clone();
    assert_eq!(plan("new.yaml"), plan("tiny.yaml"));
}

#[test]
fn errors_stand_where_the_value_is_written() {
    let scratch = scratch("extends: base/tiny.yaml\nname: new\nmethod: {tua: 0.3, k: 100}\nepochs: 0\n");
    let base = TINY.replace("batch_size: 16\n", "batch_size: 1\n");
    scratch.write("base/tiny.yaml", &base);
    told(
        &scratch,
        "--set knn.k=5",
        "\
error: new.yaml:3:10: method.tua: unknown key
  found:   tua: 0.3
  allowed: name, k, queue_length, gamma, objective, tau, attention, normalize_attention, attention_dim, detach_w, threshold, queue_overflow, exclude_self, loss_scale, momentum
  help:    did you mean `tau`?

error: new.yaml:3:23: method.k: a queue of 64 has no 100 neighbours
  found:   method.k: 100, method.queue_length: 64
  allowed: method.k <= method.queue_length
  help:    lower `method.k` to 64 or less, or raise `method.queue_length` to 100 or more

error: new.yaml:4:9: epochs: out of range
  found:   0
  allowed: a whole number, at least 1
  help:    the nearest allowed value is 1

error: base/tiny.yaml:21:13: batch_size: out of range
  found:   1
  allowed: a whole number, at least 2
  help:    the nearest allowed value is 2

error: --set knn.k=5: knn.k: wrong type
  found:   5
  allowed: a list of 1 or more whole numbers, each at least 1
  help:    write a list: `k: [5]`

new.yaml: 5 errors
",
    );
    let json = scratch.run("validate new.yaml --json").stdout;
    let report: Value = serde_json::from_str(&json).expect("JSON");
    let files: Vec<&Value> = report["errors"].as_array().expect("errors").iter().map(|error| &error["file"]).collect();
    assert_eq!(files, ["new.yaml", "new.yaml", "new.yaml", "base/tiny.yaml"]);
}

#[test]
fn another_variant_starts_anew_and_null_takes_away_what_is_optional() {
    let scratch = scratch("extends: base/tiny.yaml\noptimizer: {name: lars, eta: 0.02}\nepochs: null\n");
    scratch.write("base/tiny.yaml", format!("{TINY}description: what it asks\n"));
    told(
        &scratch,
        "",
        "\
error: new.yaml:2:1: optimizer.base_lr: required key is missing
  allowed: a number, at least 0
  help:    add `base_lr:` to `optimizer`: learning rate before `lr_scaling`; nothing of the base's `name: sgd` is kept

error: new.yaml:3:9: epochs: wrong type
  found:   nothing
  allowed: a whole number, at least 1
  help:    give the key a value

new.yaml: 2 errors
",
    );
    scratch.write("new.yaml", "extends: base/tiny.yaml\noptimizer: {name: lars, base_lr: 0.2}\ndescription: null\n");
    let text = scratch.run("validate new.yaml --resolved").stdout;
    assert!(!text.contains("description"), "{text}");
    let line = |start: &str| text.lines().find(|line| line.trim().starts_with(start)).unwrap_or_default().to_owned();
    assert_eq!(line("base_lr: 0.2"), format!("{:<44} # new.yaml:2", "  base_lr: 0.2"));
    assert!(line("weight_decay").ends_with("# default"), "the base's belongs to another optimiser: {text}");
    assert!(line("warmup_epochs: 1").ends_with("# base/tiny.yaml:19"), "{text}");
}

#[test]
fn bases_that_cannot_be_read() {
    let scratch = scratch("name: new\nextends: base/tinny.yaml\n");
    told(
        &scratch,
        "",
        "\
error: new.yaml:2:10: extends: the base cannot be read: no such file or directory
  found:   \"base/tinny.yaml\" (base/tinny.yaml)
  help:    did you mean `base/tiny.yaml`?

new.yaml: 1 error
",
    );
    scratch.write("new.yaml", "extends: [a.yaml, b.yaml]\n");
    told(
        &scratch,
        "",
        "\
error: new.yaml:1:10: extends: wrong type
  found:   [\"a.yaml\", \"b.yaml\"]
  allowed: the path of a spec, relative to the folder of this file

new.yaml: 1 error
",
    );
    scratch.write("new.yaml", "extends: base/tiny.yaml\n");
    scratch.write("base/tiny.yaml", "extends: ../other.yaml\n");
    scratch.write("other.yaml", "# by another way\nextends: base/../new.yaml\n");
    told(
        &scratch,
        "",
        "\
error: base/../other.yaml:2:10: extends: specs extend each other in a circle
  found:   new.yaml -> base/tiny.yaml -> base/../other.yaml -> new.yaml
  help:    remove `extends` from one of them

new.yaml: 1 error
",
    );
    scratch.write("other.yaml", "name: [\n");
    let finished = scratch.run("validate new.yaml");
    expect![[r#"
        error: base/../other.yaml:2:1: not valid YAML: did not find expected node content, while parsing a flow node
          help:    check the indentation, brackets and quotes of this line and the one before

        new.yaml: 1 error
    "#]]
    .assert_eq(&finished.stderr);
    scratch.write("other.yaml", "# nothing\n");
    let finished = scratch.run("validate new.yaml");
    expect![[r#"
        error: base/../other.yaml:1:1: the spec is empty
          help:    start from a copy of specs/quickstart.yaml; `snclr schema` lists every key

        new.yaml: 1 error
    "#]]
    .assert_eq(&finished.stderr);
}
