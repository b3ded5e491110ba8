//! Opens a table: Parquet, or Arrow IPC (file or stream). Any other file is refused with a description of what it is.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use ::parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};

use super::{
    DataError,
    columns::{BYTES, ImageColumn},
    unreadable,
};
use crate::dataset::decode::Kind;

/// Rows are decoded in batches of about this many bytes.
const BATCH_BYTES: i64 = 16 << 20;
/// Number of first bytes by which the kind of a file is recognised.
const HEAD: usize = 512;

/// The two kinds of files that hold tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Parquet,
    Arrow,
}

impl Container {
    /// Endings of its files, the usual one first.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Container::Parquet => &["parquet", "parq", "pq"],
            Container::Arrow => &["arrow", "feather"],
        }
    }
}

/// Record batches, or the error of reading them.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DataError>>>;

/// An open file.
pub struct Table {
    pub path: PathBuf,
    pub schema: SchemaRef,
    contents: Contents,
}

enum Contents {
    Parquet(Box<ParquetRecordBatchReaderBuilder<File>>),
    /// The batches are read from the start of the file each time.
    Arrow,
}

impl Table {
    /// Opens a file and reads its schema.
    ///
    /// Errors: a file that is not such a table; the error describes what it is, if that is known.
    pub fn open(container: Container, path: PathBuf) -> Result<Table, DataError> {
        let broken = |error: String| DataError::Unreadable {
            reason: found_instead(container, &path).unwrap_or(error),
            path: path.clone(),
        };
        let file = File::open(&path).map_err(unreadable(&path))?;
        if path.is_dir() {
            return Err(unreadable(&path)("a folder in the place of a file"));
        }
        match container {
            Container::Parquet => {
                let builder =
                    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| broken(error.to_string()))?;
                let schema = builder.schema().clone();
                Ok(Table { path, schema, contents: Contents::Parquet(Box::new(builder)) })
            }
            Container::Arrow => {
                let (schema, _) = arrow(&path, None).map_err(|error| broken(error.to_string()))?;
                Ok(Table { path, schema, contents: Contents::Arrow })
            }
        }
    }

    /// Number of rows. An Arrow file does not store it, so its batches are read and counted.
    pub fn count(&self) -> Result<u64, DataError> {
        match &self.contents {
            Contents::Parquet(builder) => Ok(builder.metadata().file_metadata().num_rows() as u64),
            Contents::Arrow => {
                let (_, batches) = arrow(&self.path, Some(&[])).map_err(unreadable(&self.path))?;
                let rows = batches.map(|batch| batch.map(|batch| batch.num_rows() as u64));
                rows.sum::<Result<u64, _>>().map_err(unreadable(&self.path))
            }
        }
    }

    /// Whether rows may name an image file in place of bytes.
    pub fn may_name_files(&self, image: &ImageColumn) -> bool {
        let Contents::Parquet(builder) = &self.contents else { return image.paths };
        let bytes = [image.name.as_str(), BYTES];
        let mut chunks = builder.metadata().row_groups().iter().flat_map(|group| group.columns());
        let nulls = |count: Option<u64>| count != Some(0);
        image.paths
            && (!image.bytes
                || chunks.any(|chunk| {
                    chunk.column_path().parts() == bytes && nulls(chunk.statistics().and_then(|s| s.null_count_opt()))
                }))
    }

    /// The rows of some columns in batches of bounded size. The batches of an Arrow file have the size they were written with.
    pub fn batches(self, columns: &[&str]) -> Result<Batches, DataError> {
        let path = self.path;
        match self.contents {
            Contents::Parquet(builder) => {
                let metadata = builder.metadata();
                let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
                let groups = metadata.row_groups().iter();
                let wanted = groups.flat_map(|group| group.columns().iter().enumerate());
                let bytes: i64 =
                    wanted.filter(|(leaf, _)| mask.leaf_included(*leaf)).map(|(_, c)| c.uncompressed_size()).sum();
                let per_row = bytes / metadata.file_metadata().num_rows().max(1) + 1;
                let size = (BATCH_BYTES / per_row).clamp(1, 1024) as usize;
                let reader = builder.with_projection(mask).with_batch_size(size).build().map_err(unreadable(&path))?;
                Ok(Box::new(reader.map(move |batch| batch.map_err(unreadable(&path)))))
            }
            Contents::Arrow => {
                let columns: Vec<_> = columns.iter().filter_map(|name| self.schema.index_of(name).ok()).collect();
                let (_, batches) = arrow(&path, Some(&columns)).map_err(unreadable(&path))?;
                Ok(Box::new(batches.map(move |batch| batch.map_err(unreadable(&path)))))
            }
        }
    }
}

