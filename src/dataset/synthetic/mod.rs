//! Generated images: a class is a shape filled with a texture; everything else about an image is nuisance.
//!
//! Image `i` of a split is a function of (`data.seed`, split, `i`) alone.

mod canvas;
mod scene;
mod shape;
mod texture;

use image::ExtendedColorType;

use super::{
    DataError, OnError, ReadSummary, Sample, Skipped, SplitName, SyntheticConfig,
    decode::encode_png,
    ingest::{Sink, ingest},
};
use crate::ops::random::{Purpose, stream};
use shape::Shape;
use texture::Texture;

/// Shape and texture of a class. The first five classes differ in both. With more classes, both are needed to tell all of them
/// apart.
fn class(label: u32) -> (Shape, Texture) {
    let shape = (label % 5) as usize;
    (Shape::ALL[shape], Texture::ALL[(shape + label as usize / 5) % 5])
}

pub(super) fn count(config: &SyntheticConfig, split: SplitName) -> u64 {
    match split {
        SplitName::Train => config.train_images,
        SplitName::Test => config.test_images,
    }
}

pub(super) fn read(config: &SyntheticConfig, split: SplitName, sink: &mut Sink) -> anyhow::Result<ReadSummary> {
    const MOST: u32 = (Shape::ALL.len() * Texture::ALL.len()) as u32;
    if !(2..=MOST).contains(&config.classes) {
        return Err(DataError::TooManyClasses { found: config.classes, most: MOST }.into());
    }
    let size = config.image_size;
    let work = |index: u64| {
        let label = (index % config.classes as u64) as u32;
        let mut random = stream(config.seed, Purpose::Synthetic, split as u64, index, 0);
        let pixels = scene::draw(class(label), size as usize, &mut random);
        match encode_png(&pixels, size, size, ExtendedColorType::Rgb8) {
            Ok(bytes) => Ok(Sample { bytes, path: None, label: Some(label as i64) }),
            Err(reason) => Err(Skipped { name: format!("generated image {index}"), kind: "pixels".into(), reason }),
        }
    };
    let bytes = 3 * size as u64 * size as u64;
    let items = (0..count(config, split)).map(|index| Ok((bytes, index)));
    let summary = ingest(split, OnError::Fail, items, work, sink)?;
    let name = |label| {
        let (shape, texture) = class(label);
        format!("{}-{}", texture.name(), shape.name())
    };
    Ok(ReadSummary { classes: (0..config.classes).map(name).collect(), ..summary })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{DataConfig, decode::decode, read};

    fn config(classes: u32, images: u64, size: u32, seed: u64) -> DataConfig {
        let (train_images, test_images) = (images, images / 5);
        DataConfig::Synthetic(SyntheticConfig { classes, train_images, test_images, image_size: size, seed })
    }

    fn all(config: &DataConfig, split: SplitName) -> Vec<Sample> {
        let mut samples = Vec::new();
        read(config, split, &mut |sample| {
            samples.push(sample);
            Ok(())
        })
        .unwrap();
        samples
    }

    #[test]
    fn images_depend_on_seed_split_and_index_alone() {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let alone = one.install(|| all(&config(10, 200, 24, 3), SplitName::Train));
        assert_eq!(alone, all(&config(10, 200, 24, 3), SplitName::Train));
        // A larger set begins with the smaller one.
        assert_eq!(alone[..], all(&config(10, 300, 24, 3), SplitName::Train)[..200]);
        let test = all(&config(10, 1000, 24, 3), SplitName::Test);
        assert!(alone.iter().zip(&test).all(|(a, b)| a.bytes != b.bytes), "the splits share an image");
        assert_ne!(alone[0].bytes, all(&config(10, 1, 24, 4), SplitName::Train)[0].bytes);
    }

    #[test]
    fn classes_are_balanced_distinct_and_named() {
        let config = config(25, 100, 16, 0);
        let samples = all(&config, SplitName::Train);
        for label in 0..25 {
            assert_eq!(samples.iter().filter(|s| s.label == Some(label)).count(), 4);
        }
        let mut names = read(&config, SplitName::Test, &mut |_| Ok(())).unwrap().classes;
        assert_eq!((names[0].as_str(), names[1].as_str()), ("plain-disc", "striped-square"));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 25);
        let error = read(
            &DataConfig::Synthetic(SyntheticConfig {
                classes: 26,
                train_images: 1,
                test_images: 1,
                image_size: 16,
                seed: 0,
            }),
            SplitName::Train,
            &mut |_| Ok(()),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "data.classes is 26; the generator can tell 2 to 25 classes apart");
    }

    /// Colour, place and background must not give a class away: raw pixels hardly do better than chance (10 %).
    #[test]
    fn nearest_neighbours_of_raw_pixels_are_poor() {
        let config = config(10, 4000, 32, 0);
        let points = |split| -> Vec<(Vec<f32>, i64)> {
            let unit = |sample: Sample| {
                let pixels: Vec<f32> = decode(&sample.bytes).unwrap().iter().map(|&p| p as f32).collect();
                let norm = pixels.iter().map(|p| p * p).sum::<f32>().sqrt();
                (pixels.into_iter().map(|p| p / norm).collect(), sample.label.unwrap())
            };
            all(&config, split).into_iter().map(unit).collect()
        };
        let (bank, queries) = (points(SplitName::Train), points(SplitName::Test));
        let right = |(query, label): &(Vec<f32>, i64)| {
            let cosine = |point: &[f32]| point.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
            let mut near: Vec<_> = bank.iter().map(|(point, label)| (cosine(point), *label)).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let votes = |label: i64| near[..20].iter().filter(|n| n.1 == label).count();
            (0..10).max_by_key(|&label| votes(label)) == Some(*label)
        };
        let score = queries.iter().filter(|query| right(query)).count() as f32 / queries.len() as f32;
        println!("kNN on raw pixels: {score}");
        assert!(score < 0.25, "{score}");
    }
}
