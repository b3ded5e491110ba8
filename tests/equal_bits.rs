//! Compares the content hashes of tiny runs with a recorded list, `tests/golden/content_hashes.txt`. Every x86-64 CPU, vector
//! unit and number of threads must give the same hashes. "Determinism" in `docs/design.md` says what to do when they differ.
#![cfg(target_arch = "x86_64")]

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Finished, METHODS, Scratch, text, tiny_with};
use snclr::plan::Stage;

/// The command that records the list again.
const COMMAND: &str = "SNCLR_RECORD_HASHES=1 cargo test --release --test equal_bits";
/// The environment variable with a program, and its arguments, that runs `snclr`, e.g. `qemu-x86_64 -cpu Haswell`.
const UNDER: &str = "SNCLR_TEST_UNDER";

/// The encoders: ResNets with the CIFAR stem whose channels are multiples of 16 (`WIDE`) or not (`NARROW`), a ResNet with all
/// kinds of layers for ImageNet, and a transformer with 5 tokens.
const WIDE: &str = "{arch: resnet18, width_multiplier: 0.25, stem: cifar}";
const NARROW: &str = "{arch: resnet18, width_multiplier: 0.078125, stem: cifar}";
const BOTTLENECKS: &str = "{arch: resnet50, width_multiplier: 0.0625, stem: imagenet}";
const VIT: &str = "{arch: vit_tiny, patch_size: 8}";

const SYNTHETIC: &str = "{format: synthetic, classes: 4, train_images: 64, test_images: 20, image_size: 16}";
const JPEG: &str = "{format: image_folder, train: photos/train, test: photos/test}";
/// TIFF images, and JPEG images that an EXIF orientation turns.
const FORMATS: &str = "{format: image_folder, train: formats/train, test: formats/test}";

/// A run of the list. When its settings change, it must get another name.
struct Run {
    name: &'static str,
    /// The index of its method in [`METHODS`].
    method: usize,
    encoder: &'static str,
    data: &'static str,
    /// Images per batch. Sums over 12, 16 and 32 images have 1, 2 and 4 parts.
    batch: usize,
    accumulation: usize,
    small_crops: bool,
    /// Whether the tests repeat this run on every vector unit and number of threads.
    everywhere: bool,
}

#[rustfmt::skip]
const RUNS: [Run; 15] = [
    run("resnet-snclr", 0, NARROW, SYNTHETIC, 12, 1, true, true),
    run("resnet-infonce", 1, WIDE, JPEG, 16, 2, true, true),
    run("resnet-simclr", 2, NARROW, JPEG, 32, 1, false, true),
    run("resnet-nnclr", 3, WIDE, SYNTHETIC, 32, 1, false, false),
    run("resnet-swav", 4, NARROW, SYNTHETIC, 16, 2, true, false),
    run("resnet-formats", 1, NARROW, FORMATS, 16, 1, false, true),
    run("resnet-release", 5, WIDE, JPEG, 12, 3, false, false),
    run("bottlenecks-snclr", 0, BOTTLENECKS, JPEG, 32, 1, true, false),
    run("bottlenecks-swav", 4, BOTTLENECKS, SYNTHETIC, 16, 1, false, false),
    run("vit-snclr", 0, VIT, JPEG, 32, 1, false, false),
    run("vit-infonce", 1, VIT, SYNTHETIC, 12, 1, false, false),
    run("vit-simclr", 2, VIT, SYNTHETIC, 16, 2, false, false),
    run("vit-nnclr", 3, VIT, JPEG, 16, 1, true, true),
    run("vit-swav", 4, VIT, JPEG, 12, 2, false, true),
    run("vit-release", 5, VIT, SYNTHETIC, 32, 1, true, true),
];

#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn run(
    name: &'static str,
    method: usize,
    encoder: &'static str,
    data: &'static str,
    batch: usize,
    accumulation: usize,
    small_crops: bool,
    everywhere: bool,
) -> Run {
    Run { name, method, encoder, data, batch, accumulation, small_crops, everywhere }
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    run: String,
    stage: Stage,
    version: u64,
    hash: String,
}

fn list() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/content_hashes.txt")
}

/// The recorded list; empty if there is no file.
fn recorded() -> Vec<Entry> {
    parse(&std::fs::read_to_string(list()).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Entry> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [run, stage, version, hash] = fields[..] else { panic!("content_hashes.txt: not an entry: {line}") };
        let stage = Stage::ALL.into_iter().find(|known| known.name() == stage).expect("a stage");
        Entry { run: run.into(), stage, version: version.parse().expect("a version"), hash: hash.into() }
    };
    lines.map(entry).collect()
}

