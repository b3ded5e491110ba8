//! Names the duplicate images in the data of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use arrow::array::{Array, AsArray};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::embeddings::class_names;
use crate::{
    artifact::Artifact,
    dataset::{SplitName, shard},
    stage::duplicates::{Duplicate, Place, read},
    tables::column::*,
};

/// A pair of duplicates or near duplicates, with the names of both images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twice {
    /// Numbers and labels of both.
    pub duplicate: Duplicate,
    /// The later image, and the first one.
    pub places: [Image; 2],
}

/// Split, class and path of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub split: SplitName,
    /// Path in the data; `sample N` if the data has no paths.
    pub name: String,
    pub class: Option<String>,
}

/// The duplicates of a data artifact that cast doubt on scores.
///
/// # Errors
/// When its tables cannot be read.
pub fn duplicates(data: &Artifact) -> anyhow::Result<Vec<Twice>> {
    named(data, read(data)?.into_iter().filter(Duplicate::matters).collect())
}

/// The names of pairs of images in a data artifact.
///
/// # Errors
/// When its tables cannot be read.
pub fn named(data: &Artifact, found: Vec<Duplicate>) -> anyhow::Result<Vec<Twice>> {
    let classes = class_names(data)?;
    let mut wanted = [BTreeSet::new(), BTreeSet::new()];
    for place in found.iter().flat_map(|duplicate| [duplicate.again, duplicate.first]) {
        wanted[place.split.index()].insert(place.id);
    }
    let mut paths = Vec::new();
    for (split, ids) in SplitName::ALL.into_iter().zip(&wanted) {
        paths.push(paths_of(data, split, ids)?);
    }
    let named = |place: Place| {
        let path = paths[place.split.index()].get(&place.id).cloned();
        let class = place.label.and_then(|label| classes.get(usize::try_from(label).ok()?));
        let name = path.unwrap_or_else(|| format!("sample {}", place.id));
        Image { split: place.split, name, class: class.cloned() }
    };
    let twice = |duplicate: Duplicate| Twice { duplicate, places: [duplicate.again, duplicate.first].map(named) };
    Ok(found.into_iter().map(twice).collect())
}

/// Paths of some images of a split, if they have any. Does not read the images themselves.
fn paths_of(data: &Artifact, split: SplitName, ids: &BTreeSet<i64>) -> anyhow::Result<BTreeMap<i64, String>> {
    let (mut found, table) = (BTreeMap::new(), shard::table(split));
    if ids.is_empty() {
        return Ok(found);
    }
    for shard in data.files_of(&table) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&shard)?)?;
        let path = format!("{}.{}", IMAGE.name, PATH.name);
        let mask = ProjectionMask::columns(builder.parquet_schema(), [SAMPLE_ID.name, &path]);
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            let (samples, paths) = (table.integers(&batch, SAMPLE_ID)?, table.part(&batch, PATH)?.as_string::<i32>());
            for i in (0..batch.num_rows()).filter(|&i| paths.is_valid(i) && ids.contains(&samples.value(i))) {
                found.insert(samples.value(i), paths.value(i).to_owned());
            }
        }
    }
    Ok(found)
}
