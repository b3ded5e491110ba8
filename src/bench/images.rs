//! Makes the images of the benchmarks: synthetic ones in shards, as the data stage writes them. They are the same on every
//! machine.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use crate::{
    dataset::{self, DataConfig, Sample, Split, SplitName, SyntheticConfig, shard},
    tables::TRAIN,
};

/// JPEG quality at which files have 0.6 bytes per pixel, as those of ImageNet have.
const JPEG_QUALITY: u8 = 88;

/// How the images are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Png,
    Jpeg,
}

impl Encoding {
    fn extension(self) -> &'static str {
        match self {
            Encoding::Png => "png",
            Encoding::Jpeg => "jpg",
        }
    }
}

/// Images in a temporary folder, which is deleted when they are dropped.
pub(super) struct Images {
    pub split: Arc<Split>,
    /// Bytes of all encoded images together.
    pub bytes: usize,
    _folder: TempDir,
}

impl Images {
    /// Makes `count` square images of `side` pixels. With `save`, also writes each image as a file into that folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(encoding: Encoding, side: u32, count: usize, save: Option<&Path>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("creating a scratch folder (TMPDIR says where)")?;
        if let Some(save) = save {
            fs::create_dir_all(save).with_context(|| format!("creating {}", save.display()))?;
        }
        let path = folder.path().join("train-00000.parquet");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut writer = ArrowWriter::try_new(file, TRAIN.schema(), Some(shard::properties()))?;
        let mut batcher = shard::Batcher::default();
        let (mut number, mut bytes) = (0, 0);
        let config =
            SyntheticConfig { classes: 10, train_images: count as u64, test_images: 1, image_size: side, seed: 0 };
        dataset::read(&DataConfig::Synthetic(config), SplitName::Train, &mut |mut sample| {
            if encoding == Encoding::Jpeg {
                sample.bytes = jpeg(&sample)?;
            }
            if let Some(save) = save {
                let path = save.join(format!("{number:05}.{}", encoding.extension()));
                fs::write(&path, &sample.bytes).with_context(|| format!("writing {}", path.display()))?;
            }
            (number, bytes) = (number + 1, bytes + sample.bytes.len());
            if let Some(batch) = batcher.push(sample)? {
                writer.write(&batch)?;
            }
            Ok(())
        })?;
        if let Some(batch) = batcher.finish()? {
            writer.write(&batch)?;
        }
        writer.close()?;
        Ok(Images { split: Arc::new(Split::open(&[path])?), bytes, _folder: folder })
    }
}

fn jpeg(sample: &Sample) -> anyhow::Result<Vec<u8>> {
    let image = sample.image().map_err(anyhow::Error::msg)?;
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(&image)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_in_the_shard_and_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for (encoding, name) in [(Encoding::Png, "00002.png"), (Encoding::Jpeg, "00002.jpg")] {
            let images = Images::new(encoding, 24, 3, Some(folder.path())).unwrap();
            assert_eq!(images.split.len(), 3);
            assert_eq!(images.split.image(0).unwrap().dimensions(), (24, 24));
            let saved = fs::read(folder.path().join(name)).unwrap();
            assert_eq!(images.split.encoded(2).unwrap(), saved);
            assert_eq!(images.bytes, (0..3).map(|i| images.split.encoded(i).unwrap().len()).sum::<usize>());
        }
    }
}
