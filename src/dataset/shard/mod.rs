//! Shards: the Parquet files that images are ingested into. Their layout lets one `pread` fetch one image.
//!
//! The column `image.bytes` is uncompressed, plain, and has one value per data page. A page is a Thrift header, the
//! value's length (4 bytes) and the value, so the image is the last `bytes_size` bytes of the page that the offset
//! index names. Any Parquet reader can read the files as well.

mod batch;
mod rotate;
mod split;
#[cfg(test)]
mod tests;

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

pub use batch::{Batcher, row_hash};
pub use rotate::fill;
pub use split::Split;

use crate::{
    dataset::SplitName,
    tables::{self, Table, column},
};

/// A shard ends before it exceeds this size.
pub const SHARD_BYTES: u64 = 256 << 20;
/// Row groups end at about this many bytes; a writer holds one of them in memory.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// Path of the column with the encoded images.
const IMAGE_BYTES: [&str; 2] = [column::IMAGE.name, column::BYTES.name];

/// The table definition of a split's shards. The column `content_hash` holds the [`row_hash`].
pub fn table(split: SplitName) -> Table {
    match split {
        SplitName::Train => tables::TRAIN,
        SplitName::Test => tables::TEST,
    }
}

/// Parquet settings of a shard: a layout of the images that permits random access, and light compression for the other columns.
pub fn properties() -> WriterProperties {
    let path = |parts: &[&str]| ColumnPath::new(parts.iter().map(|part| part.to_string()).collect());
    let (bytes, hash) = (path(&IMAGE_BYTES), path(&[column::CONTENT_HASH.name]));
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        // The writer looks at the limits of a page once per batch of values.
        .set_write_batch_size(1)
        .set_column_compression(bytes.clone(), Compression::UNCOMPRESSED)
        .set_column_encoding(bytes.clone(), Encoding::PLAIN)
        .set_column_dictionary_enabled(bytes.clone(), false)
        .set_column_data_page_row_count_limit(bytes.clone(), 1)
        .set_column_statistics_enabled(bytes, EnabledStatistics::None)
        // Hashes do not repeat, do not compress, and have no useful order.
        .set_column_compression(hash.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(hash.clone(), false)
        .set_column_statistics_enabled(hash, EnabledStatistics::None)
        .build()
}