fn written(entries: &[Entry]) -> String {
    let mut text = format!("# run, stage, the stage's version, hash of the content. Recorded by: {COMMAND}\n");
    for Entry { run, stage, version, hash } in entries {
        writeln!(text, "{run:<18} {:<18} {version:>3} {hash}", stage.name()).expect("memory");
    }
    text
}

fn entry<'a>(entries: &'a [Entry], run: &str, stage: Stage) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.run == run && entry.stage == stage)
}

/// Reports stages whose hashes changed although their version was not raised. A stage whose input changed is expected to change,
/// so only the first stages that differ are reported. Also reports versions that fell.
fn silent_changes(recorded: &[Entry], found: &[Entry]) -> Vec<String> {
    let changed = |new: &Entry| entry(recorded, &new.run, new.stage).is_some_and(|old| old.hash != new.hash);
    let follows =
        |new: &Entry| new.stage.inputs().iter().any(|&input| entry(found, &new.run, input).is_some_and(changed));
    let mut problems = Vec::new();
    for new in found {
        let Some(old) = entry(recorded, &new.run, new.stage) else { continue };
        let name = format!("{} {}", new.run, new.stage);
        if new.version < old.version {
            problems.push(format!("{name}: the version fell from {} to {}", old.version, new.version));
        } else if changed(new) && new.version == old.version && !follows(new) {
            problems.push(format!(
                "{name}: numbers changed, version {} not raised: raise the stage's version in src/stage or restore \
                 the numbers",
                new.version
            ));
        }
    }
    problems
}

/// All differences between `found` and the recorded list, each with what to do about it.
fn differences(recorded: &[Entry], found: &[Entry]) -> Vec<String> {
    let mut problems = silent_changes(recorded, found);
    for new in found {
        let name = format!("{} {}", new.run, new.stage);
        match entry(recorded, &new.run, new.stage) {
            None => problems.push(format!("{name}: not in the list: record it by {COMMAND}")),
            Some(old) if new.version > old.version => problems.push(format!(
                "{name}: version raised from {} to {}: record the list anew by {COMMAND}",
                old.version, new.version
            )),
            Some(_) => {}
        }
    }
    problems
}

/// The new list, which is `found`.
///
/// # Errors
/// The problems that [`silent_changes`] reports.
fn record(recorded: &[Entry], found: Vec<Entry>) -> Result<Vec<Entry>, Vec<String>> {
    let problems = silent_changes(recorded, &found);
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

/// The vector unit and number of threads of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Setting<'a> {
    /// The vector unit; None is the widest of the CPU.
    unit: Option<&'a str>,
    threads: Option<usize>,
}

/// A scratch directory with a folder of JPEG images larger than the training size, and one of the same images as TIFF and as JPEG
/// with an EXIF orientation.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for (split, images) in [("train", 48), ("test", 16)] {
        for n in 0..images {
            let seed = n + if split == "test" { 100 } else { 0 };
            let image = image::RgbImage::from_fn(27, 22, |x, y| {
                image::Rgb([(x * (seed % 7 + 3)) as u8, (y * (seed % 5 + 4)) as u8, (seed * 37 + x * y) as u8])
            });
            let mut bytes = std::io::Cursor::new(Vec::new());
            image.write_to(&mut bytes, image::ImageFormat::Jpeg).expect("an image");
            let class = ["cat", "dog"][(n % 2) as usize];
            let jpeg = bytes.into_inner();
            scratch.write(&format!("photos/{split}/{class}/{n:02}.jpg"), &jpeg);
            let (name, bytes) = match n % 4 < 2 {
                true => (format!("{n:02}.jpg"), turned(&jpeg)),
                false => {
                    let mut bytes = std::io::Cursor::new(Vec::new());
                    image.write_to(&mut bytes, image::ImageFormat::Tiff).expect("an image");
                    (format!("{n:02}.tif"), bytes.into_inner())
                }
            };
            scratch.write(&format!("formats/{split}/{class}/{name}"), bytes);
        }
    }
    scratch
}

/// A JPEG with an EXIF segment that turns it by a quarter.
fn turned(jpeg: &[u8]) -> Vec<u8> {
    let exif = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    [&jpeg[..2], exif, &jpeg[2..]].concat()
}

