//! Reads IDX files (the MNIST family): grey images and, in a second file, labels; gzipped or plain.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use image::ExtendedColorType;

use super::{
    DataError, IdxConfig, OnError, ReadSummary, Sample, Skipped, SourceFile, SplitName,
    decode::encode_png,
    ingest::{Sink, ingest},
    paths::{resolve_one, unreadable},
};

const IMAGES: &str = "an IDX file of images (00000803: bytes in three dimensions)";
const LABELS: &str = "an IDX file of labels (00000801: bytes in one dimension)";

/// A header that announces larger images than this is taken for damaged.
const MOST_PIXELS: u64 = 1 << 26;

/// An open IDX file whose header has been read.
struct Idx {
    path: PathBuf,
    body: Box<dyn Read>,
    /// Items, rows and columns of a file of images; only items of a file of labels.
    dims: Vec<u64>,
    consumed: u64,
}

impl Idx {
    fn open(path: PathBuf, expected: &'static str, dimensions: u8) -> Result<Idx, DataError> {
        let mut body: Box<dyn Read> = Box::new(BufReader::new(File::open(&path).map_err(unreadable(&path))?));
        let mut magic = [0; 4];
        let mut filled = fill(&mut body, &mut magic).map_err(unreadable(&path))?;
        if magic.starts_with(&[0x1f, 0x8b]) {
            let file = BufReader::with_capacity(1 << 18, File::open(&path).map_err(unreadable(&path))?);
            body = Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file)));
            filled = fill(&mut body, &mut magic).map_err(unreadable(&path))?;
        }
        if magic != [0, 0, 8, dimensions] || filled < 4 {
            let found = match filled {
                0 => "nothing".into(),
                n => magic[..n].iter().map(|b| format!("{b:02x}")).collect(),
            };
            return Err(DataError::WrongMagic { path, expected, found });
        }
        let mut idx = Idx { path, body, dims: vec![], consumed: 4 };
        for _ in 0..dimensions {
            let dim = idx.take(4, 4 + 4 * dimensions as u64)?;
            idx.dims.push(u32::from_be_bytes([dim[0], dim[1], dim[2], dim[3]]) as u64);
        }
        Ok(idx)
    }

    /// Length of header and body in bytes, as the header announces it.
    fn length(&self) -> u64 {
        4 + 4 * self.dims.len() as u64 + self.dims.iter().fold(1u64, |product, &dim| product.saturating_mul(dim))
    }

    /// The next `count` bytes. `expected` is the length that the whole file should have, for the error.
    fn take(&mut self, count: usize, expected: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; count];
        let filled = fill(&mut self.body, &mut bytes).map_err(unreadable(&self.path))?;
        self.consumed += filled as u64;
        match filled == count {
            true => Ok(bytes),
            false => Err(DataError::Length { path: self.path.clone(), expected, found: self.consumed }),
        }
    }

    /// Fails if the file is longer than its header announced.
    fn finish(&mut self) -> Result<(), DataError> {
        match fill(&mut self.body, &mut [0]).map_err(unreadable(&self.path))? {
            0 => Ok(()),
            more => {
                let (path, expected) = (self.path.clone(), self.consumed);
                Err(DataError::Length { path, expected, found: expected + more as u64 })
            }
        }
    }
}

