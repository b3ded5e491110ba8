//! Writes shards and reads them back sample by sample; damaged shards are refused.

use std::{fs, fs::File, path::Path, path::PathBuf};

use arrow::array::RecordBatch;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

use super::*;
use crate::dataset::{
    Sample,
    decode::tests::{picture, png},
};

/// Sample `i`. Neighbours differ in size. Every third sample has no path, and only every third one has a label.
fn sample(i: usize) -> Sample {
    let bytes = (0..1 + i * 37 % 5000).map(|b| (b * 31 + i) as u8).collect();
    Sample {
        bytes,
        path: (!i.is_multiple_of(3)).then(|| format!("class/{i}.jpg")),
        label: (i % 3 == 2).then_some(i as i64),
    }
}

fn batches(samples: impl Iterator<Item = Sample>) -> Vec<RecordBatch> {
    let mut batcher = Batcher::default();
    let mut batches: Vec<_> = samples.filter_map(|sample| batcher.push(sample).unwrap()).collect();
    batches.extend(batcher.finish().unwrap());
    batches
}

fn write(dir: &Path, batches: Vec<RecordBatch>, limit: u64, properties: WriterProperties) -> Vec<PathBuf> {
    let mut batches = batches.into_iter().peekable();
    let mut paths = Vec::new();
    while batches.peek().is_some() {
        let path = dir.join(format!("train-{:05}.parquet", paths.len()));
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), tables::TRAIN.schema(), Some(properties.clone()))
                .unwrap();
        assert!(fill(&mut batches, limit, &mut |batch| Ok(writer.write(batch)?)).unwrap());
        writer.close().unwrap();
        paths.push(path);
    }
    paths
}

#[test]
fn every_sample_is_one_read_away() {
    let dir = tempfile::tempdir().unwrap();
    let count = 12_000;
    let paths = write(dir.path(), batches((0..count).map(sample)), 12 << 20, properties());
    assert!(paths.len() >= 3, "{} shards", paths.len());
    for path in &paths {
        let size = fs::metadata(path).unwrap().len();
        assert!(size <= 12 << 20, "{size} bytes");
    }
    let split = Split::open(&paths).unwrap();
    assert_eq!((split.len(), split.is_empty(), split.labels()), (count, false, None));
    for i in (0..count).rev() {
        assert_eq!(split.encoded(i).unwrap(), sample(i).bytes, "sample {i}");
        assert_eq!(split.label(i), sample(i).label);
    }
    // Row groups of bounded bytes, although a batch fits into one.
    let file = File::open(&paths[0]).unwrap();
    let metadata = parquet::arrow::arrow_reader::ArrowReaderMetadata::load(&file, Default::default()).unwrap();
    for group in metadata.metadata().row_groups() {
        assert!(group.total_byte_size() < 20 << 20);
    }
}

#[test]
fn images_and_full_labels() {
    let dir = tempfile::tempdir().unwrap();
    let samples = (1..5).map(|i| Sample { bytes: png(&picture(i, 3)), path: None, label: Some(i as i64) });
    let split = Split::open(&write(dir.path(), batches(samples), u64::MAX, properties())).unwrap();
    assert_eq!(split.labels(), Some(vec![1, 2, 3, 4]));
    assert_eq!(split.image(2).unwrap(), picture(3, 3));
    let split = Split::open(&[]).unwrap();
    assert!(split.is_empty());
}

#[test]
fn what_is_not_a_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fail = |paths: &[PathBuf]| format!("{:#}", Split::open(paths).unwrap_err());
    let paths = write(dir.path(), batches((0..9_000).map(sample)), 12 << 20, properties());
    let second = fail(&paths[1..]);
    assert!(second.contains("train-00001") && second.contains("it begins or goes on with sample"), "{second}");
    let plain = write(dir.path(), batches((0..90).map(sample)), u64::MAX, WriterProperties::default());
    assert!(fail(&plain).ends_with("its images share pages"));
    fs::write(&plain[0], b"PAR1").unwrap();
    assert!(fail(&plain).starts_with(&format!("cannot open shard `{}`: ", plain[0].display())));
}

#[test]
fn an_image_that_moved_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), batches((0..100).map(sample)), u64::MAX, properties()).remove(0);
    let split = Split::open(std::slice::from_ref(&path)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes.insert(4, 0);
    fs::write(&path, bytes).unwrap();
    let message = split.encoded(50).unwrap_err().to_string();
    assert!(message.ends_with("is not where the index says"), "{message}");
}
