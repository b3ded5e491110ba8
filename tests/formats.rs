//! Every format of images runs through all stages. Labels are optional; unreadable images are reported or skipped.

mod common;

use std::{io::Write, sync::Arc};

use arrow::{
    array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray},
    datatypes::{DataType, Field},
};
use common::{Finished, Scratch, complaint, lines};
use expect_test::expect;

const IMAGES: usize = 40;

/// An image of 32x32 that depends on its number.
fn pixels(number: usize) -> image::RgbImage {
    image::RgbImage::from_fn(32, 32, |x, y| {
        image::Rgb([(number * 5) as u8, (x * 7) as u8, (y as usize * number) as u8])
    })
}

fn encoded(number: usize, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels(number).write_to(&mut bytes, format).expect("an image");
    bytes.into_inner()
}

/// Runs the tiny spec for one epoch on `data`.
fn run(scratch: &Scratch, data: &str) -> Finished {
    let mut command = scratch.command("run tiny.yaml --json --set epochs=1 --set schedule.warmup_epochs=0");
    command.args(["--set", &format!("data={data}"), "--set", "batch_size=8", "--set", "method.queue_length=24"]);
    Finished::of(command.output().expect("the program starts"))
}

#[track_caller]
fn scores(scratch: &Scratch, data: &str) -> serde_json::Value {
    let finished = run(scratch, data);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    json["metrics"].clone()
}

fn parquet(scratch: &Scratch, name: &str, with_labels: bool) {
    let bytes: Vec<Vec<u8>> = (0..IMAGES).map(|i| encoded(i, image::ImageFormat::Jpeg)).collect();
    let image = StructArray::from(vec![
        (
            Arc::new(Field::new("bytes", DataType::Binary, true)),
            Arc::new(BinaryArray::from_iter_values(bytes)) as ArrayRef,
        ),
        (
            Arc::new(Field::new("path", DataType::Utf8, true)),
            Arc::new(StringArray::from_iter((0..IMAGES).map(|_| None::<&str>))) as ArrayRef,
        ),
    ]);
    let mut columns = vec![("img", Arc::new(image) as ArrayRef)];
    if with_labels {
        columns.push(("label", Arc::new(Int64Array::from_iter_values((0..IMAGES).map(|i| (i % 4) as i64)))));
    }
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let file = std::fs::File::create(scratch.path(name)).expect("a file");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("a footer");
}

