//! Finds near duplicates: 64-bit hashes select candidates, and thumbnails or embeddings confirm them.
//!
//! Memory holds a hash and its places in the index, about 60 bytes per image. Thumbnails or embeddings are in a file without a
//! name, which disappears with the process.

mod index;
pub mod thumbnail;

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::Context;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use index::Index;
use thumbnail::{BYTES, Thumbnail, Window};

use super::{Interrupt, Progress, Stopped};
use crate::ops::random::Normals;

/// The most candidates that one image is compared with: the nearest by hash.
const MOST: usize = 32;
/// Images to look up between two checks for an interruption.
const AT_ONCE: usize = 1024;
/// The smallest likeness of thumbnails at which two images count as near duplicates.
const ALIKE: f32 = 0.8;
/// Number of independent hashes of embeddings. One hash may find a pair that another misses.
const ROUNDS: u64 = 2;

/// The numbers of two images, the later one first, and their likeness: 1 for equal images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub again: u32,
    pub first: u32,
    pub likeness: f32,
}

/// Records of a fixed size, in a file without a name.
pub struct Records {
    file: BufWriter<File>,
    size: usize,
}

impl Records {
    /// An empty file in `dir` for records of `size` bytes.
    pub fn new(dir: &Path, size: usize) -> anyhow::Result<Records> {
        let file = tempfile::tempfile_in(dir).with_context(|| format!("a scratch file in {}", dir.display()))?;
        Ok(Records { file: BufWriter::with_capacity(1 << 20, file), size })
    }

    /// Appends a record.
    pub fn push(&mut self, record: &[u8]) -> anyhow::Result<()> {
        debug_assert_eq!(record.len(), self.size);
        self.file.write_all(record).context("writing a scratch file")
    }

    /// Flushes the file; must be called before the first record is read.
    pub fn complete(&mut self) -> anyhow::Result<()> {
        self.file.flush().context("writing a scratch file")
    }

    fn read(&self, number: u32) -> anyhow::Result<Vec<u8>> {
        let mut record = vec![0; self.size];
        let at = number as u64 * self.size as u64;
        self.file.get_ref().read_exact_at(&mut record, at).context("reading a scratch file")?;
        Ok(record)
    }
}

/// A way to compare images.
trait Compared: Sync {
    /// The form in which an image is compared.
    type Item: Send + Sync;
    /// The choice of what is compared, e.g. a window of a thumbnail.
    type Way: Copy + Send;
    /// The smallest likeness at which two images count as near duplicates.
    fn from(&self) -> f32;

    fn item(&self, number: u32) -> anyhow::Result<Self::Item>;
    fn queries(&self, item: &Self::Item) -> Vec<(u64, Self::Way)>;
    fn likeness(&self, item: &Self::Item, way: Self::Way, other: &Self::Item) -> f32;
}

/// Looks up every image in `index`, and compares it with the candidates.
fn search<C: Compared>(
    compared: &C,
    index: &Index,
    numbers: &[u32],
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Pair>> {
    let of_one = |number: u32| -> anyhow::Result<Vec<Pair>> {
        let item = compared.item(number)?;
        let mut nearest = HashMap::<u32, (u32, C::Way)>::new();
        for (hash, way) in compared.queries(&item) {
            index.near(hash, |other, distance| {
                if other != number && nearest.get(&other).is_none_or(|(known, _)| distance < *known) {
                    nearest.insert(other, (distance, way));
                }
            });
        }
        let mut nearest: Vec<_> = nearest.into_iter().map(|(other, (distance, way))| (distance, other, way)).collect();
        nearest.sort_unstable_by_key(|(distance, other, _)| (*distance, *other));
        nearest.truncate(MOST);
        let mut pairs = Vec::new();
        for (_, other, way) in nearest {
            let likeness = compared.likeness(&item, way, &compared.item(other)?);
            if likeness >= compared.from() {
                pairs.push(Pair { again: number.max(other), first: number.min(other), likeness });
            }
        }
        Ok(pairs)
    };
    let mut found = Vec::new();
    for some in numbers.chunks(AT_ONCE) {
        if interrupt.requested() {
            return Err(Stopped::InterruptedAt { stage: "data" }.into());
        }
        let pairs: Vec<Vec<Pair>> = some.par_iter().map(|number| of_one(*number)).collect::<anyhow::Result<_>>()?;
        found.extend(pairs.into_iter().flatten());
        progress.advance(some.len() as u64);
    }
    Ok(found)
}

/// Keeps each pair once, with the larger of its likenesses, in the order of the images.
fn distinct(mut pairs: Vec<Pair>) -> Vec<Pair> {
    pairs.sort_by(|a, b| (a.again, a.first).cmp(&(b.again, b.first)).then(b.likeness.total_cmp(&a.likeness)));
    pairs.dedup_by_key(|pair| (pair.again, pair.first));
    pairs
}

struct Thumbnails<'a>(&'a Records);

