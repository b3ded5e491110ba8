//! Image sources (one file per format), the shards that images are ingested into, and augmentation. Nothing here knows of
//! artifacts.

pub mod augment;
mod cifar10;
mod config;
mod crop_box;
mod decode;
mod error;
mod idx;
mod image_folder;
mod infer;
mod ingest;
mod layout;
mod names;
mod paths;
mod sample;
pub mod shard;
mod source;
mod synthetic;
mod table;
mod webdataset;

pub use config::*;
pub use crop_box::CropBox;
pub use decode::{Part, Stored};
pub use error::DataError;
pub use infer::{FileFormat, UnclearData};
use sample::MOST_CLASSES;
pub use sample::{Item, LeftOut, ReadSummary, Sample, Skipped, SplitName};
pub use shard::Split;
pub use source::{Source, SourceFile, each_source_file, has_split, read};
#[cfg(test)]
use source::{count, source_files};
