//! Examines a data artifact for `snclr data`: counts, sizes, formats, classes, duplicates and near duplicates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use rayon::prelude::*;

use super::{
    artifacts::Table,
    duplicates::{Twice, named},
    embeddings::class_names,
};
use crate::{
    artifact::Artifact,
    dataset::{Part, Sample, Split, SplitName, Stored, shard},
    stage::{
        Interrupt, Progress, Stopped,
        duplicates::{self, Duplicate, Place},
        embedder::Embedder,
        near::{
            self, Pair, Records,
            thumbnail::{BYTES, Thumbnail, Window},
        },
    },
    tables::{self, column::*},
};

/// Decoded images in memory at once.
const AT_ONCE: usize = 256;

/// Findings about a data set, before training.
pub struct Contents {
    pub splits: Vec<SplitContents>,
    /// Exact duplicates, and their first occurrence.
    pub exact: Vec<Twice>,
    pub near: Vec<Near>,
    /// Near duplicates by the embeddings of an encoder, if one is given.
    pub embedded: Option<Vec<Near>>,
    /// Number of images whose contrast is too low to search for near duplicates of them.
    pub plain: u64,
    /// Notes for readers of scores.
    pub notes: Vec<String>,
}

/// A pair of near duplicates.
#[derive(Clone, Debug)]
pub struct Near {
    pub twice: Twice,
    /// 1 for equal images.
    pub likeness: f32,
}

/// Findings about a split.
pub struct SplitContents {
    pub split: SplitName,
    pub images: u64,
    /// Unreadable images, by kind.
    pub unreadable: BTreeMap<String, u64>,
    /// Other files, by extension.
    pub left_out: BTreeMap<String, u64>,
    /// Number of images of each storage format.
    pub stored: BTreeMap<Stored, u64>,
    /// Number of images of each width and height, after EXIF rotation.
    pub sizes: BTreeMap<(u32, u32), u64>,
    /// Name and number of images of each class, by label, including empty classes.
    pub classes: Vec<(String, u64)>,
    /// Number of images without a label.
    pub unlabelled: u64,
}

/// A pair of duplicates, with its likeness for near duplicates.
pub type Pairs<'a> = Vec<(&'a Twice, Option<f32>)>;

impl Contents {
    /// The lists of duplicates: heading and pairs.
    pub fn lists(&self) -> Vec<(&'static str, Pairs<'_>)> {
        fn near(list: &[Near]) -> Pairs<'_> {
            list.iter().map(|near| (&near.twice, Some(near.likeness))).collect()
        }
        let exact = self.exact.iter().map(|twice| (twice, None)).collect();
        let mut lists = vec![("exact duplicates", exact), ("near duplicates", near(&self.near))];
        lists.extend(self.embedded.as_ref().map(|list| ("near by embedding", near(list))));
        lists
    }
}

impl SplitContents {
    /// Minimum, median and maximum of a length of the images.
    pub fn spread(&self, length: impl Fn(&(u32, u32)) -> u32) -> [u32; 3] {
        let mut counts = BTreeMap::<u32, u64>::new();
        for (size, images) in &self.sizes {
            *counts.entry(length(size)).or_default() += images;
        }
        let mut seen = 0;
        let middle = counts.iter().find(|(_, images)| {
            seen += **images;
            2 * seen >= self.images
        });
        let [first, last] = [counts.first_key_value(), counts.last_key_value()].map(|at| at.map_or(0, |(l, _)| *l));
        [first, middle.map_or(0, |(length, _)| *length), last]
    }
}

/// An encoder for the search of near duplicates, and the smallest cosine at which two images count as near duplicates.
pub struct Encoder<'a> {
    pub embedder: &'a Embedder,
    pub from: f32,
}

/// Sorts pairs: those that cast doubt on scores first, and then the most similar ones first.
pub fn worst_first(pairs: &mut [(&Twice, Option<f32>)]) {
    let alike = |likeness: &Option<f32>| likeness.unwrap_or(1.0);
    pairs.sort_by(|a, b| {
        b.0.duplicate.matters().cmp(&a.0.duplicate.matters()).then(alike(&b.1).total_cmp(&alike(&a.1)))
    });
}

