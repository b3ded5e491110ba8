//! Reads the binary version of CIFAR-10: records of one label byte and 3072 bytes of planar RGB.

use std::{
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use image::ExtendedColorType;

use super::{
    DataError, FilesConfig, ReadSummary, Sample, Skipped, SplitName,
    decode::encode_png,
    ingest::{Sink, ingest},
    paths::{expand, resolve, unreadable},
};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The batch files of a split. The length of each is checked to be a whole number of records.
pub(super) fn files(config: &FilesConfig, split: SplitName, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let Some(paths) = config.of(split) else { return Ok(vec![]) };
    let files = match split {
        SplitName::Train => expand(resolve(paths, split, base)?, split, "data_batch_*.bin", |name| {
            name.starts_with("data_batch") && name.ends_with(".bin")
        })?,
        SplitName::Test => {
            expand(resolve(paths, split, base)?, split, "test_batch.bin", |name| name == "test_batch.bin")?
        }
    };
    for path in &files {
        let found = fs::metadata(path).map_err(unreadable(path))?.len();
        if found == 0 || found % RECORD as u64 != 0 {
            let expected = (found / RECORD as u64 + 1) * RECORD as u64;
            return Err(DataError::Length { path: path.clone(), expected, found });
        }
    }
    Ok(files)
}

pub(super) fn count(config: &FilesConfig, split: SplitName, base: &Path) -> Result<u64, DataError> {
    let mut count = 0;
    for path in files(config, split, base)? {
        count += fs::metadata(&path).map_err(unreadable(&path))?.len() / RECORD as u64;
    }
    Ok(count)
}

pub(super) fn read(
    config: &FilesConfig,
    split: SplitName,
    base: &Path,
    sink: &mut Sink,
) -> anyhow::Result<ReadSummary> {
    let files = files(config, split, base)?;
    let items = files.iter().flat_map(|path| records(path));
    let work = |Record { path, number, bytes }: Record| {
        let name = || format!("{} record {number}", path.display());
        let label = bytes[0] as usize;
        if label >= CLASSES.len() {
            let reason = format!("label {label} is not in 0..{}", CLASSES.len());
            return Err(Skipped { name: name(), kind: "wrong label".into(), reason });
        }
        let mut pixels = vec![0; 3 * PLANE];
        for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = bytes[1 + channel * PLANE + i];
            }
        }
        match encode_png(&pixels, SIDE as u32, SIDE as u32, ExtendedColorType::Rgb8) {
            Ok(bytes) => Ok(Sample { bytes, path: None, label: Some(label as i64) }),
            Err(reason) => Err(Skipped { name: name(), kind: "pixels".into(), reason }),
        }
    };
    let summary = ingest(split, config.on_error, items, work, sink)?;
    Ok(ReadSummary { classes: CLASSES.map(String::from).to_vec(), ..summary })
}

/// A record as it is stored in its file.
struct Record<'a> {
    path: &'a Path,
    number: usize,
    bytes: Vec<u8>,
}

/// The records of a file, each with its size in bytes.
fn records(path: &Path) -> impl Iterator<Item = Result<(u64, Record<'_>), DataError>> {
    let (file, failed) = match File::open(path) {
        Ok(file) => (Some(BufReader::with_capacity(1 << 20, file)), None),
        Err(error) => (None, Some(Err(unreadable(path)(error)))),
    };
    let records = file.into_iter().flat_map(move |mut file| {
        let length = file.get_ref().metadata().map_or(0, |m| m.len());
        (0..(length / RECORD as u64) as usize).map(move |number| {
            let mut bytes = vec![0; RECORD];
            file.read_exact(&mut bytes).map_err(unreadable(path))?;
            Ok((RECORD as u64, Record { path, number, bytes }))
        })
    });
    failed.into_iter().chain(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{DataConfig, OnError, Paths, decode::decode, read, source_files};

    /// A record with the pixel's index (modulo 256) as red, the label as green, and 255 as blue.
    fn record(label: u8) -> Vec<u8> {
        let mut record = vec![label];
        record.extend((0..PLANE).map(|i| i as u8));
        record.extend([label; PLANE]);
        record.extend([255; PLANE]);
        record
    }

    fn folder(labels: [&[u8]; 3]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, labels) in ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"].iter().zip(labels) {
            let bytes: Vec<u8> = labels.iter().flat_map(|&l| record(l)).collect();
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn config(dir: &Path, on_error: OnError) -> DataConfig {
        let path = || Paths::One(dir.into());
        DataConfig::Cifar10(FilesConfig { train: path(), test: Some(path()), on_error })
    }

    #[test]
    fn planes_become_pixels_and_batches_follow_each_other() {
        let dir = folder([&[3, 9], &[0], &[5]]);
        let config = config(dir.path(), OnError::Fail);
        let mut labels = Vec::new();
        let summary = read(&config, SplitName::Train, &mut |sample| {
            let label = sample.label.unwrap();
            let image = decode(&sample.bytes).unwrap();
            assert_eq!(image.get_pixel(5, 2).0, [69, label as u8, 255]);
            labels.push(label);
            Ok(())
        })
        .unwrap();
        assert_eq!((labels, summary.classes[9].as_str()), (vec![3, 9, 0], "truck"));
        let roles: Vec<_> = source_files(&config, Path::new("")).unwrap().into_iter().map(|f| f.role).collect();
        assert_eq!(roles, ["test/00000.bin", "train/00000.bin", "train/00001.bin"]);
        assert_eq!(crate::dataset::count(&config, SplitName::Train).unwrap(), Some(3));
    }

    #[test]
    fn truncated_files_and_impossible_labels_are_named() {
        let dir = folder([&[1, 10], &[2], &[5]]);
        let fail = |on_error| read(&config(dir.path(), on_error), SplitName::Train, &mut |_| Ok(()));
        let message = fail(OnError::Fail).unwrap_err().to_string();
        assert!(message.contains("data_batch_1.bin record 1`: label 10 is not in 0..10"), "{message}");
        assert_eq!(fail(OnError::Skip).unwrap().skipped.len(), 1);

        let path = dir.path().join("data_batch_2.bin");
        fs::write(&path, &record(2)[..3000]).unwrap();
        let message = fail(OnError::Skip).unwrap_err().to_string();
        assert_eq!(message, format!("`{}` is truncated: 3073 bytes expected, 3000 found", path.display()));
        let empty = tempfile::tempdir().unwrap();
        let message = read(&config(empty.path(), OnError::Fail), SplitName::Test, &mut |_| Ok(())).unwrap_err();
        assert_eq!(message.to_string(), format!("data.test: no test_batch.bin in `{}`", empty.path().display()));
    }
}
