//! Image sources (one file per format), the shards they are ingested into, and augmentation; unaware of artifacts.

pub mod augment;
mod cifar10;
mod config;
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
pub use error::DataError;
pub use infer::{FileFormat, UnclearData};
pub use sample::{LeftOut, ReadSummary, Sample, Skipped, SplitName};
pub use shard::Split;
pub use source::{SourceFile, count, read, source_files};
