//! The `data:` section of a spec: where images come from.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SplitName;

/// Where the images come from. `format` selects the reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum DataConfig {
    /// Images that the tool generates: classes by shape and texture; colour, position, scale, background and clutter are nuisance.
    Synthetic(SyntheticConfig),
    /// Class folders of images: `train/<class>/<image>`. JPEG, PNG, WebP, BMP, GIF, PNM and TIFF, told by their content.
    ImageFolder(FilesConfig),
    /// Parquet in the Hugging Face image schema: `image` or `img: struct<bytes, path>` and, optionally, `label` (integers or text).
    Parquet(TableConfig),
    /// Arrow IPC files in the same schema, such as the `datasets` library saves.
    Arrow(TableConfig),
    /// WebDataset: tar archives, gzipped or plain, of images with labels beside them (`0001.jpg`, `0001.cls`) or in class folders.
    Webdataset(FilesConfig),
    /// The binary version of CIFAR-10: `data_batch_*.bin` and `test_batch.bin`.
    Cifar10(FilesConfig),
    /// IDX files (the MNIST family), gzipped or plain.
    Idx(IdxConfig),
}

/// What to do with an image that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Stop with an error that names the image.
    #[default]
    Fail,
    /// Leave the image out; skipped images are counted and reported.
    Skip,
}

/// One path or a list of paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Paths {
    One(PathBuf),
    Many(#[schemars(length(min = 1))] Vec<PathBuf>),
}

impl Paths {
    /// The paths in the order given.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(paths) => paths,
        }
    }
}

/// Generated images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Number of classes (a shape combined with a texture each), at most 25.
    #[schemars(range(min = 2, max = 25))]
    pub classes: u32,
    /// Number of training images.
    #[schemars(range(min = 1))]
    pub train_images: u64,
    /// Number of test images.
    #[schemars(range(min = 1))]
    pub test_images: u64,
    /// Height and width in pixels.
    #[schemars(range(min = 16, max = 512))]
    pub image_size: u32,
    /// Seed of the generator; apart from the experiment's seed, so that runs of several seeds share their data.
    #[serde(default)]
    pub seed: u64,
}

/// Files or folders of the two splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// Training split: a folder, or (cifar10, webdataset) one or several files or the folder that holds them.
    #[schemars(extend("x-operational" = true))]
    pub train: Paths,
    /// Test split; without it the probes are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub test: Option<Paths>,
    /// What to do with an image that cannot be read.
    #[serde(default)]
    pub on_error: OnError,
}

impl FilesConfig {
    /// Paths of a split; None if the split is not configured.
    pub fn of(&self, split: SplitName) -> Option<&Paths> {
        match split {
            SplitName::Train => Some(&self.train),
            SplitName::Test => self.test.as_ref(),
        }
    }
}

/// Tables (Parquet or Arrow files) of the two splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Training split: one file, several, or a folder of them; of a folder whose names say `train` and `test`, those of the split.
    #[schemars(extend("x-operational" = true))]
    pub train: Paths,
    /// Test split; without it the probes are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub test: Option<Paths>,
    /// Image column; found by itself when it is called `image` or `img`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Label column, of integers or text; found by itself when it is called `label`, `labels` or `fine_label`. `none` reads no labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// What to do with an image that cannot be read.
    #[serde(default)]
    pub on_error: OnError,
}

impl TableConfig {
    /// Paths of a split; None if the split is not configured.
    pub fn of(&self, split: SplitName) -> Option<&Paths> {
        match split {
            SplitName::Train => Some(&self.train),
            SplitName::Test => self.test.as_ref(),
        }
    }
}

/// IDX image and label files of the two splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdxConfig {
    /// Training images, e.g. `train-images-idx3-ubyte.gz`.
    #[schemars(extend("x-operational" = true))]
    pub train: PathBuf,
    /// Training labels; optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub train_labels: Option<PathBuf>,
    /// Test images; without them the probes are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub test: Option<PathBuf>,
    /// Test labels; optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub test_labels: Option<PathBuf>,
}