/// Reads until `buffer` is full or the file ends. A truncated gzip stream counts as an end.
fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Image file and label file of a split.
fn paths(config: &IdxConfig, split: SplitName, base: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>, DataError> {
    let (images, labels) = match split {
        SplitName::Train => (Some(&config.train), &config.train_labels),
        SplitName::Test => (config.test.as_ref(), &config.test_labels),
    };
    let Some(images) = images else { return Ok(None) };
    let file = |path: &PathBuf| match resolve_one(path, split, base)? {
        path if path.is_dir() => Err(DataError::WrongKind { split, path, expected: "file" }),
        path => Ok(path),
    };
    Ok(Some((file(images)?, labels.as_ref().map(file).transpose()?)))
}

pub(super) fn source_files(
    config: &IdxConfig,
    split: SplitName,
    base: &Path,
    files: &mut Vec<SourceFile>,
) -> Result<(), DataError> {
    if let Some((images, labels)) = paths(config, split, base)? {
        files.push(SourceFile { role: format!("{split}/images"), path: images });
        files.extend(labels.map(|path| SourceFile { role: format!("{split}/labels"), path }));
    }
    Ok(())
}

pub(super) fn count(config: &IdxConfig, split: SplitName, base: &Path) -> Result<u64, DataError> {
    match paths(config, split, base)? {
        Some((images, _)) => Ok(Idx::open(images, IMAGES, 3)?.dims[0]),
        None => Ok(0),
    }
}

pub(super) fn read(config: &IdxConfig, split: SplitName, base: &Path, sink: &mut Sink) -> anyhow::Result<ReadSummary> {
    let Some((images, labels)) = paths(config, split, base)? else { return Ok(ReadSummary::default()) };
    let labels = labels.map(read_labels).transpose()?;
    let mut images = Idx::open(images, IMAGES, 3)?;
    let [count, rows, columns] = images.dims[..] else { unreachable!("three dimensions were read") };
    if rows == 0 || columns == 0 || rows * columns > MOST_PIXELS {
        let reason = format!("its header announces images of {rows} x {columns} pixels");
        return Err(DataError::Unreadable { path: images.path, reason }.into());
    }
    if let Some((path, labels)) = labels.as_ref().filter(|(_, labels)| labels.len() as u64 != count) {
        let (image_path, label_path, labels) = (images.path.clone(), path.clone(), labels.len() as u64);
        return Err(DataError::LabelCount { image_path, images: count, label_path, labels }.into());
    }
    let labels = labels.map(|(_, labels)| labels);
    let (pixels, length, path) = ((rows * columns) as usize, images.length(), images.path.clone());
    let next = |number: u64| match number < count {
        true => Some(images.take(pixels, length).map(|image| (pixels as u64, (number, image)))),
        false => images.finish().err().map(Err),
    };
    let items = (0..=count).map_while(with(next));
    let work = |(number, image): (u64, Vec<u8>)| match encode_png(
        &image,
        columns as u32,
        rows as u32,
        ExtendedColorType::L8,
    ) {
        Ok(bytes) => Ok(Sample { bytes, path: None, label: labels.as_ref().map(|l| l[number as usize] as i64) }),
        Err(reason) => {
            Err(Skipped { name: format!("{} image {number}", path.display()), kind: "pixels".into(), reason })
        }
    };
    let summary = ingest(split, OnError::Fail, items, work, sink)?;
    let classes = labels.as_ref().and_then(|labels| labels.iter().max()).map_or(0, |&most| most as usize + 1);
    Ok(ReadSummary { classes: (0..classes).map(|c| c.to_string()).collect(), ..summary })
}

/// Fixes the argument type of a closure, which the compiler does not infer here.
fn with<T>(next: impl FnMut(u64) -> Option<T>) -> impl FnMut(u64) -> Option<T> {
    next
}

/// All labels of a file. A label is one byte, so all of them fit in memory.
fn read_labels(path: PathBuf) -> Result<(PathBuf, Vec<u8>), DataError> {
    let mut file = Idx::open(path, LABELS, 1)?;
    let (count, length) = (file.dims[0] as usize, file.length());
    let labels = file.take(count, length)?;
    file.finish()?;
    Ok((file.path, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{DataConfig, decode::decode, read, source_files};
    use std::{fs, io::Write};

    fn images(count: u32) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3];
        for dim in [count, 3, 5] {
            bytes.extend(dim.to_be_bytes());
        }
        bytes.extend((0..count * 15).map(|i| i as u8));
        bytes
    }

    fn labels(labels: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 1];
        bytes.extend((labels.len() as u32).to_be_bytes());
        bytes.extend(labels);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Grey value of an image's last pixel, and its label.
    type Row = (u8, Option<i64>);

    /// Reads what the two files hold: the images and the number of classes; or the error.
    fn run(images: &[u8], labels: Option<&[u8]>) -> Result<(Vec<Row>, usize), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("images"), images).unwrap();
        let train_labels = labels.map(|bytes| {
            fs::write(path("labels"), bytes).unwrap();
            path("labels")
        });
        let config = DataConfig::Idx(IdxConfig { train: path("images"), train_labels, test: None, test_labels: None });
        let mut found = Vec::new();
        let summary = read(&config, SplitName::Train, &mut |sample| {
            let image = decode(&sample.bytes).unwrap();
            assert_eq!(image.dimensions(), (5, 3));
            let [r, g, b] = image.get_pixel(4, 2).0;
            assert!(r == g && g == b);
            found.push((r, sample.label));
            Ok(())
        });
        assert_eq!(source_files(&config, Path::new("")).unwrap().len(), 1 + labels.is_some() as usize);
        let message = |e: anyhow::Error| e.to_string().replace(&dir.path().display().to_string(), "DIR");
        summary.map(|s| (found, s.classes.len())).map_err(message)
    }

    #[test]
    fn grey_images_and_labels_plain_or_gzipped() {
        let expected = Ok((vec![(14, Some(7)), (29, Some(0)), (44, Some(2))], 8));
        assert_eq!(run(&images(3), Some(&labels(&[7, 0, 2]))), expected);
        assert_eq!(run(&gz(&images(3)), Some(&gz(&labels(&[7, 0, 2])))), expected);
        assert_eq!(run(&images(1), None), Ok((vec![(14, None)], 0)));
    }

    #[test]
    fn damage_is_named() {
        let fail = |images: &[u8], labels: Option<&[u8]>| run(images, labels).unwrap_err();
        let whole = images(3);
        assert_eq!(fail(&whole[..40], None), "`DIR/images` is truncated: 61 bytes expected, 40 found");
        assert_eq!(fail(&whole[..9], None), "`DIR/images` is truncated: 16 bytes expected, 9 found");
        let long = [&whole[..], &[0]].concat();
        assert_eq!(fail(&long, None), "`DIR/images` is too long: 61 bytes expected, 62 found");
        let packed = gz(&whole);
        assert!(fail(&packed[..packed.len() - 12], None).starts_with("`DIR/images` is truncated: 61 bytes expected"));
        assert_eq!(
            fail(&labels(&[1, 2]), None),
            "`DIR/images` is not an IDX file of images (00000803: bytes in three dimensions): it begins with 00000801"
        );
        assert_eq!(
            fail(&whole, Some(b"\x89PNG....")),
            "`DIR/labels` is not an IDX file of labels (00000801: bytes in one dimension): it begins with 89504e47"
        );
        assert_eq!(fail(&whole, Some(&labels(&[1, 2]))), "`DIR/labels` holds 2 labels, `DIR/images` 3 images");
        assert_eq!(fail(&images(0), None), "data.train: no images");
        let mut huge = images(1);
        huge[8..16].fill(0xff);
        assert!(fail(&huge, None).ends_with("its header announces images of 4294967295 x 4294967295 pixels"));
        assert!(fail(b"", None).ends_with("it begins with nothing"));
    }
}