/// Examines a data artifact, image by image.
///
/// # Errors
/// When its tables cannot be read, or the disk has no space for scratch files; when the user interrupts.
pub fn look(
    data: &Artifact,
    encoder: Option<&Encoder>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Contents> {
    let splits: Vec<(SplitName, Split)> = SplitName::ALL
        .into_iter()
        .map(|split| (split, data.files_of(&shard::table(split))))
        .filter(|(_, shards)| !shards.is_empty())
        .map(|(split, shards)| Ok((split, Split::open(&shards)?)))
        .collect::<anyhow::Result<_>>()?;
    let exact = named(data, duplicates::read(data)?)?;
    let mut looked = Looked::new(data, encoder, &exact)?;
    let all: usize = splits.iter().map(|(_, split)| split.len()).sum();
    progress.start(Some(all as u64), "images looked at");
    let mut contents = Vec::new();
    for (name, split) in &splits {
        contents.push(looked.split(*name, split, progress, interrupt)?);
    }
    let mut unreadable = counts(data, tables::SKIPPED, None)?;
    let mut left_out = counts(data, tables::LEFT_OUT, Some(FILES))?;
    let classes = class_names(data)?;
    for split in &mut contents {
        split.unreadable = unreadable.remove(split.split.as_str()).unwrap_or_default();
        split.left_out = left_out.remove(split.split.as_str()).unwrap_or_default();
        split.classes.resize_with(classes.len().max(split.classes.len()), Default::default);
        split.classes.iter_mut().zip(&classes).for_each(|((name, _), class)| name.clone_from(class));
    }

    let named_all = |pairs: Vec<Pair>| -> anyhow::Result<Vec<Near>> {
        let place = |number: u32| {
            let mut number = number as usize;
            let of = splits.iter().find(|(_, split)| {
                let is_here = number < split.len();
                number -= if is_here { 0 } else { split.len() };
                is_here
            });
            let (name, split) = of.context("a number beyond the last image")?;
            anyhow::Ok(Place { split: *name, id: number as i64, label: split.label(number) })
        };
        let found = |pair: &Pair| anyhow::Ok(Duplicate { again: place(pair.again)?, first: place(pair.first)? });
        let twice = named(data, pairs.iter().map(found).collect::<anyhow::Result<_>>()?)?;
        Ok(twice.into_iter().zip(&pairs).map(|(twice, pair)| Near { twice, likeness: pair.likeness }).collect())
    };
    looked.thumbnails.complete()?;
    let near = named_all(near::by_thumbnails(&looked.thumbnails, &looked.hashes, progress, interrupt)?)?;
    let embedded = match looked.embeddings.take() {
        Some(embeddings) => Some(named_all(embeddings.pairs(looked.next, progress, interrupt)?)?),
        None => None,
    };
    let notes = data.texts(&tables::NOTES)?.into_iter().map(|(_, text)| text).collect();
    let plain = looked.plain;
    drop(looked);
    Ok(Contents { splits: contents, exact, near, embedded, plain, notes })
}

/// The number of rows of a table, or the sum of one of its columns, by split and kind.
fn counts(
    data: &Artifact,
    table: tables::Table,
    count: Option<Column>,
) -> anyhow::Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let table = Table::read(data, table)?;
    let numbers = count.map(|column| table.integers(column)).transpose()?;
    let mut found = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for (row, (split, kind)) in table.texts(SPLIT)?.into_iter().zip(table.texts(KIND)?).enumerate() {
        let count = numbers.as_ref().map_or(1, |numbers| numbers[row].unwrap_or(0) as u64);
        *found.entry(split).or_default().entry(kind).or_default() += count;
    }
    Ok(found)
}

/// Thumbnails, hashes and embeddings of the images examined so far.
struct Looked<'a> {
    thumbnails: Records,
    /// Hash and number of each image that can be compared. Numbers continue from one split to the next.
    hashes: Vec<(u64, u32)>,
    plain: u64,
    embeddings: Option<Embeddings<'a>>,
    /// Split and number of each exact duplicate. Exact duplicates are not compared again.
    known: BTreeSet<(usize, i64)>,
    next: u32,
}

struct Embeddings<'a> {
    encoder: &'a Encoder<'a>,
    records: Records,
    sums: Vec<f64>,
    numbers: Vec<u32>,
}

