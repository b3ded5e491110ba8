//! `snclr embed`: the embeddings equal those of the run's own embed stage, a second call computes only new images, and the file
//! is replaced as a whole or not at all.

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float32Type, Int64Type},
};
use common::{Scratch, complaint, signal, text};
use expect_test::expect;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snclr::artifact::atomic;

/// A row of the output file.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    sample: i64,
    split: Option<String>,
    path: Option<String>,
    label: Option<i64>,
    sha256: Option<String>,
    embedding: Vec<f32>,
}

/// The rows of a file of `snclr embed`, or of a features table.
fn rows(path: &Path) -> Vec<Row> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("a file")).expect("Parquet");
    let mut rows = Vec::new();
    for batch in reader.build().expect("a reader") {
        let batch = batch.expect("a batch");
        let texts = |name: &str, i: usize| {
            let column = batch.column_by_name(name)?.as_string::<i32>();
            column.is_valid(i).then(|| column.value(i).to_owned())
        };
        let (samples, labels) =
            (batch["sample_id"].as_primitive::<Int64Type>(), batch["label"].as_primitive::<Int64Type>());
        let embeddings = batch["embedding"].as_fixed_size_list();
        for i in 0..batch.num_rows() {
            rows.push(Row {
                sample: samples.value(i),
                split: texts("split", i),
                path: texts("path", i),
                label: labels.is_valid(i).then(|| labels.value(i)),
                sha256: texts("image_sha256", i),
                embedding: embeddings.value(i).as_primitive::<Float32Type>().values().to_vec(),
            });
        }
    }
    rows
}

/// A value of the embed stage's audit.
fn audited(path: &Path, key: &str) -> String {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("a file")).expect("Parquet");
    let batch = reader.build().expect("a reader").next().expect("rows").expect("a batch");
    let (keys, values) = (batch["key"].as_string::<i32>(), batch["value"].as_string::<i32>());
    let at = keys.iter().position(|found| found == Some(key)).expect("the key");
    values.value(at).to_owned()
}

fn footer(path: &Path) -> BTreeMap<String, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("a file")).expect("Parquet");
    let pairs = reader.metadata().file_metadata().key_value_metadata().expect("metadata").clone();
    pairs.into_iter().filter_map(|pair| Some((pair.key, pair.value?))).collect()
}

/// The key of a stage, from the JSON of `snclr run`.
fn key(json: &Value, stage: &str) -> String {
    let stages = json["stages"].as_array().expect("stages");
    text(&stages.iter().find(|s| s["stage"] == stage).expect("the stage")["key"])
}

fn counts(json: &Value) -> [u64; 3] {
    ["rows", "computed", "reused"].map(|name| json[name].as_u64().expect("a count"))
}

