//! The table of `snclr embed`: its columns, and its footer, which identifies the encoder.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use parquet::{
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use crate::{
    artifact::hash::hex,
    tables::{EMBEDDINGS, column::*},
};

/// SHA-256 of an encoded image.
pub type Hash = [u8; 32];

/// The fields of a row besides the embedding.
#[derive(Clone, Debug)]
pub struct About {
    /// Number within its split.
    pub sample_id: i64,
    /// None for files on the command line.
    pub split: Option<&'static str>,
    pub path: Option<String>,
    pub label: Option<i64>,
    pub hash: Hash,
}

/// Builds rows of the table.
///
/// # Panics
/// When `embeddings` is not [rows, dim].
pub fn batch(rows: &[About], embeddings: Vec<f32>, dim: usize) -> RecordBatch {
    EMBEDDINGS.rows([
        SAMPLE_ID.of(rows.iter().map(|row| row.sample_id)),
        SPLIT.of(rows.iter().map(|row| row.split)),
        PATH.of(rows.iter().map(|row| row.path.as_deref())),
        LABEL.of(rows.iter().map(|row| row.label)),
        IMAGE_SHA256.of(rows.iter().map(|row| hex(&row.hash))),
        EMBEDDING.of_vectors(embeddings, dim),
    ])
}

/// Parquet settings. Embeddings are stored without dictionary, statistics or compression, and hashes without dictionary or
/// statistics, because they gain nothing from these.
pub fn properties() -> WriterProperties {
    let embedding = ColumnPath::new([EMBEDDING.name, "list", "item"].map(str::to_owned).to_vec());
    WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_column_compression(embedding.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(embedding.clone(), false)
        .set_column_statistics_enabled(embedding, EnabledStatistics::None)
        .set_column_dictionary_enabled(IMAGE_SHA256.name.into(), false)
        .set_column_statistics_enabled(IMAGE_SHA256.name.into(), EnabledStatistics::None)
        .build()
}

/// The inverse of [`hex`].
pub fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

/// The schema of a file. Its metadata holds the footer's values except the class names, so that any reader of the schema sees
/// them.
pub fn schema_with(footer: &Footer, dim: usize) -> SchemaRef {
    let known = footer.pairs(dim).into_iter().filter(|(key, _)| key != "snclr.classes");
    Arc::new(Schema::new_with_metadata(
        EMBEDDINGS.schema_of_width(dim).fields().clone(),
        known.collect::<HashMap<_, _>>(),
    ))
}

/// The values of the footer, under keys that begin with `snclr.`. If the first three are equal, equal images have equal
/// embeddings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// SHA-256 of the encoder's weights.
    pub encoder_sha256: String,
    /// The encoder's section of the spec, as JSON.
    pub encoder: String,
    /// Preprocessing of images, as JSON: `resize` (of the shorter side), `size` (of the centre), `mean`, `std`.
    pub preprocessing: String,
    pub run: String,
    /// `online` or `momentum`.
    pub branch: String,
    /// Class names by label, as a JSON list; empty if there are none.
    pub classes: String,
}

const KEYS: [&str; 6] = ["encoder_sha256", "encoder", "preprocessing", "run", "branch", "classes"];

impl Footer {
    /// Keys and values.
    pub fn pairs(&self, dim: usize) -> Vec<(String, String)> {
        let values = [&self.encoder_sha256, &self.encoder, &self.preprocessing, &self.run, &self.branch, &self.classes];
        let own = KEYS.into_iter().zip(values).map(|(key, value)| (key, value.clone()));
        let more = [("dim", dim.to_string()), ("version", env!("CARGO_PKG_VERSION").to_owned())];
        own.chain(more).map(|(key, value)| (format!("snclr.{key}"), value)).collect()
    }

    /// Reads the values by their keys; None if one is missing.
    pub fn read(value: impl Fn(&str) -> Option<String>) -> Option<Footer> {
        let of = |i: usize| value(&format!("snclr.{}", KEYS[i]));
        Some(Footer {
            encoder_sha256: of(0)?,
            encoder: of(1)?,
            preprocessing: of(2)?,
            run: of(3)?,
            branch: of(4)?,
            classes: of(5)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_footers_come_back() {
        let hash: Hash = std::array::from_fn(|i| (i * 8) as u8);
        assert_eq!(parse_hash(&hex(&hash)), Some(hash));
        assert_eq!((parse_hash("ab"), parse_hash(&"x".repeat(64))), (None, None));
        let footer = Footer { run: "a-1".into(), classes: "[\"cat\"]".into(), ..Footer::default() };
        let pairs = footer.pairs(3);
        let value = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        assert_eq!((value("snclr.dim").as_deref(), Footer::read(value)), (Some("3"), Some(footer)));
        assert_eq!(Footer::read(|_| None), None);
    }
}