impl Embeddings<'_> {
    fn pairs(mut self, images: u32, progress: &dyn Progress, interrupt: &Interrupt) -> anyhow::Result<Vec<Pair>> {
        self.records.complete()?;
        let mean: Vec<f32> = self.sums.iter().map(|sum| (sum / images.max(1) as f64) as f32).collect();
        near::by_embeddings(&self.records, &mean, &self.numbers, self.encoder.from, progress, interrupt)
    }
}

impl<'a> Looked<'a> {
    fn new(data: &Artifact, encoder: Option<&'a Encoder<'a>>, exact: &[Twice]) -> anyhow::Result<Looked<'a>> {
        let dir = data.dir().parent().context("an artifact without a folder")?;
        let embeddings = |encoder: &'a Encoder<'a>| {
            let dim = encoder.embedder.dim();
            let records = Records::new(dir, 4 * dim)?;
            anyhow::Ok(Embeddings { encoder, records, sums: vec![0.0; dim], numbers: vec![] })
        };
        Ok(Looked {
            thumbnails: Records::new(dir, BYTES)?,
            hashes: Vec::new(),
            plain: 0,
            embeddings: encoder.map(embeddings).transpose()?,
            known: exact
                .iter()
                .map(|twice| twice.duplicate.again)
                .map(|place| (place.split.index(), place.id))
                .collect(),
            next: 0,
        })
    }

    fn split(
        &mut self,
        name: SplitName,
        split: &Split,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<SplitContents> {
        let mut contents = SplitContents {
            split: name,
            images: split.len() as u64,
            unreadable: BTreeMap::new(),
            left_out: BTreeMap::new(),
            stored: BTreeMap::new(),
            sizes: BTreeMap::new(),
            classes: Vec::new(),
            unlabelled: 0,
        };
        let at_once = self.embeddings.as_ref().map_or(AT_ONCE, |e| e.encoder.embedder.per_batch());
        for first in (0..split.len()).step_by(at_once) {
            if interrupt.requested() {
                return Err(Stopped::InterruptedAt { stage: "data" }.into());
            }
            let samples = first..split.len().min(first + at_once);
            let look = |i: usize| {
                let bytes = split.encoded(i)?;
                let image = Part::from(split.image(i)?);
                anyhow::Ok((Stored::of(&bytes), image.size(), Thumbnail::of(&image), bytes))
            };
            let looked: Vec<_> = samples.clone().into_par_iter().map(look).collect::<anyhow::Result<_>>()?;
            let mut encoded = Vec::with_capacity(looked.len());
            for (i, (stored, size, thumbnail, bytes)) in samples.clone().zip(looked) {
                if let Some(stored) = stored {
                    *contents.stored.entry(stored).or_default() += 1;
                }
                *contents.sizes.entry(size).or_default() += 1;
                match split.label(i).and_then(|label| usize::try_from(label).ok()) {
                    Some(label) => {
                        let classes = contents.classes.len().max(label + 1);
                        contents.classes.resize_with(classes, Default::default);
                        contents.classes[label].1 += 1;
                    }
                    None => contents.unlabelled += 1,
                }
                self.add(&thumbnail, self.known.contains(&(name.index(), i as i64)))?;
                encoded.push(Sample { bytes, path: None, label: None });
            }
            self.embed(&encoded, |i| format!("{name} sample {}", first + i))?;
            progress.advance(samples.len() as u64);
        }
        Ok(contents)
    }

    /// Records the next image. `known` says that it is an exact duplicate, which is not compared.
    fn add(&mut self, thumbnail: &Thumbnail, known: bool) -> anyhow::Result<()> {
        self.thumbnails.push(thumbnail.bytes())?;
        if !known {
            match thumbnail.is_plain() {
                true => self.plain += 1,
                false => self.hashes.push((thumbnail.hash(Window::WHOLE), self.next)),
            }
            if let Some(embeddings) = &mut self.embeddings {
                embeddings.numbers.push(self.next);
            }
        }
        self.next = self.next.checked_add(1).context("more images than are compared")?;
        Ok(())
    }

    fn embed(&mut self, samples: &[Sample], name: impl Fn(usize) -> String + Sync) -> anyhow::Result<()> {
        let Some(Embeddings { encoder, records, sums, .. }) = &mut self.embeddings else { return Ok(()) };
        let samples: Vec<&Sample> = samples.iter().collect();
        let features = encoder.embedder.features(&samples, name)?;
        for row in features.chunks_exact(sums.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += *value as f64);
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
            records.push(&bytes)?;
        }
        Ok(())
    }
}