/// The program with the arguments `line`, run by the program that [`UNDER`] names, if any.
fn program(scratch: &Scratch, line: &str, setting: Setting) -> Command {
    let plain = scratch.command(line);
    let mut command = match std::env::var(UNDER) {
        Ok(under) if !under.is_empty() => {
            let mut words = under.split_whitespace();
            let mut command = Command::new(words.next().expect("a program"));
            command.args(words).arg(plain.get_program()).args(plain.get_args()).current_dir(scratch.path(""));
            command
        }
        _ => plain,
    };
    command.env_remove("SNCLR_VECTOR_UNIT");
    if let Some(unit) = setting.unit {
        command.env("SNCLR_VECTOR_UNIT", unit);
    }
    if let Some(threads) = setting.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command
}

/// Computes the entries of some runs. Stages that runs share are computed once.
fn compute<'a>(scratch: &Scratch, runs: impl Iterator<Item = &'a Run>, setting: Setting) -> Vec<Entry> {
    let root = format!("runs-{}-{}", setting.unit.unwrap_or("widest"), setting.threads.unwrap_or(0));
    let mut entries = Vec::new();
    for run in runs {
        let file = format!("{}-{root}.yaml", run.name);
        scratch.write(&file, tiny_with(METHODS[run.method], run.small_crops));
        let mut command = program(scratch, &format!("run {file} --json --runs {root}"), setting);
        for (key, value) in [
            ("name", run.name),
            ("encoder", run.encoder),
            ("data", run.data),
            ("batch_size", &run.batch.to_string()),
            ("gradient_accumulation", &run.accumulation.to_string()),
            ("epochs", "2"),
            ("health.knn_every_epochs", "1"),
            ("linear_probe.epochs", "2"),
        ] {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let finished = Finished::of(command.output().expect("the program starts"));
        assert_eq!(finished.code, 0, "{}: {}", run.name, finished.stderr);
        let last = finished.stdout.lines().last().unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(last).expect("JSON");
        let record = scratch.path(&format!("{root}/results/{}/run.json", text(&json["run"])));
        let record = std::fs::read_to_string(record).expect("run.json");
        let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
        let stages = record["stages"].as_array().expect("stages");
        let contents: BTreeMap<_, _> = stages.iter().map(|s| (text(&s["stage"]), text(&s["content"]))).collect();
        // No run starts from a file of weights, so there is no stage `embed_initial`.
        entries.extend(Stage::of_experiment(false).into_iter().map(|stage| Entry {
            run: run.name.into(),
            stage,
            version: stage.version(),
            hash: contents[stage.name()].clone(),
        }));
    }
    entries
}

#[track_caller]
fn assert_recorded(recorded: &[Entry], found: &[Entry]) {
    let problems = differences(recorded, found);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Checks every vector unit with each number of `threads`, and reports all differences together.
#[track_caller]
fn assert_recorded_everywhere(threads: &[usize], runs: impl Fn(&&Run) -> bool) {
    let (scratch, recorded) = (scratch(), recorded());
    let mut problems = String::new();
    for unit in units(&scratch) {
        for &threads in threads {
            let setting = Setting { unit: Some(&unit), threads: Some(threads) };
            let begun = std::time::Instant::now();
            let found = compute(&scratch, RUNS.iter().filter(&runs), setting);
            println!("{unit}, {threads} threads: {:.0} s", begun.elapsed().as_secs_f32());
            for problem in differences(&recorded, &found) {
                writeln!(problems, "{unit}, {threads} threads: {problem}").expect("memory");
            }
        }
    }
    assert!(
        problems.is_empty(),
        "if the widest unit comes to the list, then these numbers depend on the unit or on threads:\n{problems}"
    );
}

/// The names of the vector units of this CPU, or of the emulated one.
fn units(scratch: &Scratch) -> Vec<String> {
    let finished = Finished::of(program(scratch, "doctor --json", Setting::default()).output().expect("it starts"));
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    report["vector_unit"]["available"].as_array().expect("a list").iter().map(text).collect()
}

/// Compares all runs with the list, or writes the list if `SNCLR_RECORD_HASHES` is set.
#[test]
fn the_listed_runs_come_to_the_recorded_content() {
    let found = compute(&scratch(), RUNS.iter(), Setting::default());
    let recorded = recorded();
    if std::env::var_os("SNCLR_RECORD_HASHES").is_none() {
        assert_recorded(&recorded, &found);
        let gone: Vec<_> = recorded.iter().filter(|old| entry(&found, &old.run, old.stage).is_none()).collect();
        assert!(gone.is_empty(), "no longer run: {gone:?}: record the list anew by {COMMAND}");
        return;
    }
    match record(&recorded, found) {
        Ok(entries) => std::fs::write(list(), written(&entries)).expect("the list"),
        Err(problems) => panic!("nothing is recorded:\n{}", problems.join("\n")),
    }
}

/// Compares a part of the list on every unit with 1 and 3 threads. It does nothing while the list is recorded.
#[test]
fn every_vector_unit_and_number_of_threads_comes_to_the_same_content() {
    if std::env::var_os("SNCLR_RECORD_HASHES").is_some() {
        return;
    }
    assert_recorded_everywhere(&[1, 3], |run| run.everywhere);
}

/// Compares the whole list on every unit with 1, 2 and 3 threads. `scripts/soak.sh` runs this test.
#[test]
#[ignore = "takes minutes: scripts/soak.sh"]
fn soak_every_run_on_every_unit() {
    assert_recorded_everywhere(&[1, 2, 3], |_| true);
}

/// Compares one ResNet and one transformer on the CPU that `SNCLR_TEST_UNDER` emulates. `scripts/soak.sh` runs this test.
#[test]
#[ignore = "takes minutes: scripts/soak.sh"]
fn soak_an_emulated_cpu() {
    let scratch = scratch();
    println!("units: {}", units(&scratch).join(", "));
    let runs = RUNS.iter().filter(|run| ["resnet-snclr", "vit-swav"].contains(&run.name));
    let found = compute(&scratch, runs, Setting::default());
    assert_recorded(&recorded(), &found);
}

#[test]
fn the_runs_of_the_tests_have_all_methods_encoders_and_parts() {
    for (what, vit) in [("resnet", false), ("vit", true)] {
        for method in 0..METHODS.len() {
            assert!(RUNS.iter().any(|run| run.method == method && (run.encoder == VIT) == vit), "{what} {method}");
        }
        for batch in [12, 16, 32] {
            assert!(RUNS.iter().any(|run| run.batch == batch && (run.encoder == VIT) == vit), "{what} {batch}");
        }
        for data in [SYNTHETIC, JPEG] {
            assert!(RUNS.iter().any(|run| run.data == data && (run.encoder == VIT) == vit), "{what} {data}");
        }
    }
    let everywhere: Vec<_> = RUNS.iter().filter(|run| run.everywhere).collect();
    assert!((0..METHODS.len()).all(|method| everywhere.iter().any(|run| run.method == method)));
}

#[test]
fn a_silent_change_is_neither_passed_nor_recorded() {
    let entry = |stage, version, hash: &str| Entry { run: "a".into(), stage, version, hash: hash.into() };
    let old = [
        entry(Stage::Data, 2, "d"),
        entry(Stage::Pretrain, 8, "p"),
        entry(Stage::Embed, 3, "e"),
        entry(Stage::EmbedRandomInit, 3, "r"),
    ];
    let with = |changes: &[(usize, u64, &str)]| {
        let mut new = old.to_vec();
        for &(at, version, hash) in changes {
            new[at] = entry(old[at].stage, version, hash);
        }
        new
    };
    assert_eq!(parse(&written(&old)), old);
    assert_eq!((differences(&old, &old), record(&old, old.to_vec())), (vec![], Ok(old.to_vec())));

    // A change that follows from another is not reported.
    let silent = with(&[(1, 8, "P"), (2, 3, "E")]);
    let told = "a pretrain: numbers changed, version 8 not raised: raise the stage's version in src/stage or \
                restore the numbers";
    assert_eq!(differences(&old, &silent), [told]);
    assert_eq!(record(&old, silent), Err(vec![told.to_owned()]));

    let raised = with(&[(1, 9, "P"), (2, 3, "E")]);
    let told = format!("a pretrain: version raised from 8 to 9: record the list anew by {COMMAND}");
    assert_eq!(differences(&old, &raised), [told]);
    assert_eq!(record(&old, raised.clone()), Ok(raised.clone()));
    assert_eq!(differences(&raised, &raised), Vec::<String>::new());

    // A raised version permits changes of its own stage and of the stages that read it, but of no other.
    let beside = with(&[(1, 9, "P"), (2, 3, "E"), (3, 3, "R")]);
    assert!(record(&old, beside).is_err_and(|told| told.len() == 1 && told[0].starts_with("a embed_random_init: ")));
    // Three more problems: a raised version without new numbers, a lowered version, and a run that is not in the list.
    assert!(differences(&old, &with(&[(1, 9, "p")]))[0].contains("version raised from 8 to 9"));
    assert!(
        record(&old, with(&[(1, 7, "P")])).is_err_and(|told| told[0] == "a pretrain: the version fell from 8 to 7")
    );
    assert!(
        differences(&[], &old).iter().all(|told| told.contains("not in the list: record it by SNCLR_RECORD_HASHES"))
    );
    assert_eq!(record(&[], old.to_vec()), Ok(old.to_vec()));
}