impl Compared for Thumbnails<'_> {
    type Item = Thumbnail;
    type Way = Window;
    fn from(&self) -> f32 {
        ALIKE
    }

    fn item(&self, number: u32) -> anyhow::Result<Thumbnail> {
        let record: [u8; BYTES] = self.0.read(number)?.try_into().expect("records are thumbnails");
        Ok(Thumbnail::from_bytes(&record))
    }

    fn queries(&self, item: &Thumbnail) -> Vec<(u64, Window)> {
        Window::all().map(|window| (item.hash(window), window)).collect()
    }

    fn likeness(&self, item: &Thumbnail, way: Window, other: &Thumbnail) -> f32 {
        item.likeness(way, other)
    }
}

/// The near duplicates by `thumbnails`; `hashes` are those of the images to compare, with their numbers.
///
/// # Errors
/// When the records cannot be read; when the user interrupts.
pub fn by_thumbnails(
    thumbnails: &Records,
    hashes: &[(u64, u32)],
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Pair>> {
    let numbers: Vec<u32> = hashes.iter().map(|(_, number)| *number).collect();
    progress.start(Some(numbers.len() as u64), "images compared");
    Ok(distinct(search(&Thumbnails(thumbnails), &Index::new(hashes), &numbers, progress, interrupt)?))
}

/// Embeddings of `dim` values, their mean, and random directions.
struct Embeddings<'a> {
    records: &'a Records,
    mean: &'a [f32],
    /// 64 directions, each as wide as an embedding.
    directions: Vec<f32>,
    from: f32,
}

impl Embeddings<'_> {
    /// The signs of an embedding along 64 directions, as bits.
    fn hash(&self, item: &[f32]) -> u64 {
        let sides = self.directions.chunks_exact(item.len()).map(|direction| dot(direction, item) > 0.0);
        sides.fold(0, |hash, side| hash << 1 | side as u64)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Compared for Embeddings<'_> {
    type Item = Vec<f32>;
    type Way = ();
    fn from(&self) -> f32 {
        self.from
    }

    /// The embedding minus the mean, scaled to length 1. The mean is common to all images, so it does not distinguish them.
    fn item(&self, number: u32) -> anyhow::Result<Vec<f32>> {
        let record = self.records.read(number)?;
        let values = record.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        let mut item: Vec<f32> = values.zip(self.mean).map(|(value, mean)| value - mean).collect();
        let length = dot(&item, &item).sqrt().max(f32::MIN_POSITIVE);
        item.iter_mut().for_each(|value| *value /= length);
        Ok(item)
    }

    fn queries(&self, item: &Vec<f32>) -> Vec<(u64, ())> {
        vec![(self.hash(item), ())]
    }

    fn likeness(&self, item: &Vec<f32>, (): (), other: &Vec<f32>) -> f32 {
        dot(item, other)
    }
}

/// The candidates whose embeddings, minus `mean`, have a cosine of at least `from`. `numbers` are the images to compare.
///
/// # Errors
/// When the records cannot be read; when the user interrupts.
pub fn by_embeddings(
    records: &Records,
    mean: &[f32],
    numbers: &[u32],
    from: f32,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Pair>> {
    progress.start(Some(numbers.len() as u64 * ROUNDS), "embeddings compared");
    let mut found = Vec::new();
    for round in 0..ROUNDS {
        let mut normals = Normals::of(ChaCha8Rng::seed_from_u64(round));
        let directions = (0..64 * mean.len()).map(|_| normals.draw() as f32).collect();
        let embeddings = Embeddings { records, mean, directions, from };
        let hash = |number: &u32| Ok((embeddings.hash(&embeddings.item(*number)?), *number));
        let hashes: Vec<(u64, u32)> = numbers.par_iter().map(hash).collect::<anyhow::Result<_>>()?;
        found.extend(search(&embeddings, &Index::new(&hashes), numbers, progress, interrupt)?);
    }
    Ok(distinct(found))
}
