//! Every source of images runs through all stages; labels are optional; what cannot be read is named or skipped.

mod common;

use std::{io::Write, sync::Arc};

use arrow::{
    array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray},
    datatypes::{DataType, Field},
};
use common::{Finished, Scratch};

const IMAGES: usize = 40;

/// An image of 32x32 whose look depends on its number.
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

/// Runs the tiny spec for an epoch on `data`.
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
    assert!(finished.stderr.contains("note: knn: skipped"), "{}", finished.stderr);
    assert!(finished.stderr.contains("note: linear_probe: skipped"), "{}", finished.stderr);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert!(json["metrics"]["train/loss"].is_number() && json["metrics"].get("knn/top1").is_none());
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
    assert!(finished.stderr.contains("cifar/cut.bin"), "{}", finished.stderr);
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
    assert!(finished.stderr.contains("photos/train/dog/broken.jpg"), "{}", finished.stderr);
    let finished = run(&scratch, &data("skip"));
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("broken.jpg") && finished.stderr.contains("skipped"), "{}", finished.stderr);
}