#[test]
fn hugging_face_parquet_runs_and_without_labels_the_probes_say_why_they_are_skipped() {
    let scratch = Scratch::new();
    parquet(&scratch, "labelled.parquet", true);
    parquet(&scratch, "bare.parquet", false);
    let metrics = scores(&scratch, "{format: parquet, train: labelled.parquet, test: labelled.parquet}");
    assert!(metrics["knn/top1"].is_number() && metrics["linear/top1"].is_number());

    let finished = run(&scratch, "{format: parquet, train: bare.parquet}");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    expect![[r#"
        note: linear_probe: skipped, the train split has no labels
        note: knn: skipped, the train split has no labels
    "#]]
    .assert_eq(&lines(&finished.stderr, "note:"));
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert!(json["metrics"]["train/loss"].is_number() && json["metrics"].get("knn/top1").is_none());
}

/// The pretrain artifact's key, and whether the stage ran.
fn pretrain(finished: &Finished) -> (String, String) {
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let stages = json["stages"].as_array().expect("stages");
    let stage = stages.iter().find(|stage| stage["stage"] == "pretrain").expect("pretrain");
    (common::text(&stage["key"]), common::text(&stage["status"]))
}

#[test]
fn the_same_images_in_a_folder_a_table_and_an_archive_are_trained_on_once() {
    let scratch = Scratch::new();
    let class = |i: usize| if i < IMAGES / 2 { "cat" } else { "dog" };
    let rows: Vec<(String, Vec<u8>)> =
        (0..IMAGES).map(|i| (format!("{}/{i:02}.jpg", class(i)), encoded(i, image::ImageFormat::Jpeg))).collect();
    for (name, bytes) in &rows {
        scratch.write(&format!("photos/{name}"), bytes);
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in &rows {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, &bytes[..]).expect("a member");
    }
    scratch.write("photos.tar", archive.into_inner().expect("an archive"));
    let images = BinaryArray::from_iter_values(rows.iter().map(|(_, bytes)| bytes));
    let labels = StringArray::from_iter_values((0..IMAGES).map(class));
    let columns = [("image", Arc::new(images) as ArrayRef), ("label", Arc::new(labels) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let file = std::fs::File::create(scratch.path("photos.parquet")).expect("a file");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("rows");
    writer.close().expect("a footer");

    let first = pretrain(&run(&scratch, "{format: image_folder, train: photos}"));
    assert_eq!(first.1, "ran");
    for data in ["{format: parquet, train: photos.parquet}", "{format: webdataset, train: photos.tar}"] {
        let again = pretrain(&run(&scratch, data));
        assert_eq!(again, (first.0.clone(), "cached".to_owned()), "{data}");
    }
}

#[test]
fn what_makes_scores_meaningless_is_told_each_time_and_audit_names_the_images() {
    let scratch = Scratch::new();
    for i in 0..IMAGES {
        let class = if i % 2 == 0 { "cat" } else { "dog" };
        let bytes = encoded(i, image::ImageFormat::Jpeg);
        scratch.write(&format!("photos/train/{class}/{i}.jpg"), &bytes);
        // Every fifth test image is a training image.
        let test = if i % 5 == 0 { bytes } else { encoded(i + IMAGES, image::ImageFormat::Jpeg) };
        scratch.write(&format!("photos/test/{class}/{i}.jpg"), test);
    }
    let data = "{format: image_folder, train: photos/train, test: photos/test, on_error: skip}";
    let first = run(&scratch, data);
    let leak = lines(&first.stderr, "warning: data:");
    expect![[r#"
        warning: data: 8 of the 40 test images are training images, byte for byte, so that scores count them as known; the table `duplicates` of the data artifact lists them
    "#]]
    .assert_eq(&leak);
    // Unreadable images are skipped. They do not change the images of training, so the pretrain stage stays cached.
    std::os::unix::fs::symlink("gone.jpg", scratch.path("photos/train/cat/link.jpg")).expect("a link");
    scratch.write("photos/test/dog/half.jpg", &encoded(1, image::ImageFormat::Jpeg)[..200]);
    let again = run(&scratch, data);
    expect![[r#"
        warning: skipped `photos/train/cat/link.jpg`: it is a link to `gone.jpg`, which is not there
        warning: data.train: 1 image skipped: 1 unreadable
        warning: skipped `photos/test/dog/half.jpg`: truncated JPEG (no end-of-image marker)
        warning: data.test: 1 image skipped: 1 JPEG
        the same leak
        warning: skipped `photos/train/cat/link.jpg`: it is a link to `gone.jpg`, which is not there
        warning: data.train: 1 image skipped: 1 unreadable
        warning: skipped `photos/test/dog/half.jpg`: truncated JPEG (no end-of-image marker)
        warning: data.test: 1 image skipped: 1 JPEG
    "#]]
    .assert_eq(&lines(&again.stderr, "warning:").replace(&leak, "the same leak\n"));
    assert_eq!(pretrain(&again), (pretrain(&first).0, "cached".to_owned()));
    let json: serde_json::Value = serde_json::from_str(&again.stdout).expect("JSON");
    let ran = json["stages"].as_array().expect("stages").iter().filter(|stage| stage["status"] == "ran");
    assert_eq!(ran.map(|stage| common::text(&stage["stage"])).collect::<Vec<_>>(), ["data"]);
    let audit = scratch.run("audit tiny");
    let named = "        test cat/0.jpg (cat) is train cat/0.jpg (cat)\n";
    assert!(audit.stdout.contains(&leak.replace("warning: data", "warning data")), "{}", audit.stdout);
    assert!(audit.stdout.contains(named), "{}", audit.stdout);
    let json: serde_json::Value = serde_json::from_str(&scratch.run("audit tiny --json").stdout).expect("JSON");
    assert_eq!(json["duplicates"].as_array().map(Vec::len), Some(8));
}

#[test]
fn cifar10_binaries_run() {
    let scratch = Scratch::new();
    let batch: Vec<u8> = (0..IMAGES)
        .flat_map(|i| {
            let image = pixels(i);
            let plane = move |c: usize| image.pixels().map(move |p| p.0[c]).collect::<Vec<u8>>();
            [vec![(i % 10) as u8], plane(0), plane(1), plane(2)].concat()
        })
        .collect();
    scratch.write("cifar/data_batch_1.bin", &batch);
    scratch.write("cifar/test_batch.bin", &batch);
    let data = "{format: cifar10, train: cifar/data_batch_1.bin, test: cifar/test_batch.bin}";
    assert!(scores(&scratch, data)["knn/top1"].is_number());

    scratch.write("cifar/cut.bin", &batch[..5000]);
    let finished = run(&scratch, "{format: cifar10, train: cifar/cut.bin, test: cifar/test_batch.bin}");
    assert_eq!(finished.code, 1);
    expect![[r#"
        error: `cifar/cut.bin` is truncated: 6146 bytes expected, 5000 found
    "#]]
    .assert_eq(&finished.stderr);
}

#[test]
fn idx_files_run_gzipped() {
    let scratch = Scratch::new();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("bytes");
        encoder.finish().expect("gzip")
    };
    let header = |magic: u32, sizes: &[u32]| -> Vec<u8> {
        std::iter::once(&magic).chain(sizes).flat_map(|v| v.to_be_bytes()).collect()
    };
    let mut images = header(0x803, &[IMAGES as u32, 28, 28]);
    images.extend((0..IMAGES * 28 * 28).map(|i| (i * 7 % 251) as u8));
    let mut labels = header(0x801, &[IMAGES as u32]);
    labels.extend((0..IMAGES).map(|i| (i % 4) as u8));
    scratch.write("images.gz", gzip(&images));
    scratch.write("labels.gz", gzip(&labels));
    let data = "{format: idx, train: images.gz, train_labels: labels.gz, test: images.gz, test_labels: labels.gz}";
    assert!(scores(&scratch, data)["knn/top1"].is_number());
}

#[test]
fn a_corrupt_image_is_named_or_skipped_and_counted() {
    let scratch = Scratch::new();
    for i in 0..IMAGES {
        for split in ["train", "test"] {
            let name = format!("photos/{split}/{}/{i}.jpg", if i % 2 == 0 { "cat" } else { "dog" });
            scratch.write(&name, encoded(i, image::ImageFormat::Jpeg));
        }
    }
    scratch.write("photos/train/dog/broken.jpg", &encoded(1, image::ImageFormat::Jpeg)[..200]);
    let data = |on_error: &str| {
        format!("{{format: image_folder, train: photos/train, test: photos/test, on_error: {on_error}}}")
    };
    let finished = run(&scratch, &data("fail"));
    assert_eq!(finished.code, 1);
    expect![[r#"
        error: stage data
          because: cannot read image `photos/train/dog/broken.jpg`: truncated JPEG (no end-of-image marker) (`data.on_error: skip` leaves such images out)
    "#]]
    .assert_eq(complaint(&finished.stderr));
    scratch.write("photos/train/cat/empty.jpg", "");
    assert_eq!(run(&scratch, &data("fail")).code, 1);
    let listed = scratch.run("runs").stdout;
    let two = "cannot read 2 images of data.train (`data.on_error: skip` leaves such images out): \
               `photos/train/cat/empty.jpg`: the file is empty, …\n";
    assert!(listed.contains(two), "{listed}");
    let finished = run(&scratch, &data("skip"));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    expect![[r#"
        warning: skipped `photos/train/cat/empty.jpg`: the file is empty
        warning: skipped `photos/train/dog/broken.jpg`: truncated JPEG (no end-of-image marker)
        warning: data.train: 2 images skipped: 1 JPEG, 1 no image
        warning: data: 40 of the 40 test images are training images, byte for byte, so that scores count them as known; the table `duplicates` of the data artifact lists them
        warning: skipped `photos/train/cat/empty.jpg`: the file is empty
        warning: skipped `photos/train/dog/broken.jpg`: truncated JPEG (no end-of-image marker)
        warning: data.train: 2 images skipped: 1 JPEG, 1 no image
    "#]]
    .assert_eq(&lines(&finished.stderr, "warning:"));
}