/// Different small pictures as PNG files.
fn pictures(scratch: &Scratch, folder: &str, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let image = image::RgbImage::from_fn(20, 24, |x, y| image::Rgb([(x * n) as u8, (y * 9) as u8, (n * 40) as u8]));
        let path = scratch.path(&format!("{folder}/{n:03}.png"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        image.save(path).expect("a picture");
    }
}

#[test]
fn embeddings_of_the_runs_own_images_are_those_of_its_embed_stage() {
    let scratch = Scratch::new();
    let run = scratch.json("run tiny.yaml --json");
    let data = key(&run, "data");
    let line = format!("embed tiny --data {} -o out.parquet --json", &data[..8]);
    let first = scratch.json(&line);
    assert_eq!((counts(&first), &first["dim"]), ([136, 136, 0], &json!(32)));
    assert_eq!(first["run"], run["run"]);

    let out = scratch.path("out.parquet");
    let features = rows(&scratch.path(&format!("runs/store/embed/{}/features.parquet", key(&run, "embed"))));
    let found: Vec<Row> = rows(&out).into_iter().map(|row| Row { path: None, sha256: None, ..row }).collect();
    assert_eq!(found, features);

    // A second call computes nothing and writes the same bytes. So does a call with the spec in place of the artifact's key.
    let bytes = fs::read(&out).expect("the file");
    assert_eq!(counts(&scratch.json(&line)), [136, 0, 136]);
    assert_eq!(fs::read(&out).expect("the file"), bytes);
    assert_eq!(counts(&scratch.json("embed tiny --data tiny.yaml -o out.parquet --json")), [136, 0, 136]);
    let test = scratch.json("embed tiny --data tiny.yaml --split test -o out.parquet --json");
    assert_eq!(counts(&test), [40, 0, 40]);

    let about = footer(&out);
    assert_eq!(about["snclr.run"], text(&run["run"]));
    assert_eq!((about["snclr.dim"].as_str(), about["snclr.branch"].as_str()), ("32", "online"));
    let preprocessing: Value = serde_json::from_str(&about["snclr.preprocessing"]).expect("JSON");
    assert_eq!(
        preprocessing,
        json!({"resize": 16, "size": 16, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    );
    let audit = scratch.path(&format!("runs/store/embed/{}/audit.parquet", key(&run, "embed")));
    assert_eq!(about["snclr.encoder_sha256"], audited(&audit, "encoder_sha256_before"));
    let left: Vec<_> =
        fs::read_dir(scratch.path("")).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn only_new_images_are_computed_and_other_weights_are_refused() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set epochs=1");
    pictures(&scratch, "photos/cat", 0..5);
    pictures(&scratch, "photos/dog", 5..12);
    let out = scratch.path("out.parquet");
    let line = "embed tiny --data photos -o out.parquet";
    let said = scratch.run(line);
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (0, "wrote out.parquet: 12 rows of 32 features, 12 computed, 0 reused\n")
    );
    let before = rows(&out);
    assert_eq!(before[5].path.as_deref(), Some("dog/005.png"));
    assert_eq!(
        (before[4].label, before[5].label, before[5].sample, before[5].split.clone()),
        (Some(0), Some(1), 5, None)
    );
    let sha256 = Sha256::digest(fs::read(scratch.path("photos/dog/005.png")).expect("a picture"));
    assert_eq!(before[5].sha256, Some(sha256.iter().map(|byte| format!("{byte:02x}")).collect()));
    assert_eq!(footer(&out)["snclr.classes"], r#"["cat","dog"]"#);

    // Three images are new, one is renamed, one is removed, and one is copied. Only the three new ones are computed.
    pictures(&scratch, "photos/cat", 20..23);
    fs::rename(scratch.path("photos/dog/006.png"), scratch.path("photos/cat/000a.png")).expect("a move");
    fs::remove_file(scratch.path("photos/dog/007.png")).expect("a removal");
    fs::copy(scratch.path("photos/dog/008.png"), scratch.path("photos/dog/copy.png")).expect("a copy");
    assert_eq!(counts(&scratch.json(&format!("{line} --json"))), [15, 3, 12]);
    let after = rows(&out);
    for row in &after {
        let known = before.iter().find(|other| other.sha256 == row.sha256);
        assert!(known.is_none_or(|known| known.embedding == row.embedding), "{row:?}");
    }
    assert_eq!((after[1].path.as_deref(), after[1].label, after[1].sample), (Some("cat/000a.png"), Some(0), 1));
    assert_eq!(after[1].embedding, before[6].embedding);

    // A flat folder has no labels. Its images are still found by their hashes.
    fs::create_dir(scratch.path("flat")).expect("a folder");
    fs::copy(scratch.path("photos/dog/008.png"), scratch.path("flat/x.png")).expect("a copy");
    fs::copy(&out, scratch.path("flat.parquet")).expect("a copy");
    assert_eq!(counts(&scratch.json("embed tiny --data flat -o flat.parquet --json")), [1, 0, 1]);
    assert_eq!(rows(&scratch.path("flat.parquet"))[0].label, None);

    // Another seed has other weights.
    scratch.json("run tiny.yaml --json --set epochs=1 --set seed=2 --set name=other");
    let bytes = fs::read(&out).expect("the file");
    let refused = scratch.run("embed other --data photos -o out.parquet");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for part in ["error: out.parquet holds embeddings from other weights: run tiny-", "run other-", "--overwrite"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let momentum = scratch.run("embed tiny --data photos -o out.parquet --branch momentum");
    assert!(momentum.code == 1 && momentum.stderr.contains("(momentum encoder "), "{}", momentum.stderr);
    assert_eq!(fs::read(&out).expect("the file"), bytes);
    assert_eq!(counts(&scratch.json("embed other --data photos -o out.parquet --json --overwrite")), [15, 15, 0]);
    fs::write(&out, "mine").expect("a file");
    let foreign = scratch.run(line);
    assert_eq!(
        (foreign.code, foreign.stderr.lines().last()),
        (
            1,
            Some(
                "error: out.parquet already exists and was not written by `snclr embed`; choose another file, or replace this one with --overwrite"
            )
        )
    );
}

#[test]
fn what_cannot_be_read_is_named_or_left_out() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set epochs=1");
    pictures(&scratch, "photos", 0..3);
    scratch.write("photos/broken.png", "no picture");
    let line = "embed tiny --data photos -o out.parquet";
    let said = scratch.run(line);
    assert_eq!(said.code, 1);
    expect![[r#"
        error: cannot read image `photos/broken.png`: it is of an unknown format, and not JPEG, PNG, WebP, BMP, GIF, PNM or TIFF (`--on-error skip` leaves such images out)
    "#]]
    .assert_eq(complaint(&said.stderr));
    assert!(!scratch.path("out.parquet").exists());
    let json = scratch.json(&format!("{line} --on-error skip --json"));
    assert_eq!((counts(&json)[0], &json["skipped"]), (3, &json!(1)));
    let refused = [
        (
            "--data nothing -o x.parquet",
            expect![[r#"
                error: no such file or folder: `nothing`
            "#]],
        ),
        (
            "--data abcdef01 -o x.parquet",
            expect![[r#"
                error: there is no file, folder or data artifact `abcdef01`
            "#]],
        ),
        (
            "--data photos -o x.csv",
            expect![[r#"
                error: x.csv: the name must end in .parquet, the only format
            "#]],
        ),
        (
            "--data out.parquet -o out.parquet --overwrite",
            expect![[r#"
                error: out.parquet: this file holds the images; choose another output file
            "#]],
        ),
        (
            "--data photos --split test -o x.parquet",
            expect![[r#"
                error: --split applies to a spec, a data artifact, or a folder of tables or archives whose names contain `train` and `test`
            "#]],
        ),
        (
            "--data tiny.yaml --on-error skip -o x.parquet",
            expect![[r#"
                error: --format, --labels and --on-error apply to files and folders, not to a spec
            "#]],
        ),
    ];
    for (args, expected) in refused {
        let said = scratch.run(&format!("embed tiny {args}"));
        assert_eq!(said.code, 1, "{args}: {}", said.stderr);
        expected.assert_eq(&said.stderr);
    }
}

#[test]
fn a_hubs_folder_is_known_by_its_content_and_asks_for_the_split() {
    let scratch = Scratch::new();
    let run = scratch.json("run tiny.yaml --json --set epochs=1");
    // The shards of a data artifact are Parquet in the hub's schema.
    let shards = scratch.path(&format!("runs/store/data/{}", key(&run, "data")));
    scratch.write("hub/README.md", "---\nlicense: mit\n---\n");
    fs::create_dir(scratch.path("hub/data")).expect("a folder");
    for split in ["train", "test"] {
        let file = scratch.path(&format!("hub/data/{split}-00000-of-00001.parquet"));
        fs::copy(shards.join(format!("{split}-00000.parquet")), file).expect("a copy");
    }
    let said = scratch.run("embed tiny --data hub -o out.parquet");
    assert_eq!(said.code, 1);
    expect![[r#"
        error: the file names in `hub` are of several splits: train, test; choose one by --split train or --split test
    "#]]
    .assert_eq(&said.stderr);
    let embedded = |split: &str| {
        counts(&scratch.json(&format!("embed tiny --data hub --split {split} -o {split}.parquet --json")))[0]
    };
    assert_eq!((embedded("train"), embedded("test")), (96, 40));
}

#[test]
fn a_killed_call_leaves_the_old_file_and_an_interrupted_one_what_it_computed() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --set epochs=1");
    let out = scratch.path("out.parquet");
    scratch.json("embed tiny --data tiny.yaml --split test -o out.parquet --json");
    let old = fs::read(&out).expect("the file");
    // Enough images that the signal comes in time.
    let many =
        common::TINY.replace("train_images: 96", "train_images: 12000").replace("image_size: 16", "image_size: 48");
    scratch.write("many.yaml", many);
    let line = "embed tiny --data many.yaml --split train -o out.parquet";
    let begin = || {
        let child = scratch.command(line).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = child.expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        lines.next().expect("a line").expect("a line");
        let temporary = || {
            let names = fs::read_dir(scratch.path(".")).expect("the folder").map(|e| e.expect("an entry").file_name());
            names.filter(|name| atomic::is_sibling(&name.to_string_lossy())).count()
        };
        while temporary() == 0 {
            assert_eq!(child.try_wait().expect("a child"), None, "it ended too soon");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        (child, lines)
    };
    let mut at_work = std::time::Duration::from_millis(200);
    let (mut child, _lines) = begin();
    std::thread::sleep(at_work);
    child.kill().expect("a kill");
    child.wait().expect("an end");
    assert_eq!(fs::read(&out).expect("the file"), old);

    let partial = scratch.path(".out.parquet.partial");
    while !partial.exists() {
        let (mut child, lines) = begin();
        std::thread::sleep(at_work);
        signal(child.id(), "INT");
        let last = lines.map_while(Result::ok).last().expect("a last line");
        assert_eq!(child.wait().expect("an end").code(), Some(130), "{last}");
        assert_eq!(last, "interrupted at embed; run the same command again to go on with it");
        assert_eq!(fs::read(&out).expect("the file"), old);
        // On a busy machine the first batch may not be finished. Then there is no partial file, and the next round waits longer.
        at_work *= 2;
    }
    let kept = rows(&partial);
    assert!(!kept.is_empty() && kept.len() < 12_000, "{}", kept.len());

    let [rows, computed, reused] = counts(&scratch.json(&format!("{line} --json")));
    assert_eq!((rows, computed + reused), (12_000, 12_000));
    assert!(reused >= kept.len() as u64, "{reused} of {}", kept.len());
    assert!(!partial.exists());
}
