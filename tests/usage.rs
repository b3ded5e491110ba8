//! Errors of usage: they exit with code 2 (or 1), and print the whole text on stderr and nothing on stdout.

mod common;

use common::{Scratch, complaint};
use expect_test::expect;

#[track_caller]
fn fails(scratch: &Scratch, args: &str, code: i32, stderr: &str) {
    let finished = scratch.run(args);
    assert_eq!((finished.code, finished.stdout.as_str()), (code, ""), "{args}: {}", finished.stderr);
    assert_eq!(finished.stderr, stderr, "{args}");
}

#[test]
fn a_wrong_key_is_located_and_corrected() {
    let scratch = Scratch::new();
    scratch.write("wrong.yaml", common::TINY.replace("tau: 0.2", "temperature: 0.2"));
    let finished = scratch.run("run wrong.yaml");
    assert_eq!(finished.code, 2);
    expect![[r#"
        error: wrong.yaml:17:47: method.temperature: unknown key
          found:   temperature: 0.2
          allowed: name, k, queue_length, gamma, objective, tau, attention, normalize_attention, attention_dim, detach_w, threshold, queue_overflow, exclude_self, loss_scale, momentum
          help:    did you mean `tau`?

        wrong.yaml: 1 error
    "#]]
    .assert_eq(&finished.stderr);
    assert!(!scratch.path("runs").exists(), "a refused spec leaves nothing behind");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let scratch = Scratch::new();
    // A build with the feature `cuda` prints the driver's reason, so only the start and the end are compared.
    let finished = scratch.run("run tiny.yaml --device cuda:63");
    assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{}", finished.stderr);
    assert!(finished.stderr.starts_with("error: --device cuda:63: "), "{}", finished.stderr);
    assert!(finished.stderr.ends_with("--device cpu always works\n"), "{}", finished.stderr);
    assert!(!scratch.path("runs").exists(), "a refused device leaves nothing behind");
    let finished = scratch.run("run tiny.yaml --device tpu");
    assert_eq!(finished.code, 2);
    expect![[r#"
        error: invalid value 'tpu' for '--device <DEVICE>': no such device; use cpu, cuda, or cuda:N with N from 0 to 63

        For more information, try '--help'.
    "#]]
    .assert_eq(&finished.stderr);
}

/// The doctor says why there is no GPU, even if `--device` names a missing one.
#[test]
fn the_doctor_tells_about_devices() {
    let finished = Scratch::new().run("doctor --device cuda:63");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stdout.contains("device cpu   usable"), "{}", finished.stdout);
    assert!(finished.stdout.contains("device cuda  "), "{}", finished.stdout);
}

/// A missing vector unit is refused before any work, with a list of the available ones. The doctor refuses it too, since nothing
/// can be computed.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_vector_unit_that_is_not_there_is_refused() {
    let scratch = Scratch::new();
    let refused = |unit: &str, expected: &str| {
        for command in ["run tiny.yaml", "doctor"] {
            let output = scratch.command(command).env("SNCLR_VECTOR_UNIT", unit).output().expect("the program");
            let finished = common::Finished::of(output);
            assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{unit}: {}", finished.stderr);
            assert_eq!(finished.stderr, expected, "{unit}");
        }
    };
    let unknown = "error: SNCLR_VECTOR_UNIT: unknown vector unit ";
    refused("sse4", &format!("{unknown}`sse4`; use one of: scalar, avx2, avx512\n"));
    refused("AVX-512", &format!("{unknown}`AVX-512`; did you mean `avx512`? use one of: scalar, avx2, avx512\n"));
    let report = scratch.json("doctor --json");
    let available: Vec<_> =
        report["vector_unit"]["available"].as_array().expect("a list").iter().map(common::text).collect();
    let there = available.join(", ");
    for unit in ["avx2", "avx512"].into_iter().filter(|unit| !available.iter().any(|known| known == unit)) {
        refused(unit, &format!("error: SNCLR_VECTOR_UNIT: this CPU has no `{unit}`; it has: {there}\n"));
    }
    assert!(!scratch.path("runs").exists(), "a refused unit leaves nothing behind");
}

#[test]
fn precisions_of_gpus_are_refused_on_the_cpu() {
    let expected = [
        (
            "f16",
            expect![[r#"
                error: stage pretrain
                  because: precision: f16 needs a GPU; add --device cuda:0, or use precision: f32 (--set precision=f32)
            "#]],
        ),
        (
            "tf32",
            expect![[r#"
                error: stage pretrain
                  because: precision: tf32 needs a GPU; add --device cuda:0, or use precision: f32 (--set precision=f32)
            "#]],
        ),
    ];
    for (precision, expected) in expected {
        let finished = Scratch::new().run(&format!("run tiny.yaml --set precision={precision}"));
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        expected.assert_eq(complaint(&finished.stderr));
    }
}

#[test]
fn help_is_a_command_too() {
    let scratch = Scratch::new();
    let (command, option) = (scratch.run("help"), scratch.run("--help"));
    assert_eq!((command.code, &command.stdout), (0, &option.stdout));
    assert!(scratch.run("help run").stdout.starts_with("Run a spec: reuse cached stages"));
}

#[test]
fn a_name_that_is_too_long_for_a_folder_is_refused() {
    let scratch = Scratch::new();
    scratch.write("long.yaml", common::TINY.replace("name: tiny", &format!("name: {}", "n".repeat(250))));
    let finished = scratch.run("validate long.yaml");
    assert_eq!(finished.code, 2);
    expect![[r#"
        error: long.yaml:2:7: name: not a valid name
          found:   "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…
          allowed: letters, digits, `.`, `_` and `-`, with a letter or digit first; 200 characters at most
          help:    did you mean `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn`?

        long.yaml: 1 error
    "#]]
    .assert_eq(&finished.stderr);
}

#[test]
fn a_missing_data_set_is_named() {
    let scratch = Scratch::new();
    scratch.write("files.yaml", {
        let generated = "{format: synthetic, classes: 4, train_images: 96, test_images: 40, image_size: 16}";
        common::TINY.replace(generated, "{format: image_folder, train: nowhere/train}")
    });
    let finished = scratch.run("run files.yaml");
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    expect![[r#"
        error: data.train: no such file or folder: `nowhere/train`
    "#]]
    .assert_eq(complaint(&finished.stderr));
}

#[test]
fn a_spec_that_is_not_there_is_named() {
    fails(
        &Scratch::new(),
        "plan tinny.yaml",
        2,
        "error: tinny.yaml: cannot be read: no such file or directory\n  help:    did you mean `tiny.yaml`?\n\ntinny.yaml: 1 error\n",
    );
}
