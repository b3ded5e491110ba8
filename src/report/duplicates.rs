//! Images that are in a run's data twice, by their names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use anyhow::Context;
use arrow::{
    array::{Array, AsArray},
    datatypes::Int64Type,
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::artifacts::Table;
use crate::artifact::Artifact;

/// An image that is there twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twice {
    /// The one that came later, and the one that was first.
    pub places: [Image; 2],
}

impl Twice {
    /// Whether a test image is a training image.
    pub fn is_in_both_splits(&self) -> bool {
        let [again, first] = &self.places;
        again.split != first.split
    }

    /// Whether one image has two labels.
    pub fn is_in_two_classes(&self) -> bool {
        let [again, first] = &self.places;
        again.class.is_some() && first.class.is_some() && again.class != first.class
    }

    /// Whether it casts doubt on scores.
    pub fn matters(&self) -> bool {
        self.is_in_both_splits() || self.is_in_two_classes()
    }
}

/// An image by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub split: String,
    /// Its number within the split.
    pub sample: i64,
    /// Its path in the data, or its number.
    pub name: String,
    pub class: Option<String>,
}

/// An image by its numbers.
#[derive(Clone, Debug)]
pub struct Place {
    pub split: String,
    pub id: i64,
    pub label: Option<i64>,
}

/// What the data artifact lists, but for images that are there twice in one split and class.
///
/// # Errors
/// When its tables cannot be read.
pub fn duplicates(data: &Artifact) -> anyhow::Result<Vec<Twice>> {
    let mut found = exact(data)?;
    found.retain(Twice::matters);
    Ok(found)
}

/// All that the data artifact lists: each image that was there before byte for byte, and where it was first.
///
/// # Errors
/// When its tables cannot be read.
pub fn exact(data: &Artifact) -> anyhow::Result<Vec<Twice>> {
    let table = Table::read(data, "duplicates")?;
    let side = |prefix: &str| -> anyhow::Result<Vec<Place>> {
        let ids = table.integers(&format!("{prefix}sample_id"))?.into_iter().flatten();
        let splits = table.texts(&format!("{prefix}split"))?.into_iter().zip(ids);
        let labels = table.integers(&format!("{prefix}label"))?;
        Ok(splits.zip(labels).map(|((split, id), label)| Place { split, id, label }).collect())
    };
    let pairs = side("")?.into_iter().zip(side("first_")?);
    named(data, &pairs.map(|(again, first)| [again, first]).collect::<Vec<_>>())
}

/// Pairs of images of a data artifact, by their names.
///
/// # Errors
/// When its tables cannot be read.
pub fn named(data: &Artifact, pairs: &[[Place; 2]]) -> anyhow::Result<Vec<Twice>> {
    let classes = Table::read(data, "classes")?.texts("name")?;
    let mut wanted = BTreeMap::<&str, BTreeSet<i64>>::new();
    for place in pairs.iter().flatten() {
        wanted.entry(&place.split).or_default().insert(place.id);
    }
    let mut paths = BTreeMap::new();
    for (split, ids) in wanted {
        paths.insert(split, paths_of(data, split, &ids)?);
    }
    let named = |place: &Place| {
        let path = paths.get(place.split.as_str()).and_then(|paths| paths.get(&place.id)).cloned();
        let class = place.label.and_then(|label| classes.get(usize::try_from(label).ok()?));
        let name = path.unwrap_or_else(|| format!("sample {}", place.id));
        Image { split: place.split.clone(), sample: place.id, name, class: class.cloned() }
    };
    Ok(pairs.iter().map(|places| Twice { places: places.each_ref().map(named) }).collect())
}

/// Paths of some images of a split, where they have any; the images themselves are not read.
fn paths_of(data: &Artifact, split: &str, ids: &BTreeSet<i64>) -> anyhow::Result<BTreeMap<i64, String>> {
    let mut found = BTreeMap::new();
    for shard in data.tables_with_prefix(&format!("{split}-")) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&shard)?)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["sample_id", "image.path"]);
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).with_context(|| format!("a shard without `{name}`"));
            let samples = column("sample_id")?.as_primitive::<Int64Type>();
            let paths = column("image")?.as_struct().column_by_name("path").context("images without paths")?;
            let paths = paths.as_string::<i32>();
            for i in (0..batch.num_rows()).filter(|&i| paths.is_valid(i) && ids.contains(&samples.value(i))) {
                found.insert(samples.value(i), paths.value(i).to_owned());
            }
        }
    }
    Ok(found)
}