type ArrowBatches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Schema and batches of an Arrow file, or of a stream, which is what the `datasets` library writes.
fn arrow(path: &Path, columns: Option<&[usize]>) -> Result<(SchemaRef, ArrowBatches), ArrowError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let columns = columns.map(<[usize]>::to_vec);
    match magic {
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            let reader = FileReader::try_new(file, columns)?;
            Ok((reader.schema(), Box::new(reader)))
        }
        // `a` to `d` are the length of the first message. The reader allocates that many bytes, so the length is checked first.
        [0xff, 0xff, 0xff, 0xff, a, b, c, d] if u64::from(u32::from_le_bytes([a, b, c, d])) <= length => {
            let reader = StreamReader::try_new(file, columns)?;
            Ok((reader.schema(), Box::new(reader)))
        }
        _ => Err(ArrowError::ParseError("it is no Arrow file".into())),
    }
}

/// Describes a file that does not open as a table. None if nothing is known beyond the error.
fn found_instead(container: Container, path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut head = Vec::with_capacity(HEAD);
    (&mut file).take(HEAD as u64).read_to_end(&mut head).ok()?;
    let mut tail = [0; 4];
    let end = file.seek(SeekFrom::End(-4)).and_then(|_| file.read_exact(&mut tail));
    let wanted = match container {
        Container::Parquet => "Parquet",
        Container::Arrow => "Arrow",
    };
    let other = |what: &str| Some(format!("it is {what}, and not {wanted}"));
    match &head[..] {
        [b'P', b'A', b'R', b'E', ..] => Some("its footer is encrypted, which is not read".into()),
        [b'P', b'A', b'R', b'1', ..] if container == Container::Arrow => other("a Parquet file (`format: parquet`)"),
        [b'P', b'A', b'R', b'1', ..] if end.is_err() || &tail != b"PAR1" => {
            Some("it begins as Parquet and its end is missing: the copy or download was cut off; fetch it again".into())
        }
        [b'P', b'A', b'R', b'1', ..] => None,
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] | [0xff, 0xff, 0xff, 0xff, ..] if container == Container::Parquet => {
            other("an Arrow file (`format: arrow`)")
        }
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            Some("it begins as Arrow and its end is missing: the copy or download was cut off; fetch it again".into())
        }
        _ if head.get(257..262) == Some(b"ustar") => other("a tar archive (`format: webdataset`)"),
        [0x1f, 0x8b, ..] => other("compressed by gzip (`gunzip` unpacks it)"),
        _ => match Kind::of(&head) {
            Kind::Other("of an unknown format") => {
                text(&head).and_then(|begins| other(&format!("a text file that begins with `{begins}`")))
            }
            Kind::Other("empty") => Some("the file is empty".into()),
            Kind::Other(what) => other(what),
            Kind::Image(format) => {
                other(&format!("a {format:?} image (`format: image_folder` reads folders of images)"))
            }
            Kind::Foreign { name, .. } => other(&format!("a {name} image")),
        },
    }
}

/// The beginning of the first line, where the file is text.
fn text(head: &[u8]) -> Option<String> {
    let whole = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end in the middle of a character.
        Err(error) if error.valid_up_to() + 4 > head.len() => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_text = !whole.chars().any(|c| c.is_control() && !c.is_whitespace());
    is_text.then(|| whole.trim_start().lines().next().unwrap_or_default().chars().take(40).collect())
}
